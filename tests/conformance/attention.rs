//! `rope_write_kv` and `paged_attention` together: the order inside a block is the backend's own, so what was written is
//! seen through what attention reads. The model keeps plain keys and values per sequence.

use crate::kit::{Kit, Tally, WEIGHTS, bits, close, few, noise, rounded, smallest, some};
use yinian::base::DType;
use yinian::base::rng::SplitMix64;
use yinian::hal::Tensor;
use yinian::hal::ops::{HeadNorms, KvLayer, PagedAttention, RopeWriteKv};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) block_size: usize,
    pub(crate) dtype: DType,
    pub(crate) window: Option<u32>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) head_norms: bool,
}

impl Shape {
    /// No window, cap or norms.
    pub(crate) const fn plain(
        (heads, kv_heads, head_dim): (usize, usize, usize),
        block_size: usize,
        dtype: DType,
    ) -> Self {
        Self { heads, kv_heads, head_dim, block_size, dtype, window: None, soft_cap: None, head_norms: false }
    }

    pub(crate) fn qkv_cols(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.5 / (self.head_dim as f32).sqrt()
    }
}

const EPS: f64 = 1e-5;
const LAYERS: usize = 2;
const LAYER: usize = 1;
/// Tokens that a cache has room for, and positions of its rope table.
const TOKENS: usize = 1024;
const LONG_TOKENS: usize = 4096;
/// Query heads, key heads and head dimensions.
const LONG_HEADS: [(usize, usize, usize); 10] = [
    (4, 4, 64),
    (8, 2, 64),
    (7, 1, 80),
    (2, 2, 128),
    (8, 1, 96),
    (17, 1, 64),
    (8, 2, 128),
    (6, 2, 32),
    (4, 1, 256),
    (16, 4, 128),
];
const MAX_POSITION: usize = LONG_TOKENS;
/// Sequences and their tokens.
const LONG_STEPS: [&[(usize, usize)]; 5] = [
    &[(0, 300), (1, 1), (2, 255)],
    &[(1, 1), (0, 213), (3, 2), (2, 1)],
    &[(0, 1), (1, 1), (2, 1), (3, 1)],
    &[(2, 256), (0, 1), (3, 70)],
    &[(3, 1), (2, 1), (0, 1)],
];

/// A cache and the sequences in it.
pub(crate) struct Cache<'a> {
    kit: &'a Kit,
    shape: Shape,
    pool: Tensor,
    rope: Tensor,
    /// Weights of the norms of query heads and of key heads.
    norms: [Vec<f32>; 2],
    norm_tensors: [Tensor; 2],
    table: Vec<f32>,
    free: Vec<i32>,
    pub(crate) sequences: Vec<Sequence>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Sequence {
    blocks: Vec<i32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    tokens: usize,
}

impl<'a> Cache<'a> {
    pub(crate) fn new(kit: &'a Kit, shape: Shape, sequences: usize) -> Self {
        Self::for_tokens(kit, shape, sequences, TOKENS)
    }

    pub(crate) fn for_tokens(kit: &'a Kit, shape: Shape, sequences: usize, tokens: usize) -> Self {
        let blocks = tokens / shape.block_size;
        let block_bytes = shape.block_size * 2 * LAYERS * shape.kv_heads * shape.head_dim * shape.dtype.size();
        // Every pattern of 0xff is a NaN in all three dtypes.
        let pool = kit.upload(&vec![0xff; blocks * block_bytes], blocks, block_bytes, DType::U8);
        let half = shape.head_dim / 2;
        let angle = |p: usize, i: usize| p as f32 * 10_000_f32.powf(-(i as f32) / half as f32);
        let table: Vec<f32> = (0..MAX_POSITION)
            .flat_map(|p| (0..half).map(move |i| angle(p, i).cos()).chain((0..half).map(move |i| angle(p, i).sin())))
            .collect();
        let mut free: Vec<i32> = (0..blocks as i32).collect();
        let mut rng = SplitMix64(9);
        for i in (1..blocks).rev() {
            free.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let rope = kit.floats(&table, shape.head_dim);
        let mut norms = [31, 32].map(|seed| noise(seed, shape.head_dim));
        // Weights in the dtype of activations multiply what is rounded already, others do not.
        let in_act = kit.aligned() && shape.head_dim.is_multiple_of(4);
        if in_act {
            norms = [31, 32].map(|seed| kit.noise(seed, shape.head_dim));
        }
        let tensor = |x: &Vec<f32>| if in_act { kit.acts(x, shape.head_dim) } else { kit.floats(x, shape.head_dim) };
        let norm_tensors = [tensor(&norms[0]), tensor(&norms[1])];
        let sequences = vec![Sequence::default(); sequences];
        Self { kit, shape, pool, rope, norms, norm_tensors, table, free, sequences }
    }

    fn layer(&self) -> KvLayer<'_> {
        let Shape { kv_heads, head_dim, block_size, dtype, .. } = self.shape;
        KvLayer { pool: &self.pool, layer: LAYER, layers: LAYERS, kv_heads, head_dim, block_size, dtype }
    }

