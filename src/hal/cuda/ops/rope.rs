//! `rope_write_kv`, and where things are inside a KV block.

use super::{HalfFamily, KvFamily, VECTOR, assert_ints, assert_norm_weight, shape, small, whole_vectors};
use crate::base::{DType, Result};
use crate::hal::Tensor;
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::launch::Kernel;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::{HeadNorms, KvLayer, RopeWriteKv};

/// Threads of a block, as in the kernels; a warp has a head in the plain ones.
const BLOCK: u32 = 128;
const HEADS_OF_BLOCK: usize = 4;
/// Heads of a thread, as in the kernels, where there is work for so many threads for each multiprocessor.
const HEADS: usize = 3;
const MANY_THREADS: usize = 4096;
/// Threads of a warp.
const WARP: usize = 32;

#[derive(Debug)]
pub(super) struct Kernels {
    vectors: KvFamily,
    plain: KvFamily,
    aligned: HalfFamily,
    turn: Kernel,
}

impl Kernels {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        let load = |name| KvFamily::load(modules, "rope", name, 0);
        Ok(Self {
            vectors: load("yn_rope_write_kv_vectors")?,
            plain: load("yn_rope_write_kv_plain")?,
            aligned: HalfFamily::load(modules, "rope", "yn_rope_write_kv_aligned")?,
            turn: modules.kernel_with_shared("rope", "yn_rope_turn", 0)?,
        })
    }
}

/// A block holds `[layer][keys, values][kv_head][token][dim]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct KvMap {
    pub(super) block_bytes: u64,
    /// From the start of a block to its layer.
    pub(super) layer_bytes: u64,
    pub(super) blocks: u32,
}

impl KvMap {
    pub(super) fn new(kv: &KvLayer<'_>) -> Self {
        let layer_bytes = kv.block_size * 2 * kv.kv_heads * kv.head_dim * kv.dtype.size();
        let block_bytes = kv.layers * layer_bytes;
        assert_eq!((kv.pool.cols(), kv.pool.dtype()), (block_bytes, DType::U8), "bytes of a KV block");
        assert!(kv.layer < kv.layers && kv.block_size > 0, "layer {} of {}", kv.layer, kv.layers);
        Self {
            block_bytes: block_bytes as u64,
            layer_bytes: (kv.layer * layer_bytes) as u64,
            blocks: small(kv.pool.rows()),
        }
    }

    /// Whether every head of every token starts at a 16-byte boundary.
    pub(super) fn aligned(&self, kv: &KvLayer<'_>) -> bool {
        kv.pool.addr().is_multiple_of(16) && (kv.head_dim * kv.dtype.size()).is_multiple_of(16)
    }
}

/// Mirrors kernels/rope.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Params {
    qkv: u64,
    positions: u64,
    slots: u64,
    rope: u64,
    query_norm: u64,
    key_norm: u64,
    pool: u64,
    block_bytes: u64,
    layer_bytes: u64,
    fault: u64,
    tokens: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    block_size: u32,
    blocks: u32,
    max_position: u32,
    eps: f32,
    norms_in_act: u32,
    apart: u32,
}
const _: () = assert!(size_of::<Params>() == 120);

