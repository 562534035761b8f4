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
    /// What was allocated: the slice begins on its first line.
    base: NonNull<u8>,
}

// SAFETY: it owns its memory, as a Box<[f32]> does.
unsafe impl Send for Aligned {}
// SAFETY: as above.
unsafe impl Sync for Aligned {}

impl Aligned {
    pub(crate) const fn empty() -> Aligned {
        Aligned { start: NonNull::dangling(), len: 0, base: NonNull::dangling() }
    }

    /// `len` zeros; `None` if the system does not give them.
    pub(crate) fn zeros(len: usize) -> Option<Aligned> {
        if len == 0 {
            return Some(Aligned::empty());
        }
        let layout = Aligned::layout(len)?;
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        prefer_huge_pages(base, layout.size());
        // SAFETY: the layout has room for a line more than the slice.
        let start = unsafe { base.add(base.align_offset(LINE)) };
        Some(Aligned { start: start.cast(), len, base })
    }

    /// That of `len` f32 and a line more. Were the alignment told to the allocator, it would write the zeros itself,
    /// page by page; as it is, the system gives pages of zeros when they are touched.
    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<f32>())?.checked_add(LINE)?;
        Layout::from_size_align(bytes, align_of::<f32>()).ok()
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

/// Asks the system for pages of 2 MB, where they are to be had: memory that is read once a token has more
/// pages of 4 kB than the processor remembers the places of.
fn prefer_huge_pages(base: NonNull<u8>, bytes: usize) {
    const HUGE: usize = 2 << 20;
    #[cfg(target_os = "linux")]
    {
        let whole = base.align_offset(HUGE)..bytes - bytes.min((base.addr().get() + bytes) % HUGE);
        if whole.start < whole.end {
            // SAFETY: whole pages of memory of our own, whose contents stay. It is a hint: if it is refused, nothing
            // has changed.
            let _ = unsafe {
                let start = base.add(whole.start).as_ptr().cast();
                rustix::mm::madvise(start, whole.len(), rustix::mm::Advice::LinuxHugepage)
            };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (base, bytes, HUGE);
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
        if let Some(layout) = Aligned::layout(self.len).filter(|_| self.len > 0) {
            // SAFETY: allocated by `zeros` with this layout.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lies_on_cache_lines() {
        for len in [1, 15, 16, 17, 100_000] {
            let memory = Aligned::zeros(len).unwrap();
            assert_eq!((memory.as_ptr().addr() % LINE, memory.len()), (0, len));
            assert!(memory.iter().all(|x| *x == 0.0));
        }
        assert!(Aligned::zeros(0).unwrap().is_empty());
        assert!(Aligned::zeros(usize::MAX).is_none() && Aligned::zeros(usize::MAX / 8).is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn takes_no_pages_before_they_are_used() {
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse().unwrap()
        };
        let before = resident();
        let memory = Aligned::zeros(1 << 28).unwrap(); // a gibibyte: 262,144 pages
        // Other tests take some at the same time.
        assert!(resident() < before + 200_000);
        assert_eq!(memory.len(), 1 << 28);
    }
}
