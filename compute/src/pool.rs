//! The thread pool: splits work by output, spins briefly, then sleeps.
//!
//! [`Pool::run`] hands out task numbers; which thread runs a task never matters to its result,
//! because a task's outputs depend on its number alone. Each thread begins with its own share of the
//! numbers, the same in every job: rows that it wrote in the last one are still in its cache. Then
//! it helps with the others'. Numbers are claimed one at a time, so a thread that the system took
//! away delays only the task it holds. Where other processes want the same cores, workers go before they are
//! taken ([`turn`]), and don't queue behind their caller ([`apart`]).
#![allow(unsafe_code)]

mod apart;
mod turn;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::apart::Apart;
use self::turn::Turn;
use crate::simd::{Cache, prefetch};

/// How long an idle worker watches for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(60);

/// A fixed set of threads that run the tasks of one job at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs; whoever finds it taken runs its tasks alone.
    running: Mutex<()>,
}

struct Shared {
    /// Twice the job's number, plus one while it is open.
    state: AtomicU64,
    /// The job, valid while it is open or anyone is inside.
    job: Mutex<Option<Job>>,
    /// A share for each thread.
    shares: Vec<Share>,
    /// Workers that may be looking at the job.
    inside: AtomicUsize,
    sleepers: AtomicUsize,
    /// The core of who woke them last.
    waker: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    /// What the next job will read, as far as that is known: where it begins, and its bytes.
    ahead: [AtomicUsize; 2],
}

/// Bytes of its share of what comes next that a waiting worker asks for: its second cache has room for them.
const AHEAD: usize = 256 << 10;
/// Bytes that it asks for at a time, and of a cache line.
const ASK: usize = 256;
const LINE: usize = 64;

/// How far a worker is with asking.
#[derive(Default)]
struct Asked {
    /// For what begins here.
    of: usize,
    bytes: usize,
}

/// How many tasks of a thread's share are claimed, on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Share(AtomicUsize);

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}
// SAFETY: the closure behind the pointer is Sync, and outlives the job (see Pool::run).
unsafe impl Send for Job {}