pub(in crate::hal::cuda) fn rope_write_kv(s: &CudaStream, args: &RopeWriteKv<'_>) -> Result<()> {
    let (kv, tokens) = (&args.kv, args.qkv.rows());
    let map = KvMap::new(kv);
    let all = args.heads + 2 * kv.kv_heads;
    assert_eq!(args.qkv.cols(), all * kv.head_dim, "columns of qkv");
    assert_eq!((shape(args.positions), shape(args.slots)), ((tokens, 1), (tokens, 1)), "positions and slots of a step");
    assert_ints("positions and slots", &[args.positions, args.slots]);
    assert_eq!((args.rope.cols(), args.rope.dtype()), (kv.head_dim, DType::F32), "columns of the rope table");
    assert_eq!(kv.head_dim % 2, 0, "an odd head dimension");
    let aligned = s.rounds_as_reference(args.qkv.dtype());
    if let Some(HeadNorms { query, key, .. }) = args.norms {
        assert_eq!([shape(query), shape(key)], [(1, kv.head_dim); 2], "weights of the head norms");
        [query, key].iter().for_each(|weight| assert_norm_weight(weight, args.qkv, aligned));
        assert_eq!(query.dtype(), key.dtype(), "dtypes of the head norms");
    }
    if tokens == 0 {
        return Ok(());
    }
    let lanes = kv.head_dim / (2 * VECTOR);
    let many = tokens * all * lanes >= MANY_THREADS * s.sm_count() as usize;
    let apart = if many { all.div_ceil(HEADS) } else { all };
    let norm = |which: fn(&HeadNorms<'_>) -> u64| args.norms.as_ref().map_or(0, which);
    let params = Params {
        qkv: args.qkv.addr(),
        positions: args.positions.addr(),
        slots: args.slots.addr(),
        rope: args.rope.addr(),
        query_norm: norm(|n| n.query.addr()),
        key_norm: norm(|n| n.key.addr()),
        pool: kv.pool.addr(),
        block_bytes: map.block_bytes,
        layer_bytes: map.layer_bytes,
        fault: s.fault_word(),
        tokens: small(tokens),
        heads: small(args.heads),
        kv_heads: small(kv.kv_heads),
        head_dim: small(kv.head_dim),
        block_size: small(kv.block_size),
        blocks: map.blocks,
        max_position: small(args.rope.rows()),
        eps: args.norms.map_or(0.0, |n| n.eps),
        norms_in_act: u32::from(args.norms.is_some_and(|n| n.query.dtype() == args.qkv.dtype())),
        apart: small(apart),
    };
    let kernels = &s.kernels().rope;
    if !aligned && vectors(args, &map, lanes) {
        let blocks = (tokens * apart * lanes).div_ceil(BLOCK as usize);
        return s.launch(kernels.vectors.of(args.qkv.dtype(), kv.dtype)?, [small(blocks), 1, 1], BLOCK, 0, &params);
    }
    let blocks = (tokens * all).div_ceil(HEADS_OF_BLOCK);
    let plain = kernels.plain.of(args.qkv.dtype(), kv.dtype)?;
    let kernel = if aligned { kernels.aligned.of(kv.dtype) } else { plain };
    s.launch(kernel, [small(blocks), 1, 1], BLOCK, 0, &params)
}

/// Mirrors kernels/rope.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Turn {
    table: u64,
    rows: u32,
    cols: u32,
}
const _: () = assert!(size_of::<Turn>() == 16);

pub(in crate::hal::cuda) fn turn(s: &CudaStream, table: &Tensor) -> Result<()> {
    assert!(table.dtype() == DType::F32 && table.cols().is_multiple_of(2), "a table of angles");
    let (rows, cols) = shape(table);
    if rows * cols == 0 {
        return Ok(());
    }
    let params = Turn { table: table.addr(), rows: small(rows), cols: small(cols) };
    let blocks = (rows * cols).div_ceil(BLOCK as usize);
    s.launch(&s.kernels().rope.turn, [small(blocks), 1, 1], BLOCK, 0, &params)
}

/// Whether threads can take eight pairs each; with norms a warp must hold whole heads.
fn vectors(args: &RopeWriteKv<'_>, map: &KvMap, lanes: usize) -> bool {
    let mut tensors = vec![args.qkv, args.rope];
    if let Some(norms) = args.norms {
        if !lanes.is_power_of_two() || lanes > WARP {
            return false;
        }
        tensors.extend([norms.query, norms.key]);
    }
    whole_vectors(args.kv.head_dim / 2, &tensors) && map.aligned(&args.kv)
}
