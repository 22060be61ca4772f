//! Norms. Their weights are F32 and the operator wants them in the dtype of what it norms, so it norms widened activations.

use super::super::abi::DataType;
use super::super::kernels::{Arg, number};
use super::super::operands::{View, code};
use super::super::stream::AscendStream;
use super::linear::add;
use super::{assert_halves, cast, floats, shape};
use crate::base::{DType, Result};
use crate::hal::Tensor;

fn checked((out, x): (&Tensor, &Tensor), weight: &Tensor) {
    assert_eq!(shape(out), shape(x), "output of a norm");
    assert_eq!((shape(weight), weight.dtype()), ((1, x.cols()), DType::F32), "weight of a norm");
    assert_halves("a norm", &[out, x]);
}

/// Norms the last dimension of F32 `x` into `y`; `places` has room for a number per norm.
pub(super) fn norm(
    s: &AscendStream,
    (y, x): (u64, u64),
    dims: &[usize],
    (weight, eps): (&Tensor, f32),
    places: u64,
) -> Result<()> {
    let Some(op) = &s.abi().rms_norm else { return on_host(s, (y, x), dims, (weight, eps)) };
    let mut each = dims.to_vec();
    let last = each.len() - 1;
    each[last] = 1;
    let (y, x, gamma) = (floats(s, y, dims)?, floats(s, x, dims)?, View::flat(s, weight)?);
    let rstd = floats(s, places, &each)?;
    // SAFETY: described tensors that outlive the call.
    s.call(op, |plan, bytes, executor| unsafe {
        plan(x.raw(), gamma.raw(), f64::from(eps), y.raw(), rstd.raw(), bytes, executor)
    })
}

fn on_host(s: &AscendStream, (y, x): (u64, u64), dims: &[usize], (weight, eps): (&Tensor, f32)) -> Result<()> {
    let (n, cols) = (dims.iter().product::<usize>(), weight.cols());
    let x = s.host.floats(&DType::F32.decode(&s.fetch_all(&[(x, 4 * n)])?), cols)?;
    let weight = s.host.floats(&DType::F32.decode(&s.fetch(weight)?), cols)?;
    s.host.stream.rms_norm(&x, &x, &weight, eps)?;
    s.put_at(y, &DType::F32.encode(&s.host.read_floats(&x)?))
}

pub(crate) fn rms_norm(s: &AscendStream, (out, x): (&Tensor, &Tensor), (weight, eps): (&Tensor, f32)) -> Result<()> {
    checked((out, x), weight);
    let ((m, n), dtype) = (shape(x), code(x.dtype()));
    if m == 0 {
        return Ok(());
    }
    if let Some(kernel) = s.kernel("yn_rms_norm", x.dtype()) {
        let [out, x, weight] = [out, x, weight].map(|t| Arg::Address(t.addr()));
        return kernel.launch(s, m, &[out, x, weight, number(m), number(n), Arg::Float(eps)]);
    }
    let [wide, normed, rstd] = s.scratch([4 * m * n, 4 * m * n, 4 * m])?;
    cast(s, &floats(s, wide, &[m, n])?, &View::of(s, x)?, DataType::FLOAT)?;
    norm(s, (normed, wide), &[m, n], (weight, eps), rstd)?;
    cast(s, &View::of(s, out)?, &floats(s, normed, &[m, n])?, dtype)
}

pub(crate) fn add_rms_norm(
    s: &AscendStream,
    out: &Tensor,
    (residual, x): (&Tensor, &Tensor),
    (weight, eps): (&Tensor, f32),
) -> Result<()> {
    checked((out, x), weight);
    assert_eq!((shape(residual), residual.dtype()), (shape(x), x.dtype()), "residual of a norm");
    if x.rows() == 0 {
        return Ok(());
    }
    if let Some(kernel) = s.kernel("yn_add_rms_norm", x.dtype()) {
        let (m, n) = shape(x);
        let [out, residual, x, weight] = [out, residual, x, weight].map(|t| Arg::Address(t.addr()));
        return kernel.launch(s, m, &[out, residual, x, weight, number(m), number(n), Arg::Float(eps)]);
    }
    add(s, &View::of(s, residual)?, &View::of(s, x)?)?;
    rms_norm(s, (out, residual), (weight, eps))
}
