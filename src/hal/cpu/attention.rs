//! Causal attention over paged keys and values with a streaming softmax.
//!
//! A query walks its context once in tiles of 16 tokens at fixed absolute positions, so its result depends on nothing but
//! its own context. Queries of one sequence and kv head go through a tile together and share its widening.

use super::kv::{KvMap, TILE};
use super::mem::{self, Rows, floats, ints};
use super::pool::Pool;
use super::simd::{Isa, Kernel, Simd, cap16, dispatch, exp16};
use crate::base::{DType, Result};
use crate::hal::ops::PagedAttention;
use std::ops::Range;

/// Parts of the items that threads claim.
const PARTS_PER_THREAD: usize = 6;

#[derive(Clone, Copy)]
struct Op {
    out: Rows<f32>,
    qkv: Rows<f32>,
    starts: Rows<i32>,
    context_lens: Rows<i32>,
    tables: Rows<i32>,
    scale: f32,
    soft_cap: Option<f32>,
    /// Keys a query sees at most.
    window: usize,
    /// Query heads per kv head.
    ratio: usize,
    map: KvMap,
    /// Queries that go through a tile together.
    together: usize,
    /// Head dimension rounded up to whole tiles.
    padded: usize,
}

/// Runs the op; `scratch` is grown to one [`Scratch`] per thread.
pub(super) fn paged_attention(
    pool: &Pool,
    isa: Isa,
    scratch: &mut mem::Scratch,
    args: &PagedAttention<'_>,
) -> Result<()> {
    let map = KvMap::new(&args.kv);
    let op = Op {
        out: floats(args.out),
        qkv: floats(args.qkv),
        starts: ints(args.starts),
        context_lens: ints(args.context_lens),
        tables: ints(args.tables),
        scale: args.scale,
        soft_cap: args.soft_cap,
        window: args.window.map_or(usize::MAX, |n| n as usize),
        ratio: args.heads / map.kv_heads,
        map,
        together: isa.max_rows(),
        padded: map.head_dim.next_multiple_of(TILE),
    };
    assert_eq!(op.ratio * map.kv_heads, args.heads, "query heads per kv head");
    assert_eq!(op.qkv.cols, (args.heads + 2 * map.kv_heads) * map.head_dim, "columns of qkv");
    assert_eq!((op.out.rows, op.out.cols), (op.qkv.rows, args.heads * map.head_dim), "shape of the output");
    assert!(op.window > 0, "a window of no keys");
    let sequences = op.context_lens.rows;
    assert_eq!((op.starts.rows, op.tables.rows), (sequences + 1, sequences), "sequences of a step");
    let each = Scratch::floats(&op);
    let memory = scratch.grow(each * pool.threads())?;
    let memory = Rows::<f32>::over(memory, pool.threads(), each);
    let tokens: usize = (0..sequences).map(|s| op.context(s)).sum();
    let parts = if tokens * map.kv_heads * map.head_dim < 8192 { 1 } else { pool.threads() * PARTS_PER_THREAD };
    pool.run(parts, &|thread, part| {
        // SAFETY: scratch row `thread` belongs to this thread; output rows and heads are split between the parts.
        unsafe { dispatch(isa, Part { op, scratch: Scratch::of(memory.row_mut(thread), &op), part, parts }) }
    })
}

/// One thread's working memory.
struct Scratch<'a> {
    /// `[dim][query]`
    queries: &'a mut [f32],
    /// `[dim][token]`, widened keys of a tile.
    keys: &'a mut [f32],
    /// `[token][padded dim]`, widened values of a tile.
    values: &'a mut [f32],
    /// `[query][padded dim]`, weighted sums so far.
    sums: &'a mut [f32],
    /// `[query][token]`, scores, then weights of a tile.
    weights: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn floats(op: &Op) -> usize {
        op.padded * (2 * TILE + 2 * op.together) + op.together * TILE
    }

    fn of(memory: &'a mut [f32], op: &Op) -> Self {
        let (queries, rest) = memory.split_at_mut(op.padded * op.together);
        let (keys, rest) = rest.split_at_mut(op.padded * TILE);
        let (values, rest) = rest.split_at_mut(op.padded * TILE);
        let (sums, weights) = rest.split_at_mut(op.padded * op.together);
        Self { queries, keys, values, sums, weights }
    }
}

