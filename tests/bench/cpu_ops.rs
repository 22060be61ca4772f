//! Rates of the CPU backend on the shapes of a 135M Llama in bfloat16: memory bandwidth, matrix products at one, eight and
//! 256 rows, and whole decoder steps. Every figure stands beside the limit it is measured against in the same minute,
//! because other work on a machine moves both.
//!
//! `cargo bench --bench cpu_ops`, on one thread and on all; `cargo bench --bench cpu_ops -- 2 avx2` on two
//! without AVX-512.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use yinian::base::DType;
use yinian::base::rng::SplitMix64;
use yinian::hal::ops::{Activation, KvLayer, PagedAttention, RopeWriteKv, SAMPLER_BIASES, SAMPLER_WORDS, Sample};
use yinian::hal::registry::{self, DeviceOptions};
use yinian::hal::{Device, HostMatrix, Matrix, Stream, Tensor};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const INTER: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 49_152;
const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
const BLOCK: usize = 16;
const CONTEXT: usize = 256;
const MAX_ROWS: usize = 256;

struct Layer {
    qkv: Matrix,
    out: Matrix,
    gate_up: Matrix,
    down: Matrix,
}

struct Bench {
    device: Arc<dyn Device>,
    stream: Box<dyn Stream>,
    layers: Vec<Layer>,
    head: Matrix,
    weight_bytes: usize,
}

impl Bench {
    fn new(threads: usize, features: Option<&String>) -> Self {
        let options =
            DeviceOptions { threads: Some(threads), cpu_features: features.cloned(), ..DeviceOptions::default() };
        let device = registry::open("cpu", &options).expect("a CPU device");
        let mut rng = SplitMix64(1);
        let mut matrix = |rows: usize, cols: usize| {
            // bfloat16 of about 0.01 with a random sign and mantissa.
            let element = |bits: u64| (0x3c00 | (bits as u16 & 0x80ff)).to_le_bytes();
            let data: Vec<u8> = (0..rows * cols).flat_map(|_| element(rng.next_u64())).collect();
            device.load_matrix(&[HostMatrix { rows, cols, dtype: DType::Bf16, data: &data }]).expect("memory")
        };
        let layers: Vec<Layer> = (0..LAYERS)
            .map(|_| Layer {
                qkv: matrix(QKV, HIDDEN),
                out: matrix(HIDDEN, HEADS * HEAD_DIM),
                gate_up: matrix(2 * INTER, HIDDEN),
                down: matrix(HIDDEN, INTER),
            })
            .collect();
        let head = matrix(VOCABULARY, HIDDEN);
        let of_layer = |l: &Layer| l.qkv.bytes() + l.out.bytes() + l.gate_up.bytes() + l.down.bytes();
        let weight_bytes = head.bytes() + layers.iter().map(of_layer).sum::<usize>();
        let stream = device.stream().expect("a stream");
        Self { device, stream, layers, head, weight_bytes }
    }

    fn tensor(&self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        Tensor::new(self.device.alloc(rows * cols * dtype.size()).expect("memory"), 0, rows, cols, dtype)
    }

    fn ints(&self, values: &[i32]) -> Tensor {
        let tensor = self.tensor(values.len(), 1, DType::I32);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut buffer = self.device.host_buffer(bytes.len()).expect("memory");
        buffer.bytes_mut().copy_from_slice(&bytes);
        self.stream.upload(&tensor, buffer.as_ref()).expect("an upload");
        tensor
    }

    /// Seconds for the matrix products of one step of `rows` tokens, `sampled` of which reach the head.
    fn products(&self, rows: usize, sampled: usize) -> f64 {
        let x = self.tensor(rows, INTER, DType::F32);
        let y = self.tensor(rows, 2 * INTER, DType::F32);
        let logits = self.tensor(sampled, VOCABULARY, DType::F32);
        best(|| {
            for layer in &self.layers {
                for w in [&layer.qkv, &layer.out, &layer.gate_up, &layer.down] {
                    let (x, y) = (x.reshape(rows, w.cols()), y.reshape(rows, w.rows()));
                    self.stream.linear(&y, &x, w, None).expect("a product");
                }
            }
            self.stream.linear(&logits, &x.reshape(sampled, HIDDEN), &self.head, None).expect("a product");
        })
    }

