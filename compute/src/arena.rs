//! Step memory, reused: a steady-state step takes no memory from the system.

use std::collections::BTreeMap;

/// Free buffers. They are made in sizes of eight steps between powers of two, so that batches of slightly different
/// length share them; batches of clearly different length do, too, from the larger to the smaller.
pub struct Arena<T> {
    /// By size.
    free: BTreeMap<usize, Vec<Vec<T>>>,
    /// Elements taken from the system and not given back to it.
    allocated: usize,
}

impl<T: Copy + Default> Default for Arena<T> {
    fn default() -> Self {
        Arena { free: BTreeMap::new(), allocated: 0 }
    }
}

impl<T: Copy + Default> Arena<T> {
    /// A buffer of `len` elements with whatever values they had.
    pub fn take(&mut self, len: usize) -> Vec<T> {
        let size = size_class(len);
        // One of half as much again is as good; what is larger is for others.
        let fits = self.free.range(size..=size + size / 2).next().map(|(size, _)| *size);
        let mut buffer = match fits {
            Some(fits) => self.take_out(fits),
            None => {
                // One that has become too small makes room for it.
                let small = self.free.range(size / 2..size).next_back().map(|(size, _)| *size);
                if let Some(small) = small {
                    let gone = self.take_out(small).capacity();
                    self.allocated = self.allocated.saturating_sub(gone);
                }
                let buffer = Vec::with_capacity(size);
                self.allocated += buffer.capacity();
                buffer
            }
        };
        // Growing within a buffer writes only what a shorter use had cut off.
        buffer.resize(len, T::default());
        buffer
    }

    /// A free buffer of this size, of which there is one.
    fn take_out(&mut self, size: usize) -> Vec<T> {
        let list = self.free.entry(size).or_default();
        let buffer = list.pop().unwrap_or_default();
        if list.is_empty() {
            self.free.remove(&size);
        }
        buffer
    }

    /// A buffer of `len` zeros.
    pub fn zeros(&mut self, len: usize) -> Vec<T> {
        let mut buffer = self.take(len);
        buffer.fill(T::default());
        buffer
    }

    /// Gives a buffer back.
    pub fn give(&mut self, buffer: Vec<T>) {
        let size = buffer.capacity();
        if size == 0 || size_class(size) != size {
            return; // not one of ours
        }
        self.free.entry(size).or_default().push(buffer);
    }

    /// Elements taken from the system and not given back to it; constant once a step is steady.
    pub fn allocated(&self) -> usize {
        self.allocated
    }
}

fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(64);
    len.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back() {
        let mut arena = Arena::<f32>::default();
        for _ in 0..3 {
            let buffers: Vec<_> = [1000, 1000, 990, 5].map(|n| arena.take(n)).into();
            assert_eq!(buffers.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 990, 5]);
            buffers.into_iter().for_each(|b| arena.give(b));
            assert_eq!(arena.allocated(), 3 * 1024 + 64);
        }
        // A larger batch, then the small one again: the larger buffers serve both.
        for n in [1200, 1000, 1200, 1000] {
            let buffers: Vec<_> = [n, n, n, 5].map(|n| arena.take(n)).into();
            buffers.into_iter().for_each(|b| arena.give(b));
            assert_eq!(arena.allocated(), 3 * 1280 + 64);
        }
        // What is far larger stays for what needs it.
        let large = arena.take(100_000);
        arena.give(large);
        assert!(arena.take(1000).capacity() < 2000);
        assert!(arena.zeros(1000).iter().all(|x| *x == 0.0));
    }
}
