//! Tasks, scores with intervals, compressors to compare with, and reports.

pub mod compress;
mod error;
pub mod interval;

pub use error::Error;
