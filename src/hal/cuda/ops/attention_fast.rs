//! Decodes of mode `fast` on tensor cores: three kernels, by how many rows of work there are and how long they can be.

use super::attention::{BLOCK, DECODE_ROWS, MAX_ITEMS, Params};
use super::linear::COUNTER_BYTES;
use super::{short_name, small};
use crate::base::{DType, Result};
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::launch::Kernel;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::PagedAttention;

/// Decodes in mode `fast`: head dimensions, query heads of a row of work, blocks that a multiprocessor holds, shared memory of a
/// block without its items.
const STREAMS: [(usize, usize, u32, u32); 4] =
    [(64, 8, 3, 63_876), (64, 16, 3, 69_892), (128, 8, 2, 91_396), (128, 16, 2, 100_356)];
/// The same of the kernel that takes rows of work whole, where there is one for so many places of a block, or for each where query heads
/// have keys of their own.
const ROWS: [(usize, usize, u32, u32); 4] =
    [(64, 8, 4, 49_460), (64, 16, 3, 49_716), (128, 8, 3, 65_844), (128, 16, 2, 98_868)];
const PLACES_OF_A_ROW: usize = 3;
/// The same of the kernel whose clusters of blocks take a row of work, where rows are few.
const FEW: [(usize, usize, u32, u32); 4] =
    [(64, 8, 4, 45_448), (64, 16, 4, 49_416), (128, 8, 2, 89_480), (128, 16, 2, 96_520)];
/// Blocks of a cluster, and most clusters of a row.
const CLUSTER: usize = 8;
const MOST_CLUSTERS: usize = 8;
/// `attention_rows` cuts rows that are longer than this part of what a place has to do.
const PIECES_OF_A_PLACE: usize = 3;
/// Rows of so many tokens at most are not worth sharing, nor cutting while they fill no more than half of all places: layers of a 0.5B
/// model with 64 rows of 20 to 1000 keys take 45.2 us with rows whole, 47.5 with keys shared; of an 8B model with 8 rows 129.8, 131.9.
const SHORT_TOKENS: usize = 1024;
/// Fewest tokens of their KV blocks.
pub(super) const FEWEST_TOKENS: usize = 16;
/// Shared memory of the items of a launch.
const LINE_BYTES: u32 = 4 * (MAX_ITEMS as u32 + 1);
/// Partial results that a block leaves.
const SLOTS: u64 = 2;

/// A kernel for up to so many query heads of a key head at once.
#[derive(Debug)]
struct StreamKernel {
    kernel: Kernel,
    rows: usize,
    /// That one multiprocessor holds.
    blocks: u32,
    shared_bytes: u32,
}

/// The kernels of one dtype and head dimension, by rising rows; none for other dimensions.
#[derive(Debug)]
pub(super) struct Fast {
    /// Blocks share all keys evenly.
    streams: Vec<StreamKernel>,
    /// Each block has a row of work.
    rows: Vec<StreamKernel>,
    /// A cluster has a row of work.
    few: Vec<StreamKernel>,
}

