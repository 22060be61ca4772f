//! Ops that treat each row alone: norms, activation, gathers. Reductions run in one fixed order.

use super::mem::Rows;
use super::pack::PackedMatrix;
use super::pool::Pool;
use super::simd::{Isa, Kernel, Simd, cap16, dispatch, exp16, fma1};
use crate::base::{Error, Result};
use crate::hal::MatrixStorage;
use crate::hal::ops::{Activation, SamplerWord};

/// Elements below which waking another thread costs more than it saves.
const GRAIN: usize = 16 * 1024;

/// Runs `each(row)` for all rows, on several threads when there is enough to do.
fn by_rows(pool: &Pool, rows: usize, cols: usize, each: &(dyn Fn(usize) + Sync)) -> Result<()> {
    pool.split(rows, GRAIN.div_ceil(cols), &|_, rows| rows.for_each(each))
}

/// Root-mean-square norm; with `residual`, `x` is added to it first and the sum is normed.
pub(super) struct Norm {
    pub(super) out: Rows<f32>,
    pub(super) x: Rows<f32>,
    pub(super) residual: Option<Rows<f32>>,
    pub(super) weight: Rows<f32>,
    pub(super) eps: f32,
}

impl Norm {
    pub(super) fn run(&self, pool: &Pool, isa: Isa) -> Result<()> {
        // SAFETY: rows are disjoint between threads.
        by_rows(pool, self.out.rows, self.out.cols, &|row| unsafe { dispatch(isa, NormRow(self, row)) })
    }
}

struct NormRow<'a>(&'a Norm, usize);

impl Kernel for NormRow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(op, row) = self;
        if let Some(residual) = op.residual {
            // SAFETY: this thread owns the row.
            let (sum, x) = unsafe { (residual.row_mut(row), op.x.row(row)) };
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += *x);
        }
        let src = op.residual.unwrap_or(op.x);
        // SAFETY: nobody writes the source row now.
        let mean = unsafe { sum_of_squares::<S>(src.row(row)) } / src.cols as f32;
        let scale = 1.0 / (mean + op.eps).sqrt();
        // SAFETY: the weight is one row that nobody writes.
        let weight = unsafe { op.weight.row(0) };
        let (src, out) = (src.ptr().wrapping_add(row * src.cols), op.out.ptr().wrapping_add(row * src.cols));
        for (i, w) in weight.iter().enumerate() {
            // SAFETY: row `row` has `weight.len()` elements; `out` may be the source itself, so no slices here.
            unsafe { *out.add(i) = *src.add(i) * scale * w };
        }
    }
}

/// Sixty-four partial sums, added up pairwise.
#[inline(always)]
fn sum_of_squares<S: Simd>(x: &[f32]) -> f32 {
    let mut acc = [0.0_f32; 64];
    let chunks = x.chunks_exact(64);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (a, v) in acc.iter_mut().zip(chunk) {
            *a = fma1::<S>(*v, *v, *a);
        }
    }
    for (a, v) in acc.iter_mut().zip(tail) {
        *a = fma1::<S>(*v, *v, *a);
    }
    let mut width = 32;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

/// `activation(gate) * up`.
pub(super) fn act_mul(
    pool: &Pool,
    isa: Isa,
    (out, gate_up): (Rows<f32>, Rows<f32>),
    activation: Activation,
) -> Result<()> {
    by_rows(pool, out.rows, 4 * out.cols, &|row| {
        // SAFETY: rows are disjoint between threads.
        unsafe { dispatch(isa, Gate { out, gate_up, activation, row }) }
    })
}

struct Gate {
    out: Rows<f32>,
    gate_up: Rows<f32>,
    activation: Activation,
    row: usize,
}

impl Kernel for Gate {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: this thread owns the row.
        let (out, both) = unsafe { (self.out.row_mut(self.row), self.gate_up.row(self.row)) };
        let (gate, up) = both.split_at(out.len());
        match self.activation {
            Activation::Silu => gate_row::<S>(out, gate, up, |g| -g),
            Activation::GeluTanh => gate_row::<S>(out, gate, up, gelu_exponent),
        }
    }
}

/// -2u of the tanh formula: `(1 + tanh(u)) / 2 = 1 / (1 + e^-2u)`.
#[inline(always)]
fn gelu_exponent(g: f32) -> f32 {
    const MINUS_TWICE_ROOT: f32 = -1.595_769_2; // -2 * sqrt(2 / pi)
    MINUS_TWICE_ROOT * (g + 0.044_715 * (g * g * g))
}

