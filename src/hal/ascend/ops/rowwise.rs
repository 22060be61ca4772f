//! Ops that treat each row alone: embeddings, gates, gathers.

use super::super::abi::DataType;
use super::super::host::int_bytes;
use super::super::kernels::{Arg, number};
use super::super::memory::AscendMatrix;
use super::super::operands::{View, code, is_aligned};
use super::super::stream::AscendStream;
use super::{assert_halves, cast, floats, shape};
use crate::base::{DType, Error, Result};
use crate::hal::ops::{Activation, SAMPLER_WORDS, SamplerWord};
use crate::hal::{Matrix, MatrixStorage, Tensor};

/// What our own kernel calls activations, and numbers of its unit of work.
const SILU: u32 = 0;
const GELU_TANH: u32 = 1;
const GATES: usize = 4096;

/// Ids with those of sampler rows looked up; an error where one is beyond the table.
fn resolved(s: &AscendStream, (ids, state): (&Tensor, &Tensor), rows: usize) -> Result<Vec<i32>> {
    let mut found = s.ints(ids)?;
    for (token, id) in found.iter_mut().enumerate() {
        if *id < 0 {
            let row = (-(*id + 1)) as usize;
            *id = s.ints(&state.slice_rows(row, 1))?[SamplerWord::LastToken as usize];
        }
        if *id < 0 || *id as usize >= rows {
            return Err(Error::internal(format!("token {token} of a step has id {id}; the table has {rows} rows")));
        }
    }
    Ok(found)
}

pub(crate) fn embed(
    s: &AscendStream,
    (out, scale): (&Tensor, f32),
    table: &Matrix,
    (ids, state): (&Tensor, &Tensor),
) -> Result<()> {
    let table = AscendMatrix::of(table);
    let (tokens, cols) = (ids.rows(), table.cols());
    assert_eq!(shape(out), (tokens, cols), "output of embed");
    assert_eq!((ids.cols(), state.cols()), (1, SAMPLER_WORDS), "columns of ids and sampler state");
    assert_halves("the output of embed", &[out]);
    if tokens == 0 {
        return Ok(());
    }
    let known = resolved(s, (ids, state), table.rows())?;
    let (Some(tensor), Some(op)) = (table.tensor(), &s.abi().embedding) else {
        return embed_on_host(s, (out, scale), table, &known);
    };
    let (n, plain) = (tokens * cols, table.dtype() == out.dtype() && scale == 1.0);
    let [index, rows, wide, factor] = s.scratch([4 * tokens, if plain { 0 } else { 4 * n }, 4 * n, 4])?;
    s.put_at(index, &int_bytes(&known))?;
    let dims = [tokens, cols];
    let gathered = View::new(s, if plain { out.addr() } else { rows }, code(table.dtype()), &dims)?;
    let (weight, index) = (View::of(s, tensor)?, View::new(s, index, DataType::INT32, &[tokens])?);
    // SAFETY: described tensors that outlive the call.
    s.call(op, |plan, bytes, executor| unsafe { plan(weight.raw(), index.raw(), gathered.raw(), bytes, executor) })?;
    if plain {
        return Ok(());
    }
    let wide = floats(s, wide, &dims)?;
    cast(s, &wide, &gathered, DataType::FLOAT)?;
    if scale != 1.0 {
        s.put_at(factor, &scale.to_ne_bytes())?;
        let factor = floats(s, factor, &[1])?;
        let (x, by) = (wide.raw(), factor.raw());
        // SAFETY: as above; the operator may write what it reads, element by element.
        s.call(&s.abi().mul, |plan, bytes, executor| unsafe { plan(x, by, x, bytes, executor) })?;
    }
    cast(s, &View::of(s, out)?, &wide, code(out.dtype()))
}

/// Rows of a table that lies in host memory, or that no operator reads.
fn embed_on_host(s: &AscendStream, (out, scale): (&Tensor, f32), table: &AscendMatrix, ids: &[i32]) -> Result<()> {
    let (dtype, row_bytes) = (table.dtype(), table.cols() * table.dtype().size());
    let mut rows = Vec::new();
    match table.tensor() {
        Some(tensor) => {
            let place = |id: &i32| (tensor.addr() + (*id as usize * row_bytes) as u64, row_bytes);
            rows = s.fetch_all(&ids.iter().map(place).collect::<Vec<_>>())?;
        }
        None => ids.iter().for_each(|id| rows.extend_from_slice(table.host_row(*id as usize).unwrap_or_default())),
    }
    let scaled: Vec<f32> = dtype.decode(&rows).into_iter().map(|x| x * scale).collect();
    s.put(out, &out.dtype().encode(&scaled))
}

