//! Step memory, reused: a steady-state step takes no memory from the system.

/// Free buffers by size class. A class is a length rounded up to one of eight steps between
/// powers of two, so that batches of slightly different length share buffers.
pub struct Arena<T> {
    free: Vec<(usize, Vec<Vec<T>>)>,
    /// Elements taken from the system so far.
    allocated: usize,
}

impl<T: Copy + Default> Default for Arena<T> {
    fn default() -> Self {
        Arena { free: Vec::new(), allocated: 0 }
    }
}

impl<T: Copy + Default> Arena<T> {
    /// A buffer of `len` elements with whatever values they had.
    pub fn take(&mut self, len: usize) -> Vec<T> {
        let class = size_class(len);
        let found = self.free.iter_mut().find(|(c, _)| *c == class);
        if let Some(mut buffer) = found.and_then(|(_, buffers)| buffers.pop()) {
            // Growing within the class writes only what a shorter use had cut off.
            buffer.resize(len, T::default());
            return buffer;
        }
        self.allocated += class;
        let mut buffer = Vec::with_capacity(class);
        buffer.resize(len, T::default());
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
        if buffer.capacity() == 0 {
            return;
        }
        let class = size_class(buffer.len());
        if class > buffer.capacity() {
            return; // not one of ours
        }
        match self.free.iter_mut().find(|(c, _)| *c == class) {
            Some((_, buffers)) => buffers.push(buffer),
            None => self.free.push((class, vec![buffer])),
        }
    }

    /// Elements taken from the system so far; constant once a step is steady.
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
        assert!(arena.zeros(1000).iter().all(|x| *x == 0.0));
    }
}
