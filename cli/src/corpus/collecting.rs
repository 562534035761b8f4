//! `homegrown data collect`.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use clap::Args;
use collect::{Outcome, Settings, Sources, Stats};
use serde_json::{Value, json};

use crate::common::{Common, harmless, say};
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::{Progress, count};

/// Arguments of `data collect`.
#[derive(Args, Debug)]
pub struct CollectArgs {
    /// URLs (http, https), local files and folders.
    sources: Vec<String>,
    /// A list of URLs, one a line; `#` begins a comment.
    #[arg(long, value_name = "FILE")]
    urls: Vec<PathBuf>,
    /// Where to write. A folder that was begun is gone on with.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Links to follow from the URLs, within their host. More than before: from the pages that are there.
    #[arg(long, default_value_t = 0, value_name = "N")]
    depth: u32,
    /// Most pages to store.
    #[arg(long, value_name = "N")]
    max_pages: Option<u64>,
    /// Largest page, bytes.
    #[arg(long, default_value_t = 16 << 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    max_bytes: u64,
    /// Least pause between two requests to a host, seconds. robots.txt may ask for a longer one.
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
    pause: Duration,
    /// Longest time of one request, seconds.
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
    /// How often a request that failed is repeated, if that may help.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(..=20))]
    retries: u32,
    /// Ask again for what failed in an earlier run.
    #[arg(long)]
    retry_failed: bool,
    /// Hosts that are asked at the same time.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    hosts: u8,
    /// A page or mail address that servers are told, where you can be reached.
    #[arg(long, value_name = "TEXT")]
    contact: Option<String>,
    /// All of what servers are told [default: homegrown/VERSION (+CONTACT)].
    #[arg(long, value_name = "TEXT", conflicts_with = "contact")]
    user_agent: Option<String>,
    /// Ask private and local addresses, too.
    #[arg(long)]
    allow_private: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

/// Collects.
///
/// # Errors
/// Wrong sources; what can't be read or written here.
pub fn collect(args: &CollectArgs, common: &Common) -> Result<Value, Failure> {
    let sources = Sources::read(&args.sources, &args.urls)?;
    // Names that begin with a dot are ours: a lock, if the first run was killed at once.
    let own = |e: std::fs::DirEntry| e.file_name().to_string_lossy().starts_with('.');
    let foreign = !args.out.join(documents::files::COLLECTED).is_file()
        && std::fs::read_dir(&args.out).is_ok_and(|mut all| all.any(|e| !e.is_ok_and(own)));
    if foreign {
        let place = args.out.display();
        return Err(Failure::invalid(format!("--out {place}: the folder holds something else"))
            .hint("Choose an empty or new folder."));
    }
    let agent = || collect::user_agent(args.contact.as_deref());
    let settings = Settings {
        user_agent: args.user_agent.clone().unwrap_or_else(agent),
        pause: args.pause,
        timeout: args.timeout,
        retries: args.retries,
        hosts: usize::from(args.hosts),
        depth: args.depth,
        retry_failed: args.retry_failed,
        max_pages: args.max_pages.unwrap_or(u64::MAX),
        max_bytes: args.max_bytes,
        allowed: if args.allow_private { |_| true } else { collect::address::public },
        ..Settings::default()
    };
    // All that was fetched is on disk at any moment.
    interrupt::doing("data collect");
    let progress = Mutex::new(Progress::start("collect", 0));
    let told = |stats: &Stats| {
        let note =
            format!("{} pages, {} files, {} bytes", stats.pages, stats.files, count(stats.bytes));
        progress.lock().unwrap_or_else(|e| e.into_inner()).set(stats.pages, &note);
    };
    let stats = collect::collect(&sources, &settings, &args.out, &told)?;
    progress.into_inner().unwrap_or_else(|e| e.into_inner()).finish(&format!(
        "{} pages, {} files, {} bytes in {}",
        stats.pages,
        stats.files,
        count(stats.bytes),
        args.out.display()
    ));
    if !common.json {
        table(&stats);
        say(&format!("Next: homegrown data prepare {} --out DIR", args.out.display()));
    }
    let mut value = serde_json::to_value(&stats).map_err(Failure::failed)?;
    value["out"] = json!(args.out);
    Ok(value)
}

/// Prints what became of the sources, and why.
fn table(stats: &Stats) {
    for (outcome, words) in [
        (Outcome::Stored, "stored"),
        (Outcome::Duplicate, "lead to what is there"),
        (Outcome::Refused, "refused"),
        (Outcome::Failed, "failed"),
        (Outcome::Left, "left"),
    ] {
        match stats.of(outcome) {
            0 => {}
            n => say(&format!("{n:>10}  {words}")),
        }
    }
    if stats.repeated > 0 {
        say(&format!("{:>10}  named more than once", stats.repeated));
    }
    let mut reasons: Vec<_> = stats.reasons.iter().collect();
    reasons.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    for (reason, n) in reasons.iter().take(12) {
        say(&format!("   {n}: {}", harmless(reason)));
    }
    if reasons.len() > 12 {
        say("   … all of them are in collected.jsonl");
    }
}
