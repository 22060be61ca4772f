//! `linear` of some rows in mode `fast`, with what stands between two of them: one unit for each block or pair of blocks, and a block for
//! each multiprocessor.

use super::attention_hopper::CAPABILITY;
use super::tensor_map::{self, TensorMap};
use super::{HalfFamily, halves, shape, small};
use crate::base::{DType, Result};
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::memory::CudaMatrix;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::{Activation, LinearNormLinear, NormLinear, Then};
use crate::hal::{MatrixStorage, Tensor};

/// Rows that others take as fast, and most rows of each kernel.
const FEW_ROWS: usize = 8;
const ROWS: [usize; 4] = [16, 32, 48, 64];
/// Stripes of a warpgroup that there are kernels for, warpgroups, and most rows of a stripe.
const STRIPES: [usize; 2] = [1, 2];
const GROUPS: usize = 2;
const STRIPE: usize = 64;
/// Stripes of fewer rows make slots too small to be copied fast: then a pair of blocks shares a unit. Of those, others are as fast.
const WHOLE_STRIPE: usize = 40;
const LEAST_STRIPE: usize = 24;
/// Columns of a strip.
const STRIP: usize = 8;
/// Boxes of a slot, bytes of a row of a box, and rows that products look at.
const BOXES: usize = 2;
const BOX_ROW: usize = tensor_map::BOX_ROW;
/// Both rings, with what a pair of blocks gives each other, by [`ROWS`]: no two blocks fit on a multiprocessor, where a launch could not
/// but put them while small ones end, and one fits beside a block of the attention that such rows take. Rows of x are long on their way
/// while weights are: a ring of few slots of them holds products up.
const RINGS: [usize; 4] = [128 << 10, 156 << 10, 156 << 10, 156 << 10];
const MAX_STAGES: usize = 16;
/// Threads of a block: those that multiply, and two warps that copy.
const BLOCK: u32 = 256 + 64;
/// Smaller matrices are read as fast by others.
const LEAST_WEIGHTS: usize = 1 << 24;

/// Mirrors kernels/linear_mid.cu.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Params {
    w_map: TensorMap,
    x_map: TensorMap,
    out: u64,
    bias: u64,
    residual: u64,
    weight: u64,
    given: u64,
    taken: u64,
    m: u32,
    n: u32,
    rows: u32,
    apart: u32,
    tiles: u32,
    stages: u32,
    x_stages: u32,
    wide: u32,
    pairs: u32,
    gate: u32,
    k: u32,
    units: u32,
    eps: f32,
}
const _: () = assert!(size_of::<Params>() == 384);

/// By [`ROWS`], then by [`STRIPES`]; none where the capability is another than theirs.
#[derive(Debug)]
pub(super) struct Mid(Vec<[HalfFamily; STRIPES.len()]>);

impl Mid {
    pub(super) fn load(modules: &Modules, capability: u32) -> Result<Self> {
        let kernels = if capability == CAPABILITY { ROWS.as_slice() } else { &[] };
        let load = |rows: usize, stripes: usize| {
            HalfFamily::load_with_shared(
                modules,
                "linear_mid",
                &format!("yn_linear_mid_{rows}_{stripes}"),
                shared(RINGS.len() - 1),
            )
        };
        let all = kernels.iter().map(|rows| Ok([load(*rows, STRIPES[0])?, load(*rows, STRIPES[1])?]));
        Ok(Self(all.collect::<Result<_>>()?))
    }
}

/// A product: out, x, its matrix and bias.
type Product<'a> = (&'a Tensor, &'a Tensor, &'a CudaMatrix, Option<&'a Tensor>);

/// What stands in front of a product and behind it.
#[derive(Debug, Clone, Copy, Default)]
struct Ends<'a> {
    gate: Option<Activation>,
    /// The residual stream that the product is added to, and the weights of the norm that the sum is on its way to.
    add: Option<(&'a Tensor, &'a Tensor)>,
    /// Rows are on their way through a norm: units that gave their squares, and what is added to a mean.
    normed: Option<(usize, f32)>,
}

