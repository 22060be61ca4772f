//! The cache's writer and reader on the host, for what operators do not take. The cache stays on the device, in its own order.

use super::super::stream::AscendStream;
use super::paged::{Pages, Tables};
use crate::base::{DType, Error, Result};
use crate::hal::ops::{KvLayer, PagedAttention, RopeWriteKv};
use std::sync::Arc;

/// Tokens per block of the cache that the host computes with.
const HOST_BLOCK: usize = 16;

struct Turn {
    dim: usize,
    /// Weights for queries and for keys, and eps.
    norms: Option<([Vec<f32>; 2], f32)>,
    rope: Arc<Vec<f32>>,
}

impl Turn {
    /// Norms and rotates a head of queries (`which` 0) or keys (1) in place.
    fn head(&self, head: &mut [f32], which: usize, position: usize) {
        if let Some((weights, eps)) = &self.norms {
            let mean = head.iter().map(|x| x * x).sum::<f32>() / self.dim as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            head.iter_mut().zip(&weights[which]).for_each(|(x, w)| *x = *x * scale * w);
        }
        let (cos, sin) = self.rope[position * self.dim..][..self.dim].split_at(self.dim / 2);
        let (low, high) = head.split_at_mut(self.dim / 2);
        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

pub(super) fn rope_write_kv(s: &AscendStream, args: &RopeWriteKv<'_>, pages: &Pages) -> Result<()> {
    let (dim, act) = (pages.head_dim, args.qkv.dtype());
    let (positions, slots) = (s.ints(args.positions)?, s.ints(args.slots)?);
    let weights = |t| -> Result<Vec<f32>> { Ok(DType::F32.decode(&s.fetch(t)?)) };
    let norms = match &args.norms {
        Some(norms) => Some(([weights(norms.query)?, weights(norms.key)?], norms.eps)),
        None => None,
    };
    let turn = Turn { dim, norms, rope: s.paged.rope(s, args.rope)? };
    let mut qkv = act.decode(&s.fetch(args.qkv)?);
    for ((row, position), slot) in qkv.chunks_exact_mut(args.qkv.cols()).zip(&positions).zip(&slots) {
        let position =
            usize::try_from(*position).map_err(|_| Error::internal(format!("a token at position {position}")))?;
        let (rotated, values) = row.split_at_mut((args.heads + pages.kv_heads) * dim);
        for (h, head) in rotated.chunks_exact_mut(dim).enumerate() {
            turn.head(head, usize::from(h >= args.heads), position);
            head.iter_mut().for_each(|x| *x = act.round(*x));
        }
        let Ok(slot) = usize::try_from(*slot) else { continue };
        let (block, token) = (slot / pages.block_size, slot % pages.block_size);
        if block >= pages.blocks {
            return Err(Error::internal(format!("KV block {block} of a step; the cache has {}", pages.blocks)));
        }
        let at = (token * pages.token_bytes()) as u64;
        s.put_at(pages.addr(block, 0) + at, &pages.dtype.encode(&rotated[args.heads * dim..]))?;
        s.put_at(pages.addr(block, 1) + at, &pages.dtype.encode(values))?;
    }
    s.put(args.qkv, &act.encode(&qkv))
}

/// One sequence after the other: its keys and values come to the host, as far as they are seen.
pub(super) fn paged_attention(
    s: &AscendStream,
    args: &PagedAttention<'_>,
    pages: &Pages,
    tables: &Tables,
) -> Result<()> {
    let act = args.qkv.dtype();
    for (i, context) in tables.contexts.iter().enumerate() {
        let (from, to) = (tables.starts[i], tables.starts[i + 1]);
        if from == to {
            continue;
        }
        // Its queries are its last tokens.
        let before = context.checked_sub(to - from);
        let before =
            before.ok_or_else(|| Error::internal(format!("{} tokens of a context of {context}", to - from)))?;
        let seen = args.window.map_or(0, |window| (before + 1).saturating_sub(window as usize));
        let keys = cached(s, pages, (&tables.blocks[i], *context), seen)?;
        let rows = act.decode(&s.fetch(&args.qkv.slice_rows(from, to - from))?);
        let out = alone(s, args, pages, (&rows, keys))?;
        s.put(&args.out.slice_rows(from, to - from), &act.encode(&out))?;
    }
    Ok(())
}

/// Keys and values of the tokens of a context as rows of both; zeros where nobody looks.
fn cached(s: &AscendStream, pages: &Pages, (blocks, context): (&[usize], usize), seen: usize) -> Result<Vec<f32>> {
    let (size, bytes) = (pages.block_size, pages.token_bytes());
    let first = seen / size;
    let pieces = blocks.iter().enumerate().skip(first).flat_map(|(i, block)| {
        let tokens = (context - i * size).min(size);
        [(pages.addr(*block, 0), tokens * bytes), (pages.addr(*block, 1), tokens * bytes)]
    });
    let pieces: Vec<_> = pieces.collect();
    let fetched = pages.dtype.decode(&s.fetch_all(&pieces)?);
    let row = pages.kv_heads * pages.head_dim;
    let (mut all, mut at) = (vec![0.0; 2 * context * row], 0);
    for (i, block) in pieces.chunks_exact(2).enumerate() {
        let tokens = block[0].1 / bytes;
        for (which, column) in [(0, 0), (1, row)] {
            let part = &fetched[at + which * tokens * row..][..tokens * row];
            for (t, numbers) in part.chunks_exact(row).enumerate() {
                let token = (first + i) * size + t;
                all[2 * row * token + column..][..row].copy_from_slice(numbers);
            }
        }
        at += 2 * tokens * row;
    }
    Ok(all)
}

/// Attention of one sequence's rows over its keys and values, on the host in F32.
fn alone(
    s: &AscendStream,
    args: &PagedAttention<'_>,
    pages: &Pages,
    (rows, keys): (&[f32], Vec<f32>),
) -> Result<Vec<f32>> {
    let (host, dim) = (&s.host, pages.head_dim);
    let context = keys.len() / (2 * pages.kv_heads * dim);
    let blocks = context.div_ceil(HOST_BLOCK);
    let pool = host.zeros(blocks, HOST_BLOCK * 2 * pages.kv_heads * dim * DType::F32.size(), DType::U8)?;
    let kv = KvLayer {
        pool: &pool,
        layer: 0,
        layers: 1,
        kv_heads: pages.kv_heads,
        head_dim: dim,
        block_size: HOST_BLOCK,
        dtype: DType::F32,
    };
    let still: Vec<f32> = (0..dim).map(|i| if i < dim / 2 { 1.0 } else { 0.0 }).collect();
    host.stream.rope_write_kv(&RopeWriteKv {
        qkv: &host.floats(&keys, 2 * pages.kv_heads * dim)?,
        positions: &host.ints(&vec![0; context], 1)?,
        slots: &host.ints(&(0..context as i32).collect::<Vec<_>>(), 1)?,
        rope: &host.floats(&still, dim)?,
        heads: 0,
        norms: None,
        kv,
    })?;
    let tokens = rows.len() / args.qkv.cols();
    let out = host.zeros(tokens, args.heads * dim, DType::F32)?;
    host.stream.paged_attention(&PagedAttention {
        out: &out,
        qkv: &host.floats(rows, args.qkv.cols())?,
        starts: &host.ints(&[0, tokens as i32], 1)?,
        context_lens: &host.ints(&[context as i32], 1)?,
        tables: &host.ints(&(0..blocks as i32).collect::<Vec<_>>(), blocks)?,
        singles: 0,
        kv,
        ..*args
    })?;
    host.read_floats(&out)
}
