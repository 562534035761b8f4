//! Pretraining and fine-tuning: optimizers, schedules, loops, checkpoints, metrics.

pub mod checkpoint;
pub mod muon;
pub mod optimizer;
pub mod schedule;
pub mod trainer;

pub use trainer::{
    Metric, Observer, Precision, Sample, Source, StepMetric, Summary, TrainConfig, Trainer,
    Validation,
};
