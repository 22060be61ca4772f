//! Numeric mode `invariant`: logits, tokens and logprobs of a sequence have the same bits alone, in any company, in any
//! chunks, computed again after a preemption, and behind a prefix from the cache. On a GPU where there is one, and on the
//! CPU, whose modes all are invariant, so that the tests themselves are tested everywhere.

use super::super::bits;
use super::super::families::changed_dir;
use super::super::world::{Alone, BLOCK, BLOCKS, CHUNK_MOST, cpu, generate, runner_on, step_of};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use yinian::base::clock::MonotonicClock;
use yinian::base::config::{EngineConfig, LoadFormat, NumericMode};
use yinian::base::rng::SplitMix64;
use yinian::base::{RequestId, Token};
use yinian::engine::queue::{Record, RecordSink, Taken};
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission};
use yinian::hal::Device;
use yinian::hal::registry::{DeviceOptions, open};
use yinian::plan::{FinishReason, SamplingParams, StepOutcome, StepResults};
use yinian::runner::ModelRunner;

/// Shapes whose heads the tensor-core kernels take, with what families add: scaled rope, biases and windows, soft caps.
const SHAPES: [(&str, u32); 4] =
    [("tiny-llama-gqa", 64), ("tiny-qwen2", 64), ("tiny-gemma2", 128), ("tiny-gemma3", 256)];
/// Wide enough for products whose sums are cut into parts.
const HIDDEN: u32 = 320;
const VOCAB: u64 = 256;

fn model_dir((name, head_dim): (&str, u32), dtype: &str) -> tempfile::TempDir {
    changed_dir(
        name,
        &json!({"torch_dtype": dtype, "head_dim": head_dim, "hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN,
                "vocab_size": VOCAB, "sliding_window": 40}),
    )
}

fn gpu() -> Option<Arc<dyn Device>> {
    let options = DeviceOptions { numeric_mode: NumericMode::Invariant, ..DeviceOptions::default() };
    let device = open("cuda", &options).inspect_err(|e| println!("left out: {e}")).ok()?;
    assert!(device.caps().invariant);
    Some(device)
}

fn prompt(rng: &mut SplitMix64, len: u64) -> Vec<Token> {
    (0..len).map(|_| rng.below(VOCAB) as Token).collect()
}

fn assert_chunks_do_not_change_logits(device: &Arc<dyn Device>, dtype: &str) {
    for shape in SHAPES {
        let dir = model_dir(shape, dtype);
        let mut runner = runner_on(device, dir.path(), LoadFormat::Dummy);
        let tokens = prompt(&mut SplitMix64(1), 120);
        let whole = runner.logits(&tokens, CHUNK_MOST).unwrap();
        assert!(whole.iter().all(|x| x.is_finite()) && whole.iter().any(|x| *x != whole[0]), "{shape:?} {dtype}");
        for chunk in [1, 2, 7, 16, 33, 65] {
            let other = runner.logits(&tokens, chunk).unwrap();
            let vocab = whole.len() / tokens.len();
            let first = bits(&whole).chunks(vocab).zip(bits(&other).chunks(vocab)).position(|(a, b)| a != b);
            assert!(first.is_none(), "{shape:?} {dtype}: chunks of {chunk} change logits from position {first:?} on");
        }
        println!("{shape:?} {dtype}: logits are equal in chunks of 1 to {CHUNK_MOST}");
    }
}

/// Runs random parts of random sequences, now and then one from its start again, until each has `count` tokens.
fn generate_at_random(runner: &mut ModelRunner, seqs: &mut [Alone], count: usize, seed: u64) -> usize {
    let mut rng = SplitMix64(seed);
    let mut again = 0;
    loop {
        let mut left = CHUNK_MOST;
        let mut parts: Vec<(&Alone, usize)> = vec![];
        for s in seqs.iter_mut().filter(|s| s.generated().len() < count) {
            if s.computed > 0 && rng.below(25) == 0 {
                s.computed = 0;
                again += 1;
            }
            let most = (s.tokens.len() - s.computed).min(left);
            if most == 0 || rng.below(3) == 0 {
                continue;
            }
            let chunk = if rng.below(2) == 0 { most } else { 1 + rng.below(most as u64) as usize };
            left -= chunk;
            parts.push((s, chunk));
        }
        if parts.is_empty() {
            if seqs.iter().all(|s| s.generated().len() >= count) {
                return again;
            }
            continue;
        }
        let plan = step_of(&parts);
        runner.launch(&plan).expect("launch");
        let StepOutcome::Done(StepResults { sampled, .. }) = runner.finish().expect("finish").outcome else {
            panic!("a step failed")
        };
        for e in &plan.entries {
            seqs[e.row.0 as usize].computed += e.len as usize;
        }
        for s in sampled {
            seqs[s.seq.0 as usize].tokens.push(s.token);
        }
    }
}

