//! Pretraining and fine-tuning: optimizers, schedules, loops, checkpoints, metrics.
