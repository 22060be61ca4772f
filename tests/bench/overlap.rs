//! Attention, which is bound by memory, beside matrix products, which are not: decoder layers on one stream, and spread over two.

use crate::{Bench, Cache, HEAD_DIM};
use std::time::Instant;
use yinian::base::DType;
use yinian::base::config::NumericMode;
use yinian::base::rng::SplitMix64;
use yinian::hal::ops::PagedAttention;
use yinian::hal::{Matrix, RandomRows, Stream, Tensor};

/// What is measured: a model's layers, and a step of so many decodes with keys in a range.
struct Shape {
    hidden: usize,
    heads: (usize, usize),
    inner: usize,
    decodes: usize,
    keys: (usize, usize),
}

const S8: Shape = Shape { hidden: 4096, heads: (32, 8), inner: 14_336, decodes: 512, keys: (1000, 2000) };
const TINY: Shape = Shape { hidden: 64, heads: (4, 2), inner: 128, decodes: 4, keys: (20, 70) };
/// Layers of a recording, and how many of them have weights of their own: more than any cache holds.
const LAYERS: usize = 16;
const OWN_WEIGHTS: usize = 2;
const ROUNDS: usize = 5;

/// Decodes of a step and the rows that its products have.
struct Part {
    cache: Cache,
    x: Tensor,
    qkv: Tensor,
    attended: Tensor,
    out: Tensor,
    gate_up: Tensor,
    inner: Tensor,
}

impl Part {
    fn new(bench: &Bench, shape: &Shape, keys: &[usize], rows: usize) -> Self {
        let (heads, kv_heads) = shape.heads;
        let sequences: Vec<_> = keys.iter().map(|keys| (1, *keys)).collect();
        Self {
            cache: Cache::new(bench, kv_heads, &sequences),
            x: bench.acts(rows, shape.hidden),
            qkv: bench.acts(rows, (heads + 2 * kv_heads) * HEAD_DIM),
            attended: bench.acts(rows, heads * HEAD_DIM),
            out: bench.acts(rows, shape.hidden),
            gate_up: bench.acts(rows, 2 * shape.inner),
            inner: bench.acts(rows, shape.inner),
        }
    }

    fn attend(&self, s: &dyn Stream, shape: &Shape) {
        let decodes = self.cache.lens.rows();
        let args = PagedAttention {
            out: &self.attended.slice_rows(0, decodes),
            qkv: &self.qkv.slice_rows(0, decodes),
            starts: &self.cache.starts,
            context_lens: &self.cache.lens,
            tables: &self.cache.tables,
            scale: 1.0 / (HEAD_DIM as f32).sqrt(),
            soft_cap: None,
            window: None,
            heads: shape.heads.0,
            singles: decodes,
            kv: self.cache.layer(shape.heads.1),
        };
        s.paged_attention(&args).expect("attention");
    }

    fn project(&self, s: &dyn Stream, [qkv, ..]: &[Matrix; 4]) {
        s.linear(&self.qkv, &self.x, qkv, None).expect("a product");
    }

    /// The products behind attention.
    fn finish(&self, s: &dyn Stream, [_, out, gate_up, down]: &[Matrix; 4]) {
        s.linear(&self.out, &self.attended, out, None).expect("a product");
        s.linear(&self.gate_up, &self.out, gate_up, None).expect("a product");
        s.linear(&self.out, &self.inner, down, None).expect("a product");
    }
}

/// Work of a stream.
type Work<'a> = (&'a dyn Stream, &'a dyn Fn(&dyn Stream, usize));