impl Pool {
    /// A pool of `threads >= 1`, the caller of [`Pool::run`] being one of them.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: Mutex::new(None),
            shares: (0..threads.max(1)).map(|_| Share::default()).collect(),
            inside: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            waker: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            ahead: Default::default(),
        });
        let workers = (1..threads)
            .map(|me| {
                let shared = shared.clone();
                std::thread::spawn(move || shared.work(me))
            })
            .collect();
        Pool { shared, workers, running: Mutex::new(()) }
    }

    /// Threads that may run tasks, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0) … task(tasks - 1)`, each exactly once, and returns when all are done.
    ///
    /// Called from within a task, or while another thread's job runs, it does the work alone.
    /// A panic in a task is passed on after the other tasks have ended.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let alone = tasks <= 1 || self.workers.is_empty();
        let guard = if alone { None } else { self.running.try_lock().ok() };
        if guard.is_none() {
            (0..tasks).for_each(task);
            return;
        }
        let failure = Mutex::new(None);
        let guarded = |i| {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(i))) {
                *failure.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
            }
        };
        let reference: &(dyn Fn(usize) + Sync) = &guarded;
        // SAFETY: only the lifetime is erased. Workers look at the job between entering (counted
        // in `inside`, then seeing it open) and leaving; this call closes it and waits until
        // nobody is inside before `guarded` goes.
        let pointer = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(reference)
        };
        let s = &*self.shared;
        *s.job.lock().unwrap_or_else(|e| e.into_inner()) = Some(Job { task: pointer, tasks });
        s.shares.iter().for_each(|share| share.0.store(0, SeqCst));
        s.state.fetch_add(1, SeqCst); // open
        if s.sleepers.load(SeqCst) > 0 {
            s.waker.store(apart::core(), SeqCst);
            drop(s.sleep.lock().unwrap_or_else(|e| e.into_inner()));
            s.wake.notify_all();
        }
        s.claim(0, tasks, guarded, || false);
        s.state.fetch_add(1, SeqCst); // closed
        let mut spins = 0u32;
        while s.inside.load(SeqCst) > 0 {
            spins += 1;
            if spins.is_multiple_of(1024) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        drop(guard);
        if let Some(panic) = failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
            resume_unwind(panic);
        }
    }

    /// Tells what a later job will read, each thread its share: workers that wait ask memory for it. A hint: it need not be
    /// there any more.
    pub fn will_read(&self, start: *const u8, len: usize) {
        self.shared.ahead[1].store(len, Relaxed);
        self.shared.ahead[0].store(start.addr(), Relaxed);
    }

    /// Runs `task(i, range)` over `0..len` cut into at most `threads * 4` ranges whose lengths are
    /// multiples of `grain`.
    pub fn split(&self, len: usize, grain: usize, task: impl Fn(std::ops::Range<usize>) + Sync) {
        let grains = len.div_ceil(grain.max(1));
        let each = grains.div_ceil(self.threads() * 4).max(1) * grain.max(1);
        self.run(len.div_ceil(each), |i| task(i * each..((i + 1) * each).min(len)));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(self.shared.sleep.lock().unwrap_or_else(|e| e.into_inner()));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs what nobody has claimed, thread `me`'s share first. Asks before each task whether to leave the rest to others;
    /// gives whether it did.
    fn claim(
        &self,
        me: usize,
        tasks: usize,
        task: impl Fn(usize),
        mut leave: impl FnMut() -> bool,
    ) -> bool {
        let threads = self.shares.len();
        for share in (me..threads).chain(0..me) {
            let end = (share + 1) * tasks / threads;
            loop {
                if leave() {
                    return true;
                }
                let i = share * tasks / threads + self.shares[share].0.fetch_add(1, SeqCst);
                if i >= end {
                    break;
                }
                task(i);
            }
        }
        false
    }

    /// What worker `me` does while it waits: some lines of its share of what comes next are asked for, if any are left.
    fn ask(&self, me: usize, asked: &mut Asked) {
        let (start, len) = (self.ahead[0].load(Relaxed), self.ahead[1].load(Relaxed));
        if asked.of != start {
            *asked = Asked { of: start, bytes: 0 };
        }
        let share = len / self.shares.len();
        if asked.bytes >= share.min(AHEAD) {
            return std::hint::spin_loop();
        }
        let from = start.wrapping_add(share * me + asked.bytes);
        for line in (from..from.wrapping_add(ASK)).step_by(LINE) {
            prefetch(std::ptr::without_provenance(line), Cache::Second);
        }
        asked.bytes += ASK;
    }

    /// The life of worker `me`.
    fn work(&self, me: usize) {
        let mut seen = 0;
        let mut turn = Turn::new();
        let apart = Apart::new(self.shares.len());
        loop {
            let Some(state) = self.wait_for_job(me, seen, &mut turn, &apart) else { return };
            seen = state;
            let mut left = false;
            self.inside.fetch_add(1, SeqCst);
            if self.state.load(SeqCst) == state {
                let job = *self.job.lock().unwrap_or_else(|e| e.into_inner());
                if let Some(job) = job {
                    // SAFETY: the job was open after we were counted inside, so its closure
                    // lives until we leave.
                    left = self.claim(me, job.tasks, |i| unsafe { (*job.task)(i) }, || turn.over());
                }
            }
            self.inside.fetch_sub(1, SeqCst);
            if left {
                turn.give_up();
                seen = 0; // back to the same job, if it is still open
            }
        }
    }

    /// The state of an open job other than `seen`; `None` to stop.
    fn wait_for_job(&self, me: usize, seen: u64, turn: &mut Turn, apart: &Apart) -> Option<u64> {
        let open = || {
            let state = self.state.load(SeqCst);
            (state % 2 == 1 && state != seen).then_some(state)
        };
        let mut asked = Asked::default();
        loop {
            let start = Instant::now();
            while start.elapsed() < SPIN {
                turn.over();
                for _ in 0..64 {
                    if let Some(state) = open() {
                        return Some(state);
                    }
                    self.ask(me, &mut asked);
                }
                if self.stop.load(SeqCst) {
                    return None;
                }
            }
            let mut lock = self.sleep.lock().unwrap_or_else(|e| e.into_inner());
            self.sleepers.fetch_add(1, SeqCst);
            while open().is_none() && !self.stop.load(SeqCst) {
                lock = self.wake.wait(lock).unwrap_or_else(|e| e.into_inner());
            }
            self.sleepers.fetch_sub(1, SeqCst);
            drop(lock);
            apart.from(self.waker.load(SeqCst));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_nesting_works() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i| {
                    pool.run(3, |_| {
                        counts[i].fetch_add(1, SeqCst);
                    });
                });
                assert!(counts.iter().all(|c| c.load(SeqCst) == 3));
            }
        }
    }

    #[test]
    fn workers_that_leave_a_job_come_back() {
        let (pool, tasks) = (Pool::new(3), 30);
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        let done = AtomicUsize::new(0);
        pool.run(tasks, |i| {
            // Whoever has the first leaves the rest to the others, whose tasks look like having been taken away: turns of two.
            let start = Instant::now();
            while i == 0 && done.load(SeqCst) < tasks - 1 {
                assert!(start.elapsed() < Duration::from_secs(20), "{done:?} tasks done");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(1500));
            counts[i].fetch_add(1, SeqCst);
            done.fetch_add(1, SeqCst);
        });
        assert!(counts.iter().all(|c| c.load(SeqCst) == 1));
    }

    #[test]
    fn split_covers_the_range() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        pool.split(1003, 16, |r| {
            assert_eq!(r.start % 16, 0);
            sum.fetch_add(r.sum::<usize>(), SeqCst);
        });
        assert_eq!(sum.load(SeqCst), 1003 * 1002 / 2);
    }

    #[test]
    fn a_panic_is_passed_on_and_the_pool_lives() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, |i| assert!(i != 5, "five"))));
        assert!(result.is_err());
        let n = AtomicUsize::new(0);
        pool.run(10, |_| {
            n.fetch_add(1, SeqCst);
        });
        assert_eq!(n.load(SeqCst), 10);
    }
}