    /// A head of queries (`which` 0) or keys (1), normed where the shape says so.
    fn rotated(&self, head: &[f32], which: usize, position: usize) -> Vec<f32> {
        let half = head.len() / 2;
        let mean = head.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / head.len() as f64;
        let in_act = self.norm_tensors[which].dtype() == self.kit.act;
        let first = |x: f64| if in_act { self.kit.inside(x) } else { x };
        let round = |x: f32| self.kit.inside(f64::from(x)) as f32;
        let normed = |(x, w): (&f32, &f32)| round((first(f64::from(*x) / (mean + EPS).sqrt()) * f64::from(*w)) as f32);
        let head: Vec<f32> = match self.shape.head_norms {
            true => head.iter().zip(&self.norms[which]).map(normed).collect(),
            false => head.to_vec(),
        };
        let row = &self.table[position * head.len()..];
        let turn = |i: usize| match i < half {
            true => round(head[i] * round(row[i])) - round(head[i + half] * round(row[half + i])),
            false => round(head[i] * round(row[i - half])) + round(head[i - half] * round(row[i])),
        };
        (0..head.len()).map(turn).map(round).collect()
    }

    /// Runs one step of `(sequence, its tokens' qkv)` and returns the outputs of all tokens.
    pub(crate) fn step(&mut self, step: &[(usize, &[f32])]) -> Vec<f32> {
        let Shape { heads, kv_heads, head_dim: d, block_size, dtype, .. } = self.shape;
        let cols = self.shape.qkv_cols();
        let (mut qkv, mut positions, mut slots, mut starts) = (vec![], vec![], vec![], vec![0]);
        for (s, tokens) in step {
            for row in tokens.chunks_exact(cols) {
                let position = self.sequences[*s].tokens;
                if position.is_multiple_of(block_size) {
                    let block = self.free.pop().unwrap();
                    self.sequences[*s].blocks.push(block);
                }
                let block = self.sequences[*s].blocks[position / block_size];
                positions.push(position as i32);
                slots.push(block * block_size as i32 + (position % block_size) as i32);
                let (keys, values) = row[heads * d..].split_at(kv_heads * d);
                let keys: Vec<f32> = keys.chunks_exact(d).flat_map(|h| self.rotated(h, 1, position)).collect();
                let sequence = &mut self.sequences[*s];
                sequence.keys.extend(keys.iter().map(|x| rounded(*x, dtype)));
                sequence.values.extend(values.iter().map(|x| rounded(*x, dtype)));
                sequence.tokens += 1;
            }
            qkv.extend_from_slice(tokens);
            starts.push(positions.len() as i32);
        }
        let max_blocks = step.iter().map(|(s, _)| self.sequences[*s].blocks.len()).max().unwrap() + 1;
        let mut tables = vec![0x7f7f_7f7f; step.len() * max_blocks];
        for ((s, _), row) in step.iter().zip(tables.chunks_exact_mut(max_blocks)) {
            row[..self.sequences[*s].blocks.len()].copy_from_slice(&self.sequences[*s].blocks);
        }
        let lens: Vec<i32> = step.iter().map(|(s, _)| self.sequences[*s].tokens as i32).collect();
        self.run(&qkv, (&positions, &slots), (&starts, &lens, &tables))
    }