/// Microseconds of a layer when the streams run their work at once: the best round.
fn time(bench: &Bench, works: &[Work<'_>]) -> f64 {
    let layers = |(stream, layer): &Work<'_>| (0..LAYERS).for_each(|i| layer(*stream, i));
    let wait = || works.iter().for_each(|w| w.0.record().expect("an event").wait().expect("work without a fault"));
    works.iter().for_each(layers);
    wait();
    let record = |work: &Work<'_>| {
        bench.device.caps().graphs.then(|| {
            let mut enqueue = || {
                layers(work);
                Ok(())
            };
            work.0.capture(&mut enqueue).expect("a recording")
        })
    };
    let graphs: Vec<_> = works.iter().map(record).collect();
    let round = || {
        let from = Instant::now();
        for (work, graph) in works.iter().zip(&graphs) {
            match graph {
                Some(graph) => work.0.replay(graph.as_ref()).expect("a replay"),
                None => layers(work),
            }
        }
        wait();
        from.elapsed().as_secs_f64() * 1e6 / LAYERS as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::MAX, f64::min)
}

fn weights(bench: &Bench, shape: &Shape) -> Vec<[Matrix; 4]> {
    let (heads, kv_heads) = shape.heads;
    let matrix = |n, k| {
        let rows = RandomRows { rows: n, seed: 1, width: 0.05 };
        bench.device.random_matrix(&[rows], k, DType::Bf16).expect("memory")
    };
    let own = || {
        [
            matrix((heads + 2 * kv_heads) * HEAD_DIM, shape.hidden),
            matrix(shape.hidden, heads * HEAD_DIM),
            matrix(2 * shape.inner, shape.hidden),
            matrix(shape.hidden, shape.inner),
        ]
    };
    (0..OWN_WEIGHTS).map(|_| own()).collect()
}

/// Layers of `rows` rows, the decodes first: all on one stream, which the others are compared with, and spread over two.
fn compare(bench: &Bench, shape: &Shape, weights: &[[Matrix; 4]], rows: usize) {
    let (decodes, (least, most)) = (shape.decodes, shape.keys);
    let mut rng = SplitMix64(1);
    let keys: Vec<usize> = (0..decodes).map(|_| least + rng.below((most - least) as u64 + 1) as usize).collect();
    let second = bench.device.stream().expect("a stream");
    let (first, second) = (bench.stream.as_ref(), second.as_ref());
    let whole = Part::new(bench, shape, &keys, rows);
    let halves = [0, decodes / 2].map(|from| Part::new(bench, shape, &keys[from..from + decodes / 2], rows / 2));
    let of = |layer: usize| &weights[layer % OWN_WEIGHTS];
    let all = &|part: &Part, s: &dyn Stream, layer| {
        part.project(s, of(layer));
        part.attend(s, shape);
        part.finish(s, of(layer));
    };
    let one = |s: &dyn Stream, layer| all(&whole, s, layer);
    let two = |s: &dyn Stream, layer| halves.iter().for_each(|half| all(half, s, layer));
    let [a, b] = halves.each_ref().map(|half| move |s: &dyn Stream, layer| all(half, s, layer));
    let attention = |s: &dyn Stream, _| halves.iter().for_each(|half| half.attend(s, shape));
    let products = |s: &dyn Stream, layer: usize| {
        whole.project(s, of(layer));
        whole.finish(s, of(layer));
    };
    let base = time(bench, &[(first, &one)]);
    let line = |name: &str, us: f64| {
        let name = format!("{decodes} decodes of {least}-{most} keys, {rows} rows: {name}");
        println!("{name:<86} {us:>8.1} {:>+6.1}%", 100.0 * (base / us - 1.0));
    };
    line("one stream", base);
    line("two halves, one stream", time(bench, &[(first, &two)]));
    line("two halves, a stream each", time(bench, &[(first, &a), (second, &b)]));
    line("attention alone", time(bench, &[(first, &attention)]));
    line("products alone", time(bench, &[(first, &products)]));
    line("attention beside products", time(bench, &[(first, &attention), (second, &products)]));
}

pub(crate) fn trial(device: &str, tiny: bool) {
    let bench = Bench::open(device, NumericMode::Fast);
    println!("{:<86} {:>8} {:>7}", "us of a layer: attention and products", "", "gain");
    let shape = if tiny { TINY } else { S8 };
    let weights = weights(&bench, &shape);
    for rows in [shape.decodes, 2 * shape.decodes] {
        compare(&bench, &shape, &weights, rows);
    }
}
