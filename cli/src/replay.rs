//! `homegrown replay`: an answer of the server once more, from its receipt.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use serve::{Receipt, Settings};

use crate::common::Common;
use crate::failure::Failure;
use crate::serve::ServedArgs;

/// Arguments of `replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The receipt, or the answer that holds it, as JSON.
    receipt: PathBuf,
    #[command(flatten)]
    served: ServedArgs,
    /// The body of the request, where the receipt is without.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
}

/// Answers again, and compares.
///
/// # Errors
/// If it can't, or if anything is not as it was.
pub fn replay(args: &ReplayArgs, common: &Common) -> Result<Value, Failure> {
    let receipt = Receipt::read(&store::read_text(&args.receipt)?).map_err(Failure::invalid)?;
    let request = args.request.as_deref().map(std::fs::read).transpose();
    let request = request.map_err(|e| Failure::invalid(format!("--request: {e}")))?;
    let mut served = args.served.clone();
    if served.kv.is_none() {
        served.kv = receipt.settings["kv"].as_str().and_then(|kind| kind.parse().ok());
    }
    // What the request calls the model.
    if served.name.is_none() && served.also.is_empty() {
        served.name = Some(receipt.model().to_string());
    }
    let (app, _) = served.start(Settings::default(), common, |_| ())?;
    let replayed = serve::replay(&app, &receipt, request).map_err(Failure::invalid)?;
    if !common.json {
        for answer in &replayed.answers {
            crate::common::say(answer);
        }
    }
    if replayed.differences.is_empty() {
        eprintln!("The same, byte for byte.");
        return serde_json::to_value(&replayed).map_err(Failure::failed);
    }
    Err(Failure::failed(format!("not the same: {}", replayed.differences.join("; "))))
}