    fn run(&self, qkv: &[f32], tokens: (&[i32], &[i32]), sequences: (&[i32], &[i32], &[i32])) -> Vec<f32> {
        let Shape { heads, head_dim, .. } = self.shape;
        let kit = self.kit;
        let qkv = kit.acts(qkv, self.shape.qkv_cols());
        let (positions, slots) = (kit.ints(tokens.0, 1), kit.ints(tokens.1, 1));
        let [query, key] = &self.norm_tensors;
        let args = RopeWriteKv {
            qkv: &qkv,
            positions: &positions,
            slots: &slots,
            rope: &self.rope,
            heads,
            norms: self.shape.head_norms.then_some(HeadNorms { query, key, eps: EPS as f32 }),
            kv: self.layer(),
        };
        kit.stream.rope_write_kv(&args).unwrap();
        let out = kit.poisoned(qkv.rows(), heads * head_dim);
        let (starts, lens) = (kit.ints(sequences.0, 1), kit.ints(sequences.1, 1));
        let tables = kit.ints(sequences.2, sequences.2.len() / sequences.1.len());
        // What is known of the sequences, or nothing.
        let singles = sequences.0.windows(2).take_while(|w| w[1] == w[0] + 1).count();
        let args = PagedAttention {
            singles: if qkv.rows().is_multiple_of(5) { 0 } else { singles },
            out: &out,
            qkv: &qkv,
            starts: &starts,
            context_lens: &lens,
            tables: &tables,
            scale: self.shape.scale(),
            soft_cap: self.shape.soft_cap,
            window: self.shape.window,
            heads,
            kv: self.layer(),
        };
        kit.stream.paged_attention(&args).unwrap();
        kit.read(&out)
    }

    /// A step of sequences that each are the first sequence up to a position and end with a query there.
    pub(crate) fn decode_prefixes(&mut self, qkv: &[f32], positions: &[i32]) -> Vec<f32> {
        let (n, size) = (positions.len(), self.shape.block_size);
        let aside = self.free.split_off(self.free.len() - n.div_ceil(size));
        let slots: Vec<i32> = (0..n).map(|i| aside[i / size] * size as i32 + (i % size) as i32).collect();
        let starts: Vec<i32> = (0..=n as i32).collect();
        let lens: Vec<i32> = positions.iter().map(|position| position + 1).collect();
        let tables = self.sequences[0].blocks.repeat(n);
        self.run(qkv, (positions, &slots), (&starts, &lens, &tables))
    }

    /// What attention should give for a token of a sequence.
    pub(crate) fn model(&self, sequence: usize, position: usize, qkv: &[f32]) -> Vec<f64> {
        let Shape { heads, kv_heads, head_dim: d, .. } = self.shape;
        let sequence = &self.sequences[sequence];
        let round = |x: f64| self.kit.inside(x);
        let mut out = Vec::new();
        for head in 0..heads {
            let query = self.rotated(&qkv[head * d..(head + 1) * d], 0, position);
            let query: Vec<f32> = query.into_iter().map(|x| rounded(x, self.kit.act)).collect();
            let g = head / (heads / kv_heads);
            let at = |t: usize| (t * kv_heads + g) * d;
            let dot = |t: usize| -> f64 {
                let sum = (0..d).map(|i| f64::from(query[i]) * f64::from(sequence.keys[at(t) + i])).sum::<f64>();
                round(round(sum) * f64::from(self.shape.scale()))
            };
            let capped = |s: f64| {
                let cap = |c: f32| round(round(round(s / f64::from(c)).tanh()) * f64::from(c));
                self.shape.soft_cap.map_or(s, cap)
            };
            let first = self.shape.window.map_or(0, |n| (position + 1).saturating_sub(n as usize));
            let scores: Vec<f64> = (first..=position).map(|t| capped(dot(t))).collect();
            let max = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            let weights: Vec<f64> = weights.iter().map(|w| round(w / total)).collect();
            for i in 0..d {
                let sum: f64 =
                    weights.iter().zip(first..).map(|(w, t)| w * f64::from(sequence.values[at(t) + i])).sum();
                out.push(sum);
            }
        }
        out
    }
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for dtype in WEIGHTS {
        shapes.push(Shape::plain((9, 3, 64), 16, dtype));
        shapes.push(Shape::plain((2, 2, 80), 32, dtype));
        shapes.push(Shape::plain((14, 1, 6), 5, dtype));
        shapes.push(Shape::plain((4, 1, 128), 8, dtype));
    }
    shapes.push(Shape::plain((8, 2, 96), 16, DType::Bf16));
    shapes.push(Shape::plain((2, 1, 256), 16, DType::F32));
    // Windows of one key, below, at and above a tile's 16, and longer than all contexts.
    for window in [1, 2, 15, 16, 17, 31, 33, 1000].map(Some) {
        shapes.push(Shape { window, ..Shape::plain((4, 2, 32), 16, DType::F32) });
        shapes.push(Shape { window, ..Shape::plain((3, 3, 10), 5, DType::Bf16) });
    }
    for soft_cap in [0.25, 1.0, 50.0].map(Some) {
        shapes.push(Shape { soft_cap, ..Shape::plain((4, 1, 64), 16, DType::F32) });
        shapes.push(Shape { soft_cap, window: Some(9), ..Shape::plain((2, 1, 18), 8, DType::F16) });
    }
    for head_dim in [2, 6, 30, 64, 128] {
        shapes.push(Shape { head_norms: true, ..Shape::plain((6, 2, head_dim), 16, DType::F32) });
    }
    shapes.push(Shape { head_norms: true, ..Shape::plain((4, 4, 64), 16, DType::F16) });
    for head_dim in [6, 30, 64, 128] {
        shapes.push(Shape { head_norms: true, ..Shape::plain((4, 2, head_dim), 16, DType::Bf16) });
    }
    shapes
}

