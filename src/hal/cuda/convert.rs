//! F32 numbers in another dtype.

use super::driver::Modules;
use super::launch::Kernel;
use super::stream::CudaStream;
use crate::base::{DType, Result};
use crate::hal::Tensor;

const BLOCK: u32 = 256;

#[derive(Debug)]
pub(super) struct Convert {
    f16: Kernel,
    bf16: Kernel,
}

/// Mirrors kernels/convert.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Params {
    out: u64,
    from: u64,
    n: u64,
}

impl Convert {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        let kernel = |name| modules.kernel("convert", name);
        Ok(Self { f16: kernel("yn_convert_f16")?, bf16: kernel("yn_convert_bf16")? })
    }

    /// Writes the F32 tensor `x` to `out` as numbers of `dtype`, F16 or BF16.
    pub(super) fn run(&self, s: &CudaStream, (out, dtype): (u64, DType), x: &Tensor) -> Result<()> {
        assert_eq!(x.dtype(), DType::F32, "numbers to convert");
        let kernel = match dtype {
            DType::F16 => &self.f16,
            DType::Bf16 => &self.bf16,
            _ => panic!("conversion to {dtype}"),
        };
        let n = x.rows() * x.cols();
        s.launch(
            kernel,
            [n.div_ceil(BLOCK as usize) as u32, 1, 1],
            BLOCK,
            0,
            &Params { out, from: x.addr(), n: n as u64 },
        )
    }
}
