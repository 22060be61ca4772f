//! `linear` and `norm_linear` of few rows in mode `fast`: one block for each multiprocessor, which has its weights on the way early.

use super::attention_hopper::CAPABILITY;
use super::tensor_map::{self, TensorMap};
use super::{HalfFamily, VECTOR, halves, shape, small};
use crate::base::{DType, Result};
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::memory::CudaMatrix;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::{Activation, NormLinear, Then};
use crate::hal::{MatrixStorage, Tensor};

/// Most rows of each kernel, and boxes of 64 numbers of k of its tiles.
const KERNELS: [(usize, usize); 3] = [(8, 2), (8, 4), (16, 2)];
const FEW_ROWS: usize = 8;
const MOST_ROWS: usize = 16;
/// Shared memory of a block without normed rows, that of its ring, and most stages in it.
const SHARED: u32 = 105_760;
/// Of a block that has its multiprocessor to itself but for one of the others: two of them do not fit.
const WIDE_SHARED: u32 = 115_840;
/// Of any other block at most, so that it fits beside a wide one: an H200's multiprocessor has 228 KB, of which 1 KB a block is kept.
const MOST_SHARED: u32 = (228 << 10) - (2 << 10) - WIDE_SHARED;
const RING_BYTES: usize = 80 << 10;
const MAX_STAGES: usize = 16;
/// Bytes of a row of a box.
const BOX_ROW: usize = tensor_map::BOX_ROW;
/// Threads of a block.
const BLOCK: u32 = 288;
/// Larger matrices, and sums over more numbers, are read as fast by cuBLASLt, but at few rows, where each block's ring fills while a
/// norm or an activation runs: layers of an 8B model at one row take 132.4 us with qkv and down here, 129.4 with out too, 126.4 with
/// gate and up too. Long heads are read as fast there: nothing runs beside them.
const MOST_WEIGHTS: usize = 1 << 24;
const MOST_K: usize = 2048;
/// Units of a block of a large matrix.
const MOST_UNITS: usize = 8;
/// Parts of longer sums, for as many blocks that form a cluster, where the ring then holds most of a block's share.
const SPLITS: [usize; 3] = [2, 4, 8];
/// Numbers of k of a box, and of a tile of two.
const BOX: usize = tensor_map::BOX_COLS;
const STEP: usize = 2 * BOX;
/// Columns of a strip, and most strips of a unit.
const STRIP: usize = 8;
const STRIPS: usize = 8;
/// Fewest strips of a unit of a large matrix with gates.
const FEWEST_STRIPS: usize = 3;

/// Mirrors kernels/few_ends.cuh.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Params {
    w_map: TensorMap,
    x_map: TensorMap,
    out: u64,
    bias: u64,
    x: u64,
    residual: u64,
    sum: u64,
    weight: u64,
    firsts: u64,
    m: u32,
    n: u32,
    k: u32,
    strips: u32,
    units: u32,
    wide: u32,
    pairs: u32,
    stages: u32,
    splits: u32,
    gate: u32,
    x_stride: u32,
    eps: f32,
    late: u32,
}
const _: () = assert!(size_of::<Params>() == 384);

/// By [`KERNELS`]; none where the capability is another than theirs.
#[derive(Debug)]
pub(super) struct Few {
    plain: Vec<HalfFamily>,
    /// Rows are normed first, and blocks hold all of them, of which there are [`FEW_ROWS`] at most.
    normed: Vec<HalfFamily>,
}

impl Few {
    pub(super) fn load(modules: &Modules, capability: u32) -> Result<Self> {
        let kernels = if capability == CAPABILITY { KERNELS.as_slice() } else { &[] };
        let load = |what: &'static str| {
            move |(rows, boxes): &(usize, usize)| {
                let name = format!("yn_linear_{what}_{rows}_{boxes}");
                HalfFamily::load_with_shared(modules, "linear_few", &name, WIDE_SHARED)
            }
        };
        Ok(Self {
            plain: kernels.iter().map(load("few")).collect::<Result<_>>()?,
            normed: kernels.iter().filter(|kernel| kernel.0 <= FEW_ROWS).map(load("normed")).collect::<Result<_>>()?,
        })
    }
}