/// `out = x * w^T + bias`, checked by the caller, in mode `fast`; None where the kernels do not take it.
pub(in crate::hal::cuda) fn linear(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    w: &CudaMatrix,
    bias: Option<&Tensor>,
) -> Option<Result<()>> {
    let cut = cut_of(s, x, w, None)?;
    Some(launch(s, (out, x, w, bias), &cut, Ends::default()))
}

/// `out = activation(gate) * up` of a product, gates first, each rounded as by itself.
pub(in crate::hal::cuda) fn gated(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    (w, bias): (&CudaMatrix, Option<&Tensor>),
    activation: Activation,
) -> Option<Result<()>> {
    let gate = Some(activation);
    let cut = cut_of(s, x, w, gate)?;
    assert_eq!((shape(out), out.dtype()), ((x.rows(), w.rows() / 2), x.dtype()), "output of gates");
    Some(launch(s, (out, x, w, bias), &cut, Ends { gate, ..Ends::default() }))
}

/// Two launches of all that `args` says, where the kernels take both products: the first one adds its rows to the residual stream and
/// tells the squares of the sums, the second one takes sums times the norm's weights and scales what it makes of them. So they may
/// be large, as numbers of BF16 alone may.
pub(in crate::hal::cuda) fn linear_norm_linear(
    s: &CudaStream,
    args: &LinearNormLinear<'_>,
    (first, second): (&CudaMatrix, &CudaMatrix),
) -> Option<Result<()>> {
    let NormLinear { x: product, normed, add, weight, eps, bias, then, .. } = args.behind;
    let (residual, _) = add?;
    let (out, gate) = match then {
        Then::Keep(out) => (out, None),
        Then::Gate(out, _, activation) => (out, Some(activation)),
    };
    let vectors = [residual, normed].iter().all(|t| t.addr().is_multiple_of(4)) && weight.addr().is_multiple_of(8);
    let fits = args.x.dtype() == DType::Bf16 && vectors && product.cols().is_multiple_of(2);
    let cut =
        (cut_of(s, args.x, first, None).filter(|cut| fits && cut.stripes == 1)?, cut_of(s, product, second, gate)?);
    let columns = if gate.is_some() { second.rows() / 2 } else { second.rows() };
    assert_eq!((args.x.cols(), first.rows()), (first.cols(), second.cols()), "matrices of products in a chain");
    assert_eq!([shape(residual), shape(normed)], [(args.x.rows(), first.rows()); 2], "rows of a residual stream");
    assert_eq!((shape(weight), weight.dtype()), ((1, first.rows()), DType::F32), "weight of a norm");
    assert_eq!((shape(out), out.dtype()), ((args.x.rows(), columns), args.x.dtype()), "output of products in a chain");
    let ends = Ends { add: Some((residual, weight)), ..Ends::default() };
    let behind = Ends { gate, normed: Some((s.sm_count() as usize / cut.0.parts, eps)), ..Ends::default() };
    let done = launch(s, (normed, args.x, first, args.bias), &cut.0, ends);
    Some(done.and_then(|()| launch(s, (out, normed, second, bias), &cut.1, behind)))
}

fn cut_of(s: &CudaStream, x: &Tensor, w: &CudaMatrix, gate: Option<Activation>) -> Option<Cut> {
    let takes = !s.kernels().mid.0.is_empty() && halves(x, w);
    cut(x.rows(), (w.rows(), w.cols()), s.sm_count() as usize, gate).filter(|_| takes)
}

