//! What all commands share: their common flags, the machine, and what is said on stdout.

use std::io::Write;
use std::sync::Arc;

use clap::Args;
use compute::cpu::peak;
use compute::tensor::DType;
use compute::{Cpu, Gpu};
use serde_json::Value;
use train::Precision;

use crate::failure::Failure;

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Print exactly one JSON object on stdout; all else goes to stderr.
    #[arg(long, global = true)]
    pub json: bool,
    /// Threads to compute on [default: all cores].
    #[arg(
        long,
        global = true,
        value_name = "N",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub threads: Vec<u16>,
    /// What to compute on: cpu, cuda[:N] (an NVIDIA card), or auto, which is the CPU.
    #[arg(long, global = true, default_value = "auto")]
    pub device: String,
    /// Seed of everything random.
    #[arg(long, global = true)]
    pub seed: Option<u64>,
}

impl Common {
    /// Checks what the parser of arguments can't. `lists`: whether the command takes several numbers
    /// of threads.
    ///
    /// # Errors
    /// No device's name; several numbers of threads.
    pub fn check(&self, lists: bool) -> Result<(), Failure> {
        if self.threads.len() > 1 && !lists {
            return Err(Failure::invalid("--threads: only `bench infer` takes several numbers"));
        }
        self.card().map(|_| ())
    }

    /// The number of the card to compute on, if it is one.
    fn card(&self) -> Result<Option<usize>, Failure> {
        let number = match self.device.as_str() {
            "auto" | "cpu" => return Ok(None),
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        let wrong = || format!("--device {}: one of auto, cpu, cuda, cuda:N", self.device);
        number.map(Some).ok_or_else(|| Failure::invalid(wrong()))
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.first().map_or_else(all, |n| usize::from(*n))
    }

    /// The processor with its threads, and the card beside it that is to compute.
    ///
    /// # Errors
    /// A card that isn't there, or something of NVIDIA's that it needs.
    pub fn cpu(&self) -> Result<Arc<Cpu>, Failure> {
        self.cpu_with(self.threads())
    }

    /// The same, with so many threads.
    ///
    /// # Errors
    /// As [`Common::cpu`].
    pub fn cpu_with(&self, threads: usize) -> Result<Arc<Cpu>, Failure> {
        let missing = |error| {
            let message = format!("--device {}: {error}", self.device);
            Failure::invalid(message).hint("--device cpu computes on the CPU.")
        };
        let card = self.card()?.map(|n| Gpu::open(n).map_err(missing)).transpose()?;
        Ok(Arc::new(Cpu { card, ..Cpu::new(threads) }))
    }

    /// Prints an object as lines of name and value, for people.
    pub fn table(&self, value: &Value) {
        if self.json {
            return;
        }
        for (key, value) in value.as_object().into_iter().flatten() {
            match value {
                Value::Number(n) if n.is_f64() => {
                    say(&format!("{key:>20}  {:.4}", n.as_f64().unwrap_or(0.0)))
                }
                Value::String(text) => say(&format!("{key:>20}  {text}")),
                other => say(&format!("{key:>20}  {other}")),
            }
        }
    }
}

/// The type of the operands of products, and what the machine can do in it, FLOP/s.
pub fn products(cpu: &Cpu, precision: Precision) -> (DType, f64) {
    match precision {
        Precision::Auto => peak::best_products(cpu),
        Precision::F32 => (DType::F32, peak::f32_flops(cpu)),
        Precision::Bf16 => (DType::Bf16, peak::bf16_flops(cpu)),
    }
}

/// The version of this program, as records tell it; with the commit if whoever built it named that
/// in `HOMEGROWN_COMMIT`. (To ask git would make builds depend on more than the sources.)
pub fn code() -> String {
    let version = env!("CARGO_PKG_VERSION");
    match option_env!("HOMEGROWN_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{version} ({commit})"),
        _ => version.to_string(),
    }
}

/// Text that can't command a terminal.
pub fn harmless(text: &str) -> String {
    let safe = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c };
    text.chars().map(safe).collect()
}

/// Prints a line on stdout. Nobody may be there to read it.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
