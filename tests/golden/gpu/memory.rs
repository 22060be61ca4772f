//! What an engine takes of a GPU: against its plan, and that a warm one takes nothing more. Run alone and one by one, as they
//! look at the whole device: `--ignored --test-threads=1 gpu::memory`.

use super::gpu;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::engine::queue::{Record, RecordSink, Taken};
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission, plan_memory};
use yinian::plan::{FinishReason, Penalties, SamplingParams};

/// Published shapes with fewer layers where that changes nothing but the time.
fn shape(name: &str, layers: u32) -> Value {
    match name {
        "s8" => json!({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": 128_256,
            "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": layers, "num_attention_heads": 32,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 16384, "tie_word_embeddings": false}),
        _ => json!({"architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": 151_936,
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": layers, "num_attention_heads": 14,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 16384,
            "tie_word_embeddings": true}),
    }
}

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(name: &str, layers: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), shape(name, layers).to_string()).unwrap();
        let words = json!({"version": "1.0", "added_tokens": [],
                           "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
        std::fs::write(dir.path().join("tokenizer.json"), words.to_string()).unwrap();
        Self { dir }
    }

    fn config(&self, more: &Value) -> EngineConfig {
        let mut keys = json!({"model": self.dir.path(), "device": "cuda", "load_format": "dummy", "max_num_seqs": 64,
                              "log_level": "warn"});
        for (key, value) in more.as_object().unwrap() {
            keys[key] = value.clone();
        }
        EngineConfig::from_json(keys.to_string().as_bytes()).unwrap()
    }
}

struct Running {
    engine: Arc<Engine>,
    queue: Arc<EventQueue>,
}

impl Running {
    fn start(config: EngineConfig) -> Self {
        let queue = EventQueue::new(None);
        let clock = Arc::new(MonotonicClock::starting_at(0));
        Self { engine: Engine::start(config, Arc::clone(&queue), clock).expect("an engine"), queue }
    }

    fn submit(&self, len: u32, output: u32, change: impl FnOnce(&mut Submission)) {
        let mut request = Submission {
            seed: Some(1),
            ..Submission::exactly(
                output,
                Prompt::Tokens((0..len).map(|i| 1 + (i * 37 + len * 11) % 5000).collect()),
                OutputMode { text: false, tokens: true, logprobs: false, prompt_logprobs: false, final_only: false },
                Arc::clone(&self.queue),
            )
        };
        change(&mut request);
        self.engine.submit(request).expect("a place");
    }

    /// Reads until so many requests are done, and gives the tokens of their outputs.
    fn drain(&self, requests: usize) -> usize {
        let mut reader = Reader::default();
        while reader.done < requests {
            self.queue.poll(Some(Duration::from_secs(60)), &mut reader).expect("events");
        }
        reader.tokens
    }
}

#[derive(Default)]
struct Reader {
    done: usize,
    tokens: usize,
}

impl RecordSink for Reader {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        let mut taken = Taken { tokens: 0, text: 0 };
        match record {
            Record::Prompt(p) => taken.tokens = p.tokens.len(),
            Record::Output(o) => {
                self.tokens += o.tokens.len();
                taken = Taken { tokens: o.tokens.len(), text: o.text.len() };
            }
            Record::Done { done, .. } => {
                assert_eq!(done.finish, FinishReason::Length, "{:?}", done.error);
                self.done += 1;
            }
            _ => {}
        }
        Some(taken)
    }
}

/// Prints what is more than 2 % apart instead of stopping at it.
fn near(what: &str, planned: &Value, found: &Value, far: &mut Vec<String>) {
    let [planned, found] = [planned, found].map(|v| v.as_f64().expect("a number"));
    let off = 100.0 * (found - planned) / planned;
    println!("  {what}: planned {:.1} MB, found {:.1} MB, {off:+.2} %", planned / 1e6, found / 1e6);
    if off.abs() > 2.0 {
        far.push(format!("{what}: {off:+.2} %"));
    }
}

/// By share of the device, by a cap that makes it a small card, and by a cache of fixed size, where everything else weighs
/// most.
#[test]
#[ignore = "looks at the whole device: run alone"]
fn the_plan_is_what_is_taken() {
    if gpu().is_none() {
        return;
    }
    let mut far = Vec::new();
    for (name, layers) in [("s05", 24), ("s8", 32)] {
        let world = World::new(name, layers);
        for more in [
            json!({}),
            json!({"max_num_seqs": 512, "max_num_batched_tokens": 1024, "device_memory_bytes": 40_000_000_000_u64}),
            json!({"kv_cache_bytes": 1 << 30}),
        ] {
            let config = world.config(&more);
            let plan = plan_memory(&config).expect("a plan");
            let from = Instant::now();
            let running = Running::start(config);
            let (plan, info) = (&plan["memory"], &running.engine.info()["memory"]);
            println!("{name} {more}: ready in {:.2} s", from.elapsed().as_secs_f64());
            println!("  plan {plan}");
            near("in all", &plan["total_bytes"], &info["device_used_bytes"], &mut far);
            near("KV cache", &plan["kv_cache_bytes"], &info["kv_cache_bytes"], &mut far);
            let beside = info["device_used_bytes"].as_f64().unwrap() - info["total_bytes"].as_f64().unwrap();
            println!("  taken beside the plan of what is there now: {:.1} MB", beside / 1e6);
            let most = 0.9 * more["device_memory_bytes"].as_f64().unwrap_or(f64::INFINITY);
            let used = info["device_used_bytes"].as_f64().unwrap();
            assert!(used <= most * 1.02, "{used} bytes are taken on a card of {}", more["device_memory_bytes"]);
            running.submit(100, 4, |_| {});
            assert_eq!(running.drain(1), 4);
        }
    }
    assert!(far.is_empty(), "{far:#?}");
}

