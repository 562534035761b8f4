//! One card with one stream of work.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use crate::card::Card;
#[cfg(feature = "emulator")]
use crate::emulator::{Emulator, Work};
use crate::graph::{Arena, Recorder};
use crate::kernels::{self, Kernel, Kind};
use crate::matmul::Product;
use crate::{Element, Error, Slice, SliceMut, card};

/// A card, with a stream in which work is done in the order in which it was given. Cheap to clone.
///
/// Several threads may give work, also while one of them records a graph.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    device: Device,
    recorder: Recorder,
}

#[cfg_attr(feature = "emulator", allow(clippy::large_enum_variant))]
pub(crate) enum Device {
    Card(Card),
    #[cfg(feature = "emulator")]
    Emulator(Emulator),
}

/// Bytes of a card's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by anybody.
    pub free: usize,
    /// All.
    pub total: usize,
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks along x, y and z.
    pub grid: [usize; 3],
    /// Threads of a block, along x.
    pub block: usize,
    /// Bytes of dynamic shared memory of a block.
    pub shared: usize,
}

impl Shape {
    /// `blocks` of `threads`.
    pub fn new(blocks: usize, threads: usize) -> Shape {
        Shape { grid: [blocks, 1, 1], block: threads, shared: 0 }
    }

    /// A grid of `[x, y, z]` blocks of `threads`.
    pub fn grid(grid: [usize; 3], threads: usize) -> Shape {
        Shape { grid, block: threads, shared: 0 }
    }

    /// With so many bytes of dynamic shared memory a block.
    pub fn shared(self, bytes: usize) -> Shape {
        Shape { shared: bytes, ..self }
    }

    /// For a kernel whose threads stride over `elements`, four at a time, until all are done.
    pub fn over(elements: usize) -> Shape {
        Shape::new(elements.div_ceil(4 * 256).min(1 << 14), 256)
    }
}

/// An argument of a kernel: a slice (its address), an `Option` of one (null for none), a number.
#[derive(Clone, Copy)]
pub struct Arg<'a> {
    kind: Kind,
    bits: u64,
    memory: Option<&'a Arc<Memory>>,
}

impl<'a, T: Element> From<&Slice<'a, T>> for Arg<'a> {
    fn from(slice: &Slice<'a, T>) -> Arg<'a> {
        let kind = Kind::Pointer(size_of::<T>() as u8);
        Arg { kind, bits: slice.address(), memory: Some(slice.memory()) }
    }
}

impl<'a, T: Element> From<&SliceMut<'a, T>> for Arg<'a> {
    fn from(slice: &SliceMut<'a, T>) -> Arg<'a> {
        let kind = Kind::Pointer(size_of::<T>() as u8);
        Arg { kind, bits: slice.as_slice().address(), memory: Some(slice.memory()) }
    }
}

impl<'a, T: Element> From<&Option<Slice<'a, T>>> for Arg<'a> {
    fn from(slice: &Option<Slice<'a, T>>) -> Arg<'a> {
        slice.as_ref().map_or(Arg::null::<T>(), Arg::from)
    }
}

impl<'a, T: Element> From<&Option<SliceMut<'a, T>>> for Arg<'a> {
    fn from(slice: &Option<SliceMut<'a, T>>) -> Arg<'a> {
        slice.as_ref().map_or(Arg::null::<T>(), Arg::from)
    }
}

impl From<&f32> for Arg<'_> {
    fn from(x: &f32) -> Self {
        Arg { kind: Kind::F32, bits: u64::from(x.to_bits()), memory: None }
    }
}

impl From<&i32> for Arg<'_> {
    fn from(x: &i32) -> Self {
        Arg { kind: Kind::I32, bits: u64::from(*x as u32), memory: None }
    }
}

impl From<&u32> for Arg<'_> {
    fn from(x: &u32) -> Self {
        Arg { kind: Kind::U32, bits: u64::from(*x), memory: None }
    }
}

impl From<&u64> for Arg<'_> {
    fn from(x: &u64) -> Self {
        Arg { kind: Kind::Size, bits: *x, memory: None }
    }
}

impl From<&usize> for Arg<'_> {
    fn from(x: &usize) -> Self {
        Arg { kind: Kind::Size, bits: *x as u64, memory: None }
    }
}

impl Arg<'_> {
    fn null<T>() -> Self {
        Arg { kind: Kind::Pointer(size_of::<T>() as u8), bits: 0, memory: None }
    }
}

/// The arguments of a kernel, in its order: `args![x, y, rows, cols]`.
macro_rules! args {
    ($($x:expr),* $(,)?) => { &[$($crate::Arg::from(&$x)),*] };
}
pub(crate) use args;

/// A number of rows, columns or the like as kernels take it.
///
/// # Panics
/// From 2^32 on.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| panic!("{n} is more than kernels count to"))
}

impl Gpu {
    /// Number of cards that the driver finds.
    ///
    /// # Errors
    /// [`Error::Missing`] without a driver; [`Error::Driver`].
    pub fn count() -> Result<usize, Error> {
        card::count()
    }

