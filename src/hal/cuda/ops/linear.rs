//! `linear` in one fixed order, for numeric mode `invariant`: which tiles take a product.

use super::{Family, HalfFamily, VECTOR, small};
use crate::base::{DType, Result};
use crate::hal::MatrixStorage;
use crate::hal::Tensor;
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::memory::CudaMatrix;
use crate::hal::cuda::stream::CudaStream;

/// Rows and columns of the tiles, threads of their blocks, blocks that a multiprocessor holds, stages of the ring; and what
/// part of the best rate of mma they reach, in percent.
const TILES: [Tile; 6] = [
    Tile { rows: 16, cols: 64, threads: 128, held: 3, stages: 6, percent: 25 },
    Tile { rows: 16, cols: 128, threads: 128, held: 2, stages: 5, percent: 30 },
    Tile { rows: 32, cols: 64, threads: 128, held: 3, stages: 6, percent: 45 },
    Tile { rows: 32, cols: 128, threads: 128, held: 2, stages: 5, percent: 55 },
    Tile { rows: 64, cols: 128, threads: 128, held: 2, stages: 4, percent: 80 },
    Tile { rows: 128, cols: 128, threads: 256, held: 1, stages: 4, percent: 100 },
];
/// Numbers of k in a stage: parts of a sum begin at multiples of it.
const STEP: usize = 64;
/// Tiles of 64 columns that should be under way at least, most parts of a sum, and steps of a part at least. The order of
/// sums hangs on these numbers, so they are the same for every device.
const WANTED: usize = 240;
const MAX_PARTS: usize = 8;
const MIN_STEPS: usize = 2;
/// Bytes that are on their way when an H200's memory is busy: 4.4 TB/s for 1.2 us.
const FULL_PIPE: u64 = 5 << 20;
/// Tiles whose parts can be counted.
const COUNTERS: usize = 1 << 16;
/// Bytes of the counters that a stream keeps for this op.
pub(in crate::hal::cuda) const COUNTER_BYTES: usize = 4 * COUNTERS;
/// The plain kernel's tile.
const PLAIN: (usize, usize, u32) = (16, 64, 256);

#[derive(Debug, Clone, Copy)]
struct Tile {
    rows: usize,
    cols: usize,
    threads: usize,
    held: usize,
    stages: usize,
    percent: u64,
}

impl Tile {
    /// Shared memory of a block.
    const fn shared(&self) -> u32 {
        (self.stages * (self.rows + self.cols) * STEP * 2) as u32
    }
    fn count(&self, (m, n): (usize, usize)) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.cols)
    }
    /// Scratch memory of blocks that have one part each.
    fn partial_bytes(&self, (m, n): (usize, usize), parts: usize) -> usize {
        self.count((m, n)) * parts * self.rows * self.cols * 4
    }
}

#[derive(Debug)]
pub(super) struct Kernels {
    plain: Family,
    /// By tile.
    tiles: Vec<HalfFamily>,
}

impl Kernels {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        let load = |tile: &Tile| {
            let name = format!("yn_linear_{}x{}", tile.rows, tile.cols);
            HalfFamily::load_with_shared(modules, "linear", &name, tile.shared())
        };
        Ok(Self {
            plain: Family::load(modules, "linear", "yn_linear_plain")?,
            tiles: TILES.iter().map(load).collect::<Result<_>>()?,
        })
    }
}

/// Mirrors kernels/linear.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Params {
    out: u64,
    x: u64,
    w: u64,
    bias: u64,
    partials: u64,
    counters: u64,
    m: u32,
    n: u32,
    k: u32,
    splits: u32,
    wide: u32,
    vectors: u32,
    clustered: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Params>() == 80);

/// `out = x * w^T + bias`, checked by the caller.
pub(in crate::hal::cuda) fn linear(
    s: &CudaStream,
    (out, x): (&Tensor, &Tensor),
    w: &CudaMatrix,
    bias: Option<&Tensor>,
) -> Result<()> {
    let (m, n, k) = (x.rows(), w.rows(), x.cols());
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (workspace, bytes) = s.workspace();
    let parts = parts(n, k);
    let params = Params {
        out: out.addr(),
        x: x.addr(),
        w: w.addr(),
        bias: bias.map_or(0, Tensor::addr),
        partials: workspace,
        counters: s.counters(),
        m: small(m),
        n: small(n),
        k: small(k),
        splits: small(parts),
        wide: u32::from(out.dtype() == DType::F32),
        vectors: u32::from(n.is_multiple_of(4) && out.addr().is_multiple_of(16)),
        clustered: u32::from(s.overlaps()),
        pad: 0,
    };
    let kernels = &s.kernels().linear;
    if x.dtype() == DType::F32 || !k.is_multiple_of(VECTOR) {
        let (rows, cols, threads) = PLAIN;
        let grid = [small(m.div_ceil(rows)), small(n.div_ceil(cols)), 1];
        return s.launch(kernels.plain.of(x.dtype()), grid, threads, 0, &params);
    }
    // Another kernel would sum in another order.
    assert!([x.addr(), w.addr()].iter().all(|a| a.is_multiple_of(16)), "rows of a product stand at 16-byte boundaries");
    let (index, at_once) = choose((m, n, k), parts, (s.sm_count() as usize, bytes));
    let tile = &TILES[index];
    let kernel = kernels.tiles[index].of(x.dtype());
    let grid = [small(tile.count((m, n))), 1, if at_once { small(parts) } else { 1 }];
    let cluster = if params.clustered != 0 { grid[2] } else { 1 };
    s.launch_clusters(kernel, grid, (tile.threads as u32, tile.shared(), cluster), &params)
}

