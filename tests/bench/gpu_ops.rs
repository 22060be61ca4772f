//! Matrix products and paged attention of a GPU in numeric modes `fast` and `invariant`, on the shapes of published models
//! with random numbers. Each figure is the best of several rounds of many launches, recorded where the device records work,
//! over weights that no cache holds; rates stand beside 4.3 TB/s and 790 TFLOP/s, what one NVIDIA H200 reaches.
//!
//! `cargo bench --bench gpu_ops -- [--device cuda] [--only TEXT] [linear] [attention] [layer] [head] [host] [overlap] [tiny]`; `tiny`
//! is for a look on any device, `--only` takes what has TEXT in its name. `layer` runs the ops of decoder layers one after the
//! other, as a step does, and tells what each of them costs there: how much less time the layers take without it. `head` draws
//! from logits as an op of its own and as one with the product in front of it. `host` tells
//! what the calls cost that enqueue such layers as one recording, between an upload and a download. `overlap` runs attention
//! beside products on two streams.

mod heads;
mod layers;
mod overlap;

use std::sync::Arc;
use std::time::Instant;
use yinian::base::DType;
use yinian::base::config::NumericMode;
use yinian::base::rng::SplitMix64;
use yinian::hal::ops::{KvLayer, PagedAttention};
use yinian::hal::registry::{self, DeviceOptions};
use yinian::hal::{Device, Matrix, RandomRows, Stream, Tensor};

const BYTES_PER_US: f64 = 4.3e6;
const FLOPS_PER_US: f64 = 790e6;
const MODES: [NumericMode; 2] = [NumericMode::Fast, NumericMode::Invariant];
/// More than any cache holds.
const COLD_BYTES: usize = 256 << 20;
const ROUNDS: usize = 5;
const HEAD_DIM: usize = 128;
const BLOCK: usize = 16;

struct Bench {
    device: Arc<dyn Device>,
    stream: Box<dyn Stream>,
    act: DType,
}

impl Bench {
    fn open(name: &str, numeric_mode: NumericMode) -> Self {
        let device = registry::open(name, &DeviceOptions { numeric_mode, ..DeviceOptions::default() });
        let device = device.expect("a device");
        let act = device.caps().activations.of(DType::Bf16);
        Self { stream: device.stream().expect("a stream"), device, act }
    }

    fn upload(&self, bytes: &[u8], rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor = Tensor::new(self.device.alloc(bytes.len()).expect("memory"), 0, rows, cols, dtype);
        self.fill(&tensor, bytes);
        tensor
    }

    fn fill(&self, tensor: &Tensor, bytes: &[u8]) {
        let mut buffer = self.device.host_buffer(bytes.len()).expect("memory");
        buffer.bytes_mut().copy_from_slice(bytes);
        self.stream.upload(tensor, buffer.as_ref()).expect("an upload");
        self.wait();
    }

    fn wait(&self) {
        self.stream.record().expect("an event").wait().expect("work without a fault");
    }

    fn acts(&self, rows: usize, cols: usize) -> Tensor {
        self.upload(&numbers(rows * cols, self.act), rows, cols, self.act)
    }

    fn ints(&self, values: &[i32], cols: usize) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.upload(&bytes, values.len() / cols, cols, DType::I32)
    }

    /// Microseconds of one of the `count` launches that `work` enqueues: the best round.
    fn time(&self, count: usize, work: &mut dyn FnMut()) -> f64 {
        work();
        self.wait();
        let graph = self.device.caps().graphs.then(|| {
            let mut work = || {
                work();
                Ok(())
            };
            self.stream.capture(&mut work).expect("a recording")
        });
        let mut run = |times: usize| {
            let from = Instant::now();
            for _ in 0..times {
                match &graph {
                    Some(graph) => self.stream.replay(graph.as_ref()).expect("a replay"),
                    None => work(),
                }
            }
            self.wait();
            from.elapsed().as_secs_f64() * 1e6
        };
        let times = (10_000.0 / run(1)).clamp(1.0, 100.0) as usize;
        (0..ROUNDS).map(|_| run(times)).fold(f64::MAX, f64::min) / (times * count) as f64
    }
}

/// Small numbers of either sign.
fn numbers(n: usize, dtype: DType) -> Vec<u8> {
    let mut rng = SplitMix64(n as u64);
    if dtype == DType::F32 {
        return (0..n).flat_map(|_| (rng.unit() - 0.5).to_le_bytes()).collect();
    }
    (0..n).flat_map(|_| (0x3c00 | (rng.next_u64() as u16 & 0x80ff)).to_le_bytes()).collect()
}

/// What is measured: a name, bytes and operations of one launch.
struct Work {
    name: String,
    bytes: f64,
    flops: f64,
}

