//! Memory of a card: buffers, which own it, and slices of them.

use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use crate::gpu::Memory;
use crate::{Error, Gpu};

/// What a buffer can hold: `u8`, `u16` (also the bits of bf16 and f16), `u32` and `f32`.
pub trait Element: Copy + Default + Send + Sync + sealed::Sealed + 'static {}

mod sealed {
    /// Any bits are a value.
    pub trait Sealed {}
}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(u8, u16, u32, f32);

/// Memory of a card, given back when it is dropped.
///
/// Work on the card's stream runs in order, so memory can be dropped, and taken anew, while work on it
/// is still to be done. Graphs keep what they were recorded with.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: Arc<Memory>,
    len: usize,
    element: PhantomData<T>,
}

/// Elements to read.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a, T> {
    memory: &'a Arc<Memory>,
    start: usize,
    len: usize,
    element: PhantomData<&'a T>,
}

/// Elements to write.
#[derive(Debug)]
pub struct SliceMut<'a, T> {
    memory: &'a Arc<Memory>,
    start: usize,
    len: usize,
    element: PhantomData<&'a mut T>,
}

impl Gpu {
    /// Memory for `len` elements, of any content. `what` is it for, should there be too little?
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn buffer<T: Element>(&self, len: usize, what: &str) -> Result<Buffer<T>, Error> {
        let memory = self.allocate(len.saturating_mul(size_of::<T>()), what)?;
        Ok(Buffer { memory: Arc::new(memory), len, element: PhantomData })
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros<T: Element>(&self, len: usize, what: &str) -> Result<Buffer<T>, Error> {
        let mut buffer = self.buffer(len, what)?;
        buffer.slice_mut().zero()?;
        Ok(buffer)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn upload<T: Element>(&self, values: &[T], what: &str) -> Result<Buffer<T>, Error> {
        let mut buffer = self.buffer(values.len(), what)?;
        buffer.slice_mut().write(values)?;
        Ok(buffer)
    }
}

impl<T: Element> Buffer<T> {
    /// The card that it is of.
    pub fn gpu(&self) -> &Gpu {
        self.memory.gpu()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn slice(&self) -> Slice<'_, T> {
        Slice { memory: &self.memory, start: 0, len: self.len, element: PhantomData }
    }

    /// All of it.
    pub fn slice_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut { memory: &self.memory, start: 0, len: self.len, element: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If it goes out of bounds.
    pub fn part(&self, range: impl RangeBounds<usize>) -> Slice<'_, T> {
        self.slice().part(range)
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If it goes out of bounds.
    pub fn part_mut(&mut self, range: impl RangeBounds<usize>) -> SliceMut<'_, T> {
        let (start, len) = bounds(range, self.len);
        SliceMut { memory: &self.memory, start, len, element: PhantomData }
    }

    /// Its elements, when all work on them is done.
    ///
    /// # Errors
    /// [`Error::Driver`], also of work before.
    pub fn read(&self) -> Result<Vec<T>, Error> {
        self.slice().read()
    }
}

/// Start and length of a range.
fn bounds(range: impl RangeBounds<usize>, len: usize) -> (usize, usize) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "elements {start}..{end} of {len}");
    (start, end - start)
}

impl<'a, T: Element> Slice<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn memory(&self) -> &'a Arc<Memory> {
        self.memory
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address() + (self.start * size_of::<T>()) as u64
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If it goes out of bounds.
    pub fn part(&self, range: impl RangeBounds<usize>) -> Slice<'a, T> {
        let (start, len) = bounds(range, self.len);
        Slice { start: self.start + start, len, ..*self }
    }

    /// The elements, when all work on them is done.
    ///
    /// # Errors
    /// [`Error::Driver`], also of work before.
    pub fn read(&self) -> Result<Vec<T>, Error> {
        let mut values = vec![T::default(); self.len];
        self.read_into(&mut values)?;
        Ok(values)
    }

    /// The same into `values`.
    ///
    /// # Errors
    /// [`Error::Driver`], also of work before.
    ///
    /// # Panics
    /// If there are more or less of them.
    pub fn read_into(&self, values: &mut [T]) -> Result<(), Error> {
        assert_eq!(values.len(), self.len, "elements to read");
        self.memory.gpu().copy_out(self.address(), values)
    }
}

impl<'a, T: Element> SliceMut<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn memory(&self) -> &'a Arc<Memory> {
        self.memory
    }

    /// To read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        Slice { memory: self.memory, start: self.start, len: self.len, element: PhantomData }
    }

    /// The same elements, for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_, T> {
        self.part_mut(..)
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If it goes out of bounds.
    pub fn part_mut(&mut self, range: impl RangeBounds<usize>) -> SliceMut<'_, T> {
        let (start, len) = bounds(range, self.len);
        SliceMut { memory: self.memory, start: self.start + start, len, element: PhantomData }
    }

    /// The first `at` elements, and the others.
    ///
    /// # Panics
    /// If there are less.
    pub fn split_at(self, at: usize) -> (SliceMut<'a, T>, SliceMut<'a, T>) {
        assert!(at <= self.len, "{at} elements of {}", self.len);
        let SliceMut { memory, start, len, element } = self;
        (
            SliceMut { memory, start, len: at, element },
            SliceMut { memory, start: start + at, len: len - at, element },
        )
    }

    /// Copies `values` here. They may be changed as soon as it returns.
    ///
    /// # Errors
    /// [`Error::Driver`]; [`Error::Recording`].
    ///
    /// # Panics
    /// If there are more or less of them.
    pub fn write(&mut self, values: &[T]) -> Result<(), Error> {
        assert_eq!(values.len(), self.len, "elements to write");
        self.memory.gpu().copy_in(self.as_slice().address(), values)
    }

    /// Copies `values` here.
    ///
    /// # Errors
    /// [`Error::Driver`].
    ///
    /// # Panics
    /// If there are more or less of them.
    pub fn copy(&mut self, values: Slice<'_, T>) -> Result<(), Error> {
        assert_eq!(values.len(), self.len, "elements to copy");
        let gpu = self.memory.gpu();
        gpu.copy(self.as_slice(), values)
    }

    /// Zeros.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn zero(&mut self) -> Result<(), Error> {
        self.memory.gpu().zero(self.as_slice())
    }
}