fn assert_company_does_not_change_tokens(device: &Arc<dyn Device>, dtype: &str) {
    const COUNT: usize = 60;
    for shape in SHAPES {
        let dir = model_dir(shape, dtype);
        let mut runner = runner_on(device, dir.path(), LoadFormat::Dummy);
        let lengths = [1, 17, 40, 150, 16, 64, 99, 3];
        let start = |i: usize| {
            let prompt = prompt(&mut SplitMix64(10 + i as u64), lengths[i]);
            Alone::new(i as u32, &prompt, if i.is_multiple_of(2) { 0.0 } else { 0.9 })
        };
        let alone: Vec<Vec<Token>> = (0..lengths.len())
            .map(|i| {
                let mut seqs: Vec<_> = (0..=i).map(start).collect();
                // Everybody but the last is done before the first step.
                seqs[..i].iter_mut().for_each(|s| s.tokens.extend([0; COUNT]));
                generate(&mut runner, &mut seqs, (CHUNK_MOST, COUNT));
                seqs[i].generated().to_vec()
            })
            .collect();
        let mut again = 0;
        for seed in 0..4 {
            let mut together: Vec<_> = (0..lengths.len()).map(start).collect();
            again += generate_at_random(&mut runner, &mut together, COUNT, seed);
            for (s, alone) in together.iter().zip(&alone) {
                assert_eq!(s.generated(), alone, "{shape:?} {dtype}, seed {seed}: sequence {}", s.index);
            }
        }
        assert!(again > 4 && alone.iter().any(|a| a[0] != alone[0][0]));
        println!("{shape:?} {dtype}: tokens are equal in 4 random schedules with {again} preemptions");
    }
}

/// Tokens, and logprobs by their bits.
type Answer = (Vec<Token>, Vec<(Token, u32)>);

#[derive(Default)]
struct Reader {
    answers: HashMap<RequestId, Answer>,
    done: usize,
}

impl RecordSink for Reader {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        match record {
            Record::Output(o) => {
                let (tokens, logprobs) = self.answers.entry(o.info.id).or_default();
                tokens.extend(o.tokens);
                logprobs.extend(o.logprobs.iter().map(|l| (l.token, l.logprob.to_bits())));
                Some(Taken { tokens: o.tokens.len(), text: o.text.len() })
            }
            Record::Done { done, .. } => {
                assert_eq!(done.finish, FinishReason::Length, "{:?}", done.error);
                self.done += 1;
                Some(Taken { tokens: 0, text: 0 })
            }
            _ => Some(Taken { tokens: 0, text: 0 }),
        }
    }
}

struct Host {
    engine: Arc<Engine>,
    queue: Arc<EventQueue>,
    reader: Reader,
}

impl Host {
    fn new(mut config: Value, more: &Value) -> Self {
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let config = EngineConfig::from_json(config.to_string().as_bytes()).expect("a config");
        let queue = EventQueue::new(None);
        let clock = Arc::new(MonotonicClock::starting_at(0));
        let engine = Engine::start(config, Arc::clone(&queue), clock).expect("an engine");
        assert_eq!(engine.info()["numeric_mode"], "invariant");
        Self { engine, queue, reader: Reader::default() }
    }

    fn submit(&self, (prompt, output): &(Vec<Token>, u32), seed: u64, logprobs: bool) -> RequestId {
        let sampling = if seed.is_multiple_of(2) {
            SamplingParams::greedy()
        } else {
            SamplingParams::new(0.9, 40, 0.95, seed).expect("ranges hold")
        };
        let submission = Submission {
            n_logprobs: if logprobs { 3 } else { 0 },
            sampling,
            seed: Some(seed),
            ..Submission::exactly(
                *output,
                Prompt::Tokens(prompt.clone()),
                OutputMode { text: false, tokens: true, logprobs, prompt_logprobs: false, final_only: false },
                Arc::clone(&self.queue),
            )
        };
        self.engine.submit(submission).expect("a place")
    }

    fn read(&mut self, n: usize) {
        while self.reader.done < n {
            self.queue.poll(Some(Duration::from_secs(60)), &mut self.reader).expect("the engine answers");
        }
    }
}

