//! Products of many rows in mode `fast`, with the gate behind them, or of logits: clusters of two blocks, which take pairs of tiles in turns.

use super::attention_hopper::CAPABILITY;
use super::tensor_map::{self, TensorMap};
use super::{HalfFamily, VECTOR, halves, shape, small};
use crate::base::Result;
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::launch::Kernel;
use crate::hal::cuda::memory::CudaMatrix;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::Activation;
use crate::hal::{MatrixStorage, Tensor};

/// Rows of `w` that a tile takes, gates and what they multiply, by kernel; and rows of a tile, of which a cluster has two.
const COLUMNS: [usize; 3] = [256, 224, 192];
const ROWS: usize = 128;
const CLUSTER: usize = 2;
/// Numbers of k in a step, and steps of a tile during which the one before is finished.
const STEP: usize = tensor_map::BOX_COLS;
const END_STEPS: usize = 8;
/// Threads of a block, and its shared memory: the ring and what aligns it.
const BLOCK: u32 = 384;
pub(super) const SHARED: u32 = (225 + 1) << 10;
/// Fewer rows are bound by reading `w`, or others take them.
const LEAST_ROWS: usize = 65;
/// What a column costs by kernel, in percent, where power binds: narrow tiles have more of shared memory read. s8-prefill on one machine:
/// 41 360, 41 200 and 40 850 tokens a second.
const COSTS: [usize; 3] = [100, 101, 103];
/// What clusters' tiles that are side by side take, in percent of others: they share less.
const ABREAST: usize = 102;
/// What the library's product takes, in percent of what ours would with nothing idle, of up to so many rows.
const LIBRARY: [(usize, usize); 2] = [(512, 113), (usize::MAX, 105)];

/// What becomes of a product here.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// The first of its kernels, by [`COLUMNS`]; the others have fewer columns.
    first: usize,
    /// Numbers of w that columns come in multiples of.
    multiple: usize,
    /// What others take behind the product, in percent of it, times k.
    behind: usize,
}

/// A launch for the gate.
const GATES: End = End { first: 0, multiple: 2 * VECTOR, behind: 22_500 };
/// Logits that are written and read: 8 bytes at 4 TB/s, in percent of k products at 690 TFLOP/s.
pub(super) const LOGITS: End = End { first: COLUMNS.len() - 1, multiple: VECTOR, behind: 69_000 };

/// Mirrors kernels/linear_large.cuh.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(super) struct Params {
    w_map: TensorMap,
    x_map: TensorMap,
    out: u64,
    bias: u64,
    m: u32,
    n: u32,
    steps: u32,
    rows: u32,
    columns: u32,
    abreast: u32,
    apart: u32,
    gelu: u32,
}
const _: () = assert!(size_of::<Params>() == 320);

/// By [`COLUMNS`]; none where the capability is another than theirs.
#[derive(Debug)]
pub(super) struct Large(Vec<HalfFamily>);

impl Large {
    pub(super) fn load(modules: &Modules, capability: u32) -> Result<Self> {
        let kernels = if capability == CAPABILITY { COLUMNS.as_slice() } else { &[] };
        let load = |columns: &usize| {
            HalfFamily::load_with_shared(modules, "linear_large", &format!("yn_linear_large_{columns}"), SHARED)
        };
        Ok(Self(kernels.iter().map(load).collect::<Result<_>>()?))
    }
}

/// `out = activation(gate) * up` of the product `x * w^T + bias`, in mode `fast`; None where others are as fast, or the kernels do not
/// take it.
pub(in crate::hal::cuda) fn gated(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    (w, bias): (&CudaMatrix, Option<&Tensor>),
    activation: Activation,
) -> Option<Result<()>> {
    let takes = !s.kernels().large.0.is_empty() && halves(x, w) && out.addr().is_multiple_of(16);
    let cut = cut(x.rows(), (w.rows(), w.cols()), s.sm_count() as usize, GATES).filter(|_| takes)?;
    Some(launch_gated(s, (out, x), (w, bias), (activation, &cut)))
}

fn launch_gated(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    (w, bias): (&CudaMatrix, Option<&Tensor>),
    (activation, cut): (Activation, &Cut),
) -> Result<()> {
    let (m, n) = (x.rows(), w.rows());
    assert_eq!((w.cols(), w.dtype(), out.dtype()), (x.cols(), x.dtype(), x.dtype()), "operands of a product");
    assert_eq!((shape(out), bias.map_or((1, n), shape)), ((m, n / 2), (1, n)), "output and bias of a product");
    let params = Params {
        bias: bias.map_or(0, Tensor::addr),
        gelu: u32::from(activation == Activation::GeluTanh),
        ..Params::new((out, x), w, (cut, n / 2))?
    };
    launch(s, s.kernels().large.0[cut.kernel].of(x.dtype()), cut, &params)
}

impl Params {
    /// Of a product without a bias; `apart`: rows of `w` from the first half of a tile to the second.
    pub(super) fn new((out, x): (&Tensor, &Tensor), w: &CudaMatrix, (cut, apart): (&Cut, usize)) -> Result<Self> {
        let (m, k) = shape(x);
        let rows = small(if cut.abreast { ROWS / CLUSTER } else { ROWS });
        Ok(Self {
            w_map: tensor_map::new(w.addr(), x.dtype(), (w.rows(), k), small(COLUMNS[cut.kernel] / 2))?,
            x_map: tensor_map::new(x.addr(), x.dtype(), (m, k), rows)?,
            out: out.addr(),
            bias: 0,
            m: small(m),
            n: small(out.cols()),
            steps: small(k.div_ceil(STEP)),
            rows: small(cut.rows),
            columns: small(cut.columns),
            abreast: u32::from(cut.abreast),
            apart: small(apart),
            gelu: 0,
        })
    }
}

