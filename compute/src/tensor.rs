//! Matrices with a type and a device.

use std::sync::Arc;

use crate::strips::Strips;

/// Element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// The upper half of a single (8 bits of exponent, 7 of fraction).
    Bf16,
}

impl DType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 => 2,
        }
    }
}

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Main memory.
    Cpu,
    /// A card; what main memory has of it is out of date.
    Card,
}

#[derive(Clone, Debug)]
enum Storage {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Strips(Arc<Strips>),
    /// Elements whose newest values are on a card, as they were before.
    Away(Vec<f32>),
}

const NEEDED: &str = "a tensor of another type than the operation takes";
const AWAY: &str = "a tensor whose values are on a card: Workspace::fetch brings them";

/// A row-major matrix `[rows, cols]`; a vector is one row.
#[derive(Clone, Debug)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    storage: Storage,
}

impl Tensor {
    /// `data` as `[rows, cols]`.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Tensor {
        assert_eq!(rows * cols, data.len(), "a {rows} x {cols} tensor");
        Tensor { rows, cols, storage: Storage::F32(data) }
    }

    /// `data` (bf16 bits) as `[rows, cols]`.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn new_bf16(rows: usize, cols: usize, data: Vec<u16>) -> Tensor {
        assert_eq!(rows * cols, data.len(), "a {rows} x {cols} tensor");
        Tensor { rows, cols, storage: Storage::Bf16(data) }
    }

    /// A quantised matrix.
    pub fn quantised(strips: Strips) -> Tensor {
        let (rows, cols) = (strips.rows(), strips.cols());
        Tensor { rows, cols, storage: Storage::Strips(Arc::new(strips)) }
    }

    /// f32 zeros.
    pub fn zeros(rows: usize, cols: usize) -> Tensor {
        Tensor::new(rows, cols, vec![0.0; rows * cols])
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(v) | Storage::Away(v) => v.len() * 4,
            Storage::Bf16(v) => v.len() * 2,
            Storage::Strips(s) => s.bytes(),
        }
    }

    /// The matrix, if it is a quantised one.
    pub fn strips(&self) -> Option<&Strips> {
        match &self.storage {
            Storage::Strips(s) => Some(s),
            _ => None,
        }
    }

    /// A row, widened to f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not one long.
    pub fn row(&self, r: usize, out: &mut [f32]) {
        let range = r * self.cols..(r + 1) * self.cols;
        match &self.storage {
            Storage::F32(v) => out.copy_from_slice(&v[range]),
            Storage::Bf16(v) => {
                let widened = |h: &u16| f32::from_bits(u32::from(*h) << 16);
                assert_eq!(out.len(), self.cols, "a row");
                out.iter_mut().zip(&v[range]).for_each(|(y, h)| *y = widened(h));
            }
            Storage::Strips(s) => s.row(r, out),
            Storage::Away(_) => panic!("{AWAY}"),
        }
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        match self.storage {
            Storage::Away(_) => Device::Card,
            _ => Device::Cpu,
        }
    }

    /// From now on the f32 elements' newest values are on a card, and nobody reads those that are here.
    pub(crate) fn leave(&mut self) {
        if let Storage::F32(v) = &mut self.storage {
            self.storage = Storage::Away(std::mem::take(v));
        }
    }

    /// Back in main memory: the place of the elements, to be filled. `None` for one that had not left.
    pub(crate) fn come_back(&mut self) -> Option<&mut [f32]> {
        let Storage::Away(v) = &mut self.storage else { return None };
        self.storage = Storage::F32(std::mem::take(v));
        Some(self.f32_mut())
    }

    /// The f32 elements.
    ///
    /// # Panics
    /// On another type: which types an operation takes is part of its contract. If the newest values are on a card.
    pub fn f32(&self) -> &[f32] {
        match &self.storage {
            Storage::F32(v) => v,
            Storage::Away(_) => panic!("{AWAY}"),
            _ => panic!("{NEEDED}: f32"),
        }
    }

    /// The f32 elements, to write.
    ///
    /// # Panics
    /// On another type.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::F32(v) => v,
            Storage::Away(_) => panic!("{AWAY}"),
            _ => panic!("{NEEDED}: f32"),
        }
    }

    /// The bits of bf16 elements.
    ///
    /// # Panics
    /// On another type.
    pub fn bf16(&self) -> &[u16] {
        match &self.storage {
            Storage::Bf16(v) => v,
            _ => panic!("{NEEDED}: bf16"),
        }
    }

    /// The f32 elements, taken out.
    ///
    /// # Panics
    /// On another type.
    pub fn into_f32(self) -> Vec<f32> {
        match self.storage {
            Storage::F32(v) => v,
            Storage::Away(_) => panic!("{AWAY}"),
            _ => panic!("{NEEDED}: f32"),
        }
    }

    /// The bits of bf16 elements, taken out.
    ///
    /// # Panics
    /// On another type.
    pub fn into_bf16(self) -> Vec<u16> {
        match self.storage {
            Storage::Bf16(v) => v,
            _ => panic!("{NEEDED}: bf16"),
        }
    }
}
