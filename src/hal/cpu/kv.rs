//! The order inside a KV block, and the op that writes it.
//!
//! A block holds `[layer][keys, values][kv_head]` pieces of `block_size * head_dim` elements. Values stand as
//! `[token][dim]`. Keys stand transposed in groups of 16 tokens, `[token / 16][dim][token % 16]` (one group of
//! `block_size` when that is no multiple of 16), so that attention scores 16 tokens at once without a horizontal sum.

use super::mem::{Rows, floats, ints};
use super::pool::Pool;
use crate::base::{DType, Result};
use crate::hal::ops::{KvLayer, RopeWriteKv};
use half::{bf16, f16};

/// Tokens that attention handles at once, at fixed absolute positions.
pub(super) const TILE: usize = 16;

/// Addresses of one layer's keys and values.
#[derive(Debug, Clone, Copy)]
pub(super) struct KvMap {
    base: *mut u8,
    blocks: usize,
    block_bytes: usize,
    layer: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) block_size: usize,
    /// Tokens of a transposed group of keys.
    pub(super) group: usize,
    pub(super) dtype: DType,
}

// SAFETY: an address with a shape; ops write disjoint slots and never write while they read.
unsafe impl Sync for KvMap {}

impl KvMap {
    pub(super) fn new(kv: &KvLayer<'_>) -> Self {
        let block_bytes = kv.block_size * 2 * kv.layers * kv.kv_heads * kv.head_dim * kv.dtype.size();
        assert_eq!((kv.pool.cols(), kv.pool.dtype()), (block_bytes, DType::U8), "bytes of a KV block");
        assert!(kv.layer < kv.layers && kv.block_size > 0, "layer {} of {}", kv.layer, kv.layers);
        assert!(matches!(kv.dtype, DType::F32 | DType::F16 | DType::Bf16), "KV dtype {}", kv.dtype);
        Self {
            base: kv.pool.addr() as *mut u8,
            blocks: kv.pool.rows(),
            block_bytes,
            layer: kv.layer,
            kv_heads: kv.kv_heads,
            head_dim: kv.head_dim,
            block_size: kv.block_size,
            group: if kv.block_size.is_multiple_of(TILE) { TILE } else { kv.block_size },
            dtype: kv.dtype,
        }
    }

    /// Keys (`which` 0) or values (1) of one head in one block.
    pub(super) fn piece(&self, block: usize, which: usize, head: usize) -> *mut u8 {
        assert!(block < self.blocks && head < self.kv_heads, "KV block {block} of {}", self.blocks);
        let piece_bytes = self.block_size * self.head_dim * self.dtype.size();
        let index = (self.layer * 2 + which) * self.kv_heads + head;
        self.base.wrapping_add(block * self.block_bytes + index * piece_bytes)
    }

    /// Index of a key element in its piece.
    pub(super) fn key_index(&self, token: usize, dim: usize) -> usize {
        (token / self.group * self.head_dim + dim) * self.group + token % self.group
    }
}

/// Norms and rotates queries in place, writes normed and rotated keys and plain values to their slots.
pub(super) fn rope_write_kv(pool: &Pool, args: &RopeWriteKv<'_>) -> Result<()> {
    let map = KvMap::new(&args.kv);
    let rope = Rope {
        qkv: floats(args.qkv),
        positions: ints(args.positions),
        slots: ints(args.slots),
        table: floats(args.rope),
        heads: args.heads,
        norms: args.norms.map(|n| (floats(n.query), floats(n.key), n.eps)),
        map,
    };
    if let Some((query, key, _)) = rope.norms {
        let shapes = [(query.rows, query.cols), (key.rows, key.cols)];
        assert_eq!(shapes, [(1, map.head_dim); 2], "weights of the head norms");
    }
    let tokens = rope.qkv.rows;
    assert_eq!(rope.qkv.cols, (args.heads + 2 * map.kv_heads) * map.head_dim, "columns of qkv");
    assert_eq!((rope.positions.rows, rope.slots.rows), (tokens, tokens), "positions and slots of a step");
    assert_eq!((rope.table.cols, map.head_dim % 2), (map.head_dim, 0), "columns of the rope table");
    pool.split(tokens, 4096_usize.div_ceil(rope.qkv.cols), &|_, tokens| tokens.for_each(|t| rope.token(t)))
}

struct Rope {
    qkv: Rows<f32>,
    positions: Rows<i32>,
    slots: Rows<i32>,
    table: Rows<f32>,
    heads: usize,
    /// Weights for queries and for keys, and eps.
    norms: Option<(Rows<f32>, Rows<f32>, f32)>,
    map: KvMap,
}

impl Rope {
    fn token(&self, t: usize) {
        let (d, g) = (self.map.head_dim, self.map.kv_heads);
        // SAFETY: one thread per token; positions, slots and the table are only read.
        let (row, position, slot) = unsafe { (self.qkv.row_mut(t), self.positions.row(t)[0], self.slots.row(t)[0]) };
        assert!(position >= 0 && slot >= 0, "token {t} at position {position}, slot {slot}");
        // SAFETY: as above.
        let (cos, sin) = unsafe { self.table.row(position as usize) }.split_at(d / 2);
        let (rotated, values) = row.split_at_mut((self.heads + g) * d);
        for (h, head) in rotated.chunks_exact_mut(d).enumerate() {
            if let Some((query, key, eps)) = self.norms {
                // SAFETY: one row that nobody writes.
                norm(head, unsafe { if h < self.heads { query.row(0) } else { key.row(0) } }, eps);
            }
            let (low, high) = head.split_at_mut(d / 2);
            for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
        let keys = &rotated[self.heads * d..];
        let (block, offset) = (slot as usize / self.map.block_size, slot as usize % self.map.block_size);
        for head in 0..g {
            let (k, v) = (self.map.piece(block, 0, head), self.map.piece(block, 1, head));
            for i in 0..d {
                // SAFETY: the piece has `block_size * d` elements and this token's slot is written by it alone.
                unsafe {
                    put(k, self.map.key_index(offset, i), self.map.dtype, keys[head * d + i]);
                    put(v, offset * d + i, self.map.dtype, values[head * d + i]);
                }
            }
        }
    }
}

/// Root-mean-square norm in place: sixteen partial sums, added up pairwise.
fn norm(x: &mut [f32], weight: &[f32], eps: f32) {
    let mut acc = [0.0_f32; 16];
    for part in x.chunks(16) {
        acc.iter_mut().zip(part).for_each(|(a, v)| *a += v * v);
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
    }
    let scale = 1.0 / (acc[0] / x.len() as f32 + eps).sqrt();
    x.iter_mut().zip(weight).for_each(|(v, w)| *v = *v * scale * w);
}

/// # Safety
/// `p` has an element `i` of `dtype`, aligned.
#[inline(always)]
unsafe fn put(p: *mut u8, i: usize, dtype: DType, x: f32) {
    // SAFETY: by contract.
    unsafe {
        match dtype {
            DType::F32 => *p.cast::<f32>().add(i) = x,
            DType::F16 => *p.cast::<u16>().add(i) = f16::from_f32(x).to_bits(),
            _ => *p.cast::<u16>().add(i) = bf16::from_f32(x).to_bits(),
        }
    }
}
