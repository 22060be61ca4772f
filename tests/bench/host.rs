//! What benches of the whole engine share: models of published shapes with random weights, an engine on one, requests.

use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::base::rng::SplitMix64;
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission};

/// The command line: `[--device D] [--config JSON] [NAME ...]`, other options by their names.
pub(crate) struct Arguments {
    pub(crate) device: String,
    /// Config keys beside the bench's own.
    pub(crate) more: Value,
    pub(crate) names: Vec<String>,
    options: Vec<(String, String)>,
}

impl Arguments {
    pub(crate) fn read() -> Self {
        let mut read = Self { device: "auto".into(), more: json!({}), names: vec![], options: vec![] };
        let mut rest = std::env::args().skip(1).filter(|a| a != "--bench");
        while let Some(a) = rest.next() {
            let Some(name) = a.strip_prefix("--") else {
                read.names.push(a);
                continue;
            };
            let value = rest.next().unwrap_or_else(|| panic!("{a} needs a value"));
            match name {
                "device" => read.device = value,
                "config" => read.more = serde_json::from_str(&value).expect("--config is JSON"),
                _ => read.options.push((name.to_owned(), value)),
            }
        }
        read
    }

    /// A number, or what it is by default.
    pub(crate) fn number(&self, name: &str, default: usize) -> usize {
        let found = self.options.iter().find(|o| o.0 == name);
        found.map_or(default, |o| o.1.parse().unwrap_or_else(|_| panic!("--{name} {:?} is no number", o.1)))
    }
}

/// config.json of a shape: `s8`, `s7`, `s13`, `s13v300k` (a large vocabulary), `tiny`, else Qwen2.5-0.5B's.
pub(crate) fn model(shape: &str, max_position: usize) -> Value {
    let llama = |vocab: u32, hidden: u32, inner: u32, layers: u32, heads: u32, kv_heads: u32| {
        json!({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": vocab,
               "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
               "num_attention_heads": heads, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5,
               "max_position_embeddings": max_position, "tie_word_embeddings": false})
    };
    match shape {
        "s8" => llama(128_256, 4096, 14_336, 32, 32, 8),
        "s7" => llama(32_000, 4096, 11_008, 32, 32, 32),
        "s13" => llama(32_000, 5120, 13_824, 40, 40, 40),
        "s13v300k" => llama(300_000, 5120, 13_824, 40, 40, 40),
        "tiny" => llama(512, 64, 128, 2, 4, 2),
        _ => json!({"architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": 151_936,
                    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                    "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
                    "max_position_embeddings": max_position, "tie_word_embeddings": true}),
    }
}

/// A model folder with a config and a tokenizer that hardly is one.
pub(crate) fn write_model(dir: &Path, config: &Value) {
    std::fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
    let words = json!({"version": "1.0", "added_tokens": [],
                       "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
    std::fs::write(dir.join("tokenizer.json"), words.to_string()).expect("tokenizer.json");
}

/// Prompt tokens that mean nothing.
pub(crate) fn tokens(rng: &mut SplitMix64, n: usize, vocab: u64) -> Vec<u32> {
    (0..n).map(|_| 10 + rng.below(vocab - 10) as u32).collect()
}

/// An engine on one shape.
pub(crate) struct Host {
    pub(crate) engine: Arc<Engine>,
    pub(crate) queue: Arc<EventQueue>,
    pub(crate) vocab: u64,
}

impl Host {
    /// `keys` of the engine's config are the bench's, `arguments.more` go before them.
    pub(crate) fn start(shape: &str, max_position: usize, mut keys: Value, arguments: &Arguments) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = model(shape, max_position);
        write_model(dir.path(), &config);
        keys["model"] = json!(dir.path());
        keys["device"] = json!(arguments.device);
        keys["load_format"] = json!("dummy");
        keys["log_level"] = json!("warn");
        for (key, value) in arguments.more.as_object().expect("--config is an object") {
            keys[key] = value.clone();
        }
        let keys = EngineConfig::from_json(keys.to_string().as_bytes()).expect("a config");
        let queue = EventQueue::new(None);
        let from = Instant::now();
        let clock = Arc::new(MonotonicClock::starting_at(0));
        let engine = Engine::start(keys, Arc::clone(&queue), clock).expect("an engine");
        let blocks = engine.stats().blocks_total;
        println!("{shape} ready in {:.1} s, {blocks} KV blocks", from.elapsed().as_secs_f64());
        Self { engine, queue, vocab: config["vocab_size"].as_u64().expect("a size") }
    }

    /// Exactly `output` greedy tokens, told of by number.
    pub(crate) fn request(&self, user_data: u64, prompt: Vec<u32>, output: u32) -> Submission {
        Submission {
            user_data,
            ..Submission::exactly(
                output,
                Prompt::Tokens(prompt),
                OutputMode { text: false, tokens: true, logprobs: false, prompt_logprobs: false, final_only: false },
                Arc::clone(&self.queue),
            )
        }
    }

    /// What the host has done for steps since the engine's start.
    pub(crate) fn times(&self) -> HostTimes {
        HostTimes::of(&self.engine)
    }
}

/// What the host does for a step, as the engine's metrics name it.
const PARTS: [&str; 3] = ["plan", "launch", "fold"];

/// Sum in seconds and cumulative counts under their bounds in seconds.
struct Times {
    sum: f64,
    counts: Vec<(f64, u64)>,
}

/// The host's work by its parts.
pub(crate) struct HostTimes([Times; 3]);

impl HostTimes {
    /// Since the engine's start.
    pub(crate) fn of(engine: &Engine) -> Self {
        let text = engine.metrics();
        let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
        let of = |part: &str| {
            let lines = |end: &str| {
                let name = format!("yinian:step_{part}_seconds_{end}");
                text.lines().filter(move |line| line.split(['{', ' ']).next() == Some(name.as_str()))
            };
            let bound = |line: &str| line.split("le=\"").nth(1)?.split('"').next()?.parse().ok();
            let counts = lines("bucket").map(|line| (bound(line).unwrap_or(f64::INFINITY), value(line) as u64));
            Times { sum: lines("sum").map(value).sum(), counts: counts.collect() }
        };
        Self(PARTS.map(of))
    }

    /// Tells what has come since `before`, where the engine's metrics tell it.
    pub(crate) fn print_since(&self, before: &Self) {
        let parts = PARTS.iter().zip(before.0.iter().zip(&self.0)).filter_map(|(part, (before, after))| {
            let counts: Vec<_> = after.counts.iter().zip(&before.counts).map(|(a, b)| (a.0, a.1 - b.1)).collect();
            let all = counts.last().map(|c| c.1).filter(|n| *n > 0)?;
            let bound = |n: u64| 1e6 * counts.iter().find(|c| c.1 >= n).map_or(f64::INFINITY, |c| c.0);
            let mean = 1e6 * (after.sum - before.sum) / all as f64;
            Some(format!("{part} {mean:.1}, {:.0}, {:.0}", bound(all.div_ceil(2)), bound(all)))
        });
        let parts: Vec<_> = parts.collect();
        if !parts.is_empty() {
            println!("            host work of a step in us (mean, median and most at most): {}", parts.join("; "));
        }
    }
}
