//! What a run cost on the machine that it ran on: time, speed, memory. Apart from the report, for
//! these figures are others each time.

use serde::Serialize;

use super::format::{bytes, count, duration, percent, tick};
use super::plot::{self, Curve, Plot, Tone};
use super::view::Named;
use crate::Error;
use crate::run::RunDirectory;

/// What the templates of costs place.
#[derive(Serialize)]
pub struct Costs {
    rows: Vec<Row>,
    total: String,
    machine: Vec<Named>,
    plot: Option<String>,
    plot_css: String,
}

#[derive(Serialize)]
struct Row {
    stage: String,
    time: String,
    tokens: String,
    speed: String,
    share: String,
    memory: String,
}

impl Costs {
    /// Writes down what `record` holds.
    ///
    /// # Errors
    /// [`Error::Render`] if the plot fails.
    pub fn of(record: &RunDirectory) -> Result<Costs, Error> {
        let row = |s: &crate::run::Stage| Row {
            stage: s.stage.clone(),
            time: duration(s.seconds),
            tokens: s.tokens.map_or(String::new(), |t| count(t as f64)),
            speed: match s.tokens {
                Some(t) if s.seconds > 0.0 => count((t as f64 / s.seconds).round()),
                _ => String::new(),
            },
            share: s.share_of_peak.map_or(String::new(), percent),
            memory: s.peak_rss_bytes.map_or(String::new(), |b| bytes(b as f64)),
        };
        let machine = record.machine.iter().flat_map(|m| {
            [
                ("command", m.command.clone()),
                ("processor", m.cpu.clone()),
                ("instruction set", m.isa.clone()),
                ("threads", m.threads.to_string()),
                ("measured peak of products", format!("{:.0} GFLOP/s", m.peak_flops_per_s / 1e9)),
            ]
        });
        let points = record.speed.iter().map(|s| (s.tokens as f64, s.tokens_per_s)).collect();
        let plot = Plot {
            title: "Speed, tokens per second, pretraining",
            x_name: "tokens",
            curves: vec![Curve { name: "", tone: Tone::First, points }],
            levels: Vec::new(),
            logarithmic: false,
            from_zero: true,
            x_label: tick,
            y_label: tick,
        };
        Ok(Costs {
            rows: record.stages.iter().map(row).collect(),
            total: duration(record.stages.iter().map(|s| s.seconds).sum()),
            machine: machine.map(|(name, value)| Named { name: name.into(), value }).collect(),
            plot: plot.svg()?,
            plot_css: plot::css(),
        })
    }
}
