//! `paged_attention`: which kernels take a step, and the scratch memory they share.

use super::attention_aligned;
use super::attention_fast::{FEWEST_TOKENS, Fast};
use super::attention_hopper::{self, Hopper};
use super::rope::KvMap;
use super::{Family, HalfFamily, KvFamily, assert_ints, shape, short_name, small};
use crate::base::{DType, Result};
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::launch::Kernel;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::PagedAttention;

/// Threads of a block, as in the kernels.
pub(super) const BLOCK: u32 = 128;
/// Keys of a chunk.
const CHUNK: usize = 256;
/// Query heads that a unit of work has at most: of the plain kernel and of the tensor-core one.
const PLAIN_ROWS: usize = 8;
pub(super) const DECODE_ROWS: usize = 16;
/// Blocks of the prefill kernel on one multiprocessor, keys that are worth a part of their own, and most parts.
const PREFILL_BLOCKS: usize = 2;
const PART_KEYS: usize = 256;
const MAX_PARTS: usize = 32;
/// Items of one launch: their plan stands in shared memory.
pub(super) const MAX_ITEMS: usize = 2048;
const PLAN_BYTES: u32 = 8 * (MAX_ITEMS as u32 + 1);
/// Blocks of the plain kernel on one multiprocessor.
const PLAIN_BLOCKS: u32 = 4;
/// Head dimensions with tensor-core kernels; rows and keys of a tile of the one for prefills.
const DIMS: [(usize, usize, usize); 5] = [(64, 128, 64), (80, 64, 64), (96, 128, 32), (128, 128, 32), (256, 64, 32)];

/// Shared memory of a decode block, without its plan.
const fn decode_shared(dim: usize) -> u32 {
    let stages = if dim <= 96 { 3 } else { 2 };
    let stride = if dim.is_multiple_of(64) { dim } else { dim + 8 };
    ((128 * stages * stride + DECODE_ROWS * (dim + 8)) * 2 + 1408) as u32
}

/// Shared memory of a prefill block.
const fn prefill_shared(dim: usize, rows: usize, keys: usize) -> u32 {
    ((rows + 4 * keys) * (dim + 8) * 2 + keys * 16 + 8) as u32
}

pub(super) const MAX_DIM: usize = 256;

#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) plain: KvFamily,
    merge: Family,
    tensor: Vec<Tensor>,
    hopper: Vec<Hopper>,
    pub(super) aligned: HalfFamily,
}

/// The tensor-core kernels for one dtype and head dimension.
#[derive(Debug)]
struct Tensor {
    dtype: DType,
    dim: usize,
    decode: Kernel,
    fast: Fast,
    prefill: Kernel,
    prefill_rows: usize,
    prefill_shared: u32,
    /// Of the parts of a prefill's keys.
    prefill_merge: Kernel,
    /// Prefills in the order of decodes, where heads are short enough.
    ordered: Option<Kernel>,
}

/// Rows of a tile of the ordered kernel, and threads of its block.
const ORDERED_ROWS: usize = 128;
const ORDERED_BLOCK: u32 = 256;

/// Shared memory of a block of it, where it takes this head dimension.
const fn ordered_shared(dim: usize) -> Option<u32> {
    let stride = if dim.is_multiple_of(64) { dim } else { dim + 8 };
    if dim <= 128 { Some((768 * stride + 512 * dim + 1040) as u32) } else { None }
}

impl Kernels {
    pub(super) fn load(modules: &Modules, capability: u32) -> Result<Self> {
        let mut tensor = Vec::with_capacity(2 * DIMS.len());
        for dtype in [DType::F16, DType::Bf16] {
            for (dim, prefill_rows, keys) in DIMS {
                let load = |kind: &str, shared| {
                    let name = format!("yn_attention_{kind}_{dim}_{}", short_name(dtype));
                    modules.kernel_with_shared(&format!("attention_{kind}"), &name, shared)
                };
                let prefill_shared = prefill_shared(dim, prefill_rows, keys);
                let decode = load("decode", decode_shared(dim) + PLAN_BYTES)?;
                let prefill = load("prefill", prefill_shared)?;
                let merge = format!("yn_attention_prefill_merge_{}", short_name(dtype));
                let prefill_merge = modules.kernel_with_shared("attention_prefill", &merge, 0)?;
                let ordered = ordered_shared(dim).map(|shared| load("ordered", shared)).transpose()?;
                tensor.push(Tensor {
                    dtype,
                    dim,
                    decode,
                    fast: Fast::load(modules, dtype, dim)?,
                    prefill,
                    prefill_rows,
                    prefill_shared,
                    prefill_merge,
                    ordered,
                });
            }
        }
        Ok(Self {
            plain: KvFamily::load(modules, "attention_plain", "yn_attention_plain", PLAN_BYTES)?,
            merge: Family::load(modules, "attention_plain", "yn_attention_merge")?,
            tensor,
            hopper: Hopper::load(modules, capability)?,
            aligned: attention_aligned::load(modules)?,
        })
    }