    /// Card `number`, from 0.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::NoDevice`], [`Error::TooOld`], [`Error::OldDriver`],
    /// [`Error::Driver`].
    pub fn open(number: usize) -> Result<Gpu, Error> {
        Ok(Gpu::of(Device::Card(Card::open(number)?)))
    }

    /// The CPU in the place of a card.
    #[cfg(feature = "emulator")]
    pub fn emulated() -> Gpu {
        Gpu::of(Device::Emulator(Emulator::new()))
    }

    fn of(device: Device) -> Gpu {
        Gpu(Arc::new(Inner { device, recorder: Recorder::default() }))
    }

    pub(crate) fn device(&self) -> &Device {
        &self.0.device
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    /// The card's name.
    pub fn name(&self) -> &str {
        match &self.0.device {
            Device::Card(card) => &card.name,
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => "emulator",
        }
    }

    /// Its compute capability, such as (9, 0).
    pub fn capability(&self) -> (u32, u32) {
        match &self.0.device {
            Device::Card(card) => card.capability,
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => (8, 0),
        }
    }

    /// How many multiprocessors it has: blocks that run at the same time at least.
    pub fn multiprocessors(&self) -> usize {
        match &self.0.device {
            Device::Card(card) => card.multiprocessors,
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => 4,
        }
    }

    /// The most bytes of shared memory that a block can have.
    pub fn shared_memory(&self) -> usize {
        match &self.0.device {
            Device::Card(card) => card.shared_memory,
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => 163 << 10,
        }
    }

    /// How much memory it has, and how much is free.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn memory(&self) -> Result<MemoryInfo, Error> {
        match &self.0.device {
            Device::Card(card) => card.memory(),
            #[cfg(feature = "emulator")]
            Device::Emulator(emulator) => Ok(emulator.memory()),
        }
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// [`Error::Driver`], of work before; [`Error::Recording`].
    pub fn synchronise(&self) -> Result<(), Error> {
        self.not_recording("waiting for work")?;
        match &self.0.device {
            Device::Card(card) => card.synchronise(),
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => Ok(()),
        }
    }

    /// Runs a kernel. All launches come through here.
    ///
    /// # Errors
    /// [`Error::Launch`] if there is no such kernel, or arguments or shape don't fit it;
    /// [`Error::Compile`]; [`Error::Driver`].
    ///
    /// # Safety
    /// What the kernel does with its arguments stays within their memory, and slices that it writes to
    /// were `SliceMut`.
    pub(crate) unsafe fn launch(
        &self,
        name: &str,
        shape: Shape,
        args: &[Arg<'_>],
    ) -> Result<(), Error> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let refused = |reason: String| Error::Launch { kernel: name.into(), reason };
        let kernel = kernels::find(name).ok_or_else(|| refused("no such kernel".into()))?;
        check(kernel, args).map_err(refused)?;
        let [x, y, z] = shape.grid;
        if x > i32::MAX as usize || y > 0xffff || z > 0xffff || shape.block > 1024 {
            return Err(refused(format!("no card has a grid of {shape:?}")));
        }
        if shape.shared > self.shared_memory() {
            let most = self.shared_memory();
            return Err(refused(format!("{} bytes of shared memory of {most}", shape.shared)));
        }
        self.uses(args.iter().filter_map(|arg| arg.memory));
        let bits: Vec<u64> = args.iter().map(|arg| arg.bits).collect();
        match &self.0.device {
            // SAFETY: the kinds of the arguments are the kernel's (checked); the rest is the caller's
            // promise.
            Device::Card(card) => unsafe { card.launch(kernel, shape, bits, self.records()) },
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => self.perform(Work::Launch { kernel, shape, args: bits }),
        }
    }

    /// A product, whose operands' lengths are right.
    pub(crate) fn product<'a>(
        &self,
        product: &Product,
        memory: impl Iterator<Item = &'a Arc<Memory>>,
    ) -> Result<(), Error> {
        self.uses(memory);
        match &self.0.device {
            Device::Card(card) => card.product(product, self.records()),
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => self.perform(Work::Product(*product)),
        }
    }

    pub(crate) fn allocate(&self, bytes: usize, what: &str) -> Result<Memory, Error> {
        match self.0.recorder.with(|recording| recording.arena()) {
            Some(arena) if bytes > 0 => arena.take(self, bytes, what),
            _ => self.allocate_apart(bytes, what, false),
        }
    }

    /// Memory of nobody else's; `apart` from the order of the stream.
    pub(crate) fn allocate_apart(
        &self,
        bytes: usize,
        what: &str,
        apart: bool,
    ) -> Result<Memory, Error> {
        let address = match &self.0.device {
            _ if bytes == 0 => 0,
            Device::Card(card) => card.allocate(bytes, what, apart)?,
            #[cfg(feature = "emulator")]
            Device::Emulator(emulator) => emulator.allocate(bytes, what)?,
        };
        Ok(Memory { gpu: self.clone(), address, bytes, arena: None })
    }