/// `out = x * w^T + bias`, checked by the caller, in mode `fast`; None where the kernels do not take it.
pub(in crate::hal::cuda) fn linear(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    w: &CudaMatrix,
    bias: Option<&Tensor>,
) -> Option<Result<()>> {
    let plain = plain(s, x, w)?;
    Some(launch_plain(s, (out, x), (w, bias), (plain, 0)))
}

/// The same of logits, with the first candidate of each row given to `firsts`.
pub(super) fn logits(s: &CudaStream, (out, x): (&Tensor, &Tensor), w: &CudaMatrix, firsts: u64) -> Option<Result<()>> {
    let plain = plain(s, x, w).filter(|(index, cut)| KERNELS[*index].0 == FEW_ROWS && cut.splits == 1)?;
    Some(launch_plain(s, (out, x), (w, None), (plain, firsts)))
}

/// The kernel of a product, by [`KERNELS`], and how it is cut.
fn plain(s: &CudaStream, x: &Tensor, w: &CudaMatrix) -> Option<(usize, Cut)> {
    let cut = cut(x.rows(), (w.rows(), w.cols()), s.sm_count() as usize).filter(|_| takes_operands(s, x, w))?;
    Some((kernel(x.rows(), &cut, w)?, cut))
}

fn takes_operands(s: &CudaStream, x: &Tensor, w: &CudaMatrix) -> bool {
    !s.kernels().few.plain.is_empty() && x.cols().is_multiple_of(VECTOR) && halves(x, w)
}

fn launch_plain(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    (w, bias): (&CudaMatrix, Option<&Tensor>),
    ((index, cut), firsts): ((usize, Cut), u64),
) -> Result<()> {
    let params = Params {
        firsts,
        x_map: map(x.addr(), x.dtype(), shape(x), KERNELS[index])?,
        out: out.addr(),
        bias: bias.map_or(0, Tensor::addr),
        wide: u32::from(out.dtype() == DType::F32),
        pairs: u32::from(w.rows().is_multiple_of(2) && out.addr().is_multiple_of(8)),
        ..params(s, (x, w), (&cut, index), None)?
    };
    launch(s, &s.kernels().few.plain[index], (x, w), &cut, (&params, SHARED))
}

/// Normed rows, which a block holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Bytes from a row to the next.
    stride: usize,
    /// Shared memory of a block.
    shared: u32,
}

impl Held {
    /// None where the rows are too many or too long for a kernel of [`KERNELS`].
    fn of(x: &Tensor, index: usize) -> Option<Self> {
        let (rows, boxes) = KERNELS[index];
        let stride = x.cols().next_multiple_of(boxes * BOX) * x.dtype().size() + 16;
        let shared = SHARED + small(x.rows() * stride);
        (rows <= FEW_ROWS && shared <= MOST_SHARED).then_some(Self { stride, shared })
    }
}

/// One launch of all that `args` says, where the kernels take it.
pub(in crate::hal::cuda) fn norm_linear(s: &CudaStream, args: &NormLinear<'_>, w: &CudaMatrix) -> Option<Result<()>> {
    if !takes_operands(s, args.x, w) || !takes_ends(args, w) {
        return None;
    }
    let (m, shape, blocks) = (args.x.rows(), (w.rows(), w.cols()), s.sm_count() as usize);
    let cut = match args.then {
        Then::Keep(_) => cut(m, shape, blocks).filter(|cut| cut.splits == 1),
        Then::Gate(..) => gated_cut(m, shape, blocks),
    }?;
    let index = kernel(m, &cut, w)?;
    let held = Held::of(args.x, index)?;
    Some(launch_normed(s, args, w, (index, &cut), held))
}

