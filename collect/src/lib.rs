//! Raw material from the web and from here, in one folder that `documents` can read.
//!
//! Pages become WARC records in `pages-*.warc.gz`, local files are linked below `files`, and
//! `collected.jsonl` tells of each source what became of it. [`crawl`] decides what is fetched when,
//! [`fetch`] fetches a page, [`client`] asks once. Everything on disk is whole at any moment: a
//! run that was killed goes on.

pub mod address;
mod client;
mod crawl;
pub mod entry;
mod fetch;
mod hosts;
mod journal;
mod local;
mod page;
mod pending;
mod robots;
mod sources;
mod stats;
mod time;
mod warc;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use store::{Lock, StoreError};
use thiserror::Error;

pub use entry::{Entry, Outcome};
pub use sources::Sources;
pub use stats::Stats;

/// How it is collected.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What servers are told who asks; what is before the first `/` is looked for in `robots.txt`.
    pub user_agent: String,
    /// Least time between two requests to a host.
    pub pause: Duration,
    /// Longest time of one request.
    pub timeout: Duration,
    /// How often a request is repeated at most, if it fails in a way that may pass.
    pub retries: u32,
    /// Wait before it is repeated the first time; then twice that, and so on. Servers may ask for
    /// another.
    pub backoff: Duration,
    /// Hosts that are asked at the same time, at most.
    pub hosts: usize,
    /// Links that are followed from the given URLs, within a host.
    pub depth: u32,
    /// Ask again for what failed in an earlier run.
    pub retry_failed: bool,
    /// Pages that are stored at most.
    pub max_pages: u64,
    /// Largest page, bytes, as it is sent and as it is without packing.
    pub max_bytes: u64,
    /// Which addresses may be asked: those that are [`public`](address::public), or others, too.
    pub allowed: fn(IpAddr) -> bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            user_agent: user_agent(None),
            pause: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
            retries: 3,
            backoff: Duration::from_secs(1),
            hosts: 8,
            depth: 0,
            retry_failed: false,
            max_pages: u64::MAX,
            max_bytes: 16 << 20,
            allowed: address::public,
        }
    }
}

/// What servers are told; `contact`: a page or an address where whoever collects can be reached.
pub fn user_agent(contact: Option<&str>) -> String {
    let contact = contact.unwrap_or("collects text for a language model");
    format!("homegrown/{} (+{contact})", env!("CARGO_PKG_VERSION"))
}

/// Why nothing was collected.
#[derive(Debug, Error)]
pub enum CollectError {
    /// The system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting or a source makes no sense.
    #[error("{0}")]
    Setting(String),
}

/// Collects `sources` in a folder, or goes on with it; `told` hears of each step.
///
/// # Errors
/// What can't be read or written here. What servers do is no error but an [`Entry`].
pub fn collect(
    sources: &Sources,
    settings: &Settings,
    out: &Path,
    told: &(dyn Fn(&Stats) + Sync),
) -> Result<Stats, CollectError> {
    if settings.user_agent.is_empty()
        || settings.user_agent.contains(|c: char| !(' '..='~').contains(&c))
    {
        return Err(CollectError::Setting(
            "the user agent: letters, digits and punctuation of ASCII, and not nothing".into(),
        ));
    }
    store::create_dir(out)?;
    let _lock = Lock::take(&out.join(".lock"))?;
    store::atomic::remove_half_written(out)?;
    let mut stats = Stats::default();
    let (mut known, mut ends) = (crawl::Known::default(), Vec::<(String, u64)>::new());
    if settings.retry_failed {
        journal::forget_failed(out)?;
    }
    let mut journal = journal::Journal::open(out, |entry| {
        stats.count(&entry);
        if let (Some(file), Some(offset), Some(length)) = (&entry.file, entry.offset, entry.length)
        {
            match ends.last_mut() {
                Some((last, end)) if last == file => *end = offset + length,
                _ => ends.push((file.clone(), offset + length)),
            }
        }
        known.add(entry, settings.depth);
    })?;
    let writer = warc::Writer::open(out, &ends, &settings.user_agent)?;
    local::collect(&sources.paths, out, &known, &mut journal, &mut stats)?;
    told(&stats);
    crawl::Crawl::new(settings, out, known, writer, journal, stats, told).run(&sources.urls)
}