/// One line for each piece of work, with the time of each mode.
fn print(works: &[Work], times: &[Vec<f64>]) {
    println!(
        "{:<44} {:>9} {:>6} {:>7} {:>5}   {:>9} {:>6} {:>7} {:>5}  {:>6}",
        "", "fast us", "TB/s", "TFLOP/s", "limit", "inv. us", "TB/s", "TFLOP/s", "limit", "cost"
    );
    for (i, work) in works.iter().enumerate() {
        let figures = |us: f64| {
            let limit = (work.bytes / BYTES_PER_US).max(work.flops / FLOPS_PER_US);
            format!(
                "{us:>9.2} {:>6.2} {:>7.1} {:>4.0}%",
                work.bytes / us / 1e6,
                work.flops / us / 1e6,
                100.0 * limit / us
            )
        };
        let (fast, invariant) = (times[0][i], times[1][i]);
        let cost = 100.0 * (invariant / fast - 1.0);
        println!("{:<44} {}   {}  {cost:>+5.0}%", work.name, figures(fast), figures(invariant));
    }
}

/// Names, rows and columns of weights.
const PRODUCTS: &[(&str, usize, usize)] = &[
    ("s8 qkv", 6144, 4096),
    ("s8 out", 4096, 4096),
    ("s8 gate, up", 28_672, 4096),
    ("s8 down", 4096, 14_336),
    ("s8 head", 128_256, 4096),
    ("s7 qkv", 12_288, 4096),
    ("s7 gate, up", 22_016, 4096),
    ("s7 down", 4096, 11_008),
    ("s05 qkv", 1152, 896),
    ("s05 out", 896, 896),
    ("s05 gate, up", 9728, 896),
    ("s05 down", 896, 4864),
    ("s05 head", 151_936, 896),
];

fn products(device: &str, only: &str, tiny: bool) {
    let (shapes, rows): (&[_], &[usize]) = match tiny {
        true => (&[("tiny", 192, 128)], &[1, 16]),
        false => (PRODUCTS, &[1, 16, 32, 64, 128, 256, 512, 2048]),
    };
    let mut works = vec![];
    let times = MODES.map(|mode| {
        let bench = Bench::open(device, mode);
        works.clear();
        let mut times = vec![];
        for (name, n, k) in shapes {
            let copies = (if tiny { 1 } else { COLD_BYTES }).div_ceil(2 * n * k).clamp(2, 200);
            let matrix =
                |seed| bench.device.random_matrix(&[RandomRows { rows: *n, seed, width: 0.1 }], *k, DType::Bf16);
            let weights: Vec<Matrix> = (0..copies).map(|i| matrix(i as u64).expect("memory")).collect();
            for m in rows {
                let title = format!("{name} {n}x{k}, {m} rows");
                if !title.contains(only) {
                    continue;
                }
                let (x, out) = (bench.acts(*m, *k), bench.acts(*m, *n));
                times.push(bench.time(copies, &mut || {
                    weights.iter().for_each(|w| bench.stream.linear(&out, &x, w, None).expect("a product"));
                }));
                works.push(Work {
                    name: title,
                    bytes: 2.0 * (n * k + m * k + m * n) as f64,
                    flops: 2.0 * (m * n * k) as f64,
                });
            }
        }
        times
    });
    print(&works, &times);
}

