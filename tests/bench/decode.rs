//! Decode and prefill of a 135M-parameter bf16 Llama with random weights, against the memory bandwidth of the machine.
//!
//! `cargo bench --bench decode [-- THREADS]`; with `ranks` beside it, a model of as many parameters on 1, 2 and 4 ranks.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use yinian::base::config::LoadFormat;
use yinian::base::{BlockId, Result, Row, SeqId, StepId};
use yinian::exec::ranks::{RankRunner, StartRank};
use yinian::exec::worker::StepRunner;
use yinian::hal::comm::{Group, LocalGroup};
use yinian::hal::registry::{DeviceOptions, open};
use yinian::model::{LoadProgress, Shard, inspect, load, load_shard};
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

/// The same with heads that four ranks can share.
const RANKS_CONFIG: (&str, &str) = (
    r#""num_attention_heads": 9, "num_key_value_heads": 3"#,
    r#""num_attention_heads": 8, "head_dim": 64, "num_key_value_heads": 4"#,
);
const RANKS: [usize; 3] = [1, 2, 4];

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
        known_blocks: 0,
        blocks: s * table..(s + 1) * table,
        samples: true,
        logprobs: None,
        scores: None,
        awaits_mask: false,
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
fn run(runner: &mut dyn StepRunner, plan: &StepPlan) -> f64 {
    let from = Instant::now();
    let output = runner.launch(plan).expect("launch").land();
    assert!(matches!(output.outcome, StepOutcome::Done(_)), "{output:?}");
    from.elapsed().as_secs_f64()
}

/// Tokens per second of decoding 32 steps around a context of 128; the best of several rounds.
fn decode(runner: &mut dyn StepRunner, seqs: u32) -> f64 {
    prefill(runner, seqs);
    let best = (0..ROUNDS).map(|_| steps(runner, seqs)).fold(f64::MAX, f64::min);
    f64::from(seqs) * 32.0 / best
}

fn prefill(runner: &mut dyn StepRunner, seqs: u32) {
    for quarter in 0..3 {
        run(runner, &plan(seqs, CONTEXT / 4 * quarter, CONTEXT / 4));
    }
}

/// Seconds of 32 steps of decoding.
fn steps(runner: &mut dyn StepRunner, seqs: u32) -> f64 {
    (0..32).map(|i| run(runner, &plan(seqs, CONTEXT / 4 * 3 + 16 + i, 1))).sum()
}

fn options() -> RunnerOptions {
    RunnerOptions {
        max_num_seqs: SEQS as usize,
        max_num_batched_tokens: 512,
        max_model_len: MAX_LEN as usize,
        block_size: BLOCK,
        num_blocks: SEQS * MAX_LEN / BLOCK,
        depth: 1,
    }
}

/// A model on `ranks` ranks that share `threads` compute threads, at least one each.
fn spread(dir: &Path, ranks: usize, threads: usize) -> Box<dyn StepRunner> {
    let info = inspect(dir).expect("inspect");
    let group = LocalGroup::new(ranks, options().max_num_batched_tokens * info.spec.hidden_size);
    let start = |rank: usize| -> StartRank<'_> {
        let (info, group) = (&info, &group);
        Box::new(move || {
            let threads = Some((threads / ranks).max(1));
            let device = open("cpu", &DeviceOptions { threads, ..DeviceOptions::default() })?;
            let how = (LoadFormat::Dummy, Shard { rank, ranks });
            let model = load_shard(info, dir, how, device.as_ref(), (MAX_LEN as usize, &mut |_| Ok(())))?;
            let place = if ranks > 1 { Some(group.join(rank, device.as_ref())?) } else { None };
            Ok(Box::new(ModelRunner::of_rank(model, device, options(), place)?))
        })
    };
    let starts = (0..ranks).map(start).collect();
    Box::new(RankRunner::start(starts, Arc::new(group.clone())).expect("ranks"))
}

/// Decoding on 1, 2 and 4 ranks in turns, so that what else the machine does hits all alike.
fn compare_ranks(threads: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = CONFIG.replace(RANKS_CONFIG.0, RANKS_CONFIG.1);
    assert_ne!(config, CONFIG);
    std::fs::write(dir.path().join("config.json"), config).expect("config.json");
    let mut runners = RANKS.map(|ranks| spread(dir.path(), ranks, threads));
    println!("{threads} threads; milliseconds of a step: best of {} rounds, median of ratios to 1 rank", 4 * ROUNDS);
    for seqs in [1, SEQS] {
        runners.iter_mut().for_each(|runner| prefill(runner.as_mut(), seqs));
        let rounds: Vec<[f64; 3]> =
            (0..4 * ROUNDS).map(|_| std::array::from_fn(|i| 1e3 * steps(runners[i].as_mut(), seqs) / 32.0)).collect();
        for (i, ranks) in RANKS.into_iter().enumerate() {
            let best = rounds.iter().map(|r| r[i]).fold(f64::MAX, f64::min);
            let mut ratios: Vec<f64> = rounds.iter().map(|r| r[i] / r[0]).collect();
            ratios.sort_by(f64::total_cmp);
            println!("decode x {seqs} on {ranks} ranks {best:>9.2} ms {:>7.2}", ratios[ratios.len() / 2]);
        }
    }
}

fn main() {
    let named = std::env::args().skip(1).find_map(|a| a.parse().ok());
    let threads = named.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if std::env::args().any(|a| a == "ranks") {
        return compare_ranks(threads);
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("config.json"), CONFIG).expect("config.json");
    let info = inspect(dir.path()).expect("inspect");
    let device = open("cpu", &DeviceOptions { threads: Some(threads), ..DeviceOptions::default() }).expect("device");
    let from = Instant::now();
    let mut progress = |_| Ok(());
    let arguments: (usize, &mut dyn FnMut(LoadProgress) -> Result<()>) = (MAX_LEN as usize, &mut progress);
    let model = load(&info, dir.path(), LoadFormat::Dummy, device.as_ref(), arguments).expect("load");
    println!("{}; random weights made in {:.1} s", device.caps().description, from.elapsed().as_secs_f64());
    let mut runner = ModelRunner::new(model, Arc::clone(&device), options()).expect("runner");
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