    /// Seconds for one whole step: `sequences` of `new` tokens each, ending at a context of [`CONTEXT`].
    fn step(&self, sequences: usize, new: usize) -> f64 {
        let step = Step::new(self, sequences, new);
        best(|| step.run(self))
    }
}

/// Tensors of a step.
struct Step {
    ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    starts: Tensor,
    lens: Tensor,
    tables: Tensor,
    last: Tensor,
    rows: Tensor,
    state: Tensor,
    counts: Tensor,
    biases: Tensor,
    rope: Tensor,
    pool: Tensor,
    floats: [Tensor; 9],
    out: Tensor,
}

impl Step {
    fn new(bench: &Bench, sequences: usize, new: usize) -> Self {
        let blocks = CONTEXT / BLOCK;
        let tokens = sequences * new;
        assert!(tokens <= MAX_ROWS);
        let each = |f: &dyn Fn(usize, usize) -> usize| -> Vec<i32> {
            (0..tokens).map(|t| f(t / new, CONTEXT - new + t % new) as i32).collect()
        };
        let n = sequences as i32;
        let slot = |s: usize, p: usize| s * blocks * BLOCK + p;
        let block_bytes = BLOCK * 2 * LAYERS * KV_HEADS * HEAD_DIM * 2;
        let tables: Vec<i32> = (0..n * blocks as i32).collect();
        Self {
            ids: bench.ints(&each(&|s, p| s * 31 + p)),
            positions: bench.ints(&each(&|_, p| p)),
            slots: bench.ints(&each(&slot)),
            starts: bench.ints(&(0..=n).map(|s| s * new as i32).collect::<Vec<_>>()),
            lens: bench.ints(&vec![CONTEXT as i32; sequences]),
            tables: bench.ints(&tables).reshape(sequences, blocks),
            last: bench.ints(&(1..=n).map(|s| s * new as i32 - 1).collect::<Vec<_>>()),
            rows: bench.ints(&(0..n).collect::<Vec<_>>()),
            state: bench.tensor(sequences, SAMPLER_WORDS, DType::I32),
            counts: bench.tensor(sequences, 2 * VOCABULARY, DType::U8),
            biases: bench.tensor(sequences, 2 * SAMPLER_BIASES, DType::I32),
            rope: bench.tensor(CONTEXT, HEAD_DIM, DType::F32),
            pool: bench.tensor(sequences * blocks, block_bytes, DType::U8),
            floats: [
                (tokens, HIDDEN),
                (tokens, HIDDEN),
                (tokens, QKV),
                (tokens, HEADS * HEAD_DIM),
                (tokens, 2 * INTER),
                (tokens, INTER),
                (1, HIDDEN),
                (sequences, HIDDEN),
                (sequences, VOCABULARY),
            ]
            .map(|(rows, cols)| bench.tensor(rows, cols, DType::F32)),
            out: bench.tensor(sequences, 1, DType::I32),
        }
    }

    fn run(&self, bench: &Bench) {
        let ops = &bench.stream;
        let [residual, x, qkv, attended, gate_up, inner, weight, last, logits] = &self.floats;
        ops.embed(residual, &bench.head, &self.ids, &self.state, 1.0).expect("embed");
        ops.rms_norm(x, residual, weight, 1e-5).expect("norm");
        for (layer, weights) in bench.layers.iter().enumerate() {
            let kv = KvLayer {
                pool: &self.pool,
                layer,
                layers: LAYERS,
                kv_heads: KV_HEADS,
                head_dim: HEAD_DIM,
                block_size: BLOCK,
                dtype: DType::Bf16,
            };
            ops.linear(qkv, x, &weights.qkv, None).expect("qkv");
            let (positions, slots, rope) = (&self.positions, &self.slots, &self.rope);
            ops.rope_write_kv(&RopeWriteKv { qkv, positions, slots, rope, heads: HEADS, norms: None, kv })
                .expect("rope");
            let args = PagedAttention {
                out: attended,
                qkv,
                starts: &self.starts,
                context_lens: &self.lens,
                tables: &self.tables,
                singles: 0,
                scale: 0.125,
                soft_cap: None,
                window: None,
                heads: HEADS,
                kv,
            };
            ops.paged_attention(&args).expect("attention");
            ops.linear(x, attended, &weights.out, None).expect("out");
            ops.add_rms_norm(x, residual, x, weight, 1e-5).expect("norm");
            ops.linear(gate_up, x, &weights.gate_up, None).expect("gate and up");
            ops.act_mul(inner, gate_up, Activation::Silu).expect("silu");
            ops.linear(x, inner, &weights.down, None).expect("down");
            ops.add_rms_norm(x, residual, x, weight, 1e-5).expect("norm");
        }
        ops.gather_rows(last, x, &self.last).expect("gather");
        ops.linear(logits, last, &bench.head, None).expect("head");
        let Self { rows, lens: positions, state, counts, biases, out, .. } = self;
        ops.sample(&Sample { logits, rows, positions, state, counts, biases, out }).expect("sample");
    }
}

