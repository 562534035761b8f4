//! What can go wrong on the way to a card and on it.

use std::path::PathBuf;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A library of NVIDIA's isn't there.
    #[error("{what} was not found: {advice} (looked for {})", looked.join(", "))]
    Missing {
        /// The library.
        what: &'static str,
        /// How to get it.
        advice: &'static str,
        /// Names and paths that were tried.
        looked: Vec<String>,
    },
    /// The driver finds no card, or none of this number.
    #[error("there is no CUDA device {wanted}: the driver finds {found}")]
    NoDevice {
        /// The number asked for.
        wanted: usize,
        /// The number of devices.
        found: usize,
    },
    /// The card can't do what the kernels need.
    #[error("{name} is too old: it has compute capability {}.{}, and 8.0 is needed", capability.0, capability.1)]
    TooOld {
        /// The card.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// The driver can't do what is asked of it.
    #[error("the NVIDIA driver is too old: it is made for CUDA {}.{}, and 12.0 is needed", found.0, found.1)]
    OldDriver {
        /// The version of CUDA that it is made for.
        found: (u32, u32),
    },
    /// There isn't enough memory left on the card.
    #[error("out of memory on {name}: {what} needs {bytes} bytes, {free} of {total} are free")]
    OutOfMemory {
        /// The card.
        name: String,
        /// What asked.
        what: String,
        /// How much it asked for.
        bytes: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes that the card has.
        total: usize,
    },
    /// The driver refused, or something that it did before has failed.
    #[error("{doing}: {reason}")]
    Driver {
        /// What was done.
        doing: String,
        /// The driver's name of the error, and its words.
        reason: String,
    },
    /// cuBLASLt refused.
    #[error("product of {shape}: cuBLASLt: {reason}")]
    Product {
        /// Shapes and types of the operands.
        shape: String,
        /// Its name of the error.
        reason: String,
    },
    /// A source of kernels does not compile.
    #[error("{source_name} does not compile for {architecture}:\n{log}")]
    Compile {
        /// The file.
        source_name: &'static str,
        /// What it was compiled for.
        architecture: String,
        /// The compiler's messages.
        log: String,
    },
    /// A launch that doesn't fit its kernel.
    #[error("launch of {kernel}: {reason}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What doesn't fit.
        reason: String,
    },
    /// What can't be recorded into a graph.
    #[error("{0} can't be recorded into a graph")]
    Recording(&'static str),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
