//! Tasks, scores with intervals, compressors to compare with, and reports.

pub mod ask;
pub mod compress;
mod error;
pub mod interval;
pub mod microworld;
pub mod overlap;
pub mod report;
pub mod run;
pub mod score;
pub mod speaker;
pub mod task;

pub use error::Error;
