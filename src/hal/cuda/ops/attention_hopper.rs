//! Prefill chunks with the tensor cores and the copy hardware of compute capability 9.0.

use super::attention::Params;
use super::short_name;
use crate::base::{DType, Result};
use crate::hal::cuda::driver::{Modules, check};
use crate::hal::cuda::launch::Kernel;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::PagedAttention;
use cudarc::driver::sys;
use std::ffi::c_void;

/// What the kernels are compiled for; others have empty bodies.
pub(super) const CAPABILITY: u32 = 90;
/// Threads of a block.
const BLOCK: u32 = 384;
/// Rows of a block's tile.
pub(super) const ROWS: usize = 128;
/// Tokens and columns of a box that the hardware copies.
const BOX: [u32; 2] = [64, 16];
const DIMS: [usize; 2] = [64, 128];

/// Shared memory of a block, with what aligns it.
const fn shared(dim: usize) -> u32 {
    (640 * dim * 2 + 72 + 1024) as u32
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
    map: [u64; 16],
    attention: Params,
}
const _: () = assert!(size_of::<HopperParams>() == 320);

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
            && kv.block_size.is_multiple_of(BOX[1] as usize)
    }

    /// A block for each tile, key head and part of the keys.
    pub(super) fn launch(
        &self,
        s: &CudaStream,
        args: &PagedAttention<'_>,
        attention: Params,
        grid: [u32; 3],
    ) -> Result<()> {
        let params = HopperParams { map: self.map(args)?, attention };
        s.launch(&self.kernel, grid, BLOCK, shared(self.dim), &params)
    }

    /// The whole pool as rows of one head of one token, for copies of boxes.
    fn map(&self, args: &PagedAttention<'_>) -> Result<[u64; 16]> {
        let row_bytes = self.dim * self.dtype.size();
        let rows = args.kv.pool.bytes() / row_bytes;
        let dtype = match self.dtype {
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let (sizes, strides, steps) = ([self.dim as u64, rows as u64], [row_bytes as u64], [1u32; 2]);
        // SAFETY: plain bytes, whose zero is a value; replaced below.
        let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
        // SAFETY: `map` is writable and every array has an element for each of two dimensions (one for strides); the
        // address is only described, the pool outlives the launch.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                dtype,
                2,
                args.kv.pool.addr() as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                BOX.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(result, "describing the KV pool")?;
        Ok(map.opaque)
    }
}
