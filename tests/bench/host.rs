//! What benches of the whole engine share: models of published shapes with random weights, an engine on one, requests.

use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::base::rng::SplitMix64;
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission};
use yinian::plan::SamplingParams;

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

/// config.json of a shape: `s8`, `s7`, `s13`, `tiny`, else Qwen2.5-0.5B's.
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
            prompt: Prompt::Tokens(prompt),
            no_special_tokens: false,
            output: OutputMode {
                text: false,
                tokens: true,
                logprobs: false,
                prompt_logprobs: false,
                final_only: false,
            },
            user_data,
            queue: Arc::clone(&self.queue),
            n: 1,
            n_logprobs: 0,
            n_prompt_logprobs: 0,
            max_tokens: Some(output),
            min_tokens: 0,
            ignore_eos: true,
            sampling: SamplingParams::greedy(),
            seed: None,
            stop_tokens: vec![],
            stop_texts: vec![],
            priority: 0,
            timeout_ms: 0,
            cache_salt: vec![],
        }
    }

    /// Means of the engine's histograms of the host's work (those whose names say "host"), since its start.
    pub(crate) fn print_host_work(&self) {
        let metrics = self.engine.metrics();
        let value = |name: &str| -> Option<f64> {
            let line = metrics.lines().find(|l| l.split(['{', ' ']).next() == Some(name))?;
            line.rsplit(' ').next()?.parse().ok()
        };
        for line in metrics.lines() {
            let Some(name) = line.split(['{', ' ']).next().and_then(|n| n.strip_suffix("_count")) else { continue };
            if !name.contains("host") || line.starts_with('#') {
                continue;
            }
            let (Some(sum), Some(count)) = (value(&format!("{name}_sum")), value(&format!("{name}_count"))) else {
                continue;
            };
            println!("{name}: mean {:.1} us over {count} steps", 1e6 * sum / count.max(1.0));
        }
    }
}