pub(crate) fn act_mul(s: &AscendStream, (out, gate_up): (&Tensor, &Tensor), activation: Activation) -> Result<()> {
    assert_eq!(shape(gate_up), (out.rows(), 2 * out.cols()), "input of act_mul");
    assert_halves("act_mul", &[out, gate_up]);
    if out.rows() == 0 {
        return Ok(());
    }
    if let Some(kernel) = s.kernel("yn_silu_mul", out.dtype()) {
        let ((m, n), which) = (shape(out), if activation == Activation::Silu { SILU } else { GELU_TANH });
        let [out, gate_up] = [out, gate_up].map(|t| Arg::Address(t.addr()));
        return kernel.launch(s, m * n.div_ceil(GATES), &[out, gate_up, number(m), number(n), Arg::Number(which)]);
    }
    match (&s.abi().swiglu, activation) {
        (Some(op), Activation::Silu) => {
            let (x, out) = (View::of(s, gate_up)?, View::of(s, out)?);
            // SAFETY: described tensors that outlive the call.
            s.call(op, |plan, bytes, executor| unsafe { plan(x.raw(), 1, out.raw(), bytes, executor) })
        }
        _ => {
            let x = s.host.floats(&gate_up.dtype().decode(&s.fetch(gate_up)?), gate_up.cols())?;
            let gated = s.host.zeros(out.rows(), out.cols(), DType::F32)?;
            s.host.stream.act_mul(&gated, &x, activation)?;
            s.put(out, &out.dtype().encode(&s.host.read_floats(&gated)?))
        }
    }
}

pub(crate) fn soft_cap(s: &AscendStream, x: &Tensor, (cap, act): (f32, DType)) -> Result<()> {
    let host = s.host.tensor(&s.fetch(x)?, shape(x), DType::F32)?;
    s.host.stream.soft_cap(&host, cap, act)?;
    s.put(x, &s.host.read(&host)?)
}

/// The rows that an index names, which are below `rows`.
fn index_of(s: &AscendStream, index: &Tensor, rows: usize, what: &str) -> Result<Vec<i32>> {
    let found = s.ints(index)?;
    match found.iter().find(|i| **i < 0 || **i as usize >= rows) {
        Some(wrong) => Err(Error::internal(format!("{what} row {wrong} of {rows}"))),
        None => Ok(found),
    }
}

pub(crate) fn gather_rows(s: &AscendStream, (out, x): (&Tensor, &Tensor), index: &Tensor) -> Result<()> {
    assert_eq!((shape(out), out.dtype()), ((index.rows(), x.cols()), x.dtype()), "output of gather_rows");
    if out.rows() == 0 {
        return Ok(());
    }
    let known = index_of(s, index, x.rows(), "gather_rows reads")?;
    let mut at = index.addr();
    if !is_aligned(index) {
        [at] = s.scratch([4 * index.rows()])?;
        s.put_at(at, &int_bytes(&known))?;
    }
    select(s, &View::of(s, out)?, &View::of(s, x)?, &View::new(s, at, DataType::INT32, &[index.rows()])?)
}

/// `out[i] = x[index[i]]` along the first dimension.
pub(super) fn select(s: &AscendStream, out: &View<'_>, x: &View<'_>, index: &View<'_>) -> Result<()> {
    // SAFETY: described tensors that outlive the call.
    s.call(&s.abi().index_select, |plan, bytes, executor| unsafe {
        plan(x.raw(), 0, index.raw(), out.raw(), bytes, executor)
    })
}

pub(crate) fn copy_rows(s: &AscendStream, (out, to): (&Tensor, &Tensor), (x, from): (&Tensor, &Tensor)) -> Result<()> {
    assert_eq!((out.cols(), out.dtype()), (x.cols(), x.dtype()), "rows of copy_rows");
    assert_eq!((to.cols(), from.rows(), from.cols()), (1, to.rows(), 1), "indices of copy_rows");
    let to = index_of(s, to, out.rows(), "copy_rows writes")?;
    let from = index_of(s, from, x.rows(), "copy_rows reads")?;
    for (to, from) in to.into_iter().zip(from) {
        let (to, from) = (out.slice_rows(to as usize, 1), x.slice_rows(from as usize, 1));
        if out.dtype() == DType::I32 {
            let words = int_bytes(&s.ints(&from)?);
            s.move_bytes(to.addr(), from.addr(), to.bytes())?;
            s.remember(&to, &words);
        } else {
            s.move_bytes(to.addr(), from.addr(), to.bytes())?;
        }
    }
    Ok(())
}

pub(crate) fn mask_logits(s: &AscendStream, logits: &Tensor, masks: &Tensor) -> Result<()> {
    assert_eq!(shape(masks), (logits.rows(), logits.cols().div_ceil(32)), "masks of logits");
    let words = s.ints(masks)?;
    let host = s.host.tensor(&s.fetch(logits)?, shape(logits), DType::F32)?;
    s.host.stream.mask_logits(&host, &s.host.ints(&words, masks.cols())?)?;
    s.put(logits, &s.host.read(&host)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scaled_row_is_rounded_once() {
        let x = [0.3_f32, -1.7, 55.0];
        let (once, each) = (DType::Bf16.encode(&x.map(|x| x * 55.5)), x.map(|x| DType::Bf16.round(x * 55.5)));
        assert_eq!(DType::Bf16.decode(&once), each);
    }
}