/// `gate / (1 + e^exponent(gate)) * up`.
#[inline(always)]
fn gate_row<S: Simd>(out: &mut [f32], gate: &[f32], up: &[f32], exponent: impl Fn(f32) -> f32 + Copy) {
    let whole = out.len() / 16 * 16;
    for i in (0..whole).step_by(16) {
        gate16::<S>(&mut out[i..i + 16], &gate[i..i + 16], &up[i..i + 16], exponent);
    }
    let rest = out.len() - whole;
    let (mut o, mut g, mut u) = ([0.0; 16], [0.0; 16], [0.0; 16]);
    g[..rest].copy_from_slice(&gate[whole..]);
    u[..rest].copy_from_slice(&up[whole..]);
    gate16::<S>(&mut o, &g, &u, exponent);
    out[whole..].copy_from_slice(&o[..rest]);
}

#[inline(always)]
fn gate16<S: Simd>(out: &mut [f32], gate: &[f32], up: &[f32], exponent: impl Fn(f32) -> f32) {
    let mut power = [0.0; 16];
    power.iter_mut().zip(gate).for_each(|(p, g)| *p = exponent(*g));
    let e = exp16::<S>(&power);
    for (((o, g), u), e) in out.iter_mut().zip(gate).zip(up).zip(e) {
        *o = g / (1.0 + e) * u;
    }
}

/// `x = cap * tanh(x / cap)`.
pub(super) fn soft_cap(pool: &Pool, isa: Isa, x: Rows<f32>, cap: f32) -> Result<()> {
    // SAFETY: rows are disjoint between threads.
    by_rows(pool, x.rows, 4 * x.cols, &|row| unsafe { dispatch(isa, CapRow { x, cap, row }) })
}

struct CapRow {
    x: Rows<f32>,
    cap: f32,
    row: usize,
}

impl Kernel for CapRow {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: this thread owns the row.
        let x = unsafe { self.x.row_mut(self.row) };
        for part in x.chunks_mut(16) {
            let mut values = [0.0; 16];
            values[..part.len()].copy_from_slice(part);
            let capped = cap16::<S>(&values, self.cap);
            part.copy_from_slice(&capped[..part.len()]);
        }
    }
}

/// `out[i] = x[index[i]]`.
pub(super) fn gather_rows(pool: &Pool, out: Rows<f32>, x: Rows<f32>, index: Rows<i32>) -> Result<()> {
    by_rows(pool, out.rows, out.cols, &|row| {
        // SAFETY: this thread owns the output row; nobody writes `x` or `index`.
        unsafe {
            let from = index.row(row)[0];
            assert!(from >= 0, "row {row} gathers row {from}");
            out.row_mut(row).copy_from_slice(x.row(from as usize));
        }
    })
}

/// `out[to[i]] = x[from[i]]`.
pub(super) fn copy_rows(
    pool: &Pool,
    (out, to): (Rows<u32>, Rows<i32>),
    (x, from): (Rows<u32>, Rows<i32>),
) -> Result<()> {
    by_rows(pool, to.rows, out.cols, &|i| {
        // SAFETY: no row of the output is named twice, as the op's contract says; nobody writes the rest.
        unsafe {
            let (to, from) = (to.row(i)[0], from.row(i)[0]);
            assert!(to >= 0 && from >= 0, "copy {i} is from row {from} to row {to}");
            out.row_mut(to as usize).copy_from_slice(x.row(from as usize));
        }
    })
}

/// Minus infinity where a mask has no bit.
pub(super) fn mask_logits(pool: &Pool, logits: Rows<f32>, masks: Rows<i32>) -> Result<()> {
    by_rows(pool, logits.rows, logits.cols, &|row| {
        // SAFETY: this thread owns the row of logits; nobody writes the masks.
        let (logits, masks) = unsafe { (logits.row_mut(row), masks.row(row)) };
        for (part, mask) in logits.chunks_mut(32).zip(masks) {
            let banned = part.iter_mut().enumerate().filter(|(bit, _)| mask >> bit & 1 == 0);
            banned.for_each(|(_, x)| *x = f32::NEG_INFINITY);
        }
    })
}

/// Token embeddings out of the packed table, multiplied by `scale`.
pub(super) fn embed(
    pool: &Pool,
    (out, scale): (Rows<f32>, f32),
    table: &PackedMatrix,
    ids: Rows<i32>,
    state: Rows<i32>,
) -> Result<()> {
    for row in 0..ids.rows {
        let id = token(ids, state, row);
        if id < 0 || id as usize >= table.rows() {
            return Err(Error::internal(format!(
                "token {row} of a step has id {id}; the table has {} rows",
                table.rows()
            )));
        }
    }
    by_rows(pool, out.rows, 8 * out.cols, &|row| {
        // SAFETY: this thread owns the output row.
        let out = unsafe { out.row_mut(row) };
        table.copy_row(token(ids, state, row) as usize, out);
        if scale != 1.0 {
            out.iter_mut().for_each(|x| *x *= scale);
        }
    })
}

fn token(ids: Rows<i32>, state: Rows<i32>, row: usize) -> i32 {
    // SAFETY: nobody writes ids or state during the op.
    unsafe {
        match ids.row(row)[0] {
            id if id >= 0 => id,
            id => state.row((-(id + 1)) as usize)[SamplerWord::LastToken as usize],
        }
    }
}
