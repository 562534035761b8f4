//! Pretraining and fine-tuning: optimizers, schedules, loops, checkpoints, metrics.

pub mod checkpoint;
pub mod guard;
pub mod muon;
pub mod optimizer;
pub mod schedule;
pub mod trainer;

pub use trainer::{
    Metric, Observer, Precision, Sample, Source, StepMetric, Summary, Timing, TrainConfig,
    TrainError, Trainer, Validation,
};
