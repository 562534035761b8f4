//! Formats to text.

pub mod html;
pub mod json;
pub mod mail;
pub mod notebook;
pub mod office;
pub mod pdf;
mod pdf_font;
mod pdf_page;
pub mod sheet;
mod xml;
