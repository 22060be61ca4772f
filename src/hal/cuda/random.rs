//! Matrices of random numbers, for benches.

use super::driver::{Context, Modules};
use super::launch::{Kernel, Style};
use super::memory::CudaMatrix;
use crate::base::{DType, Result};
use crate::hal::{MatrixStorage, RandomRows};
use std::ptr::null_mut;

const BLOCK: u32 = 256;

#[derive(Debug)]
pub(super) struct Random {
    f32: Kernel,
    f16: Kernel,
    bf16: Kernel,
}

/// Mirrors kernels/random.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Params {
    out: u64,
    n: u64,
    seed: u64,
    width: f32,
    pad: u32,
}

impl Random {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        let kernel = |name| modules.kernel("random", name);
        Ok(Self { f32: kernel("yn_random_f32")?, f16: kernel("yn_random_f16")?, bf16: kernel("yn_random_bf16")? })
    }

    /// Fills a matrix with its parts, one below the other, and waits.
    pub(super) fn fill(&self, context: &Context, matrix: &CudaMatrix, parts: &[RandomRows]) -> Result<()> {
        let _entered = context.enter()?;
        let kernel = match matrix.dtype() {
            DType::F16 => &self.f16,
            DType::Bf16 => &self.bf16,
            _ => &self.f32,
        };
        let mut out = matrix.addr();
        for part in parts {
            let n = (part.rows * matrix.cols()) as u64;
            let params = Params { out, n, seed: part.seed, width: part.width, pad: 0 };
            kernel.launch(
                null_mut(),
                [n.div_ceil(u64::from(BLOCK)) as u32, 1, 1],
                (BLOCK, 0),
                (&params, Style::default()),
            )?;
            out += n * matrix.dtype().size() as u64;
        }
        context.finish()
    }
}