fn launch_normed(
    s: &CudaStream,
    args: &NormLinear<'_>,
    w: &CudaMatrix,
    (index, cut): (usize, &Cut),
    held: Held,
) -> Result<()> {
    let (x, n) = (args.x, w.rows());
    assert_eq!((w.cols(), w.dtype()), (x.cols(), x.dtype()), "the matrix of a product");
    assert_eq!((shape(args.weight), args.bias.map_or((1, n), shape)), ((1, x.cols()), (1, n)), "weight and bias");
    if let Some((residual, sum)) = args.add {
        assert_eq!([shape(residual), shape(sum)], [shape(x); 2], "residual stream and its sum");
        assert_ne!(residual.addr(), sum.addr(), "other blocks read what one writes");
    }
    let (out, gate) = match &args.then {
        Then::Keep(out) => (out, 0),
        Then::Gate(out, _, Activation::Silu) => (out, 1),
        Then::Gate(out, _, Activation::GeluTanh) => (out, 2),
    };
    let columns = if let Then::Gate(..) = args.then { n / 2 } else { n };
    assert_eq!(shape(out), (x.rows(), columns), "output of a product");
    let params = Params {
        out: out.addr(),
        bias: args.bias.map_or(0, Tensor::addr),
        residual: args.add.map_or(0, |add| add.0.addr()),
        sum: args.add.map_or(0, |add| add.1.addr()),
        weight: args.weight.addr(),
        pairs: u32::from(n.is_multiple_of(2)),
        gate,
        eps: args.eps,
        ..params(s, (x, w), (cut, index), Some(&held))?
    };
    launch(s, &s.kernels().few.normed[index], (x, w), cut, (&params, held.shared))
}

/// What all launches say; no output yet. Stages of the ring have rows of x where a block does not hold them.
fn params(
    s: &CudaStream,
    (x, w): (&Tensor, &CudaMatrix),
    (cut, index): (&Cut, usize),
    held: Option<&Held>,
) -> Result<Params> {
    let (rows, boxes) = KERNELS[index];
    let rows = if held.is_some() { 0 } else { rows };
    let stage_bytes = boxes * BOX_ROW * (STRIP * cut.strips + rows);
    Ok(Params {
        w_map: map(w.addr(), x.dtype(), (w.rows(), x.cols()), (STRIP * cut.strips, boxes))?,
        x_map: TensorMap::default(),
        out: 0,
        bias: 0,
        x: x.addr(),
        residual: 0,
        sum: 0,
        weight: 0,
        firsts: 0,
        m: small(x.rows()),
        n: small(w.rows()),
        k: small(x.cols()),
        strips: small(cut.strips),
        units: small(cut.units(w.rows())),
        wide: 0,
        pairs: 0,
        stages: small((RING_BYTES / stage_bytes).min(MAX_STAGES)),
        splits: small(cut.splits),
        gate: 0,
        x_stride: held.map_or(0, |held| small(held.stride)),
        eps: 0.0,
        late: u32::from(cut.streams((w.rows(), w.cols()), s.sm_count() as usize)),
    })
}

fn launch(
    s: &CudaStream,
    kernel: &HalfFamily,
    (x, w): (&Tensor, &CudaMatrix),
    cut: &Cut,
    (params, shared): (&Params, u32),
) -> Result<()> {
    let blocks = (cut.units(w.rows()) / cut.together()).min(s.sm_count() as usize);
    let grid = [small(blocks), 1, small(cut.splits)];
    let shared = if params.late != 0 { shared.max(WIDE_SHARED) } else { shared };
    s.launch_clusters(kernel.of(x.dtype()), grid, (BLOCK, shared, small(cut.splits)), params)
}

