//! A worker beside the thread that it works for, not behind it.
//!
//! Where every core is taken, Linux wakes a sleeper on the waker's core: caller and worker would take turns on one core,
//! and a busy process keep the other to itself. A worker that wakes there asks for any other core.

#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// The core that the calling thread is on; for [`Apart::from`].
pub(super) fn core() -> usize {
    #[cfg(target_os = "linux")]
    return sched_getcpu();
    #[cfg(not(target_os = "linux"))]
    0
}

/// Where a worker may be.
pub(super) struct Apart {
    /// The cores that the process was given, if they are as many as the pool's threads.
    #[cfg(target_os = "linux")]
    cores: Option<CpuSet>,
}

impl Apart {
    /// For a worker, called by it, of a pool of `threads`.
    #[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
    pub(super) fn new(threads: usize) -> Apart {
        Apart {
            #[cfg(target_os = "linux")]
            cores: sched_getaffinity(None)
                .ok()
                .filter(|cores| cores.count() as usize >= threads.max(2)),
        }
    }

    /// Moves the calling worker if it is on this core. A system that refuses leaves all as it is.
    #[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
    pub(super) fn from(&self, core: usize) {
        #[cfg(target_os = "linux")]
        if let Some(mut others) = self.cores
            && core < CpuSet::MAX_CPU
            && sched_getcpu() == core
        {
            others.unset(core);
            let _ = sched_setaffinity(None, &others);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn allowed() -> CpuSet {
        sched_getaffinity(None).expect("the thread's own")
    }

    #[test]
    fn a_worker_on_the_core_goes_elsewhere_and_may_be_anywhere_else() {
        let given = allowed();
        let moved = std::thread::spawn(move || {
            let cores = given.count() as usize;
            Apart::new(cores + 1).from(core()); // more threads than cores: they have to share
            assert!(allowed() == given);
            if cores == 1 || sched_setaffinity(None, &given).is_err() {
                return; // nowhere to go, or the system refuses
            }
            let apart = Apart::new(2);
            // Again if it was moved in between.
            for _ in 0..10 {
                apart.from(core());
            }
            let left = allowed();
            assert_eq!(left.count(), given.count() - 1);
            assert!(left.is_set(core()));
        });
        moved.join().expect("no assertion failed");
    }
}