/// Seconds of the fastest of several runs: noise of other processes only ever adds.
fn best(mut run: impl FnMut()) -> f64 {
    let mut fastest = f64::MAX;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 1.5 {
        let from = Instant::now();
        run();
        fastest = fastest.min(from.elapsed().as_secs_f64());
    }
    fastest
}

/// Bytes per second that `threads` threads read from memory.
fn bandwidth(threads: usize, buffer: &[u64]) -> f64 {
    let sum = |part: &[u64]| {
        let mut acc = [0_u64; 32];
        for chunk in part.chunks_exact(32) {
            acc.iter_mut().zip(chunk).for_each(|(a, x)| *a ^= x);
        }
        acc.iter().fold(0, |a, x| a ^ x)
    };
    let seconds = best(|| {
        std::thread::scope(|scope| {
            for part in buffer.chunks(buffer.len().div_ceil(threads)) {
                scope.spawn(move || black_box(sum(black_box(part))));
            }
        });
    });
    size_of_val(buffer) as f64 / seconds
}

fn report(threads: usize, features: Option<&String>, buffer: &[u64]) {
    let limit = bandwidth(threads, buffer);
    let bench = Bench::new(threads, features);
    println!("\n{}: reads {:.1} GB/s", bench.device.caps().description, limit / 1e9);
    let bytes = bench.weight_bytes as f64;
    for rows in [1, 8] {
        let rate = bytes / bench.products(rows, rows);
        println!(
            "  products, {rows} rows: {:.1} GB/s of weights, {:.0} % of the limit",
            rate / 1e9,
            100.0 * rate / limit
        );
    }
    let per_row = 2.0 * (QKV * HIDDEN + HIDDEN * HIDDEN + 3 * INTER * HIDDEN) as f64 * LAYERS as f64;
    let flops = MAX_ROWS as f64 * per_row + 2.0 * (VOCABULARY * HIDDEN) as f64;
    let rate = flops / bench.products(MAX_ROWS, 1);
    println!("  products, {MAX_ROWS} rows: {:.0} GFLOP/s, {:.0} per thread", rate / 1e9, rate / 1e9 / threads as f64);
    let one = 1.0 / bench.step(1, 1);
    println!("  decode, batch 1: {one:.0} tokens/s, {:.0} % of the limit", 100.0 * one * bytes / limit);
    let eight = 8.0 / bench.step(8, 1);
    println!("  decode, batch 8: {eight:.0} tokens/s, {:.1} times batch 1", eight / one);
    let prefill = 256.0 / bench.step(1, 256);
    println!("  prefill of 256:  {prefill:.0} tokens/s, {:.1} times batch 1", prefill / one);
}

fn main() {
    let buffer = vec![1_u64; (1 << 30) / 8];
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let asked: Vec<usize> = args.iter().filter_map(|a| a.parse().ok()).collect();
    let features = args.iter().find(|a| a.parse::<usize>().is_err());
    let mut counts = if asked.is_empty() { vec![1, all] } else { asked };
    counts.dedup();
    for threads in counts {
        report(threads, features, &buffer);
    }
}
