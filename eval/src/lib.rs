//! Tasks, scores with intervals, compressors to compare with, and reports.

pub mod compress;
mod error;
pub mod interval;
pub mod report;
pub mod run;
pub mod task;

pub use error::Error;
