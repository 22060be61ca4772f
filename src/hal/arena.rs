//! One preallocated region for all temporary tensors (the α term): sized at start, reused by every step.

use crate::base::{DType, Result};
use crate::hal::{Allocation, Device, Tensor};
use std::sync::Arc;

const ALIGN: usize = 256;
/// Free behind each tensor: operators of some vendors read and write whole vectors, beyond the end of what they are given.
const BEHIND: usize = 32;

/// Lays tensors out one after another. First on paper ([`ArenaPlan`]), then in memory.
#[derive(Debug, Default)]
pub struct ArenaPlan {
    bytes: usize,
}

/// Where a planned tensor will stand.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    offset: usize,
    rows: usize,
    cols: usize,
    dtype: DType,
}

impl ArenaPlan {
    /// Reserves room for `rows x cols` elements.
    pub fn reserve(&mut self, rows: usize, cols: usize, dtype: DType) -> Slot {
        let offset = self.bytes;
        self.bytes += (rows * cols * dtype.size() + BEHIND).next_multiple_of(ALIGN);
        Slot { offset, rows, cols, dtype }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn allocate(&self, device: &dyn Device) -> Result<Arena> {
        Ok(Arena { mem: device.alloc(self.bytes.max(ALIGN))? })
    }
}

/// The memory of an [`ArenaPlan`].
#[derive(Debug)]
pub struct Arena {
    mem: Arc<dyn Allocation>,
}

impl Arena {
    /// The tensor of a slot of this arena's plan.
    pub fn tensor(&self, slot: Slot) -> Tensor {
        Tensor::new(Arc::clone(&self.mem), slot.offset, slot.rows, slot.cols, slot.dtype)
    }

    pub fn bytes(&self) -> usize {
        self.mem.bytes()
    }
}
