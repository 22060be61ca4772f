//! A paged cache and attention over it, as tests call them.

use crate::api::P;
use crate::world::{BF16, I8, I32, T, World, numbers};
use std::ptr::null_mut;

pub(crate) const HEADS: i64 = 4;
pub(crate) const KV_HEADS: i64 = 2;
pub(crate) const DIM: i64 = 16;

/// Sequences of some queries and keys each, in blocks that no two of them share.
pub(crate) struct Batch {
    pub(crate) queries: Vec<i64>,
    pub(crate) keys: Vec<i64>,
    pub(crate) block_size: i64,
    pub(crate) dtype: i32,
}

impl Batch {
    pub(crate) fn new(queries: &[i64], keys: &[i64]) -> Self {
        Self { queries: queries.to_vec(), keys: keys.to_vec(), block_size: 128, dtype: BF16 }
    }

    pub(crate) fn tokens(&self) -> i64 {
        self.queries.iter().sum()
    }

    fn blocks_each(&self) -> i64 {
        self.keys.iter().map(|n| (n + self.block_size - 1) / self.block_size).max().unwrap().max(1)
    }

    pub(crate) fn blocks(&self) -> i64 {
        self.blocks_each() * self.keys.len() as i64 + 1
    }

    /// Block `i` of sequence `s`: neighbours of a sequence lie apart, block 0 is nobody's.
    fn block(&self, s: usize, i: i64) -> i64 {
        1 + i * self.keys.len() as i64 + (self.keys.len() - 1 - s) as i64
    }

    pub(crate) fn table(&self) -> Vec<f64> {
        let row = |s| (0..self.blocks_each()).map(move |i| self.block(s, i) as f64);
        (0..self.keys.len()).flat_map(row).collect()
    }

    /// Slots of all keys, sequence after sequence.
    pub(crate) fn slots(&self) -> Vec<f64> {
        let slot = |s, i: i64| (self.block(s, i / self.block_size) * self.block_size + i % self.block_size) as f64;
        self.keys.iter().enumerate().flat_map(|(s, n)| (0..*n).map(move |i| slot(s, i))).collect()
    }
}

pub(crate) fn sums(lengths: &[i64]) -> Vec<i64> {
    lengths
        .iter()
        .scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        })
        .collect()
}

/// Tensors of a batch, its keys written to the cache.
pub(crate) struct Cached {
    pub(crate) query: T,
    pub(crate) out: T,
    pub(crate) key: T,
    pub(crate) value: T,
    pub(crate) keys: T,
    pub(crate) values: T,
    pub(crate) table: T,
    pub(crate) mask: T,
    /// As written, sequence after sequence.
    pub(crate) key_numbers: Vec<f64>,
    pub(crate) value_numbers: Vec<f64>,
    pub(crate) query_numbers: Vec<f64>,
}

pub(crate) fn causal_mask(w: &World) -> T {
    let values: Vec<f64> = (0..2048 * 2048).map(|i| f64::from(u8::from(i % 2048 > i / 2048))).collect();
    w.tensor(&[2048, 2048], I8, &values)
}

impl Cached {
    pub(crate) fn new(w: &World, batch: &Batch) -> Self {
        let (width, total) = (KV_HEADS * DIM, batch.keys.iter().sum::<i64>());
        let dtype = batch.dtype;
        let key_numbers = numbers((total * width) as usize, 1);
        let value_numbers = numbers((total * width) as usize, 2);
        let query_numbers = numbers((batch.tokens() * HEADS * DIM) as usize, 3);
        let cache = [batch.blocks(), batch.block_size, KV_HEADS, DIM];
        let cached = Self {
            query: w.tensor(&[batch.tokens(), HEADS, DIM], dtype, &query_numbers),
            out: w.empty(&[batch.tokens(), HEADS, DIM], dtype),
            key: w.tensor(&[total, KV_HEADS, DIM], dtype, &key_numbers),
            value: w.tensor(&[total, KV_HEADS, DIM], dtype, &value_numbers),
            keys: w.empty(&cache, dtype),
            values: w.empty(&cache, dtype),
            table: w.tensor(&[batch.keys.len() as i64, batch.blocks_each()], I32, &batch.table()),
            mask: causal_mask(w),
            key_numbers,
            value_numbers,
            query_numbers,
        };
        for cache in [cached.keys, cached.values] {
            w.d.aclrtMemset(cache.at, cache.bytes, 0, cache.bytes);
        }
        cached
    }

    /// Writes all keys and values to `slots`.
    pub(crate) fn scatter(&self, w: &World, slots: &[f64]) -> i32 {
        let slots = w.tensor(&[slots.len() as i64], I32, slots);
        let (strides, offsets) = (w.ints(&[1, 1]), w.ints(&[0, 0]));
        let (norm, none, null) = (World::name("Norm"), World::name("None"), null_mut());
        let (key, value, keys, values) = (self.key.handle, self.value.handle, self.keys.handle, self.values.handle);
        w.run(
            |n, e| {
                w.d.aclnnScatterPaKvCacheGetWorkspaceSize(
                    key,
                    keys,
                    slots.handle,
                    value,
                    values,
                    null,
                    null,
                    null,
                    norm,
                    none,
                    strides,
                    offsets,
                    n,
                    e,
                )
            },
            |p, n, e, s| w.d.aclnnScatterPaKvCache(p, n, e, s),
        )
    }
}

/// One call of attention. What is null is not given.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) query: P,
    pub(crate) key: P,
    pub(crate) value: P,
    pub(crate) mask: P,
    pub(crate) query_lengths: P,
    pub(crate) key_lengths: P,
    pub(crate) table: P,
    pub(crate) layout: &'static str,
    pub(crate) sparse: i64,
    pub(crate) block_size: i64,
    pub(crate) out: P,
}

impl Call {
    /// Paged, all sequences behind each other.
    pub(crate) fn paged(w: &World, batch: &Batch, cached: &Cached) -> Self {
        let cache = [batch.blocks(), batch.block_size, KV_HEADS * DIM];
        Self {
            query: cached.query.handle,
            key: w.list(cached.keys, &cache),
            value: w.list(cached.values, &cache),
            mask: cached.mask.handle,
            query_lengths: w.ints(&sums(&batch.queries)),
            key_lengths: w.ints(&batch.keys),
            table: cached.table.handle,
            layout: "TND",
            sparse: 3,
            block_size: batch.block_size,
            out: cached.out.handle,
        }
    }

    pub(crate) fn run(&self, w: &World) -> i32 {
        let x = null_mut();
        let layout = World::name(self.layout);
        let scale = 1.0 / (DIM as f64).sqrt();
        let most = i64::from(i32::MAX);
        w.run(
            |n, e| {
                w.d.aclnnFusedInferAttentionScoreV3GetWorkspaceSize(
                    self.query,
                    self.key,
                    self.value,
                    x,
                    self.mask,
                    self.query_lengths,
                    self.key_lengths,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    self.table,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    x,
                    HEADS,
                    scale,
                    most,
                    most,
                    layout,
                    KV_HEADS,
                    self.sparse,
                    0,
                    self.block_size,
                    0,
                    false,
                    0,
                    0,
                    self.out,
                    x,
                    n,
                    e,
                )
            },
            |p, n, e, s| w.d.aclnnFusedInferAttentionScoreV3(p, n, e, s),
        )
    }
}