/// Whether the kernels do what stands in front of the product and behind it.
fn takes_ends(args: &NormLinear<'_>, w: &CudaMatrix) -> bool {
    let (x, n) = (args.x, w.rows());
    let vectors = |t: &Tensor| t.dtype() == x.dtype() && t.addr().is_multiple_of(16);
    let in_front = args.weight.dtype() == DType::F32
        && args.weight.addr().is_multiple_of(16)
        && args.add.is_none_or(|(residual, sum)| vectors(residual) && vectors(sum));
    in_front
        && match &args.then {
            Then::Keep(out) => vectors(out),
            Then::Gate(out, ..) => vectors(out) && n.is_multiple_of(2 * STRIP),
        }
}

/// The kernel of a product, by [`KERNELS`].
fn kernel(m: usize, cut: &Cut, w: &CudaMatrix) -> Option<usize> {
    let boxes = boxes(cut.strips, (w.rows(), w.cols()));
    KERNELS.iter().position(|kernel| m <= kernel.0 && boxes == kernel.1)
}

/// How a product is cut: strips of a unit, whether units of gates are followed by those of what they multiply, and parts of k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    strips: usize,
    gated: bool,
    splits: usize,
}

impl Cut {
    fn whole(strips: usize, splits: usize) -> Self {
        Self { strips, gated: false, splits }
    }
    /// Units that stay in one block.
    fn together(&self) -> usize {
        if self.gated { 2 } else { 1 }
    }
    fn units(&self, n: usize) -> usize {
        n.div_ceil(STRIP * self.together() * self.strips) * self.together()
    }
    /// Whether a block's share of a matrix is more than its ring holds.
    fn streams(&self, (n, k): (usize, usize), blocks: usize) -> bool {
        let units = (self.units(n) / self.together()).div_ceil(blocks) * self.together();
        units * STRIP * self.strips * k.div_ceil(self.splits) * 2 > RING_BYTES
    }
}

/// None where cuBLASLt is as fast.
fn cut(m: usize, (n, k): (usize, usize), blocks: usize) -> Option<Cut> {
    if !(1..=MOST_ROWS).contains(&m) || n == 0 {
        return None;
    }
    let whole = Cut::whole(strips(n, blocks), 1);
    if n * k >= MOST_WEIGHTS {
        let few = m <= FEW_ROWS && (k <= MOST_K || whole.units(n) <= MOST_UNITS * blocks);
        return few.then_some(whole);
    }
    if k <= MOST_K {
        return Some(whole);
    }
    let rows = [FEW_ROWS, MOST_ROWS].into_iter().find(|rows| m <= *rows)?;
    let cuts = SPLITS.iter().filter_map(|&splits| {
        let strips = n.div_ceil(STRIP).div_ceil(blocks / splits);
        let bytes = k.div_ceil(STEP).div_ceil(splits) * STEP / BOX * BOX_ROW * (STRIP * strips + rows);
        (strips <= STRIPS && bytes <= RING_BYTES * 5 / 4).then_some((bytes, Cut::whole(strips, splits)))
    });
    cuts.min_by_key(|cut| cut.0).map(|cut| cut.1)
}

/// The same of gates and what they multiply: units that spread them evenly, the larger the better.
fn gated_cut(m: usize, (n, k): (usize, usize), blocks: usize) -> Option<Cut> {
    let (large, pairs) = (n * k >= MOST_WEIGHTS, n / 2 / STRIP);
    if !(1..=FEW_ROWS).contains(&m) || pairs == 0 || (!large && k > MOST_K) {
        return None;
    }
    let most_of_a_block = |strips: &usize| pairs.div_ceil(*strips).div_ceil(blocks) * strips;
    let strips = (if large { FEWEST_STRIPS } else { 1 }..=STRIPS).rev().min_by_key(most_of_a_block)?;
    Some(Cut { strips, gated: true, splits: 1 })
}

/// Boxes of a tile: one copy of four where a large matrix has narrow units, as small copies take as long as larger ones.
fn boxes(strips: usize, (n, k): (usize, usize)) -> usize {
    if n * k >= MOST_WEIGHTS && strips <= STRIPS / 2 && k.is_multiple_of(BOX) { 4 } else { 2 }
}