pub(crate) fn all(kit: &Kit) {
    for shape in some(shapes().into_iter().filter(|shape| takes(kit, shape)), 4) {
        mixed_batches(kit, shape);
    }
}

/// Whether a cache of the shape's dtype goes with the activations of a run.
pub(crate) fn takes(kit: &Kit, shape: &Shape) -> bool {
    kit.act == DType::F32 || kit.act == shape.dtype
}

/// A key or a query may round the other way where the device fuses the rotation, and half-precision devices round weights.
pub(crate) fn tolerance(kit: &Kit, dtype: DType) -> f64 {
    match (kit.act, dtype) {
        (DType::F16, _) => 5e-3,
        (DType::Bf16, _) => 4e-2,
        (_, DType::F32) => 5e-6,
        _ => 2e-2,
    }
}

/// Prefill chunks that end before, at and behind block borders, beside decodes of other sequences.
fn mixed_batches(kit: &Kit, shape: Shape) {
    let mut cache = Cache::new(kit, shape, 3);
    let mut tally = Tally::default();
    let steps: [&[(usize, usize)]; 6] = [
        &[(0, 1)],
        &[(0, 1), (1, 15)],
        &[(1, 1), (2, 17)],
        &[(0, 1), (1, 1), (2, 1)],
        &[(1, 31), (0, 14)],
        &[(0, 1), (1, 1)],
    ];
    for (index, step) in steps.iter().enumerate() {
        let cols = shape.qkv_cols();
        let data: Vec<Vec<f32>> = step
            .iter()
            .map(|(s, n)| kit.noise((index * 7 + s) as u64, n * cols).iter().map(|x| 2.0 * x).collect())
            .collect();
        let before: Vec<usize> = step.iter().map(|(s, _)| cache.sequences[*s].tokens).collect();
        let feed: Vec<(usize, &[f32])> = step.iter().zip(&data).map(|((s, _), d)| (*s, d.as_slice())).collect();
        let got = cache.step(&feed);
        let mut expected = Vec::new();
        for ((s, tokens), first) in feed.iter().zip(before) {
            for (i, row) in tokens.chunks_exact(cols).enumerate() {
                expected.extend(cache.model(*s, first + i, row));
            }
        }
        close(&format!("attention {shape:?} step {index}"), &got, &expected, tolerance(kit, shape.dtype));
        tally.count(kit, &got, &expected);
    }
    if kit.aligned() {
        tally.assert_few(&format!("attention {shape:?}"));
    }
}

