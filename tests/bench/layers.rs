//! Decoder layers of published shapes as a step runs them: what each op costs there, and what the calls cost that enqueue them.

use crate::{BLOCK, Bench, numbers};
use std::time::Instant;
use yinian::base::DType;
use yinian::base::config::NumericMode;
use yinian::hal::ops::{Activation, KvLayer, LinearNormLinear, NormLinear, PagedAttention, RopeWriteKv, Then};
use yinian::hal::{Matrix, RandomRows, Tensor};

/// Decoder layers of a model.
struct Layers {
    name: &'static str,
    hidden: usize,
    heads: (usize, usize, usize),
    inner: usize,
    layers: usize,
}

const LAYERS: [Layers; 2] = [
    Layers { name: "s8", hidden: 4096, heads: (32, 8, 128), inner: 14_336, layers: 32 },
    Layers { name: "s05", hidden: 896, heads: (14, 2, 64), inner: 4864, layers: 24 },
];
const TINY_LAYERS: Layers = Layers { name: "tiny", hidden: 64, heads: (4, 2, 16), inner: 128, layers: 2 };
/// Keys of each sequence.
const CONTEXT: usize = 600;
/// No stage is left out.
const ALL_STAGES: usize = usize::MAX;
/// Steps whose calls are timed.
const STEPS: usize = 200;
const STAGES: [&str; 4] = ["down, norm, qkv", "rope", "attention", "out, norm, gate"];

/// Gives `run` what enqueues all layers, without one of [`STAGES`] or with all.
fn with_layers<T>(bench: &Bench, l: &Layers, rows: usize, run: impl FnOnce(&dyn Fn(usize)) -> T) -> T {
    let (heads, kv_heads, dim) = l.heads;
    let (queries, qkv_cols) = (heads * dim, (heads + 2 * kv_heads) * dim);
    let matrix = |n, k| {
        let rows = RandomRows { rows: n, seed: 1, width: 0.05 };
        bench.device.random_matrix(&[rows], k, DType::Bf16).expect("memory")
    };
    let weights: Vec<[Matrix; 4]> = (0..l.layers)
        .map(|_| {
            let gate_up = matrix(2 * l.inner, l.hidden);
            [matrix(qkv_cols, l.hidden), matrix(l.hidden, queries), gate_up, matrix(l.hidden, l.inner)]
        })
        .collect();
    let blocks = CONTEXT.div_ceil(BLOCK);
    let block_bytes = l.layers * 2 * kv_heads * dim * BLOCK * 2;
    let pool = bench.device.alloc(rows * blocks * block_bytes).expect("memory");
    let pool = Tensor::new(pool, 0, rows * blocks, block_bytes, DType::U8);
    let ints = |values: Vec<i32>, cols| bench.ints(&values, cols);
    let starts = ints((0..=rows as i32).collect(), 1);
    let (lens, positions) = (ints(vec![CONTEXT as i32; rows], 1), ints(vec![CONTEXT as i32 - 1; rows], 1));
    let tables = ints((0..(rows * blocks) as i32).collect(), blocks);
    let slots = ints((0..rows).map(|r| (r * blocks * BLOCK + CONTEXT - 1) as i32).collect(), 1);
    let floats = |rows: usize, cols| bench.upload(&numbers(rows * cols, DType::F32), rows, cols, DType::F32);
    let (rope, weight) = (floats(CONTEXT, dim), floats(1, l.hidden));
    let [x, residual, sum] = [0; 3].map(|_| bench.acts(rows, l.hidden));
    let (qkv, attended) = (bench.acts(rows, qkv_cols), bench.acts(rows, queries));
    let (gate_up, inner) = (bench.acts(rows, 2 * l.inner), bench.acts(rows, l.inner));
    let layer = |i: usize, without: usize| {
        let (s, kv) = (bench.stream.as_ref(), |layer| KvLayer {
            pool: &pool,
            layer,
            layers: l.layers,
            kv_heads,
            head_dim: dim,
            block_size: BLOCK,
            dtype: DType::Bf16,
        });
        let [w_qkv, w_out, w_gate_up, w_down] = &weights[i];
        let turn =
            RopeWriteKv { qkv: &qkv, positions: &positions, slots: &slots, rope: &rope, heads, norms: None, kv: kv(i) };
        let attend = PagedAttention {
            out: &attended,
            qkv: &qkv,
            starts: &starts,
            context_lens: &lens,
            tables: &tables,
            scale: 1.0 / (dim as f32).sqrt(),
            soft_cap: None,
            window: None,
            heads,
            singles: rows,
            kv: kv(i),
        };
        let chain = |from, first, w, then| {
            let (add, weight) = (Some((&residual, &sum)), &weight);
            let behind = NormLinear { x: &x, normed: &x, add, weight, eps: 1e-5, w, bias: None, then };
            s.linear_norm_linear(&LinearNormLinear { x: from, w: first, bias: None, behind }).map(|_| ())
        };
        let stages: [&dyn Fn() -> yinian::base::Result<()>; 4] = [
            &|| chain(&inner, w_down, w_qkv, Then::Keep(&qkv)),
            &|| s.rope_write_kv(&turn),
            &|| s.paged_attention(&attend),
            &|| chain(&attended, w_out, w_gate_up, Then::Gate(&inner, &gate_up, Activation::Silu)),
        ];
        stages.iter().enumerate().filter(|s| s.0 != without).for_each(|s| s.1().expect("an op"));
    };
    run(&|without| (0..l.layers).for_each(|i| layer(i, without)))
}