/// Sequences of a step: query tokens, keys.
type Batch = (&'static str, (usize, usize), Vec<(usize, usize)>);

fn batches(tiny: bool) -> Vec<Batch> {
    if tiny {
        return vec![("decode", (4, 2), vec![(1, 100), (1, 33)]), ("prefill", (4, 2), vec![(20, 20), (9, 40)])];
    }
    let mut rng = SplitMix64(1);
    let mut normal = || (0..12).map(|_| rng.unit()).sum::<f32>() - 6.0;
    let uneven: Vec<_> = (0..256).map(|_| (1, (400.0 * (0.9 * normal()).exp()).clamp(16.0, 4000.0) as usize)).collect();
    let mut all = vec![];
    for heads in [(32, 8), (32, 32)] {
        for (name, n, keys) in [
            ("decode 1 x 8000", 1, 8000),
            ("decode 64 x 1000", 64, 1000),
            ("decode 256 x 512", 256, 512),
            ("decode 200 x 1000", 200, 1000),
        ] {
            all.push((name, heads, vec![(1, keys); n]));
        }
        all.push(("decode 256 x log-normal", heads, uneven.clone()));
    }
    let mut one_long = vec![(1, 300); 255];
    one_long.push((1, 8000));
    all.push(("decode 255 x 300 and 1 x 8000", (32, 8), one_long));
    for (name, n, queries, keys) in [
        ("prefill 32 x 512", 32, 512, 512),
        ("prefill 8 x 2048", 8, 2048, 2048),
        ("prefill 2 x 8192", 2, 8192, 8192),
        ("prefill 1 x 32768", 1, 32_768, 32_768),
        ("prefill 4 x (512 over 8192)", 4, 512, 8192),
    ] {
        all.push((name, (32, 8), vec![(queries, keys); n]));
    }
    all
}

/// Sequences whose keys lie anywhere in a pool.
struct Cache {
    pool: Tensor,
    starts: Tensor,
    lens: Tensor,
    tables: Tensor,
}

impl Cache {
    /// Of sequences given as query tokens and keys.
    fn new(bench: &Bench, kv_heads: usize, sequences: &[(usize, usize)]) -> Self {
        let blocks_of = |keys: usize| keys.div_ceil(BLOCK);
        let blocks: usize = sequences.iter().map(|s| blocks_of(s.1)).sum();
        let widest = sequences.iter().map(|s| blocks_of(s.1)).max().expect("a sequence");
        let block_bytes = 2 * kv_heads * HEAD_DIM * BLOCK * 2;
        let memory = bench.device.alloc(blocks * block_bytes).expect("memory");
        let pool = Tensor::new(memory, 0, blocks, block_bytes, DType::U8);
        let some = numbers(blocks.min(64) * block_bytes / 2, DType::Bf16);
        for from in (0..blocks).step_by(64) {
            let part = pool.slice_rows(from, 64.min(blocks - from));
            bench.fill(&part, &some[..part.bytes()]);
        }
        let mut order: Vec<i32> = (0..blocks as i32).collect();
        let mut rng = SplitMix64(2);
        for i in (1..blocks).rev() {
            order.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let (mut starts, mut lens, mut tables) = (vec![0], vec![], vec![]);
        for (queries, keys) in sequences {
            starts.push(starts[starts.len() - 1] + *queries as i32);
            lens.push(*keys as i32);
            let own = order.split_off(order.len() - blocks_of(*keys));
            tables.extend(own.iter().copied().chain(std::iter::repeat_n(-1, widest - own.len())));
        }
        let ints = |values: &[i32], cols| bench.ints(values, cols);
        Self { pool, starts: ints(&starts, 1), lens: ints(&lens, 1), tables: ints(&tables, widest) }
    }

    fn layer(&self, kv_heads: usize) -> KvLayer<'_> {
        KvLayer {
            pool: &self.pool,
            layer: 0,
            layers: 1,
            kv_heads,
            head_dim: HEAD_DIM,
            block_size: BLOCK,
            dtype: DType::Bf16,
        }
    }
}

fn attend(bench: &Bench, (_, (heads, kv_heads), sequences): &Batch) -> f64 {
    let cache = Cache::new(bench, *kv_heads, sequences);
    let tokens = sequences.iter().map(|s| s.0).sum();
    let (qkv, out) = (bench.acts(tokens, (heads + 2 * kv_heads) * HEAD_DIM), bench.acts(tokens, heads * HEAD_DIM));
    let args = PagedAttention {
        out: &out,
        qkv: &qkv,
        starts: &cache.starts,
        context_lens: &cache.lens,
        tables: &cache.tables,
        scale: 1.0 / (HEAD_DIM as f32).sqrt(),
        soft_cap: None,
        window: None,
        heads: *heads,
        singles: 0,
        kv: cache.layer(*kv_heads),
    };
    bench.time(4, &mut || (0..4).for_each(|_| bench.stream.paged_attention(&args).expect("attention")))
}

fn title((name, (heads, kv_heads), _): &Batch) -> String {
    format!("{heads}/{kv_heads} {name}")
}

fn attention(device: &str, only: &str, tiny: bool) {
    let batches: Vec<_> = batches(tiny).into_iter().filter(|batch| title(batch).contains(only)).collect();
    let times = MODES.map(|mode| {
        let bench = Bench::open(device, mode);
        batches.iter().map(|batch| attend(&bench, batch)).collect()
    });
    let work = |batch: &Batch| {
        let (_, (heads, kv_heads), sequences) = batch;
        let keys: usize = sequences.iter().map(|s| s.1).sum();
        let seen: usize = sequences.iter().map(|(q, k)| q * (k - q) + q * (q + 1) / 2).sum();
        Work {
            name: title(batch),
            bytes: (4 * keys * kv_heads * HEAD_DIM) as f64,
            flops: 4.0 * (seen * heads * HEAD_DIM) as f64,
        }
    };
    print(&batches.iter().map(work).collect::<Vec<_>>(), &times);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).map(|i| arguments[i + 1].as_str());
    let (device, only) = (option("--device").unwrap_or("auto"), option("--only").unwrap_or(""));
    let named = |name: &str| arguments.iter().any(|a| a == name);
    let all = !["linear", "attention", "layer", "head", "host", "overlap"].iter().any(|name| named(name));
    println!("{}", Bench::open(device, NumericMode::Fast).device.caps().description);
    if all || named("linear") {
        products(device, only, named("tiny"));
    }
    if all || named("attention") {
        attention(device, only, named("tiny"));
    }
    if all || named("layer") {
        layers::stages(device, only, named("tiny"));
    }
    if all || named("head") {
        heads::table(device, only, named("tiny"));
    }
    if all || named("host") {
        layers::calls(device, only, named("tiny"));
    }
    if all || named("overlap") {
        overlap::trial(device, named("tiny"));
    }
}