/// Contexts of several chunks in batches of prefills that begin anywhere and decodes, for every head dimension and ratio of
/// heads. Only some tokens are compared: the first, the last, and every 41st.
pub(crate) fn long_contexts(kit: &Kit) {
    for (i, (heads, kv_heads, head_dim)) in some(LONG_HEADS, 2).enumerate() {
        let dtype = if kit.act == DType::F32 { WEIGHTS[i % 3] } else { kit.act };
        let plain = Shape::plain((heads, kv_heads, head_dim), [16, 32, 5][i % 3], dtype);
        long_batches(kit, plain, &LONG_STEPS);
        let window = Some([1, 64, 65, 255, 256, 257, 300][i % 7]);
        long_batches(kit, Shape { window, soft_cap: (i % 2 == 0).then_some(3.0), ..plain }, &LONG_STEPS);
    }
}

/// Blocks as large as NPUs want them, for the head dimensions that their operators take; windows that no context fills, and one
/// that binds.
pub(crate) fn large_blocks(kit: &Kit) {
    let heads = [(4, 4, 64), (7, 1, 80), (8, 1, 96), (8, 2, 128), (4, 1, 256)];
    for (i, heads) in some(heads, 2).enumerate() {
        let dtype = if kit.act == DType::F32 { WEIGHTS[i % 3] } else { kit.act };
        let window = [None, Some(2000), None, Some(190), None][i % 5];
        let plain = Shape::plain(heads, 128, dtype);
        long_batches(kit, Shape { window, head_norms: i % 2 == 1, ..plain }, &LONG_STEPS);
    }
}

/// Chunks of few tokens behind many: a device that spreads their keys must put them together again, beside sequences that
/// see few keys, and where a window or the last token leaves a part without any.
pub(crate) fn few_tokens_over_long_contexts(kit: &Kit) {
    const FIRST: [&[(usize, usize)]; 2] = [&[(0, 899), (1, 5)], &[(0, 561), (1, 5)]];
    const REST: [&[(usize, usize)]; 3] = [&[(1, 2), (0, 33), (2, 1)], &[(0, 70), (2, 1)], &[(2, 1), (1, 3), (0, 2)]];
    let (first, window) = if smallest() { (FIRST[1], 300) } else { (FIRST[0], 600) };
    let steps = [&[first], &REST[..]].concat();
    // What few leave out, long contexts run too.
    for (i, heads) in few([(8, 2, 128), (4, 4, 64), (7, 1, 80), (8, 1, 96), (4, 1, 256)], 2).enumerate() {
        let dtype = if kit.act == DType::F32 { WEIGHTS[i % 3] } else { kit.act };
        let plain = Shape::plain(heads, 16, dtype);
        let window = Shape { window: Some(window), ..plain };
        for shape in few([Shape { soft_cap: Some(3.0), ..window }, plain, window], 3) {
            long_batches(kit, shape, &steps);
        }
    }
}

/// Single tokens over contexts that are more than one group of blocks has at once, on devices that have such groups.
pub(crate) fn few_rows(kit: &Kit) {
    let long = if kit.device.caps().graphs { 2600 } else { 150 };
    let steps: [&[(usize, usize)]; 5] =
        [&[(0, long), (1, 70)], &[(0, 1)], &[(1, 1)], &[(1, 1), (0, 1), (2, 1)], &[(2, 1), (0, 1)]];
    for (i, heads) in few([(8, 2, 128), (14, 2, 64), (16, 1, 64), (24, 2, 128), (4, 2, 64)], 4).enumerate() {
        let plain = Shape::plain(heads, [16, 32][i % 2], if kit.act == DType::F32 { WEIGHTS[i % 3] } else { kit.act });
        long_batches(kit, plain, &steps);
        long_batches(kit, Shape { window: Some(2100), soft_cap: Some(3.0), ..plain }, &steps[..3]);
    }
}