impl Op {
    fn context(&self, sequence: usize) -> usize {
        // SAFETY: nobody writes the step's inputs during the op.
        let n = unsafe { self.context_lens.row(sequence)[0] };
        usize::try_from(n).unwrap_or(0)
    }

    /// First token of a sequence in the T axis and the one after its last.
    fn span(&self, sequence: usize) -> (usize, usize) {
        // SAFETY: as above.
        let (from, to) = unsafe { (self.starts.row(sequence)[0], self.starts.row(sequence + 1)[0]) };
        assert!(0 <= from && from <= to, "tokens {from}..{to} of sequence {sequence}");
        (from as usize, to as usize)
    }

    /// First key that a query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }

    fn block(&self, sequence: usize, position: usize) -> usize {
        // SAFETY: as above.
        let block = unsafe { self.tables.row(sequence)[position / self.map.block_size] };
        assert!(block >= 0, "sequence {sequence} has block {block} at position {position}");
        block as usize
    }
}

/// Queries `[first_row..first_row + count / heads]` times query heads of one kv head.
#[derive(Clone, Copy)]
struct Item {
    sequence: usize,
    kv_head: usize,
    /// Row in the T axis and position of the first query.
    row: usize,
    position: usize,
    /// First query head and their number.
    head: usize,
    heads: usize,
    /// Number of queries: rows times heads.
    count: usize,
}

struct Part<'a> {
    op: Op,
    scratch: Scratch<'a>,
    part: usize,
    parts: usize,
}

impl Kernel for Part<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let op = self.op;
        let heads = op.ratio.min(op.together);
        let rows = op.together / heads;
        let mut index = 0;
        for sequence in 0..op.context_lens.rows {
            let (from, to) = op.span(sequence);
            assert!(to - from <= op.context(sequence), "sequence {sequence} has more tokens than context");
            let before = op.context(sequence) - (to - from);
            for row in (from..to).step_by(rows) {
                for slice in 0..op.map.kv_heads * op.ratio.div_ceil(heads) {
                    index += 1;
                    if index % self.parts != self.part {
                        continue;
                    }
                    let (kv_head, first) = (slice % op.map.kv_heads, slice / op.map.kv_heads * heads);
                    let heads = heads.min(op.ratio - first);
                    let item = Item {
                        sequence,
                        kv_head,
                        row,
                        position: before + row - from,
                        head: kv_head * op.ratio + first,
                        heads,
                        count: rows.min(to - row) * heads,
                    };
                    // SAFETY: the conditions of the op.
                    unsafe { attend::<S>(&op, &mut self.scratch, item) };
                }
            }
        }
    }
}

/// One item: its queries through all tiles of their contexts.
#[inline(always)]
unsafe fn attend<S: Simd>(op: &Op, scratch: &mut Scratch<'_>, item: Item) {
    let d = op.map.head_dim;
    let width = match item.count {
        5 => 6,
        7 => 8,
        9..=12 => 12,
        n => n,
    };
    scratch.queries.fill(0.0);
    for q in 0..item.count {
        let (row, head) = (item.row + q / item.heads, item.head + q % item.heads);
        // SAFETY: queries are only read here.
        let src = unsafe { &op.qkv.row(row)[head * d..(head + 1) * d] };
        scratch.queries[q..].iter_mut().step_by(width).zip(src).for_each(|(dst, x)| *dst = *x);
    }
    scratch.sums.fill(0.0);
    let mut soft = [Soft { max: f32::NEG_INFINITY, sum: [0.0; TILE] }; 12];
    let context = item.position + (item.count - 1) / item.heads + 1;
    let first_tile = op.first_key(item.position) / TILE * TILE;
    for tile in (first_tile..context).step_by(TILE) {
        let tokens = TILE.min(context - tile);
        // SAFETY: the conditions of the op.
        unsafe {
            load_tile::<S>(op, scratch, item, (tile, tokens));
            score::<S>(scratch, d, width);
            for (q, soft) in soft.iter_mut().enumerate().take(item.count) {
                let position = item.position + q / item.heads;
                let unseen = op.first_key(position).saturating_sub(tile).min(TILE);
                let seen = (position + 1).saturating_sub(tile).min(TILE);
                if unseen < seen {
                    let weights = &mut scratch.weights[q * TILE..(q + 1) * TILE];
                    let keep = soft.weigh::<S>(weights, unseen..seen, op);
                    let values = &scratch.values[unseen * op.padded..];
                    let sums = &mut scratch.sums[q * op.padded..];
                    accumulate::<S>(sums, &weights[unseen..seen], values, keep, op.padded);
                }
            }
        }
    }
    for (q, soft) in soft.iter().enumerate().take(item.count) {
        let (row, head) = (item.row + q / item.heads, item.head + q % item.heads);
        let total = 1.0 / soft.total();
        let sums = &scratch.sums[q * op.padded..q * op.padded + d];
        // SAFETY: these columns of this row belong to this item.
        let out = unsafe { std::slice::from_raw_parts_mut(op.out.ptr().add(row * op.out.cols + head * d), d) };
        out.iter_mut().zip(sums).for_each(|(o, s)| *o = s * total);
    }
}

