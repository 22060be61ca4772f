//! `rope_write_kv` and `paged_attention`: what is written is seen through what attention reads, since the order inside a block
//! is the backend's own.

use super::{Case, Outcome, Side, timed};
use crate::base::{DType, Result};
use crate::hal::Tensor;
use crate::hal::ops::{HeadNorms, KvLayer, PagedAttention, RopeWriteKv};
use std::time::Duration;

const MAX_POSITION: usize = 512;
const LAYERS: usize = 2;
/// Sequences and their tokens, step for step: prefills over the end of a large block, decodes, and both at once.
const STEPS: [&[(usize, usize)]; 4] =
    [&[(0, 130), (1, 37)], &[(0, 1), (1, 1)], &[(1, 1), (2, 300)], &[(2, 1), (0, 1), (1, 1)]];
const SEQUENCES: usize = 3;

#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    normed: bool,
    window: Option<u32>,
    soft_cap: Option<f32>,
}

pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (heads, kv_heads, dim) in [(4, 2, 64), (8, 2, 128), (4, 4, 96), (7, 1, 80), (2, 1, 256)] {
        for (normed, window, soft_cap) in
            [(false, None, None), (true, None, None), (false, Some(90), None), (false, None, Some(20.0))]
        {
            if dim != 128 && (window.is_some() || soft_cap.is_some()) {
                continue;
            }
            let shape = Shape { heads, kv_heads, dim, normed, window, soft_cap };
            let mut text = format!("{heads} heads, {kv_heads} of keys, {dim}");
            text += if normed { ", head norms" } else { "" };
            text += &window.map_or_else(String::new, |window| format!(", window {window}"));
            text += &soft_cap.map_or_else(String::new, |cap| format!(", soft cap {cap}"));
            cases.push(Case::new("rope_write_kv, paged_attention", text, move |side| steps(side, shape)));
        }
    }
    cases
}

/// What stays from step to step.
struct World<'a> {
    side: &'a Side,
    shape: Shape,
    block_size: usize,
    /// Of each sequence.
    max_blocks: usize,
    pool: Tensor,
    rope: Tensor,
    norms: [Tensor; 2],
}

impl World<'_> {
    fn layer(&self) -> KvLayer<'_> {
        let Shape { kv_heads, dim, .. } = self.shape;
        let (block_size, dtype) = (self.block_size, self.side.weights);
        KvLayer { pool: &self.pool, layer: 1, layers: LAYERS, kv_heads, head_dim: dim, block_size, dtype }
    }

    /// Blocks of a sequence: those of all are mixed.
    fn block(&self, sequence: usize, index: usize) -> i32 {
        ((index * SEQUENCES + SEQUENCES - 1 - sequence) as i32) + 1
    }
}

fn world(side: &Side, shape: Shape) -> Result<World<'_>> {
    let block_size = side.device.caps().block_size as usize;
    let max_blocks = MAX_POSITION.div_ceil(block_size);
    let block_bytes = block_size * 2 * LAYERS * shape.kv_heads * shape.dim * side.weights.size();
    let blocks = SEQUENCES * max_blocks + 1;
    let half = shape.dim / 2;
    let angle = |p: usize, i: usize| p as f32 * 10_000_f32.powf(-(i as f32) / half as f32);
    let row = |p: usize| (0..half).map(move |i| angle(p, i).cos()).chain((0..half).map(move |i| angle(p, i).sin()));
    let table: Vec<f32> = (0..MAX_POSITION).flat_map(row).collect();
    Ok(World {
        side,
        shape,
        block_size,
        max_blocks,
        pool: side.upload(&vec![0; blocks * block_bytes], blocks, block_bytes, DType::U8)?,
        rope: side.floats(&table, shape.dim)?,
        norms: [
            side.floats(&side.noise(20, shape.dim), shape.dim)?,
            side.floats(&side.noise(21, shape.dim), shape.dim)?,
        ],
    })
}

fn steps(side: &Side, shape: Shape) -> Result<Outcome> {
    let world = world(side, shape)?;
    let mut lengths = [0; SEQUENCES];
    let (mut numbers, mut took) = (Vec::new(), Duration::ZERO);
    for (seed, batch) in STEPS.iter().enumerate() {
        let (found, time) = step(&world, batch, &mut lengths, seed as u64)?;
        numbers.extend(found);
        took += time;
    }
    // Queries, keys, weights of values and sums are rounded, each on its own way.
    Ok(Outcome { numbers, roundings: 6.0, exact: 2e-5, took })
}

fn step(world: &World<'_>, batch: &[(usize, usize)], lengths: &mut [usize], seed: u64) -> Result<(Vec<f32>, Duration)> {
    let (side, shape) = (world.side, world.shape);
    let tokens: usize = batch.iter().map(|entry| entry.1).sum();
    let cols = (shape.heads + 2 * shape.kv_heads) * shape.dim;
    let (mut positions, mut slots, mut starts) = (Vec::new(), Vec::new(), vec![0]);
    let (mut contexts, mut tables) = (Vec::new(), Vec::new());
    for (sequence, n) in batch {
        for position in lengths[*sequence]..lengths[*sequence] + n {
            positions.push(position as i32);
            let block = world.block(*sequence, position / world.block_size);
            slots.push(block * world.block_size as i32 + (position % world.block_size) as i32);
        }
        lengths[*sequence] += n;
        starts.push(positions.len() as i32);
        contexts.push(lengths[*sequence] as i32);
        tables.extend((0..world.max_blocks).map(|index| world.block(*sequence, index)));
    }
    let qkv = side.acts(&side.noise(100 + seed, tokens * cols), cols)?;
    let out = side.out(tokens, shape.heads * shape.dim)?;
    let (positions, slots, starts) = (side.ints(&positions, 1)?, side.ints(&slots, 1)?, side.ints(&starts, 1)?);
    let (contexts, tables) = (side.ints(&contexts, 1)?, side.ints(&tables, world.max_blocks)?);
    let norms = HeadNorms { query: &world.norms[0], key: &world.norms[1], eps: 1e-6 };
    let write = RopeWriteKv {
        qkv: &qkv,
        positions: &positions,
        slots: &slots,
        rope: &world.rope,
        heads: shape.heads,
        norms: shape.normed.then_some(norms),
        kv: world.layer(),
    };
    let attend = PagedAttention {
        out: &out,
        qkv: &qkv,
        starts: &starts,
        context_lens: &contexts,
        tables: &tables,
        singles: batch.iter().take_while(|entry| entry.1 == 1).count(),
        scale: 1.0 / (shape.dim as f32).sqrt(),
        soft_cap: shape.soft_cap,
        window: shape.window,
        heads: shape.heads,
        kv: world.layer(),
    };
    let took = timed(side, || {
        side.stream.rope_write_kv(&write)?;
        side.stream.paged_attention(&attend)
    })?;
    Ok((side.read(&out)?, took))
}