/// Microseconds of all layers, whole and without each of [`STAGES`].
fn layer_times(bench: &Bench, l: &Layers, rows: usize) -> Vec<f64> {
    let variants = std::iter::once(ALL_STAGES).chain(0..STAGES.len());
    with_layers(bench, l, rows, |layers| variants.map(|without| bench.time(1, &mut || layers(without))).collect())
}

/// What stands in front of a step that is enqueued.
const IN_FRONT: [&str; 3] = ["nothing", "itself", "its twin"];

/// Medians in microseconds of the calls that enqueue a step: upload, replay, download, event, and all of them.
fn call_times(bench: &Bench, layers: &dyn Fn(usize), rows: usize, in_front: usize) -> [f64; 5] {
    let s = bench.stream.as_ref();
    let record = || {
        let mut work = || {
            layers(ALL_STAGES);
            Ok(())
        };
        s.capture(&mut work).expect("a recording")
    };
    let graphs = [record(), record()];
    let words = rows * (16 + CONTEXT.div_ceil(BLOCK));
    let place = Tensor::new(bench.device.alloc(4 * words).expect("memory"), 0, words, 1, DType::I32);
    let buffers = || [0; 2].map(|_| bench.device.host_buffer(4 * words).expect("memory"));
    let (inputs, mut outputs) = (buffers(), buffers());
    let mut behind = None;
    let calls: Vec<[f64; 5]> = (0..STEPS)
        .map(|i| {
            let mut at = [Instant::now(); 5];
            s.upload(&place, inputs[i % 2].as_ref()).expect("an upload");
            at[1] = Instant::now();
            s.replay(graphs[if in_front == 2 { i % 2 } else { 0 }].as_ref()).expect("a replay");
            at[2] = Instant::now();
            s.download(outputs[i % 2].as_mut(), &place.slice_rows(0, rows)).expect("a download");
            at[3] = Instant::now();
            let event = s.record().expect("an event");
            at[4] = Instant::now();
            let us = |from: usize, to: usize| (at[to] - at[from]).as_secs_f64() * 1e6;
            let times = [us(0, 1), us(1, 2), us(2, 3), us(3, 4), us(0, 4)];
            // One step is under way when the next one is enqueued, or none.
            let oldest = if in_front == 0 { Some(event) } else { behind.replace(event) };
            oldest.into_iter().for_each(|event| event.wait().expect("work without a fault"));
            times
        })
        .collect();
    bench.wait();
    std::array::from_fn(|part| {
        let mut all: Vec<f64> = calls[STEPS / 10..].iter().map(|times| times[part]).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    })
}

pub(crate) fn calls(device: &str, only: &str, tiny: bool) {
    let bench = Bench::open(device, NumericMode::Fast);
    println!(
        "{:<22} {:<9} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "us of calls (median)", "behind", "upload", "replay", "download", "event", "all"
    );
    let shapes: &[Layers] = if tiny { &[TINY_LAYERS] } else { &LAYERS };
    for shape in shapes {
        for rows in if tiny { vec![2] } else { vec![1, 32, 256] } {
            let name = format!("{} decode {rows} x {CONTEXT}", shape.name);
            if !name.contains(only) || !bench.device.caps().graphs {
                continue;
            }
            with_layers(&bench, shape, rows, |layers| {
                bench.wait();
                layers(ALL_STAGES);
                for (in_front, behind) in IN_FRONT.iter().enumerate() {
                    let times = call_times(&bench, layers, rows, in_front);
                    print!("{name:<22} {behind:<9}");
                    times.iter().for_each(|us| print!(" {us:>8.1}"));
                    println!();
                }
            });
        }
    }
}

pub(crate) fn stages(device: &str, only: &str, tiny: bool) {
    let bench = Bench::open(device, NumericMode::Fast);
    print!("{:<22} {:>9} {:>9}", "us of a layer", "all, us", "a layer");
    STAGES.iter().for_each(|stage| print!(" {stage:>15}"));
    println!();
    let shapes: &[Layers] = if tiny { &[TINY_LAYERS] } else { &LAYERS };
    for shape in shapes {
        for rows in if tiny { vec![2] } else { vec![1, 4, 8, 16, 32, 64, 256] } {
            let name = format!("{} decode {rows} x {CONTEXT}", shape.name);
            if !name.contains(only) {
                continue;
            }
            let times = layer_times(&bench, shape, rows);
            let of_layer = |us: f64| us / shape.layers as f64;
            print!("{name:<22} {:>9.1} {:>9.2}", times[0], of_layer(times[0]));
            times[1..].iter().for_each(|us| print!(" {:>15.2}", of_layer(times[0] - us)));
            println!();
        }
    }
}
