//! Decode and prefill of a 135M-parameter bf16 Llama with random weights, against the memory bandwidth of the machine.
//!
//! `cargo bench --bench decode [-- THREADS]`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use yinian::base::config::LoadFormat;
use yinian::base::{BlockId, Result, Row, SeqId, StepId};
use yinian::hal::registry::{DeviceOptions, open};
use yinian::model::{LoadProgress, inspect, load};
use yinian::plan::{StepEntry, StepOutcome, StepPlan};
use yinian::runner::{ModelRunner, RunnerOptions};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "torch_dtype": "bfloat16", "tie_word_embeddings": true}"#;
const BLOCK: u32 = 16;
const SEQS: u32 = 8;
const MAX_LEN: u32 = 512;
const CONTEXT: u32 = 128;
const READ_BYTES: usize = 1 << 29;
const ROUNDS: usize = 5;

/// Bytes per second that `threads` threads read; the best of several passes.
fn bandwidth(threads: usize) -> f64 {
    let buffer = vec![1_u64; READ_BYTES / 8];
    let sum = |part: &[u64]| {
        let mut lanes = [0_u64; 32];
        for chunk in part.chunks_exact(32) {
            lanes.iter_mut().zip(chunk).for_each(|(l, x)| *l ^= x);
        }
        lanes.iter().fold(0, |a, x| a ^ x)
    };
    let seconds = (0..8).map(|_| {
        let from = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(buffer.len().div_ceil(threads)) {
                scope.spawn(move || black_box(sum(black_box(part))));
            }
        });
        from.elapsed().as_secs_f64()
    });
    READ_BYTES as f64 / seconds.fold(f64::MAX, f64::min)
}

/// `seqs` sequences that run `len` tokens from `start`.
fn plan(seqs: u32, start: u32, len: u32) -> StepPlan {
    let table = (start + len).div_ceil(BLOCK);
    let entries = (0..seqs).map(|s| StepEntry {
        seq: SeqId(u64::from(s)),
        row: Row(s),
        start,
        len,
        tokens: s * len..(s + 1) * len,
        blocks: s * table..(s + 1) * table,
        samples: true,
        logprobs: None,
        scores: None,
    });
    StepPlan {
        id: StepId(0),
        entries: entries.collect(),
        tokens: (0..seqs * len).map(|i| (i * 7919 + start) % 49152).collect(),
        blocks: (0..seqs).flat_map(|s| (0..table).map(move |b| BlockId(b * SEQS + s))).collect(),
        targets: vec![],
        row_inits: vec![],
    }
}

/// Seconds of one step.
fn run(runner: &mut ModelRunner, plan: &StepPlan) -> f64 {
    let from = Instant::now();
    runner.launch(plan).expect("launch");
    let output = runner.finish().expect("finish");
    assert!(matches!(output.outcome, StepOutcome::Done(_)), "{output:?}");
    from.elapsed().as_secs_f64()
}

/// Tokens per second of decoding 32 steps around a context of 128; the best of several rounds.
fn decode(runner: &mut ModelRunner, seqs: u32) -> f64 {
    run(runner, &plan(seqs, 0, CONTEXT / 4));
    run(runner, &plan(seqs, CONTEXT / 4, CONTEXT / 4));
    run(runner, &plan(seqs, CONTEXT / 2, CONTEXT / 4));
    let round = |_| (0..32).map(|i| run(runner, &plan(seqs, CONTEXT / 4 * 3 + 16 + i, 1))).sum::<f64>();
    let best = (0..ROUNDS).map(round).fold(f64::MAX, f64::min);
    f64::from(seqs) * 32.0 / best
}

fn main() {
    let named = std::env::args().skip(1).find_map(|a| a.parse().ok());
    let threads = named.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("config.json"), CONFIG).expect("config.json");
    let info = inspect(dir.path()).expect("inspect");
    let device = open("cpu", &DeviceOptions { threads: Some(threads), ..DeviceOptions::default() }).expect("device");
    let from = Instant::now();
    let mut progress = |_| Ok(());
    let arguments: (usize, &mut dyn FnMut(LoadProgress) -> Result<()>) = (MAX_LEN as usize, &mut progress);
    let model = load(&info, dir.path(), LoadFormat::Dummy, device.as_ref(), arguments).expect("load");
    println!("{}; random weights made in {:.1} s", device.caps().description, from.elapsed().as_secs_f64());
    let options = RunnerOptions {
        max_num_seqs: SEQS as usize,
        max_num_batched_tokens: 512,
        max_model_len: MAX_LEN as usize,
        block_size: BLOCK,
        num_blocks: SEQS * MAX_LEN / BLOCK,
        depth: 1,
    };
    let mut runner = ModelRunner::new(model, Arc::clone(&device), options).expect("runner");
    let limit = bandwidth(threads);
    let bytes = info.weight_bytes as f64;
    println!("reads {:.1} GB/s, weights {:.0} MB", limit / 1e9, bytes / 1e6);
    println!("{:<14} {:>12} {:>12} {:>7}", "shape", "limit tok/s", "tok/s", "ratio");
    let row = |name: &str, limit: f64, rate: f64| {
        println!("{name:<14} {limit:>12.1} {rate:>12.1} {:>6.0}%", 100.0 * rate / limit);
    };
    let one = decode(&mut runner, 1);
    row("decode x 1", limit / bytes, one);
    let eight = decode(&mut runner, 8);
    row("decode x 8", 8.0 * limit / bytes, eight);
    let seconds = (0..ROUNDS).map(|_| run(&mut runner, &plan(1, 0, 256))).fold(f64::MAX, f64::min);
    println!("prefill x 256  {:>25.1} tok/s", 256.0 / seconds);
    println!("batch 8 over batch 1: {:.1}; prefill over decode: {:.1}", eight / one, 256.0 / seconds / one);
}