/// Widens `tokens` tokens of a tile into the scratch; what is beyond them is left as it is and never used.
#[inline(always)]
unsafe fn load_tile<S: Simd>(op: &Op, scratch: &mut Scratch<'_>, item: Item, (tile, tokens): (usize, usize)) {
    let (map, d) = (&op.map, op.map.head_dim);
    let (keys, values) = (scratch.keys.as_mut_ptr(), scratch.values.as_mut_ptr());
    // SAFETY: pieces hold `block_size * d` elements; scratch rows hold `TILE` and `padded` floats.
    unsafe {
        if map.group == TILE {
            let block = op.block(item.sequence, tile);
            let offset = tile % map.block_size;
            widen::<S>(map.piece(block, 0, item.kv_head), map.key_index(offset, 0), map.dtype, (keys, d * TILE));
            let piece = map.piece(block, 1, item.kv_head);
            for t in 0..tokens {
                widen::<S>(piece, (offset + t) * d, map.dtype, (values.add(t * op.padded), d));
            }
            return;
        }
        for t in 0..tokens {
            let block = op.block(item.sequence, tile + t);
            let offset = (tile + t) % map.block_size;
            let piece = map.piece(block, 0, item.kv_head);
            for i in 0..d {
                widen::<S>(piece, map.key_index(offset, i), map.dtype, (keys.add(i * TILE + t), 1));
            }
            widen::<S>(map.piece(block, 1, item.kv_head), offset * d, map.dtype, (values.add(t * op.padded), d));
        }
    }
}

/// Widens `n` elements from element `first` of `src`.
#[inline(always)]
unsafe fn widen<S: Simd>(src: *const u8, first: usize, dtype: DType, (dst, n): (*mut f32, usize)) {
    let whole = n / S::LANES * S::LANES;
    let (wide, narrow) = (src.cast::<f32>().wrapping_add(first), src.cast::<u16>().wrapping_add(first));
    // SAFETY: `n` elements at both ends, by contract of `load_tile`.
    unsafe {
        if dtype == DType::F32 {
            return std::ptr::copy_nonoverlapping(wide, dst, n);
        }
        for i in (0..whole).step_by(S::LANES) {
            let x = if dtype == DType::F16 { S::f16(narrow.add(i)) } else { S::bf16(narrow.add(i)) };
            S::store(dst.add(i), x);
        }
        for i in whole..n {
            let bits = *narrow.add(i);
            *dst.add(i) = match dtype {
                DType::F16 => half::f16::from_bits(bits).to_f32_const(),
                _ => f32::from_bits(u32::from(bits) << 16),
            };
        }
    }
}

/// Dot products of all queries with the tile's keys.
#[inline(always)]
unsafe fn score<S: Simd>(scratch: &mut Scratch<'_>, d: usize, width: usize) {
    // SAFETY: queries are `[d][width]`, keys `[d][TILE]`, weights `[width][TILE]`.
    unsafe {
        match width {
            1 => score_block::<S, 1>(scratch, d),
            2 => score_block::<S, 2>(scratch, d),
            3 => score_block::<S, 3>(scratch, d),
            4 => score_block::<S, 4>(scratch, d),
            6 => score_block::<S, 6>(scratch, d),
            8 => score_block::<S, 8>(scratch, d),
            _ => score_block::<S, 12>(scratch, d),
        }
    }
}

