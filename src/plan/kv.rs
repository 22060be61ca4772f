//! The shape of paged KV memory.

use crate::base::DType;

/// Layers that share one block table: the same number of KV heads, head dimension and dtype. To everyone but a
/// backend a block is `block_bytes` opaque contiguous bytes that hold all layers of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvGroup {
    pub layers: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub dtype: DType,
}

impl KvGroup {
    /// Bytes one token occupies over all layers of the group (keys and values).
    pub fn token_bytes(&self) -> usize {
        2 * self.layers as usize * self.kv_heads as usize * self.head_dim as usize * self.dtype.size()
    }
}

/// How a model's KV cache is cut into blocks. Dense models have one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpec {
    /// Tokens per block.
    pub block_size: u32,
    pub groups: Vec<KvGroup>,
}

impl KvSpec {
    /// Bytes of one block of `group`.
    pub fn block_bytes(&self, group: usize) -> usize {
        self.block_size as usize * self.groups[group].token_bytes()
    }

    /// Blocks that hold `tokens` tokens.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size as usize)
    }
}
