//! `rms_norm` and `add_rms_norm`.

use super::{Family, VECTOR, shape, small, whole_vectors};
use crate::base::{DType, Result};
use crate::hal::Tensor;
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::stream::CudaStream;

/// Vectors of a thread at most, as in the kernel.
const VECTORS: usize = 4;
const WARP: usize = 32;
const MAX_BLOCK: usize = 1024;

#[derive(Debug)]
pub(super) struct Kernels {
    norm: Family,
    add_norm: Family,
}

impl Kernels {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        let load = |name| Family::load(modules, "norm", name);
        Ok(Self { norm: load("yn_rms_norm")?, add_norm: load("yn_add_rms_norm")? })
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
    unused: u32,
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
    assert_eq!((shape(weight), weight.dtype()), ((1, x.cols()), DType::F32), "weight of a norm");
    if let Some(residual) = residual {
        assert_eq!((shape(residual), residual.dtype()), (shape(x), x.dtype()), "residual of a norm");
    }
    if x.rows() == 0 {
        return Ok(());
    }
    let vectors = x.cols() / VECTOR;
    let whole = whole_vectors(x.cols(), &[out, x, weight, residual.unwrap_or(x)]) && vectors <= VECTORS * MAX_BLOCK;
    let items = if whole { vectors } else { x.cols() };
    let block = items.next_multiple_of(WARP).min(MAX_BLOCK);
    let params = Params {
        out: out.addr(),
        x: x.addr(),
        residual: residual.map_or(0, Tensor::addr),
        weight: weight.addr(),
        cols: small(x.cols()),
        vectors: if whole { small(vectors) } else { 0 },
        eps,
        unused: 0,
    };
    let kernels = &s.kernels().norm;
    let family = if residual.is_some() { &kernels.add_norm } else { &kernels.norm };
    s.launch(family.of(x.dtype()), [small(x.rows()), 1, 1], small(block), 0, &params)
}