    fn tensor(&self, args: &PagedAttention<'_>) -> Option<&Tensor> {
        let (kv, act) = (&args.kv, args.qkv.dtype());
        let tensors = [args.qkv, args.out];
        let aligned = tensors.iter().all(|t| t.addr().is_multiple_of(16)) && KvMap::new(kv).aligned(kv);
        self.tensor.iter().find(|t| aligned && (t.dtype, t.dtype, t.dim) == (act, kv.dtype, kv.head_dim))
    }
}

/// Mirrors kernels/attention.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Params {
    out: u64,
    qkv: u64,
    starts: u64,
    context_lens: u64,
    tables: u64,
    pool: u64,
    block_bytes: u64,
    layer_bytes: u64,
    fault: u64,
    pub(super) plan: u64,
    pub(super) limits: u64,
    pub(super) sums: u64,
    walk: u64,
    sequences: u32,
    table_cols: u32,
    heads: u32,
    kv_heads: u32,
    pub(super) head_dim: u32,
    block_size: u32,
    blocks: u32,
    window: u32,
    by_sequence: u32,
    pub(super) first_item: u32,
    pub(super) items: u32,
    pub(super) capacity: u32,
    scale: f32,
    soft_cap: f32,
}
const _: () = assert!(size_of::<Params>() == 160);

pub(in crate::hal::cuda) fn paged_attention(s: &CudaStream, args: &PagedAttention<'_>) -> Result<()> {
    check(args);
    if args.qkv.rows() == 0 {
        return Ok(());
    }
    let mut params = params(s, args);
    let (tokens, sequences) = (args.qkv.rows(), args.context_lens.rows());
    if s.rounds_as_reference(args.qkv.dtype()) {
        return attention_aligned::launch(s, args, params);
    }
    let tensor = s.kernels().attention.tensor(args);
    let Some(tensor) = tensor.filter(|_| tokens > sequences) else { return items(s, args, params, (0, tokens)) };
    if s.invariant() && tensor.ordered.is_none() {
        return items(s, args, params, (0, tokens));
    }
    // Sequences with one token, then those with several.
    params.by_sequence = 1;
    items(s, args, params, (0, sequences))?;
    if s.invariant() { ordered(s, args, params, tensor) } else { prefills(s, args, params, tensor) }
}

/// Attention of the sequences with several tokens in the order of those with one.
fn ordered(s: &CudaStream, args: &PagedAttention<'_>, params: Params, tensor: &Tensor) -> Result<()> {
    let (Some(kernel), Some(shared)) = (&tensor.ordered, ordered_shared(tensor.dim)) else { return Ok(()) };
    let rows = args.qkv.rows() * (args.heads / args.kv.kv_heads);
    let tiles = small(rows.div_ceil(ORDERED_ROWS) + args.context_lens.rows());
    let params = Params { by_sequence: 0, first_item: 0, ..params };
    s.launch(kernel, [tiles, small(args.kv.kv_heads), 1], ORDERED_BLOCK, shared, &params)
}

