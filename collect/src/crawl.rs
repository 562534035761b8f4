//! What is fetched when: breadth first in the order of the sources, a host at a time a thread.
//!
//! Threads fetch; what they fetched is *merged* in the order of the tasks, whoever comes first.
//! Only merging adds tasks (links) and records, so both have the same order in every run.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use store::StoreError;
use url::Url;

use crate::entry::{Entry, Outcome};
use crate::fetch::{self, Fetcher};
use crate::hosts::lock;
use crate::journal::Journal;
use crate::pending::Pending;
use crate::stats::Stats;
use crate::warc::Writer;
use crate::{CollectError, Settings};

/// What earlier runs have done.
#[derive(Default)]
pub struct Known {
    sources: HashMap<String, Done>,
    /// URLs of the pages that are stored.
    pages: HashSet<String>,
}

struct Done {
    stored: bool,
    links: Option<Vec<String>>,
    /// Where its page is, if its links were not followed and are wanted now.
    place: Option<Place>,
}

struct Place {
    url: String,
    file: String,
    offset: u64,
    length: u64,
}

impl Known {
    /// `depth`: links are followed as far.
    pub fn add(&mut self, entry: Entry, depth: u32) {
        let stored = entry.outcome == Outcome::Stored;
        let url = entry.final_url.unwrap_or_else(|| entry.source.clone());
        let mut place = None;
        if entry.links.is_none()
            && entry.depth < depth
            && let (Some(file), Some(offset), Some(length)) =
                (entry.file, entry.offset, entry.length)
        {
            place = Some(Place { url: url.clone(), file, offset, length });
        }
        if stored {
            self.pages.insert(url);
        }
        self.sources.insert(entry.source, Done { stored, links: entry.links, place });
    }

    pub fn has(&self, source: &str) -> bool {
        self.sources.contains_key(source)
    }
}

/// A URL to fetch.
struct Task {
    source: String,
    url: Option<Url>,
    depth: u32,
}

/// What became of a task that is not merged.
enum Ended {
    /// In an earlier run, and it is all on disk.
    Before(Done),
    /// It waits in `.pending`, if it was fetched.
    Now(Box<Entry>),
}

/// Everything that threads share. It is changed under one lock.
struct State {
    tasks: Vec<Task>,
    seen: HashSet<String>,
    known: Known,
    /// Tasks of each host that nobody has begun.
    queues: HashMap<String, VecDeque<usize>>,
    /// The first of these tasks, of hosts that nobody is asking.
    ready: BTreeSet<(usize, String)>,
    busy: HashSet<String>,
    ended: BTreeMap<usize, Ended>,
    /// Tasks before this one are merged.
    merged: usize,
    /// Pages of them that are stored.
    stored: u64,
    pending: Pending,
    writer: Writer,
    journal: Journal,
    stats: Stats,
    error: Option<CollectError>,
}

/// A crawl.
pub struct Crawl<'a> {
    settings: &'a Settings,
    fetcher: Fetcher<'a>,
    state: Mutex<State>,
    changed: Condvar,
    told: &'a (dyn Fn(&Stats) + Sync),
}