    fn release(&self, memory: &Memory) {
        match &self.0.device {
            Device::Card(card) => card.release(memory.address),
            #[cfg(feature = "emulator")]
            Device::Emulator(emulator) => emulator.release(memory.address, memory.bytes),
        }
    }

    pub(crate) fn copy_in<T: Element>(&self, to: u64, values: &[T]) -> Result<(), Error> {
        self.not_recording("a copy to the card")?;
        match &self.0.device {
            _ if values.is_empty() => Ok(()),
            Device::Card(card) => card.copy_in(to, values),
            #[cfg(feature = "emulator")]
            Device::Emulator(emulator) => emulator.copy_in(to, values),
        }
    }

    pub(crate) fn copy_out<T: Element>(&self, from: u64, values: &mut [T]) -> Result<(), Error> {
        self.not_recording("a copy from the card")?;
        match &self.0.device {
            _ if values.is_empty() => Ok(()),
            Device::Card(card) => card.copy_out(from, values),
            #[cfg(feature = "emulator")]
            Device::Emulator(emulator) => emulator.copy_out(from, values),
        }
    }

    /// Both are of one length.
    pub(crate) fn copy<T: Element>(&self, to: Slice<T>, from: Slice<T>) -> Result<(), Error> {
        self.uses([to.memory(), from.memory()]);
        let bytes = size_of::<T>() * to.len();
        match &self.0.device {
            _ if bytes == 0 => Ok(()),
            Device::Card(card) => card.copy(to.address(), from.address(), bytes, self.records()),
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => {
                self.perform(Work::Copy { to: to.address(), from: from.address(), bytes })
            }
        }
    }

    pub(crate) fn zero<T: Element>(&self, to: Slice<T>) -> Result<(), Error> {
        self.uses([to.memory()]);
        let bytes = size_of::<T>() * to.len();
        match &self.0.device {
            _ if bytes == 0 => Ok(()),
            Device::Card(card) => card.zero(to.address(), bytes, self.records()),
            #[cfg(feature = "emulator")]
            Device::Emulator(_) => self.perform(Work::Zero { to: to.address(), bytes }),
        }
    }

    fn records(&self) -> bool {
        self.0.recorder.with(|_| ()).is_some()
    }

    pub(crate) fn not_recording(&self, what: &'static str) -> Result<(), Error> {
        if self.records() { Err(Error::Recording(what)) } else { Ok(()) }
    }

    /// Work is about to use memory, which a graph then keeps.
    ///
    /// # Panics
    /// If it is another card's.
    fn uses<'a>(&self, memory: impl IntoIterator<Item = &'a Arc<Memory>>) {
        for memory in memory {
            assert!(Arc::ptr_eq(&self.0, &memory.gpu.0), "memory of another card");
            self.0.recorder.with(|recording| recording.uses(memory));
        }
    }

    #[cfg(feature = "emulator")]
    fn perform(&self, work: Work) -> Result<(), Error> {
        if self.records() {
            self.0.recorder.with(|recording| recording.work.push(work));
            return Ok(());
        }
        match &self.0.device {
            Device::Emulator(emulator) => emulator.perform(&work),
            Device::Card(_) => Ok(()),
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.name())
    }
}

/// Whether arguments are what a kernel takes.
fn check(kernel: &Kernel, args: &[Arg<'_>]) -> Result<(), String> {
    if args.len() != kernel.parameters.len() {
        return Err(format!("{} arguments of {}", args.len(), kernel.parameters.len()));
    }
    for (i, (arg, parameter)) in args.iter().zip(&kernel.parameters).enumerate() {
        let parameter =
            parameter.map_err(|text| format!("a parameter of no known kind: {text}"))?;
        if !arg.kind.fits(parameter) {
            return Err(format!("argument {i} is {:?}, its parameter {parameter:?}", arg.kind));
        }
    }
    Ok(())
}

/// Memory of a card.
#[derive(Debug)]
pub struct Memory {
    gpu: Gpu,
    /// 0 if there are no bytes.
    address: u64,
    bytes: usize,
    /// Whose it is, if it was lent by a recording.
    arena: Option<Arc<Arena>>,
}

impl Memory {
    /// Memory of an arena, which takes it back.
    pub(crate) fn lent(&self, arena: &Arc<Arena>) -> Memory {
        let Memory { gpu, address, bytes, .. } = self;
        let (gpu, arena) = (gpu.clone(), Some(arena.clone()));
        Memory { gpu, address: *address, bytes: *bytes, arena }
    }

    pub(crate) fn is_of(&self, arena: &Arc<Arena>) -> bool {
        self.arena.as_ref().is_some_and(|own| Arc::ptr_eq(own, arena))
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &self.arena {
            Some(arena) => arena.take_back(self.address),
            None if self.address != 0 => self.gpu.release(self),
            None => {}
        }
    }
}