/// A kernel of this kind, whose parameters begin with [`Params`].
pub(super) fn launch<P: Copy>(s: &CudaStream, kernel: &Kernel, cut: &Cut, params: &P) -> Result<()> {
    let clusters = (s.sm_count() as usize / CLUSTER).min(cut.rows * cut.columns);
    let grid = [small(clusters), 1, small(CLUSTER)];
    s.launch_clusters(kernel, grid, (BLOCK, SHARED, small(CLUSTER)), params)
}

/// How a product is cut: the kernel, by [`COLUMNS`]; rows and columns of clusters' tiles, which are two side by side or one below the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) kernel: usize,
    abreast: bool,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Cut {
    fn new((m, n): (usize, usize), kernel: usize, abreast: bool) -> Self {
        let (down, across) = if abreast { (1, CLUSTER) } else { (CLUSTER, 1) };
        Self { kernel, abreast, rows: m.div_ceil(ROWS * down), columns: n.div_ceil(COLUMNS[kernel] * across) }
    }
    pub(super) fn tile_columns(&self) -> usize {
        COLUMNS[self.kernel]
    }
    /// Columns that the cluster with the most tiles takes, one tile after the other, in hundredths.
    fn most(&self, clusters: usize) -> usize {
        let tiles = (self.rows * self.columns).div_ceil(clusters);
        tiles * COLUMNS[self.kernel] * if self.abreast { ABREAST } else { 100 }
    }
}

/// None where others are as fast, or the kernels cannot take it.
pub(super) fn cut(m: usize, (n, k): (usize, usize), blocks: usize, end: End) -> Option<Cut> {
    if m < LEAST_ROWS || k < END_STEPS * STEP || !n.is_multiple_of(end.multiple) || !k.is_multiple_of(VECTOR) {
        return None;
    }
    let clusters = blocks / CLUSTER;
    let cuts = |abreast| (end.first..COLUMNS.len()).map(move |kernel| Cut::new((m, n), kernel, abreast));
    let cuts = cuts(false).chain(cuts(true));
    let best = cuts.min_by_key(|cut| cut.most(clusters) * COSTS[cut.kernel])?;
    let others = LIBRARY.iter().find(|(rows, _)| m <= *rows)?.1 + end.behind / k;
    (m * n * others >= best.most(clusters) * clusters * CLUSTER * ROWS).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_of(m: usize, shape: (usize, usize)) -> Option<(usize, bool, usize, usize)> {
        cut(m, shape, 132, GATES).map(|cut| (COLUMNS[cut.kernel], cut.abreast, cut.rows, cut.columns))
    }

    #[test]
    fn tiles_are_those_that_leave_least_idle() {
        // Of an 8B model, of a 7B one, and those that conformance looks at.
        let (large, small) = ((28_672, 4096), (22_016, 4096));
        for (m, shape, expected) in [
            (128, large, (224, true, 1, 64)),
            (256, large, (224, false, 1, 128)),
            (384, large, (224, true, 3, 64)),
            (512, large, (224, false, 2, 128)),
            (896, large, (256, true, 7, 56)),
            (1024, large, (256, false, 4, 112)),
            (2048, large, (256, false, 8, 112)),
            (8192, large, (256, false, 32, 112)),
            (256, small, (192, false, 1, 115)),
            (384, small, (256, true, 3, 43)),
            (512, small, (224, false, 2, 99)),
            (4096, small, (256, false, 16, 86)),
            (1000, (28_640, 520), (256, false, 4, 112)),
            (125, (28_640, 520), (224, true, 1, 64)),
            (509, (28_640, 520), (224, false, 2, 128)),
            (380, (21_984, 1024), (256, true, 3, 43)),
            (512, (21_984, 1024), (224, false, 2, 99)),
            (766, (21_984, 1024), (256, false, 3, 86)),
            (253, (25_200, 576), (192, false, 1, 132)),
            (383, (25_200, 576), (192, true, 3, 66)),
        ] {
            assert_eq!(cut_of(m, shape), Some(expected), "{m} {shape:?}");
        }
    }

    #[test]
    fn products_that_leave_much_idle_are_others() {
        // Rows that fill no tiles, columns that fill no device, sums of too few steps, rows that are no whole vectors.
        for (m, shape) in [
            (64, (28_672, 4096)),
            (160, (28_672, 4096)),
            (600, (28_672, 4096)),
            (128, (9728, 896)),
            (4096, (28_672, 504)),
            (4096, (28_680, 4096)),
            (4096, (28_672, 4100)),
            (0, (28_672, 4096)),
        ] {
            assert_eq!(cut_of(m, shape), None, "{m} {shape:?}");
        }
    }

    #[test]
    fn tiles_cover_all() {
        for m in (65..9000).step_by(123) {
            for n in (16..40_000).step_by(1008) {
                let Some(cut) = cut(m, (n, 4096), 132, GATES) else { continue };
                let (down, across) = if cut.abreast { (1, CLUSTER) } else { (CLUSTER, 1) };
                assert!(
                    cut.rows * down * ROWS >= m && cut.columns * across * COLUMNS[cut.kernel] >= n,
                    "{m} {n}: {cut:?}"
                );
                assert!(cut.most(66) * 132 * ROWS <= m * n * 118, "{m} {n}: {cut:?}");
            }
        }
    }
}