impl Fast {
    pub(super) fn load(modules: &Modules, dtype: DType, dim: usize) -> Result<Self> {
        let load = |kind: &str, all: [(usize, usize, u32, u32); 4], line_bytes| {
            let of_dim = all.into_iter().filter(|s| s.0 == dim);
            let load = of_dim.map(|(_, rows, blocks, shared_bytes)| {
                let (image, dtype) = (format!("attention_{kind}"), short_name(dtype));
                let name = format!("yn_{image}{rows}_{dim}_{dtype}");
                let kernel = modules.kernel_with_shared(&image, &name, shared_bytes + line_bytes)?;
                Ok(StreamKernel { kernel, rows, blocks, shared_bytes })
            });
            load.collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            streams: load("stream", STREAMS, LINE_BYTES)?,
            rows: load("rows", ROWS, 0)?,
            few: load("few", FEW, 0)?,
        })
    }

    /// Attention of items `from..to`, if there are kernels for these shapes: what is known here of many rows and of few decides, as
    /// lengths may be others when a captured launch is replayed.
    pub(super) fn launch(
        &self,
        s: &CudaStream,
        args: &PagedAttention<'_>,
        params: Params,
        (from, to): (usize, usize),
    ) -> Result<bool> {
        let ratio = args.heads / args.kv.kv_heads;
        let of = |all: &[StreamKernel]| all.iter().position(|kernel| ratio <= kernel.rows).or(all.len().checked_sub(1));
        let Some((rows, stream)) = of(&self.rows).zip(of(&self.streams)) else { return Ok(false) };
        let (rows, stream, few) = (&self.rows[rows], &self.streams[stream], &self.few[stream]);
        let parts = |kernel: &StreamKernel| args.kv.kv_heads * ratio.div_ceil(kernel.rows);
        let places = |kernel: &StreamKernel| (s.sm_count() * kernel.blocks) as usize;
        let places_of_a_row = if ratio == 1 { 1 } else { PLACES_OF_A_ROW };
        let row_count = (to - from).min(MAX_ITEMS) * parts(rows);
        let tokens =
            args.window.map_or(usize::MAX, |window| window as usize).min(args.tables.cols() * args.kv.block_size);
        let short = tokens <= SHORT_TOKENS;
        let pieces = if short && 2 * row_count <= places(rows) {
            0
        } else {
            (PIECES_OF_A_PLACE * places(rows)).div_ceil(parts(rows))
        };
        let whole = || whole_rows(s, params, (rows, from, to), (parts(rows), pieces));
        if row_count * places_of_a_row >= places(rows) {
            whole()?;
            return Ok(true);
        }
        // Where each query head has keys of its own, pieces are many and end often: the other kernel is faster there.
        if ratio == 1 || parts(stream) > places(stream) {
            return Ok(false);
        }
        let clusters = places(few) / CLUSTER / ((to - from) * parts(few)).max(1);
        if clusters > 0 && s.overlaps() {
            few_rows(s, params, (few, from, to), (parts(few), (2 * clusters).min(MOST_CLUSTERS)))?;
            return Ok(true);
        }
        if short {
            whole()?
        } else {
            streamed(s, params, (stream, from, to))?
        }
        Ok(true)
    }
}

/// Each block has one row of work, and a piece of a long one; no row is cut where there are no `pieces`.
fn whole_rows(
    s: &CudaStream,
    mut params: Params,
    (kernel, from, to): (&StreamKernel, usize, usize),
    (parts, pieces): (usize, usize),
) -> Result<()> {
    let (workspace, bytes) = s.workspace();
    // Partial results of rows and of pieces: sums, and limits in front of them.
    let slot_bytes = parts * kernel.rows * (params.head_dim as usize + 2) * 4;
    let most = (bytes / slot_bytes).saturating_sub(pieces).min(COUNTER_BYTES / 4 / parts).clamp(1, MAX_ITEMS);
    params.plan = s.counters();
    params.limits = workspace;
    for first in (from..to).step_by(most) {
        let items = most.min(to - first);
        let capacity = pieces.min(items);
        params.sums = workspace + ((items + capacity) * parts * kernel.rows * 8) as u64;
        (params.first_item, params.items, params.capacity) = (small(first), small(items), small(capacity));
        s.launch(&kernel.kernel, [small(items * parts), 1, 1], BLOCK, kernel.shared_bytes, &params)?;
    }
    Ok(())
}

/// Clusters of blocks have a row of work each, and parts of a long one.
fn few_rows(
    s: &CudaStream,
    mut params: Params,
    (kernel, from, to): (&StreamKernel, usize, usize),
    (parts, clusters): (usize, usize),
) -> Result<()> {
    let (workspace, _) = s.workspace();
    let rows = (to - from) * parts;
    params.plan = s.counters();
    params.limits = workspace;
    params.sums = workspace + (rows * clusters * kernel.rows * 8) as u64;
    (params.first_item, params.items, params.capacity) = (small(from), small(to - from), small(clusters));
    let grid = [small(rows * clusters), 1, small(CLUSTER)];
    s.launch_clusters(&kernel.kernel, grid, (BLOCK, kernel.shared_bytes, small(CLUSTER)), &params)
}

/// Blocks share all keys evenly.
fn streamed(s: &CudaStream, mut params: Params, (stream, from, to): (&StreamKernel, usize, usize)) -> Result<()> {
    let grid = s.sm_count() * stream.blocks;
    let (workspace, _) = s.workspace();
    params.plan = s.counters();
    params.limits = workspace;
    params.sums = workspace + u64::from(grid) * SLOTS * (DECODE_ROWS * 8) as u64;
    for first in (from..to).step_by(MAX_ITEMS) {
        params.first_item = small(first);
        params.items = small(MAX_ITEMS.min(to - first));
        s.launch(&stream.kernel, [grid, 1, 1], BLOCK, stream.shared_bytes + 4 * (params.items + 1), &params)?;
    }
    Ok(())
}