#[inline(always)]
unsafe fn score_block<S: Simd, const N: usize>(scratch: &mut Scratch<'_>, d: usize) {
    let (queries, keys, weights) = (scratch.queries.as_ptr(), scratch.keys.as_ptr(), scratch.weights.as_mut_ptr());
    // SAFETY: as in `score`.
    unsafe {
        for part in (0..TILE).step_by(S::LANES) {
            let mut acc = [S::splat(0.0); N];
            for i in 0..d {
                let key = S::load(keys.add(i * TILE + part));
                for (n, a) in acc.iter_mut().enumerate() {
                    *a = S::fma(S::splat(*queries.add(i * N + n)), key, *a);
                }
            }
            for (n, a) in acc.into_iter().enumerate() {
                S::store(weights.add(n * TILE + part), a);
            }
        }
    }
}

/// Running maximum and, per token of a tile, sum of weights.
#[derive(Debug, Clone, Copy)]
struct Soft {
    max: f32,
    sum: [f32; TILE],
}

impl Soft {
    /// Turns the scores of the tokens `seen` into weights. Returns what earlier sums shrink by.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, weights: &mut [f32], seen: Range<usize>, op: &Op) -> f32 {
        let mut scores = [0.0; TILE];
        scores.iter_mut().zip(weights.iter()).for_each(|(s, w)| *s = w * op.scale);
        if let Some(cap) = op.soft_cap {
            scores = cap16::<S>(&scores, cap);
        }
        if seen != (0..TILE) {
            for (t, s) in scores.iter_mut().enumerate() {
                *s = if seen.contains(&t) { *s } else { f32::NEG_INFINITY };
            }
        }
        let mut max = self.max;
        for s in scores {
            max = if s > max { s } else { max };
        }
        let mut shift = [0.0; TILE];
        shift.iter_mut().zip(scores).for_each(|(d, s)| *d = s - max);
        let e = exp16::<S>(&shift);
        let keep = if self.max == max { 1.0 } else { exp16::<S>(&[self.max - max; TILE])[0] };
        self.sum.iter_mut().zip(e).for_each(|(sum, e)| *sum = *sum * keep + e);
        self.max = max;
        weights.copy_from_slice(&e);
        keep
    }

    fn total(&self) -> f32 {
        let mut acc = self.sum;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                acc[i] += acc[i + width];
            }
        }
        acc[0]
    }
}

/// `sums = sums * keep + weights * values`, tokens in ascending order.
#[inline(always)]
unsafe fn accumulate<S: Simd>(sums: &mut [f32], weights: &[f32], values: &[f32], keep: f32, padded: usize) {
    // SAFETY: `sums` has `padded` floats, `values` that many per token; both widths are multiples of 16.
    unsafe {
        let keep = S::splat(keep);
        let at = |i: usize| sums.as_ptr().wrapping_add(i).cast_mut();
        let mut i = 0;
        while i + 4 * S::LANES <= padded {
            let mut acc = [keep; 4];
            for (j, a) in acc.iter_mut().enumerate() {
                *a = S::mul(S::load(at(i + j * S::LANES)), keep);
            }
            for (t, w) in weights.iter().enumerate() {
                let w = S::splat(*w);
                for (j, a) in acc.iter_mut().enumerate() {
                    *a = S::fma(w, S::load(values.as_ptr().add(t * padded + i + j * S::LANES)), *a);
                }
            }
            for (j, a) in acc.into_iter().enumerate() {
                S::store(at(i + j * S::LANES), a);
            }
            i += 4 * S::LANES;
        }
        while i < padded {
            let mut acc = S::mul(S::load(at(i)), keep);
            for (t, w) in weights.iter().enumerate() {
                acc = S::fma(S::splat(*w), S::load(values.as_ptr().add(t * padded + i)), acc);
            }
            S::store(at(i), acc);
            i += S::LANES;
        }
    }
}
