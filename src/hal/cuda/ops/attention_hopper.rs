//! Prefill chunks with the tensor cores and the copy hardware of compute capability 9.0.

use super::attention::Params;
use super::tensor_map::{self, TensorMap};
use super::{short_name, small};
use crate::base::{DType, Result};
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::launch::Kernel;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::PagedAttention;

/// What the kernels are compiled for; others have empty bodies.
pub(super) const CAPABILITY: u32 = 90;
/// Threads of a block.
const BLOCK: u32 = 384;
/// Most rows of a block's tile.
const ROWS: usize = 128;
/// Tokens of a box that the hardware copies.
const BOX: u32 = 16;
const DIMS: [usize; 2] = [64, 128];

/// Shared memory of a block, with what aligns it.
const fn shared(dim: usize) -> u32 {
    (768 * dim * 2 + 280 + 1024) as u32
}

/// A kernel of one dtype and head dimension.
#[derive(Debug)]
pub(super) struct Hopper {
    dtype: DType,
    dim: usize,
    kernel: Kernel,
}

/// Mirrors kernels/attention_hopper.cu.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct HopperParams {
    pool_map: TensorMap,
    query_map: TensorMap,
    attention: Params,
}
const _: () = assert!(size_of::<HopperParams>() == 448);

impl Hopper {
    /// All kernels there are; none where `capability` is another than theirs.
    pub(super) fn load(modules: &Modules, capability: u32) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        if capability != CAPABILITY {
            return Ok(all);
        }
        for dtype in [DType::F16, DType::Bf16] {
            for dim in DIMS {
                let name = format!("yn_attention_hopper_{dim}_{}", short_name(dtype));
                let kernel = modules.kernel_with_shared("attention_hopper", &name, shared(dim))?;
                all.push(Self { dtype, dim, kernel });
            }
        }
        Ok(all)
    }

    /// Whether it takes such a step, whose tensors are aligned.
    pub(super) fn takes(&self, args: &PagedAttention<'_>) -> bool {
        let kv = &args.kv;
        (self.dtype, self.dtype, self.dim) == (args.qkv.dtype(), kv.dtype, kv.head_dim)
            && args.soft_cap.is_none()
            && args.heads / kv.kv_heads <= ROWS
            && kv.block_size.is_multiple_of(BOX as usize)
    }

    /// Blocks share what there is for them, at most `most` tiles of one key head and part of the keys.
    pub(super) fn launch(
        &self,
        s: &CudaStream,
        args: &PagedAttention<'_>,
        attention: Params,
        most: usize,
    ) -> Result<()> {
        let params = HopperParams { pool_map: self.pool_map(args)?, query_map: self.query_map(args)?, attention };
        let blocks = small(most.min(s.sm_count() as usize));
        s.launch(&self.kernel, [blocks, 1, 1], BLOCK, shared(self.dim), &params)
    }

    /// The whole pool as rows of one head of one token, for copies of boxes.
    fn pool_map(&self, args: &PagedAttention<'_>) -> Result<TensorMap> {
        let rows = args.kv.pool.bytes() / (self.dim * self.dtype.size());
        tensor_map::eights(args.kv.pool.addr(), self.dtype, (rows, self.dim), BOX)
    }

    /// The queries of all tokens, for copies of those of a tile.
    fn query_map(&self, args: &PagedAttention<'_>) -> Result<TensorMap> {
        let (heads, ratio) = (args.qkv.cols() / self.dim, args.heads / args.kv.kv_heads);
        let (array, side) = ((args.qkv.rows(), heads, self.dim), (small(ROWS / ratio), small(ratio)));
        tensor_map::heads(args.qkv.addr(), self.dtype, array, side)
    }
}

/// Rows of a tile that are in use where so many query heads share keys: those of whole tokens.
pub(super) fn rows_of_tile(ratio: usize) -> usize {
    ROWS / ratio * ratio
}
