//! `rms_norm` and `add_rms_norm`.

use super::{Family, HalfFamily, VECTOR, assert_norm_weight, shape, small, whole_vectors};
use crate::base::Result;
use crate::hal::Tensor;
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::stream::CudaStream;

/// Vectors of a thread at most, as in the kernel.
const VECTORS: usize = 4;
const WARP: usize = 32;
const MAX_BLOCK: usize = 1024;
/// Rows for each multiprocessor from which on a thread takes as many vectors as it can.
const MANY_ROWS: usize = 8;
const ALIGNED_BLOCK: usize = 512;

#[derive(Debug)]
pub(super) struct Kernels {
    norm: Family,
    add_norm: Family,
    aligned: HalfFamily,
    add_aligned: HalfFamily,
}

impl Kernels {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        let load = |name| Family::load(modules, "norm", name);
        let half = |name| HalfFamily::load(modules, "norm", name);
        Ok(Self {
            norm: load("yn_rms_norm")?,
            add_norm: load("yn_add_rms_norm")?,
            aligned: half("yn_rms_norm_aligned")?,
            add_aligned: half("yn_add_rms_norm_aligned")?,
        })
    }
}

/// Mirrors kernels/norm.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Params {
    out: u64,
    x: u64,
    residual: u64,
    weight: u64,
    cols: u32,
    vectors: u32,
    eps: f32,
    weight_in_act: u32,
}
const _: () = assert!(size_of::<Params>() == 48);

pub(in crate::hal::cuda) fn rms_norm(
    s: &CudaStream,
    out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    launch(s, (out, x), None, (weight, eps))
}

pub(in crate::hal::cuda) fn add_rms_norm(
    s: &CudaStream,
    out: &Tensor,
    residual: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<()> {
    launch(s, (out, x), Some(residual), (weight, eps))
}

fn launch(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    residual: Option<&Tensor>,
    (weight, eps): (&Tensor, f32),
) -> Result<()> {
    assert_eq!((shape(out), out.dtype()), (shape(x), x.dtype()), "output of a norm");
    if let Some(residual) = residual {
        assert_eq!((shape(residual), residual.dtype()), (shape(x), x.dtype()), "residual of a norm");
    }
    if x.rows() == 0 {
        return Ok(());
    }
    let aligned = s.rounds_as_reference(x.dtype());
    assert_norm_weight(weight, x, aligned);
    assert_eq!(weight.cols(), x.cols(), "weight of a norm");
    let vectors = x.cols() / VECTOR;
    let whole = whole_vectors(x.cols(), &[out, x, weight, residual.unwrap_or(x)]) && vectors <= VECTORS * MAX_BLOCK;
    let many = x.rows() >= MANY_ROWS * s.sm_count() as usize && !s.invariant();
    let items = match (whole, many) {
        (true, true) => vectors.div_ceil(VECTORS),
        (true, false) => vectors,
        (false, _) => x.cols(),
    };
    let block = items.next_multiple_of(WARP).min(MAX_BLOCK);
    // Sums of wide rows take sixteen warps there.
    let block = if aligned { x.cols().next_multiple_of(WARP).min(ALIGNED_BLOCK) } else { block };
    let params = Params {
        out: out.addr(),
        x: x.addr(),
        residual: residual.map_or(0, Tensor::addr),
        weight: weight.addr(),
        cols: small(x.cols()),
        vectors: if whole { small(vectors) } else { 0 },
        eps,
        weight_in_act: u32::from(weight.dtype() == x.dtype()),
    };
    let kernels = &s.kernels().norm;
    let kernel = match (aligned, residual) {
        (true, None) => kernels.aligned.of(x.dtype()),
        (true, Some(_)) => kernels.add_aligned.of(x.dtype()),
        (false, None) => kernels.norm.of(x.dtype()),
        (false, Some(_)) => kernels.add_norm.of(x.dtype()),
    };
    s.launch(kernel, [small(x.rows()), 1, 1], small(block), 0, &params)
}