/// Attention of the sequences with several tokens.
fn prefills(s: &CudaStream, args: &PagedAttention<'_>, mut params: Params, tensor: &Tensor) -> Result<()> {
    let (tokens, sequences) = (args.qkv.rows(), args.context_lens.rows());
    let ratio = args.heads / args.kv.kv_heads;
    let hopper = s.kernels().attention.hopper.iter().find(|h| h.takes(args));
    let (rows, per_sm) = if hopper.is_some() {
        (attention_hopper::rows_of_tile(ratio), 1)
    } else {
        (tensor.prefill_rows, PREFILL_BLOCKS)
    };
    // Of the sequences that may have several tokens. Blocks without a tile are not free: each has to look for one.
    let (several, left) = (tokens - args.singles, sequences - args.singles);
    let most_tiles = (several * ratio).div_ceil(rows) + left;
    // As many as there are when those that do not stand alone are of one sequence.
    let tiles = ((tokens - sequences + 1) * ratio).div_ceil(rows);
    let parts = prefill_parts(s, args, (tiles, per_sm));
    (params.by_sequence, params.first_item) = (0, small(args.singles));
    (params.items, params.capacity) = (small(most_tiles), small(parts));
    let (workspace, _) = s.workspace();
    params.sums = workspace;
    params.limits = workspace + (parts * tokens * args.heads * args.kv.head_dim * 4) as u64;
    match hopper {
        Some(hopper) => {
            params.plan = s.counters();
            hopper.launch(s, args, params, most_tiles * args.kv.kv_heads * parts)?;
        }
        None => {
            let tiles = if parts > 1 { tiles } else { most_tiles };
            let grid = [small(tiles), small(args.kv.kv_heads), small(parts)];
            s.launch(&tensor.prefill, grid, BLOCK, tensor.prefill_shared, &params)?;
        }
    }
    if parts > 1 {
        let blocks = (several * args.heads * args.kv.head_dim / 4).div_ceil(BLOCK as usize);
        s.launch(&tensor.prefill_merge, [small(blocks), 1, 1], BLOCK, 0, &params)?;
    }
    Ok(())
}

/// Parts that the keys of a prefill's tiles are cut into, so that few tiles fill the device. Contexts are known to the device
/// alone; the tables bound them.
fn prefill_parts(s: &CudaStream, args: &PagedAttention<'_>, (tiles, per_sm): (usize, usize)) -> usize {
    let (tokens, dim) = (args.qkv.rows(), args.kv.head_dim);
    let (blocks, places) = (tiles * args.kv.kv_heads, per_sm * s.sm_count() as usize);
    let window = args.window.map_or(usize::MAX, |w| w as usize + tokens);
    let keys = (args.tables.cols() * args.kv.block_size).min(window);
    let (_, bytes) = s.workspace();
    let most = (keys / PART_KEYS).min(bytes / (tokens * args.heads * (dim + 2) * 4)).min(MAX_PARTS);
    // The time of a part is its share of the keys; a part more costs a little, too.
    (1..=most).min_by_key(|parts| (blocks * parts).div_ceil(places) * 1024 / parts + 8 * parts).unwrap_or(1)
}

fn check(args: &PagedAttention<'_>) {
    let (kv, tokens, sequences) = (&args.kv, args.qkv.rows(), args.context_lens.rows());
    assert_eq!(args.heads % kv.kv_heads, 0, "query heads per kv head");
    assert_eq!(args.qkv.cols(), (args.heads + 2 * kv.kv_heads) * kv.head_dim, "columns of qkv");
    assert_eq!(shape(args.out), (tokens, args.heads * kv.head_dim), "shape of the output");
    assert_eq!(args.out.dtype(), args.qkv.dtype(), "dtypes of attention");
    assert!(args.window != Some(0), "a window of no keys");
    assert!(kv.head_dim % 2 == 0 && kv.head_dim <= MAX_DIM, "head dimension {}", kv.head_dim);
    assert_eq!((args.starts.rows(), args.tables.rows()), (sequences + 1, sequences), "sequences of a step");
    assert!(args.singles <= sequences, "{} of {sequences} sequences stand alone", args.singles);
    assert_ints("a step", &[args.starts, args.context_lens, args.tables]);
}