/// Prefill and decode of all sizes, logprobs, penalties, several choices: the device's free memory stays the same.
#[test]
#[ignore = "looks at the whole device: run alone"]
fn a_warm_engine_takes_nothing_more() {
    let Some(device) = gpu() else { return };
    let mut grown = Vec::new();
    for (name, layers, more) in [
        ("s05", 24, json!({})),
        ("s8", 4, json!({"max_num_batched_tokens": 1000})),
        ("s8", 4, json!({"pipeline_depth": 3, "gpu_memory_utilization": 1.0})),
    ] {
        let world = World::new(name, layers);
        let running = Running::start(world.config(&more));
        let free = || device.memory().expect("memory").free_bytes;
        let before = free();
        let mut check = |what: &str| {
            println!(
                "{name} {more}, {what}: {} bytes free, {} more than before",
                free(),
                free() as i64 - before as i64
            );
            if free() < before {
                grown.push(format!("{name} {more}, {what}: {} bytes", before - free()));
            }
        };
        (0..8).for_each(|i| running.submit(3000 + i, 5, |_| {}));
        running.drain(8);
        check("long prompts");
        for i in 0..150 {
            running.submit(1 + i * 53 % 700, 20 + i % 7, |_| {});
        }
        running.drain(150);
        check("all sizes");
        for i in 0..20 {
            running.submit(1 + i * 41 % 300, 15, |r| {
                (r.output.logprobs, r.output.prompt_logprobs, r.n_logprobs, r.n_prompt_logprobs) = (true, true, 20, 5);
            });
        }
        running.drain(20);
        check("logprobs");
        for i in 0..20 {
            running.submit(10 + i, 15, |r| {
                let penalties = Penalties { repetition: 1.3, presence: 0.2, frequency: 0.1 };
                let sampling = SamplingParams::new(0.9, 40, 0.95, 7).unwrap().with_penalties(penalties).unwrap();
                r.sampling = sampling.with_logit_bias(vec![(7, 0.5)]).unwrap();
                r.n = 3;
            });
        }
        running.drain(20);
        check("penalties, three choices each");
    }
    assert!(grown.is_empty(), "{grown:#?}");
}

/// A start that times products, one that finds them in the file, and one with a file that is not ours.
#[test]
#[ignore = "times products: run alone"]
fn products_are_timed_once() {
    if gpu().is_none() {
        return;
    }
    let world = World::new("s8", 4);
    let path = world.dir.path().join("tuning.json");
    let start = |keys: Value| {
        let from = Instant::now();
        let running = Running::start(world.config(&keys));
        let tuning = running.engine.info()["tuning"].clone();
        println!("{keys}: ready in {:.2} s, {tuning}", from.elapsed().as_secs_f64());
        running.submit(700, 30, |_| {});
        assert_eq!(running.drain(1), 30);
        tuning
    };
    let keys = json!({"kv_cache_bytes": 1 << 30, "tuning_cache": path});
    assert!(start(json!({"kv_cache_bytes": 1 << 30})).is_null());
    let number = |tuning: &Value, key: &str| tuning[key].as_u64().expect("a number");
    let (mut all, mut starts) = (0, 0);
    loop {
        let tuning = start(keys.clone());
        starts += 1;
        assert_eq!(number(&tuning, "known"), all, "what the file says is used");
        all += number(&tuning, "searched");
        assert!(all > 0 && starts < 40, "{tuning}");
        if number(&tuning, "searched") == 0 {
            break;
        }
    }
    let text = std::fs::read_to_string(&path).expect("a file");
    println!("{all} products in {starts} starts, {} bytes", text.len());
    assert_eq!(text.matches(" to ").count() as u64, all, "{text}");
    // A broken entry is as good as none.
    let file: Value = serde_json::from_str(&text).unwrap();
    let (machine, entries) = file["machines"].as_object().unwrap().iter().next().unwrap();
    let (name, _) = entries.as_object().unwrap().iter().next().unwrap();
    let mut bad = file.clone();
    bad["machines"][machine][name] = "f".repeat(144).into();
    std::fs::write(&path, bad.to_string()).unwrap();
    let tuning = start(keys.clone());
    assert_eq!((number(&tuning, "known"), number(&tuning, "searched")), (all - 1, 1), "{name}");
    std::fs::write(&path, "not ours").unwrap();
    let tuning = start(keys);
    assert_eq!((number(&tuning, "known"), number(&tuning, "searched")), (0, 0));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not ours");
}
