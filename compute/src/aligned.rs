//! Memory for kernels: on cache lines, zero, and not touched before it is used.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A vector load that straddles two lines costs two.
const LINE: usize = 64;

/// A slice of f32 that starts on a cache line.
pub(crate) struct Aligned {
    start: NonNull<f32>,
    len: usize,
}

// SAFETY: it owns its memory, as a Box<[f32]> does.
unsafe impl Send for Aligned {}
// SAFETY: as above.
unsafe impl Sync for Aligned {}

impl Aligned {
    pub(crate) const fn empty() -> Aligned {
        Aligned { start: NonNull::dangling(), len: 0 }
    }

    /// `len` zeros; `None` if the system does not give them.
    pub(crate) fn zeros(len: usize) -> Option<Aligned> {
        if len == 0 {
            return Some(Aligned::empty());
        }
        let layout = Layout::array::<f32>(len).ok()?.align_to(LINE).ok()?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Aligned { start: start.cast(), len })
    }

    /// The same memory as bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: f32 are four plain bytes each.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len * 4) }
    }

    /// The same memory as bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: f32 are four plain bytes each, borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len * 4) }
    }
}

impl Default for Aligned {
    fn default() -> Aligned {
        Aligned::empty()
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialised f32 of our own (dangling and 0 when empty).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated by `zeros` with this size and alignment.
            unsafe {
                let layout = Layout::from_size_align_unchecked(self.len * 4, LINE);
                dealloc(self.start.as_ptr().cast(), layout);
            }
        }
    }
}