fn params(s: &CudaStream, args: &PagedAttention<'_>) -> Params {
    let (kv, map) = (&args.kv, KvMap::new(&args.kv));
    Params {
        out: args.out.addr(),
        qkv: args.qkv.addr(),
        starts: args.starts.addr(),
        context_lens: args.context_lens.addr(),
        tables: args.tables.addr(),
        pool: kv.pool.addr(),
        block_bytes: map.block_bytes,
        layer_bytes: map.layer_bytes,
        fault: s.fault_word(),
        plan: 0,
        limits: 0,
        sums: 0,
        walk: 0,
        sequences: small(args.context_lens.rows()),
        table_cols: small(args.tables.cols()),
        heads: small(args.heads),
        kv_heads: small(kv.kv_heads),
        head_dim: small(kv.head_dim),
        block_size: small(kv.block_size),
        blocks: map.blocks,
        window: args.window.unwrap_or(u32::MAX),
        by_sequence: 0,
        first_item: 0,
        items: 0,
        capacity: 0,
        scale: args.scale,
        soft_cap: args.soft_cap.unwrap_or(0.0),
    }
}

/// The kernel that takes single tokens.
struct Chosen<'a> {
    kernel: &'a Kernel,
    /// Query heads of a unit.
    rows: usize,
    shared_bytes: u32,
    /// That one multiprocessor holds.
    blocks: u32,
}

fn choose<'a>(kernels: &'a Kernels, args: &PagedAttention<'_>) -> Result<Chosen<'a>> {
    Ok(match kernels.tensor(args) {
        Some(tensor) => {
            let blocks = match tensor.dim {
                64 => 4,
                80 | 128 => 3,
                96 => 2,
                _ => 1,
            };
            Chosen { kernel: &tensor.decode, rows: DECODE_ROWS, shared_bytes: decode_shared(tensor.dim), blocks }
        }
        None => {
            let kernel = kernels.plain.of(args.qkv.dtype(), args.kv.dtype)?;
            Chosen { kernel, rows: PLAIN_ROWS, shared_bytes: 0, blocks: PLAIN_BLOCKS }
        }
    })
}

/// Attention of items `from..to`, tokens or sequences as the parameters say, one query token each.
fn items(s: &CudaStream, args: &PagedAttention<'_>, mut params: Params, (from, to): (usize, usize)) -> Result<()> {
    let kernels = &s.kernels().attention;
    let size = args.kv.block_size;
    let takes = !s.invariant() && size.is_power_of_two() && size >= FEWEST_TOKENS;
    if let Some(tensor) = kernels.tensor(args).filter(|_| takes)
        && tensor.fast.launch(s, args, params, (from, to))?
    {
        return Ok(());
    }
    let chosen = choose(kernels, args)?;
    let slices = args.kv.kv_heads * (args.heads / args.kv.kv_heads).div_ceil(chosen.rows);
    let dim = args.kv.head_dim;
    let max_chunks = (args.tables.cols() * args.kv.block_size).div_ceil(CHUNK);
    let (workspace, bytes) = s.workspace();
    let most = s.sm_count() * chosen.blocks;
    // Plans, what blocks walk with, and partial results share the scratch memory.
    let plan_bytes = (8 * MAX_ITEMS) as u64;
    let walk_bytes = u64::from(most) * (DECODE_ROWS * dim * 4) as u64;
    let rest = (bytes as u64).saturating_sub(plan_bytes + walk_bytes);
    let capacity = rest / (args.heads * (dim + 2) * 4) as u64;
    params.walk = workspace + plan_bytes;
    params.limits = params.walk + walk_bytes;
    params.sums = params.limits + capacity * (args.heads * 8) as u64;
    params.capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
    let merges = max_chunks > 1;
    params.plan = if merges { workspace } else { 0 };
    for first in (from..to).step_by(MAX_ITEMS) {
        let count = MAX_ITEMS.min(to - first);
        params.first_item = small(first);
        params.items = small(count);
        let units = u64::from(params.items) * (slices * max_chunks) as u64;
        let grid = u32::try_from(units).unwrap_or(u32::MAX).min(most);
        let shared = chosen.shared_bytes + 8 * (params.items + 1);
        s.launch(chosen.kernel, [grid, 1, 1], BLOCK, shared, &params)?;
        if merges {
            let blocks = (count * args.heads * dim).div_ceil(BLOCK as usize);
            s.launch(kernels.merge.of(args.out.dtype()), [small(blocks), 1, 1], BLOCK, 0, &params)?;
        }
    }
    Ok(())
}