impl<'a> Crawl<'a> {
    pub fn new(
        settings: &'a Settings,
        out: &Path,
        known: Known,
        writer: Writer,
        journal: Journal,
        stats: Stats,
        told: &'a (dyn Fn(&Stats) + Sync),
    ) -> Crawl<'a> {
        let state = State {
            tasks: Vec::new(),
            seen: HashSet::new(),
            known,
            queues: HashMap::new(),
            ready: BTreeSet::new(),
            busy: HashSet::new(),
            ended: BTreeMap::new(),
            merged: 0,
            stored: 0,
            pending: Pending::new(out),
            writer,
            journal,
            stats,
            error: None,
        };
        let fetcher = Fetcher::new(settings);
        Crawl { settings, fetcher, state: Mutex::new(state), changed: Condvar::new(), told }
    }

    /// Fetches URLs and what they link to.
    ///
    /// # Errors
    /// What can't be read or written here.
    pub fn run(self, urls: &[String]) -> Result<Stats, CollectError> {
        {
            let mut state = lock(&self.state);
            for url in urls {
                if !state.add(url, 0, self.settings)? {
                    state.stats.repeated += 1;
                }
            }
            state.merge(self.settings)?;
        }
        std::thread::scope(|scope| {
            for _ in 0..self.settings.hosts.max(1) {
                scope.spawn(|| self.work());
            }
        });
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(state.finish()?),
        }
    }

    /// What a thread does.
    fn work(&self) {
        while let Some((number, url, depth)) = self.next() {
            let fetched = || self.fetcher.page(&url, depth);
            // Pages are anyone's; a reader that gives up on one must not end the others.
            let fetched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(fetched));
            let (entry, record) = fetched.unwrap_or_else(|_| {
                let entry = Entry { source: url.to_string(), depth, ..Entry::default() };
                (entry.with(Outcome::Failed, "broken: its reader gave up"), Vec::new())
            });
            let mut state = lock(&self.state);
            state.rest(&url);
            let end = || -> Result<(), CollectError> {
                state.pending.put(&entry, &record)?;
                state.ended.insert(number, Ended::Now(Box::new(entry)));
                state.merge(self.settings)
            };
            if let Err(error) = end() {
                state.error.get_or_insert(error);
            }
            (self.told)(&state.stats);
            self.changed.notify_all();
        }
        self.changed.notify_all();
    }

    /// The next task; `None` if there is none any more.
    fn next(&self) -> Option<(usize, Url, u32)> {
        let mut state = lock(&self.state);
        loop {
            if state.error.is_some() {
                return None;
            }
            match state.begin(self.settings.max_pages) {
                Some(task) => return Some(task),
                None if state.busy.is_empty() => return None,
                None => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl State {
    /// Adds a task, if its URL is new.
    fn add(&mut self, source: &str, depth: u32, settings: &Settings) -> Result<bool, CollectError> {
        let url = Url::parse(source).map(|mut url| {
            url.set_fragment(None);
            url
        });
        let source = url.as_ref().map_or_else(|_| source.to_string(), Url::to_string);
        if !self.seen.insert(source.clone()) {
            return Ok(false);
        }
        let number = self.tasks.len();
        let entry = || Entry { source: source.clone(), depth, ..Entry::default() };
        if let Some(mut done) = self.known.sources.remove(&source) {
            if let Some(Place { url, file, offset, length }) = done.place.take() {
                let answer = self.writer.read(&file, offset, length)?;
                let url = Url::parse(&url).ok();
                done.links = url.map(|url| fetch::links(&answer, &url, settings.max_bytes));
            }
            // A kill may have come between the two.
            self.pending.remove(&source)?;
            self.ended.insert(number, Ended::Before(done));
        } else if let Some((entry, _)) = self.pending.get(&source)?.filter(|(entry, _)| {
            entry.outcome != Outcome::Stored || entry.links.is_some() || depth >= settings.depth
        }) {
            self.ended.insert(number, Ended::Now(Box::new(entry)));
        } else {
            match &url {
                Ok(url) if url.host_str().is_some_and(|h| !h.is_empty()) => {
                    let host = url.host_str().unwrap_or_default().to_string();
                    let queue = self.queues.entry(host.clone()).or_default();
                    queue.push_back(number);
                    if queue.len() == 1 && !self.busy.contains(&host) {
                        self.ready.insert((number, host));
                    }
                }
                Ok(_) => {
                    let entry = entry().with(Outcome::Refused, "a URL without a host");
                    self.ended.insert(number, Ended::Now(Box::new(entry)));
                }
                Err(e) => {
                    let entry = entry().with(Outcome::Refused, format!("not a URL: {e}"));
                    self.ended.insert(number, Ended::Now(Box::new(entry)));
                }
            }
        }
        self.tasks.push(Task { source, url: url.ok(), depth });
        Ok(true)
    }

    /// Begins the first task whose host is free. Not one that might be a page too many: so the pages
    /// are those that one thread would have fetched.
    fn begin(&mut self, max_pages: u64) -> Option<(usize, Url, u32)> {
        let (number, host) = self.ready.first()?.clone();
        let room = max_pages.saturating_sub(self.stored);
        if (number - self.merged) as u64 >= room {
            return None;
        }
        self.ready.remove(&(number, host.clone()));
        self.queues.get_mut(&host)?.pop_front();
        self.busy.insert(host);
        let task = &self.tasks[number];
        Some((number, task.url.clone()?, task.depth))
    }

    /// Nobody asks a host any more.
    fn rest(&mut self, url: &Url) {
        let host = url.host_str().unwrap_or_default();
        self.busy.remove(host);
        match self.queues.get(host).and_then(VecDeque::front) {
            Some(number) => {
                self.ready.insert((*number, host.to_string()));
            }
            None => {
                self.queues.remove(host);
            }
        }
    }

    /// Merges tasks that have ended, as far as those before them have.
    fn merge(&mut self, settings: &Settings) -> Result<(), CollectError> {
        while self.stored < settings.max_pages
            && let Some(ended) = self.ended.remove(&self.merged)
        {
            let depth = self.tasks[self.merged].depth;
            self.merged += 1;
            let (stored, links) = match ended {
                Ended::Before(done) => (done.stored, done.links),
                Ended::Now(entry) => {
                    let entry = self.keep(*entry)?;
                    (entry.outcome == Outcome::Stored, entry.links)
                }
            };
            self.stored += u64::from(stored);
            for link in links.into_iter().flatten().take_while(|_| depth < settings.depth) {
                self.add(&link, depth + 1, settings)?;
            }
        }
        Ok(())
    }

    /// Puts what became of a task into the collection.
    fn keep(&mut self, mut entry: Entry) -> Result<Entry, StoreError> {
        if entry.outcome == Outcome::Stored {
            let page = entry.final_url.as_ref().unwrap_or(&entry.source);
            if self.known.pages.insert(page.clone()) {
                let Some((_, record)) = self.pending.get(&entry.source)? else {
                    let path = Path::new(".pending").to_path_buf();
                    let reason = format!("the page of {} is gone; start again", entry.source);
                    return Err(StoreError::Damaged { path, reason });
                };
                let time = entry.time.as_deref().unwrap_or_default();
                let (file, offset) = self.writer.append(&record, time)?;
                (entry.file, entry.offset) = (Some(file), Some(offset));
                entry.length = Some(record.len() as u64);
            } else {
                entry.links = None;
                entry = entry.with(Outcome::Duplicate, "it leads to a page that is there");
            }
        }
        // Only new ones, so that a site's menu isn't listed with each of its pages.
        if let Some(links) = &mut entry.links {
            links.retain(|link| !self.seen.contains(link));
        }
        self.journal.append(std::slice::from_ref(&entry))?;
        self.pending.remove(&entry.source)?;
        self.stats.count(&entry);
        Ok(entry)
    }

    /// Lists what is left.
    fn finish(mut self) -> Result<Stats, StoreError> {
        let left: Vec<_> = self.tasks[self.merged..]
            .iter()
            .map(|task| {
                let entry =
                    Entry { source: task.source.clone(), depth: task.depth, ..Entry::default() };
                entry.with(Outcome::Left, "as many pages as asked for (--max-pages)")
            })
            .collect();
        self.journal.append(&left)?;
        left.iter().for_each(|entry| self.stats.count(entry));
        Ok(self.stats)
    }
}
