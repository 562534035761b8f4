//! Who is next: the most urgent, and among those whoever has had least.
//!
//! Fairness counts tokens (Sheng et al. 2024, "Fairness in Serving Large Language Models"): an owner's counter grows by the
//! tokens computed for it, those of answers twice, as they take about a step each. An owner who comes back after a pause starts
//! where the least served one is, so that nobody saves up. Among the requests of one owner, the first is first.

use std::collections::{BTreeMap, VecDeque};

use super::Job;

/// Requests that wait, and what their owners had.
#[derive(Default)]
pub(super) struct Queue {
    jobs: VecDeque<Job>,
    /// Tokens by owner, of those who have something here or running.
    served: BTreeMap<u64, u64>,
    /// Requests of each owner that are being answered.
    running: BTreeMap<u64, usize>,
}

impl Queue {
    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Takes one more.
    pub(super) fn push(&mut self, job: Job) {
        let least = self.served.values().min().copied().unwrap_or(0);
        self.served.entry(job.request.owner).or_insert(least);
        self.jobs.push_back(job);
    }

    /// The next one, which stays.
    pub(super) fn next(&self) -> Option<&Job> {
        self.jobs.get(self.best()?)
    }

    /// The next one, which begins to be answered.
    pub(super) fn pop(&mut self) -> Option<Job> {
        let job = self.jobs.remove(self.best()?)?;
        *self.running.entry(job.request.owner).or_default() += 1;
        Some(job)
    }

    /// Lets go of what nobody waits for any more.
    pub(super) fn retain(&mut self, keep: impl Fn(&Job) -> bool) {
        self.jobs.retain(keep);
        self.forget();
    }

    /// An owner had tokens.
    pub(super) fn count(&mut self, owner: u64, tokens: usize) {
        *self.served.entry(owner).or_default() += tokens as u64;
    }

    /// One of an owner's requests has ended.
    pub(super) fn ended(&mut self, owner: u64) {
        if let Some(running) = self.running.get_mut(&owner) {
            *running -= 1;
        }
        self.running.retain(|_, n| *n > 0);
        self.forget();
    }

    fn forget(&mut self) {
        let Queue { jobs, served, running } = self;
        served.retain(|o, _| running.contains_key(o) || jobs.iter().any(|j| j.request.owner == *o));
    }

    /// Index of the next; the first of equals.
    fn best(&self) -> Option<usize> {
        let key = |job: &Job| {
            let had = self.served.get(&job.request.owner).copied().unwrap_or(0);
            (std::cmp::Reverse(job.request.priority), had)
        };
        (0..self.jobs.len()).min_by_key(|&i| key(&self.jobs[i]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Request;
    use super::*;
    use std::sync::mpsc::sync_channel;

    fn job(owner: u64, priority: i32, mark: u32) -> Job {
        let request = Request { prompt: vec![mark], owner, priority, ..Request::default() };
        Job { request, max_tokens: 1, events: sync_channel(1).0, cancelled: Default::default() }
    }

    #[test]
    fn the_least_served_is_next() {
        let mut queue = Queue::default();
        for mark in 0..4 {
            queue.push(job(1, 0, mark));
        }
        let mut order = Vec::new();
        for round in 0..6 {
            if round == 1 {
                queue.push(job(2, 0, 10));
                queue.push(job(2, 0, 11));
            }
            let job = queue.pop().unwrap();
            queue.count(job.request.owner, 100);
            order.push(job.request.prompt[0]);
        }
        // The second owner starts where the first one is, then they take turns.
        assert_eq!(order, [0, 1, 10, 2, 11, 3]);
        assert!(queue.pop().is_none());
        for owner in [1, 1, 1, 1, 2, 2] {
            queue.ended(owner);
        }
        assert!(queue.served.is_empty() && queue.running.is_empty());
    }

    #[test]
    fn the_urgent_come_first() {
        let mut queue = Queue::default();
        queue.push(job(1, 0, 0));
        queue.push(job(2, 5, 1));
        queue.push(job(1, 5, 2));
        queue.count(2, 1000);
        let order: Vec<u32> =
            std::iter::from_fn(|| queue.pop()).map(|j| j.request.prompt[0]).collect();
        assert_eq!(order, [2, 1, 0]);
    }
}