/// Parts that the sum of an element is cut into, a power of two that can be a cluster. Depends on nothing else: it decides the
/// order of the sum.
fn parts(n: usize, k: usize) -> usize {
    let most = (k.div_ceil(STEP) / MIN_STEPS).next_power_of_two().clamp(1, MAX_PARTS);
    WANTED.div_ceil(n.div_ceil(64)).next_power_of_two().min(most)
}

/// The tile, and whether each part has blocks of its own: whatever should end first. All give the same bits.
fn choose((m, n, k): (usize, usize, usize), parts: usize, (sm_count, scratch): (usize, usize)) -> (usize, bool) {
    let mut best = (u64::MAX, (0, false));
    for (index, tile) in TILES.iter().enumerate() {
        for at_once in [false, true] {
            let impossible = tile.partial_bytes((m, n), parts) > scratch || tile.count((m, n)) > COUNTERS;
            if at_once && (parts == 1 || impossible) {
                continue;
            }
            let time = picoseconds(tile, (m, n, k), if at_once { parts } else { 1 }, sm_count);
            if time < best.0 {
                best = (time, (index, at_once));
            }
        }
    }
    best.1
}

/// About how long a product takes by a tile whose blocks have one of `parts` each, at the rates of an H200.
fn picoseconds(tile: &Tile, (m, n, k): (usize, usize, usize), parts: usize, sm_count: usize) -> u64 {
    let (tiles, per_block) = (tile.count((m, n)), tile.rows * tile.cols * k.div_ceil(parts));
    let blocks = (tiles * parts) as u64;
    // 1.7 multiplications a picosecond on a multiprocessor; 0.45 ps for a weight from memory, less from the cache.
    let compute = blocks.div_ceil(sm_count as u64) * per_block as u64 * 60 / tile.percent;
    let again = m.div_ceil(tile.rows) as u64 - 1;
    let read = (n * k) as u64 * (45 + 15 * again) / 100;
    // So many bytes must be on their way for memory to give what it can; the blocks behind the last full wave may not do.
    let slots = (tile.held * sm_count) as u64;
    let in_flight = |blocks: u64| (blocks * (tile.stages as u64 - 1) * (tile.cols * STEP * 2) as u64).max(1);
    let rest = blocks % slots;
    let last = (read * rest / blocks * FULL_PIPE.max(in_flight(rest))).checked_div(in_flight(rest)).unwrap_or(read);
    let exchange = if parts == 1 { 0 } else { 2_000_000 + (m * n * parts) as u64 * 3 / 2 };
    compute.max(read * (blocks - rest) / blocks + last) + exchange
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_machine_and_hold_whole_steps() {
        // Projections of an 8B model, heads, the 0.5B model's, and shapes too small to cut.
        for (n, k, expected) in [
            (4096, 4096, 4),
            (6144, 4096, 4),
            (4096, 14_336, 4),
            (28_672, 4096, 1),
            (128_256, 4096, 1),
            (896, 896, 8),
            (896, 4864, 8),
            (64, 64, 1),
            (1, 8, 1),
        ] {
            assert_eq!(parts(n, k), expected, "{n}x{k}");
        }
        for n in (1..5000).step_by(61) {
            for k in (8..5000).step_by(56) {
                let parts = parts(n, k);
                assert!((1..=MAX_PARTS).contains(&parts) && parts <= k.div_ceil(STEP), "{n}x{k}: {parts}");
            }
        }
    }

    #[test]
    fn few_rows_take_small_tiles_side_by_side_and_many_rows_large_ones() {
        let chosen = |m, n, k| {
            let (index, at_once) = choose((m, n, k), parts(n, k), (132, 64 << 20));
            (TILES[index].rows, at_once)
        };
        assert_eq!(chosen(1, 4096, 4096), (16, true));
        assert_eq!(chosen(16, 28_672, 4096), (16, false));
        assert_eq!(chosen(32, 4096, 14_336), (32, true));
        assert_eq!(chosen(64, 28_672, 4096).0, 64);
        assert_eq!(chosen(512, 4096, 4096), (128, false));
        assert_eq!(chosen(8192, 28_672, 4096), (128, false));
    }

    #[test]
    fn parts_wait_in_scratch_memory_only_where_they_fit() {
        for m in [1, 16, 100, 512, 5000, 65_536] {
            for (n, k) in [(4096, 4096), (896, 4864), (12_288, 4096), (8, 65_536)] {
                let scratch = 1 << 20;
                let (index, at_once) = choose((m, n, k), parts(n, k), (132, scratch));
                let bytes = TILES[index].partial_bytes((m, n), parts(n, k));
                assert!(!at_once || (bytes <= scratch && TILES[index].count((m, n)) <= COUNTERS), "{m}x{n}x{k}");
            }
        }
    }
}