pub(crate) fn long_batches(kit: &Kit, shape: Shape, steps: &[&[(usize, usize)]]) {
    let mut cache = Cache::for_tokens(kit, shape, 4, LONG_TOKENS);
    let mut tally = Tally::default();
    let cols = shape.qkv_cols();
    for (index, step) in steps.iter().enumerate() {
        let data: Vec<Vec<f32>> = step.iter().map(|(s, n)| kit.noise((index * 5 + s) as u64, n * cols)).collect();
        let before: Vec<usize> = step.iter().map(|(s, _)| cache.sequences[*s].tokens).collect();
        let feed: Vec<(usize, &[f32])> = step.iter().zip(&data).map(|((s, _), d)| (*s, d.as_slice())).collect();
        let got = cache.step(&feed);
        let mut rows = got.chunks_exact(shape.heads * shape.head_dim);
        for ((s, tokens), first) in feed.iter().zip(before) {
            let last = tokens.len() / cols - 1;
            for (i, row) in tokens.chunks_exact(cols).enumerate() {
                let got = rows.next().unwrap();
                if i % 41 == 0 || i == last {
                    let expected = cache.model(*s, first + i, row);
                    let what = format!("attention {shape:?} step {index}, sequence {s}, token {i}");
                    close(&what, got, &expected, tolerance(kit, shape.dtype));
                    tally.count(kit, got, &expected);
                } else {
                    assert!(got.iter().all(|x| x.is_finite()), "attention {shape:?} step {index} token {i}");
                }
            }
        }
    }
    if kit.aligned() {
        tally.assert_few(&format!("attention {shape:?}"));
    }
}

/// A sequence fed whole, in chunks, and beside others gives the same bits.
pub(crate) fn invariant(kit: &Kit, shape: Shape) {
    const N: usize = 50;
    let cols = shape.qkv_cols();
    let data = noise(77, N * cols);
    let other = noise(78, N * cols);
    let whole = Cache::new(kit, shape, 1).step(&[(0, &data)]);
    for chunks in few([&[7, 16, 1, 17, 9][..], &[1; N], &[49, 1], &[16, 33, 1]], 2) {
        let mut cache = Cache::new(kit, shape, 3);
        let (mut got, mut at) = (Vec::new(), 0);
        for n in chunks {
            let mine = &data[at * cols..(at + n) * cols];
            let beside = at % 3;
            let out = match beside {
                0 => cache.step(&[(0, mine)]),
                1 => cache.step(&[(0, mine), (1, &other[..cols])]),
                _ => cache.step(&[(2, &other[..3 * cols]), (0, mine), (1, &other[..2 * cols])]),
            };
            let width = shape.heads * shape.head_dim;
            let skip = if beside == 2 { 3 * width } else { 0 };
            got.extend_from_slice(&out[skip..skip + n * width]);
            at += n;
        }
        assert_eq!(bits(&got), bits(&whole), "attention {shape:?} in chunks {chunks:?}");
    }
}

/// The same over several chunks of keys: fed whole, in large and small chunks beside a decoding sequence, and token by token
/// from somewhere on.
pub(crate) fn long_invariant(kit: &Kit, shape: Shape) {
    let n = if smallest() { 300 } else { 600 };
    let (cols, width) = (shape.qkv_cols(), shape.heads * shape.head_dim);
    let (data, other) = (noise(79, n * cols), noise(80, n * cols));
    let whole = bits(&Cache::for_tokens(kit, shape, 2, LONG_TOKENS).step(&[(0, &data)]));
    let singles: Vec<usize> = [500].into_iter().chain([1; 20]).chain([80]).collect();
    let all = [&[255, 2, 256, 87][..], &[1, 130, 33, 300, 7, 129], &singles];
    let short = [&[1, 254, 2, 1, 42][..]];
    for chunks in if smallest() { &short[..] } else { &all } {
        let mut cache = Cache::for_tokens(kit, shape, 2, LONG_TOKENS);
        let mut at = 0;
        for n in *chunks {
            let mine = &data[at * cols..(at + n) * cols];
            let out = match at % 2 {
                0 => cache.step(&[(0, mine), (1, &other[at * cols..(at + 1) * cols])]),
                _ => cache.step(&[(0, mine)]),
            };
            for (i, (got, expected)) in
                bits(&out).chunks(width).zip(whole[at * width..].chunks(width)).take(*n).enumerate()
            {
                assert!(got == expected, "attention {shape:?} in chunks {chunks:?}: token {} has other bits", at + i);
            }
            at += n;
        }
        assert_eq!(at, n);
    }
}