/// Requests that share prefixes, one by one on an engine without a cache; then together, arriving at random, on one with too
/// few blocks for all.
fn assert_an_engine_gives_the_same_alone_and_together(device: &str, requests: u64) {
    for shape in [SHAPES[0], SHAPES[1], SHAPES[2]] {
        let dir = model_dir(shape, "bfloat16");
        let words = json!({"version": "1.0", "added_tokens": [],
                           "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
        std::fs::write(dir.path().join("tokenizer.json"), words.to_string()).unwrap();
        let text = std::fs::read(dir.path().join("config.json")).unwrap();
        let model: Value = serde_json::from_slice(&text).unwrap();
        let number = |key: &str| model[key].as_u64().unwrap();
        let block_bytes = number("num_hidden_layers") * number("num_key_value_heads") * u64::from(shape.1) * 4 * 16;
        let max_len = BLOCK * BLOCKS;
        let keys = json!({"model": dir.path(), "device": device, "load_format": "dummy", "numeric_mode": "invariant",
                          "max_model_len": max_len, "max_num_seqs": 8, "threads": 2, "log_level": "warn"});
        let mut rng = SplitMix64(5);
        let prefixes: Vec<Vec<Token>> = (0..3).map(|_| prompt(&mut rng, 50)).collect();
        let wanted: Vec<(Vec<Token>, u32)> = (0..requests)
            .map(|_| {
                let len = 1 + rng.below(60);
                let tail = prompt(&mut rng, len);
                let prefix = &prefixes[rng.below(3) as usize];
                ([prefix.clone(), tail].concat(), 20 + rng.below(60) as u32)
            })
            .collect();
        let mut alone = Host::new(
            keys.clone(),
            &json!({"enable_prefix_caching": false, "kv_cache_bytes": 8 * u64::from(BLOCKS) * block_bytes}),
        );
        // Room for about three sequences, steps of few tokens. As long as no output has ended, each is taken to be as long as leaves
        // room for 48, so more start than fit when they have grown.
        let few = json!({"kv_cache_bytes": 24 * block_bytes, "max_num_batched_tokens": 40, "max_num_seqs": 48});
        let mut together = Host::new(keys, &few);
        for logprobs in [false, true] {
            let mut pairs = vec![];
            for (i, request) in wanted.iter().enumerate() {
                let id = alone.submit(request, i as u64, logprobs);
                alone.read(alone.reader.done + 1);
                pairs.push((id, RequestId(0)));
            }
            let before = together.reader.done;
            for (i, request) in wanted.iter().enumerate() {
                pairs[i].1 = together.submit(request, i as u64, logprobs);
                if rng.below(3) == 0 {
                    std::thread::sleep(Duration::from_millis(rng.below(4)));
                }
            }
            together.read(before + wanted.len());
            for (i, (one, other)) in pairs.iter().enumerate() {
                let (expected, found) = (&alone.reader.answers[one], &together.reader.answers[other]);
                assert_eq!(expected.0.len(), wanted[i].1 as usize);
                assert_eq!(found.0, expected.0, "{shape:?}: tokens of request {i}");
                assert!(!logprobs || expected.1.len() >= expected.0.len());
                assert!(found.1 == expected.1, "{shape:?}: logprobs of request {i}");
            }
        }
        let stats = together.engine.stats();
        println!("{shape:?}: {} preempted, {} tokens from the cache", stats.preempted, stats.prefix_hit_tokens);
        assert!(stats.preempted > 0 && stats.prefix_hit_tokens > 0, "{stats:?}");
    }
}

#[test]
fn chunks_do_not_change_logits() {
    let Some(device) = gpu() else { return };
    for dtype in ["bfloat16", "float16", "float32"] {
        assert_chunks_do_not_change_logits(&device, dtype);
    }
}

#[test]
fn company_does_not_change_tokens() {
    let Some(device) = gpu() else { return };
    for dtype in ["bfloat16", "float16"] {
        assert_company_does_not_change_tokens(&device, dtype);
    }
}

#[test]
fn an_engine_gives_the_same_alone_and_together() {
    if gpu().is_some() {
        assert_an_engine_gives_the_same_alone_and_together("cuda", 40);
    }
}

#[test]
fn the_cpu_passes_all_of_it() {
    let device = cpu();
    assert_chunks_do_not_change_logits(&device, "bfloat16");
    assert_company_does_not_change_tokens(&device, "bfloat16");
    assert_an_engine_gives_the_same_alone_and_together("cpu", 12);
}
