//! `linear` of few rows in mode `fast`: one block for each multiprocessor, which has its weights on the way early.

use super::attention_hopper::CAPABILITY;
use super::tensor_map::{self, TensorMap};
use super::{HalfFamily, VECTOR, small};
use crate::base::{DType, Result};
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::memory::CudaMatrix;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::{MatrixStorage, Tensor};

/// Most rows of each kernel, and boxes of 64 numbers of k of its tiles.
const KERNELS: [(usize, usize); 3] = [(8, 2), (8, 4), (16, 2)];
const FEW_ROWS: usize = 8;
const MOST_ROWS: usize = 16;
/// Shared memory of a block, that of its ring, and most stages in it.
const SHARED: u32 = 105_728;
/// Shared memory of a block that has its multiprocessor to itself but for one of the others.
const WIDE_SHARED: u32 = 118_784;
const RING_BYTES: usize = 80 << 10;
const MAX_STAGES: usize = 16;
/// Bytes of a row of a box.
const BOX_ROW: usize = 128;
/// Threads of a block.
const BLOCK: u32 = 288;
/// Larger matrices, and sums over more numbers, are read as fast by cuBLASLt, but at few rows, where each block's ring fills while a
/// norm or an activation runs: layers of an 8B model at one row take 132.4 us with qkv and down here, 129.4 with out too, 126.4 with
/// gate and up too. Heads are read as fast there: nothing runs beside them.
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

/// Mirrors kernels/linear_few.cu.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Params {
    w_map: TensorMap,
    x_map: TensorMap,
    out: u64,
    bias: u64,
    m: u32,
    n: u32,
    k: u32,
    strips: u32,
    units: u32,
    wide: u32,
    pairs: u32,
    stages: u32,
    splits: u32,
}
const _: () = assert!(size_of::<Params>() == 320);

/// By [`KERNELS`]; none where the capability is another than theirs.
#[derive(Debug)]
pub(super) struct Few(Vec<HalfFamily>);

impl Few {
    pub(super) fn load(modules: &Modules, capability: u32) -> Result<Self> {
        let kernels = if capability == CAPABILITY { KERNELS.as_slice() } else { &[] };
        let load = |(rows, boxes): &(usize, usize)| {
            HalfFamily::load_with_shared(modules, "linear_few", &format!("yn_linear_few_{rows}_{boxes}"), WIDE_SHARED)
        };
        Ok(Self(kernels.iter().map(load).collect::<Result<_>>()?))
    }
}

/// Whether the kernels take products of `x` on this stream's device, in mode `fast`.
pub(in crate::hal::cuda) fn takes(s: &CudaStream, x: &Tensor, w: &CudaMatrix) -> bool {
    !s.kernels().few.0.is_empty()
        && (1..=MOST_ROWS).contains(&x.rows())
        && cut(x.rows(), (w.rows(), w.cols()), s.sm_count() as usize).is_some()
        && x.dtype() != DType::F32
        && x.cols().is_multiple_of(VECTOR)
        && [x.addr(), w.addr()].iter().all(|a| a.is_multiple_of(16))
}

/// `out = x * w^T + bias`, checked by the caller, for products that [`takes`] says.
pub(in crate::hal::cuda) fn linear(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    w: &CudaMatrix,
    bias: Option<&Tensor>,
) -> Result<()> {
    let (m, n, k) = (x.rows(), w.rows(), x.cols());
    let blocks = s.sm_count() as usize;
    let Some(Cut { strips, splits }) = cut(m, (n, k), blocks).filter(|_| n > 0) else { return Ok(()) };
    let (units, boxes) = (n.div_ceil(STRIP * strips), boxes(strips, (n, k)));
    let Some(index) = KERNELS.iter().position(|kernel| m <= kernel.0 && boxes == kernel.1) else { return Ok(()) };
    let rows = KERNELS[index].0;
    let params = Params {
        w_map: map(w.addr(), x.dtype(), (n, k), (STRIP * strips, boxes))?,
        x_map: map(x.addr(), x.dtype(), (m, k), (rows, boxes))?,
        out: out.addr(),
        bias: bias.map_or(0, Tensor::addr),
        m: small(m),
        n: small(n),
        k: small(k),
        strips: small(strips),
        units: small(units),
        wide: u32::from(out.dtype() == DType::F32),
        pairs: u32::from(n.is_multiple_of(2) && out.addr().is_multiple_of(8)),
        stages: small((RING_BYTES / (boxes * BOX_ROW * (STRIP * strips + rows))).min(MAX_STAGES)),
        splits: small(splits),
    };
    let kernel = s.kernels().few.0[index].of(x.dtype());
    let grid = [small(units.min(blocks)), 1, small(splits)];
    let shared = if n * k >= MOST_WEIGHTS && units > blocks { WIDE_SHARED } else { SHARED };
    s.launch_clusters(kernel, grid, (BLOCK, shared, small(splits)), &params)
}

/// How a product is cut: strips of a unit, and parts of k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    strips: usize,
    splits: usize,
}

/// None where cuBLASLt is as fast.
fn cut(m: usize, (n, k): (usize, usize), blocks: usize) -> Option<Cut> {
    let whole = Cut { strips: strips(n, blocks), splits: 1 };
    if n * k >= MOST_WEIGHTS {
        let few = m <= FEW_ROWS && n.div_ceil(STRIP * whole.strips) <= MOST_UNITS * blocks;
        return few.then_some(whole);
    }
    if k <= MOST_K {
        return Some(whole);
    }
    let rows = [FEW_ROWS, MOST_ROWS].into_iter().find(|rows| m <= *rows)?;
    let cuts = SPLITS.iter().filter_map(|&splits| {
        let strips = n.div_ceil(STRIP).div_ceil(blocks / splits);
        let bytes = k.div_ceil(STEP).div_ceil(splits) * STEP / BOX * BOX_ROW * (STRIP * strips + rows);
        (strips <= STRIPS && bytes <= RING_BYTES * 5 / 4).then_some((bytes, Cut { strips, splits }))
    });
    cuts.min_by_key(|cut| cut.0).map(|cut| cut.1)
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
        assert_eq!(cut(1, (896, 4864), 132), Some(Cut { strips: 7, splits: 8 }));
        assert_eq!(cut(16, (896, 4864), 132), Some(Cut { strips: 7, splits: 8 }));
        assert_eq!(cut(4, (896, 896), 132), Some(Cut { strips: 1, splits: 1 }));
        // An 8B model's: qkv, down, out, gate and up at few rows; the head.
        for (m, shape, strips) in [
            (1, (6144, 4096), Some(6)),
            (8, (4096, 14_336), Some(4)),
            (9, (4096, 14_336), None),
            (8, (4096, 4096), Some(4)),
            (1, (28_672, 4096), Some(7)),
            (9, (28_672, 4096), None),
        ] {
            assert_eq!(cut(m, shape, 132), strips.map(|strips| Cut { strips, splits: 1 }), "{m} {shape:?}");
        }
        assert_eq!(cut(1, (128_256, 4096), 132), None);
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