fn launch(s: &CudaStream, (out, x, w, bias): Product<'_>, cut: &Cut, ends: Ends<'_>) -> Result<()> {
    let (m, n, k) = (x.rows(), out.cols(), x.cols());
    // Nothing else is in the scratch memory between the two products of a chain.
    let (squares, _) = s.workspace();
    let params = Params {
        w_map: tensor_map::tiles(w.addr(), x.dtype(), (w.rows(), k), (small(cut.rows), small(BOXES)))?,
        x_map: tensor_map::tiles(x.addr(), x.dtype(), (m, k), (small(ROWS[cut.kernel]), small(BOXES)))?,
        out: out.addr(),
        bias: bias.map_or(0, Tensor::addr),
        residual: ends.add.map_or(0, |add| add.0.addr()),
        weight: ends.add.map_or(0, |add| add.1.addr()),
        given: ends.add.map_or(0, |_| squares),
        taken: ends.normed.map_or(0, |_| squares),
        m: small(m),
        n: small(n),
        rows: small(cut.rows),
        apart: small(if ends.gate.is_some() { n } else { GROUPS * cut.rows }),
        tiles: small(k.div_ceil(BOXES * tensor_map::BOX_COLS)),
        stages: small(cut.stages.0),
        x_stages: small(cut.stages.1),
        wide: u32::from(out.dtype() == DType::F32),
        pairs: u32::from(n.is_multiple_of(2) && out.addr().is_multiple_of(4)),
        gate: match ends.gate {
            None => 0,
            Some(Activation::Silu) => 1,
            Some(Activation::GeluTanh) => 2,
        },
        k: small(k),
        units: ends.normed.map_or(0, |normed| small(normed.0)),
        eps: ends.normed.map_or(0.0, |normed| normed.1),
    };
    let kernel = s.kernels().mid.0[cut.kernel][cut.stripes - 1].of(x.dtype());
    let grid = [s.sm_count() / small(cut.parts), 1, small(cut.parts)];
    s.launch_clusters(kernel, grid, (BLOCK, shared(cut.kernel), small(cut.parts)), &params)
}

/// Shared memory of a block, with what aligns its rings.
fn shared(kernel: usize) -> u32 {
    small(RINGS[kernel]) + 1024
}

/// How a product is cut: parts of k, stripes of a warpgroup and their rows, slots of both rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    kernel: usize,
    parts: usize,
    stripes: usize,
    rows: usize,
    stages: (usize, usize),
}

/// None where others are as fast, or the kernels cannot take it. With a gate a warpgroup has a stripe of gates and one of what they
/// multiply.
fn cut(m: usize, (n, k): (usize, usize), blocks: usize, gate: Option<Activation>) -> Option<Cut> {
    let kernel = ROWS.iter().position(|rows| m <= *rows).filter(|_| m > FEW_ROWS)?;
    if n * k < LEAST_WEIGHTS || !k.is_multiple_of(tensor_map::BOX_COLS) || (gate.is_some() && !n.is_multiple_of(2)) {
        return None;
    }
    let columns = if gate.is_some() { n / 2 } else { n };
    let shape = |parts: usize| {
        let strips = columns.div_ceil(STRIP).div_ceil(blocks / parts);
        let stripes = if gate.is_some() { 1 } else { (strips * STRIP).div_ceil(GROUPS * STRIPE) };
        (parts, if gate.is_some() { 2 } else { stripes }, strips.div_ceil(GROUPS * stripes) * STRIP)
    };
    let (parts, stripes, rows) = [shape(1), shape(2)].into_iter().find(|s| s.2 >= WHOLE_STRIPE).unwrap_or(shape(2));
    if !STRIPES.contains(&stripes) || !(LEAST_STRIPE..=STRIPE).contains(&rows) {
        return None;
    }
    let room = RINGS[kernel] - if parts > 1 { exchanged(stripes, ROWS[kernel]) } else { 0 };
    let stages = stages((rows, ROWS[kernel]), stripes, room)?;
    Some(Cut { kernel, parts, stripes, rows, stages })
}

/// Bytes of sums that a block of a pair gives the other.
fn exchanged(stripes: usize, rows: usize) -> usize {
    stripes * rows / 2 * GROUPS * STRIPE * size_of::<f32>()
}

