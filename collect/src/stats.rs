//! How much was collected, and why the rest was not.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::entry::{Entry, Outcome};

/// Counts of a collection, over all runs that made it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Pages that are stored.
    pub pages: u64,
    /// Local files that are stored.
    pub files: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Sources by what became of them.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Sources by why they are not stored.
    pub reasons: BTreeMap<String, u64>,
    /// Sources that were given more than once.
    pub repeated: u64,
}

impl Stats {
    /// Counts what became of a source.
    pub(crate) fn count(&mut self, entry: &Entry) {
        *self.outcomes.entry(entry.outcome).or_default() += 1;
        if let Some(reason) = &entry.reason {
            *self.reasons.entry(reason.clone()).or_default() += 1;
        }
        if entry.outcome == Outcome::Stored {
            self.bytes += entry.bytes;
            *(if entry.offset.is_some() { &mut self.pages } else { &mut self.files }) += 1;
        }
    }

    /// Sources of an outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }
}
