//! Work that is recorded once and then given again and again, at the cost of one launch.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

#[cfg(feature = "emulator")]
use crate::emulator::Work;
use crate::gpu::{Device, Memory};
use crate::{Error, Gpu, card};

/// What a card's threads record: one of them at a time, while others give work that is done at once.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Held by the thread that records.
    turn: Mutex<()>,
    /// What it records; the flag says without a lock whether there is anything.
    recording: Mutex<Recording>,
    records: AtomicBool,
}

/// What a recording collects.
#[derive(Default)]
pub(crate) struct Recording {
    /// Whose it is; `None` while nothing is recorded.
    thread: Option<ThreadId>,
    /// What the graph will use of memory that was there before.
    used: Vec<Arc<Memory>>,
    /// Memory that is taken meanwhile.
    arena: Arc<Arena>,
    #[cfg(feature = "emulator")]
    pub(crate) work: Vec<Work>,
}

impl Recorder {
    /// What this thread is recording, if it is.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Recording) -> T) -> Option<T> {
        if !self.records.load(Ordering::Acquire) {
            return None;
        }
        let mut recording = locked(&self.recording);
        (recording.thread == Some(thread::current().id())).then(|| f(&mut recording))
    }

    fn begin(&self) {
        locked(&self.recording).thread = Some(thread::current().id());
        self.records.store(true, Ordering::Release);
    }

    fn end(&self) -> Recording {
        self.records.store(false, Ordering::Release);
        std::mem::take(&mut *locked(&self.recording))
    }
}

impl Recording {
    pub(crate) fn arena(&self) -> Arc<Arena> {
        self.arena.clone()
    }

    /// Has the graph keep memory.
    pub(crate) fn uses(&mut self, memory: &Arc<Memory>) {
        if !memory.is_of(&self.arena) {
            self.used.push(memory.clone());
        }
    }
}

/// Memory of a graph. What is given back while it is recorded is lent again to what comes later, as its work runs in order:
/// a pass over layers of one shape takes no more than a layer does.
#[derive(Debug, Default)]
pub(crate) struct Arena(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    all: Vec<Memory>,
    /// By number.
    free: Vec<usize>,
}

impl Arena {
    /// Memory of exactly so many bytes: layers ask for the same sizes, and bounds stay what they are.
    pub(crate) fn take(
        self: &Arc<Self>,
        gpu: &Gpu,
        bytes: usize,
        what: &str,
    ) -> Result<Memory, Error> {
        let mut places = locked(&self.0);
        let Places { all, free } = &mut *places;
        if let Some(i) = free.iter().position(|place| all[*place].bytes() == bytes) {
            return Ok(all[free.swap_remove(i)].lent(self));
        }
        all.push(gpu.allocate_apart(bytes, what, true)?);
        Ok(all[all.len() - 1].lent(self))
    }

    pub(crate) fn take_back(&self, address: u64) {
        let mut places = locked(&self.0);
        let Places { all, free } = &mut *places;
        free.extend(all.iter().position(|memory| memory.address() == address));
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Recorded work.
pub struct Graph {
    // Dropped in this order.
    recorded: Recorded,
    _used: Vec<Arc<Memory>>,
    _arena: Arc<Arena>,
    gpu: Gpu,
}

enum Recorded {
    Card(card::Graph),
    #[cfg(feature = "emulator")]
    Emulator(Vec<Work>),
}

impl Gpu {
    /// Records the work that `f` gives from this thread, without doing it. It can then be given again and again at the
    /// cost of one launch: the same kernels with the same arguments, on what their memory holds then.
    /// The graph keeps all memory that it uses. Buffers that `f` makes and gives up have their memory used again within the
    /// recording, so they cost as much as `f` has of them at a time.
    ///
    /// What can't be recorded: copies between card and host, and waiting. Another thread's recording is waited for.
    ///
    /// # Errors
    /// Those of `f`; [`Error::Recording`] inside of another recording; [`Error::Driver`].
    pub fn capture(&self, f: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        self.not_recording("a graph")?;
        let _turn = locked(&self.recorder().turn);
        match self.device() {
            Device::Card(card) => card.begin_capture()?,
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => {}
        }
        self.recorder().begin();
        let stop = Stop(self);
        let done = f();
        std::mem::forget(stop);
        let graph = self.end_capture();
        done?;
        graph
    }

    fn end_capture(&self) -> Result<Graph, Error> {
        let recording = self.recorder().end();
        let recorded = match self.device() {
            Device::Card(card) => Recorded::Card(card.end_capture()?),
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => Recorded::Emulator(recording.work),
        };
        let Recording { used, arena, .. } = recording;
        Ok(Graph { recorded, _used: used, _arena: arena, gpu: self.clone() })
    }
}

/// Ends a recording whose work panicked.
struct Stop<'a>(&'a Gpu);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        drop(self.0.end_capture());
    }
}

impl Graph {
    /// Gives all of the work.
    ///
    /// # Errors
    /// [`Error::Driver`]; [`Error::Recording`].
    pub fn launch(&self) -> Result<(), Error> {
        self.gpu.not_recording("a graph")?;
        match (&self.recorded, self.gpu.device()) {
            (Recorded::Card(graph), Device::Card(card)) => card.launch_graph(graph),
            #[cfg(feature = "emulator")]
            (Recorded::Emulator(work), Device::Emulator(emulator)) => {
                work.iter().try_for_each(|work| emulator.perform(work))
            }
            #[cfg(feature = "emulator")]
            _ => Err(Error::Recording("a graph of another card")),
        }
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph on {:?}", self.gpu)
    }
}