/// As many slots of w as fit beside the slots of x that belong to them, and one more of x where it fits.
fn stages((rows, x_rows): (usize, usize), stripes: usize, ring_bytes: usize) -> Option<(usize, usize)> {
    let (slot, x_slot, of_one) = (BOXES * rows * BOX_ROW, BOXES * x_rows * BOX_ROW, GROUPS * stripes);
    // A whole number for each warpgroup; products look at a whole stripe of the last slot.
    let behind = (STRIPE - rows) * BOX_ROW;
    let fit = |stages: usize| {
        let most = ring_bytes.saturating_sub(stages * slot) / x_slot;
        let x_stages = most.min(stages.div_ceil(of_one) + 1);
        (x_stages >= stages.div_ceil(of_one).max(2) && x_stages * x_slot >= behind).then_some((stages, x_stages))
    };
    (GROUPS..=MAX_STAGES).step_by(GROUPS).filter_map(fit).last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_cut_so_that_slots_are_large() {
        let cut = |m, shape| cut(m, shape, 132, None).map(|c| (c.parts, c.stripes, c.rows, c.stages));
        // An 8B model's qkv, out, gate and up, down; a 7B model's qkv, gate and up.
        for (m, shape, expected) in [
            (32, (6144, 4096), (2, 1, 48, (8, 5))),
            (9, (4096, 4096), (2, 1, 32, (12, 7))),
            (32, (4096, 14_336), (2, 1, 32, (12, 6))),
            (17, (28_672, 4096), (1, 2, 56, (8, 3))),
            (32, (12_288, 4096), (1, 1, 48, (8, 5))),
            (32, (22_016, 4096), (1, 2, 48, (10, 4))),
        ] {
            assert_eq!(cut(m, shape), Some(expected), "{m} {shape:?}");
        }
        // Rows that others take, a small matrix, a head, sums that are no whole boxes.
        for (m, shape) in [
            (8, (4096, 4096)),
            (65, (4096, 4096)),
            (32, (896, 4864)),
            (32, (2048, 16_384)),
            (32, (128_256, 4096)),
            (32, (9000, 4104)),
        ] {
            assert_eq!(cut(m, shape), None, "{m} {shape:?}");
        }
    }

    #[test]
    fn gates_stand_beside_what_they_multiply() {
        let gated =
            |m, shape| cut(m, shape, 132, Some(Activation::Silu)).map(|c| (c.parts, c.stripes, c.rows, c.stages));
        // Of 8B and 7B models, and of one whose stripes are small.
        for (m, shape, expected) in [
            (32, (28_672, 4096), (1, 2, 56, (8, 3))),
            (64, (28_672, 4096), (1, 2, 56, (8, 2))),
            (32, (22_016, 4096), (1, 2, 48, (10, 4))),
            (9, (8192, 2048), (2, 2, 32, (12, 4))),
        ] {
            assert_eq!(gated(m, shape), Some(expected), "{m} {shape:?}");
        }
        for shape in [(57_344, 8192), (28_673, 4096), (9728, 896)] {
            assert_eq!(gated(32, shape), None, "{shape:?}");
        }
    }

    #[test]
    fn units_cover_all_columns_and_rings_fit() {
        let gates = [None, Some(Activation::Silu)];
        for m in [9, 16, 17, 32, 33, 48, 49, 64] {
            for (n, gate) in (1000..40_000).step_by(166).flat_map(|n| gates.map(|gate| (n, gate))) {
                let Some(c) = cut(m, (n, 1 << 14), 132, gate) else { continue };
                let units = 132 / c.parts;
                let (columns, stripes) = if gate.is_some() { (n / 2, 1) } else { (n, c.stripes) };
                assert!(
                    c.rows <= STRIPE && c.rows * GROUPS * stripes >= columns.div_ceil(STRIP).div_ceil(units) * STRIP,
                    "{n}: {c:?}"
                );
                let given = if c.parts > 1 { exchanged(c.stripes, ROWS[c.kernel]) } else { 0 };
                let bytes = BOXES * BOX_ROW * (c.stages.0 * c.rows + c.stages.1 * ROWS[c.kernel]) + given;
                assert!(
                    bytes <= RINGS[c.kernel]
                        && c.stages.0.is_multiple_of(GROUPS)
                        && c.stages.0.max(c.stages.1) <= MAX_STAGES,
                    "{n}: {c:?}"
                );
            }
        }
    }
}
