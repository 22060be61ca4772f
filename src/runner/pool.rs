//! KV blocks of a runner, whose memory may come once it is known how much is left.

use crate::base::{DType, Result};
use crate::hal::{Allocation, Device, Tensor};
use std::sync::Arc;

/// Room for the blocks of one runner.
#[derive(Debug, Clone)]
pub struct KvRoom {
    memory: Arc<dyn Allocation>,
    /// Most blocks there can be.
    blocks: u32,
    block_bytes: usize,
    /// Blocks before block 0 that no sequence has: padding runs there.
    padding: usize,
    late: bool,
}

impl KvRoom {
    /// Memory of `blocks` blocks of `block_bytes`, taken now.
    pub fn exact(device: &dyn Device, blocks: u32, block_bytes: usize) -> Result<Self> {
        let padding = usize::from(device.caps().graphs);
        let bytes = (blocks as usize + padding) * block_bytes;
        let memory = device.alloc(bytes).map_err(|e| e.within(format!("{blocks} KV blocks")))?;
        Ok(Self { memory, blocks, block_bytes, padding, late: false })
    }

    /// Addresses of `most` blocks, with memory for what a warm-up needs, where the device can add memory later; else memory
    /// of `blocks` blocks.
    pub fn reserved(device: &dyn Device, (blocks, most): (u32, u32), block_bytes: usize) -> Result<Self> {
        let padding = usize::from(device.caps().graphs);
        let reserved = device.reserve((most as usize + padding) * block_bytes);
        let Some(memory) = reserved.map_err(|e| e.within(format!("{blocks} KV blocks")))? else {
            return Self::exact(device, blocks, block_bytes);
        };
        let room = Self { memory, blocks: most, block_bytes, padding, late: true };
        room.commit(1)?;
        Ok(room)
    }

    /// Whether it is still to be said how many blocks there are.
    pub fn is_late(&self) -> bool {
        self.late
    }

    /// Most blocks there can be.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Bytes of memory that `blocks` blocks and the padding take.
    pub fn bytes(&self, blocks: u32) -> usize {
        (blocks as usize + self.padding) * self.block_bytes
    }

    /// Puts memory behind the first `blocks` blocks. `NoMemory` when the device has too little.
    pub fn commit(&self, blocks: u32) -> Result<()> {
        self.memory.commit(self.bytes(blocks)).map_err(|e| e.within(format!("{blocks} KV blocks")))
    }

    /// Blocks that stand before block 0.
    pub(super) fn padding(&self) -> usize {
        self.padding
    }

    /// U8 `[padding + blocks, block_bytes]`.
    pub(super) fn tensor(&self) -> Tensor {
        let rows = self.padding + self.blocks as usize;
        Tensor::new(Arc::clone(&self.memory), 0, rows, self.block_bytes, DType::U8)
    }
}