/// A matrix in such tiles.
fn map(addr: u64, dtype: DType, shape: (usize, usize), (rows, boxes): (usize, usize)) -> Result<TensorMap> {
    match boxes {
        2 => tensor_map::new(addr, dtype, shape, small(rows)),
        _ => tensor_map::tiles(addr, dtype, shape, (small(rows), small(boxes))),
    }
}

/// Strips of a unit: all that a block has, or so many that no block has many more than another, and the more the better.
fn strips(n: usize, blocks: usize) -> usize {
    let each = n.div_ceil(STRIP).div_ceil(blocks);
    if each <= STRIPS {
        return each;
    }
    let most_of_a_block = |strips: usize| n.div_ceil(STRIP * strips).div_ceil(blocks) * strips;
    (STRIPS / 2 + 1..=STRIPS).rev().min_by_key(|strips| most_of_a_block(*strips)).unwrap_or(STRIPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sums_are_cut_where_a_ring_holds_most_of_a_share() {
        assert_eq!(cut(1, (896, 4864), 132), Some(Cut::whole(7, 8)));
        assert_eq!(cut(16, (896, 4864), 132), Some(Cut::whole(7, 8)));
        assert_eq!(cut(4, (896, 896), 132), Some(Cut::whole(1, 1)));
        // An 8B model's: qkv, down, out, gate and up at few rows; the head.
        for (m, shape, strips) in [
            (1, (6144, 4096), Some(6)),
            (8, (4096, 14_336), Some(4)),
            (9, (4096, 14_336), None),
            (8, (4096, 4096), Some(4)),
            (1, (28_672, 4096), Some(7)),
            (9, (28_672, 4096), None),
        ] {
            assert_eq!(cut(m, shape, 132), strips.map(|strips| Cut::whole(strips, 1)), "{m} {shape:?}");
        }
        assert_eq!(cut(1, (128_256, 4096), 132), None);
        assert_eq!(cut(1, (151_936, 896), 132), Some(Cut::whole(strips(151_936, 132), 1)));
    }

    #[test]
    fn gates_are_spread_evenly() {
        // Of 8B, 7B and 0.5B models.
        for (shape, strips) in [((28_672, 4096), 7), ((22_016, 4096), 6), ((9728, 896), 5)] {
            assert_eq!(gated_cut(1, shape, 132), Some(Cut { strips, gated: true, splits: 1 }), "{shape:?}");
        }
        assert_eq!(gated_cut(9, (28_672, 4096), 132), None);
        assert_eq!(gated_cut(1, (896, 4864), 132), None);
    }

    #[test]
    fn shares_that_a_ring_holds_do_not_stream() {
        let streams = |m, shape| cut(m, shape, 132).map(|cut| cut.streams(shape, 132));
        assert_eq!([(1152, 896), (896, 896), (896, 4864)].map(|shape| streams(1, shape)), [Some(false); 3]);
        assert_eq!([(6144, 4096), (4096, 4096), (9728, 896)].map(|shape| streams(1, shape)), [Some(true); 3]);
        assert!(gated_cut(1, (9728, 896), 132).is_some_and(|cut| cut.streams((9728, 896), 132)));
    }

    #[test]
    fn units_spread_columns_evenly() {
        // Projections of an 8B model, of a 0.5B one, and columns that few blocks take.
        for (n, expected) in [(4096, 4), (6144, 6), (28_672, 7), (9728, 5), (1152, 2), (896, 1), (128_256, 5), (1, 1)] {
            assert_eq!(strips(n, 132), expected, "{n}");
        }
        for n in (1..200_000).step_by(997) {
            let strips = strips(n, 132);
            let most = n.div_ceil(8 * strips).div_ceil(132) * 8 * strips;
            assert!(most <= n.div_ceil(132) + 64 && (1..=8).contains(&strips), "{n}: {strips}");
        }
    }
}
