//! Whole workloads on the engine with random weights of published shapes: all requests handed in at once, greedy, exact
//! output lengths, wall time from the first submit to the last DONE.
//!
//! `cargo bench --bench workloads -- [--device cuda] [--config '{"max_num_seqs": 512}'] [WORKLOAD ...]`
//! names workloads by their beginning (`s8`, `s8-b32`); without names all run. `limit` and `vllm` are output tokens per
//! second (of `s8-prefill` input tokens) on one NVIDIA H200: perfect kernels one after another at 4.3 TB/s and 790 TFLOP/s,
//! and vLLM 0.26.0 measured on the same kind of machine.

use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::base::rng::SplitMix64;
use yinian::engine::queue::{Record, RecordSink, Taken};
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission};
use yinian::plan::{FinishReason, SamplingParams};

/// Lengths of a workload's prompts and outputs, and the start that prompts share.
enum Lengths {
    /// Prompt, output; tokens of the prompt that come from one of [`PREFIXES`] prefixes.
    Fixed(usize, u32, usize),
    /// Log-normal: prompt median 160 (sigma 1.0, 4 to 2000), output median 200 (sigma 0.8, 4 to 1000).
    Chat,
}

const PREFIXES: u64 = 8;

struct Workload {
    name: &'static str,
    shape: &'static str,
    requests: usize,
    lengths: Lengths,
    limit: f64,
    vllm: f64,
}

const fn fixed(
    name: &'static str,
    requests: usize,
    (prompt, output, shared): (usize, u32, usize),
    (limit, vllm): (f64, f64),
) -> Workload {
    let shape = name.split_at(if name.as_bytes()[2] == b'-' { 2 } else { 3 }).0;
    Workload { name, shape, requests, lengths: Lengths::Fixed(prompt, output, shared), limit, vllm }
}

const fn chat(name: &'static str, requests: usize, (limit, vllm): (f64, f64)) -> Workload {
    Workload { lengths: Lengths::Chat, ..fixed(name, requests, (0, 0, 0), (limit, vllm)) }
}

const WORKLOADS: &[Workload] = &[
    fixed("s8-b1", 1, (128, 512, 0), (286.0, 205.0)),
    fixed("s8-b32", 32, (512, 256, 0), (6000.0, 4391.0)),
    fixed("s8-prefill", 32, (8000, 1, 0), (49_100.0, 38_500.0)),
    chat("s8-chat", 2000, (19_900.0, 12_725.0)),
    fixed("s8-1000", 512, (1000, 1000, 0), (12_100.0, 9589.0)),
    fixed("s7-128", 4096, (128, 128, 0), (17_700.0, 12_024.0)),
    fixed("s7-u", 512, (1000, 100, 0), (3205.0, 2492.0)),
    fixed("s7-p80", 1024, (1000, 100, 800), (5562.0, 4749.0)),
    fixed("s7-p50", 1024, (1000, 200, 500), (5171.0, 4200.0)),
    fixed("s13-p80", 512, (1000, 100, 800), (3303.0, 2670.0)),
    fixed("s05-b1", 1, (128, 512, 0), (4332.0, 547.0)),
    fixed("s05-b256", 256, (128, 512, 0), (388_000.0, 48_500.0)),
    chat("s05-chat", 4000, (288_000.0, 20_900.0)),
    // Run by name alone: with {"device_memory_bytes": 40000000000}, and "embedding_placement" at each of its values, KV memory
    // bounds the batch. Without figures, as they would be of a whole device.
    Workload { shape: "s13v300k", ..fixed("s13v-u", 192, (1000, 100, 0), (f64::NAN, f64::NAN)) },
];

/// config.json of a shape.
fn model(shape: &str) -> Value {
    let llama = |vocab: u32, hidden: u32, inner: u32, layers: u32, heads: u32, kv_heads: u32| {
        json!({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": vocab,
               "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
               "num_attention_heads": heads, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5,
               "max_position_embeddings": 16384, "tie_word_embeddings": false})
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
                    "max_position_embeddings": 16384, "tie_word_embeddings": true}),
    }
}

/// Counts what comes.
#[derive(Default)]
struct Reader {
    done: usize,
    tokens: usize,
    first_ns: Vec<u64>,
}

impl RecordSink for Reader {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        match record {
            Record::Output(o) => {
                self.tokens += o.tokens.len();
                Some(Taken { tokens: o.tokens.len(), text: o.text.len() })
            }
            Record::Done { info, done } => {
                assert_eq!(done.finish, FinishReason::Length, "{:?}", done.error);
                self.first_ns.push(done.t_first_ns - info.t_submit_ns);
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
    vocab: u64,
}

impl Host {
    fn start(shape: &str, device: &str, more: &Value) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = model(shape);
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("config.json");
        let words = json!({"version": "1.0", "added_tokens": [],
                           "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
        std::fs::write(dir.path().join("tokenizer.json"), words.to_string()).expect("tokenizer.json");
        let mut keys = json!({"model": dir.path(), "device": device, "load_format": "dummy", "max_num_seqs": 512,
                              "max_num_batched_tokens": 1024, "max_waiting": 8192, "max_unread_bytes": 1 << 30,
                              "log_level": "warn"});
        for (key, value) in more.as_object().expect("--config is an object") {
            keys[key] = value.clone();
        }
        let config_text = keys.to_string();
        let config_keys = EngineConfig::from_json(config_text.as_bytes()).expect("a config");
        let queue = EventQueue::new(None);
        let from = Instant::now();
        let clock = Arc::new(MonotonicClock::starting_at(0));
        let engine = Engine::start(config_keys, Arc::clone(&queue), clock).expect("an engine");
        let blocks = engine.stats().blocks_total;
        println!("{shape} ready in {:.1} s, {blocks} KV blocks", from.elapsed().as_secs_f64());
        Self { engine, queue, vocab: config["vocab_size"].as_u64().expect("a size") }
    }

    fn request(&self, prompt: Vec<u32>, output: u32) -> Submission {
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
            user_data: 0,
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

    /// Requests of a workload, the same ones every time for a seed.
    fn requests(&self, w: &Workload, seed: u64) -> Vec<Submission> {
        let mut rng = SplitMix64(seed);
        let tokens = |rng: &mut SplitMix64, n: usize| -> Vec<u32> {
            (0..n).map(|_| 10 + rng.below(self.vocab - 10) as u32).collect()
        };
        let prefixes: Vec<Vec<u32>> = match w.lengths {
            Lengths::Fixed(_, _, shared) => (0..PREFIXES).map(|_| tokens(&mut rng, shared)).collect(),
            Lengths::Chat => vec![],
        };
        let one = |_| {
            let (prompt, output, shared) = match w.lengths {
                Lengths::Fixed(prompt, output, shared) => (prompt, output, shared),
                Lengths::Chat => {
                    let prompt = log_normal(&mut rng, 160.0, 1.0).clamp(4.0, 2000.0);
                    (prompt as usize, log_normal(&mut rng, 200.0, 0.8).clamp(4.0, 1000.0) as u32, 0)
                }
            };
            let mut all =
                if shared > 0 { prefixes[rng.below(PREFIXES) as usize].clone() } else { Vec::with_capacity(prompt) };
            all.extend(tokens(&mut rng, prompt - shared));
            self.request(all, output)
        };
        (0..w.requests).map(one).collect()
    }

    /// Seconds, output tokens, and times to first token.
    fn run(&self, requests: Vec<Submission>) -> (f64, usize, Vec<u64>) {
        let (n, from) = (requests.len(), Instant::now());
        for request in requests {
            self.engine.submit(request).expect("a place");
        }
        let mut reader = Reader::default();
        while reader.done < n {
            self.queue.poll(Some(Duration::from_secs(60)), &mut reader).expect("events");
        }
        reader.first_ns.sort_unstable();
        (from.elapsed().as_secs_f64(), reader.tokens, reader.first_ns)
    }

    fn measure(&self, w: &Workload) {
        // Warms up; other tokens, so that nothing of the measured prompts is cached.
        let few = Workload { requests: w.requests.min(4), ..fixed(w.name, 4, (100, 8, 0), (0.0, 0.0)) };
        self.run(self.requests(&few, 1));
        let requests = self.requests(w, 2);
        let inputs: usize = requests.iter().map(|r| if let Prompt::Tokens(t) = &r.prompt { t.len() } else { 0 }).sum();
        let steps = self.engine.stats().steps;
        let (seconds, outputs, first) = self.run(requests);
        let steps = self.engine.stats().steps - steps;
        let counted = if w.name == "s8-prefill" { inputs } else { outputs };
        let rate = counted as f64 / seconds;
        println!(
            "{:<11} {:>10.0} {:>10.0} {rate:>10.0} {:>6.1}% {:>7.2}x {seconds:>7.2} s {:>8.3} ms/step, first token {:.0} ms",
            w.name,
            w.limit,
            w.vllm,
            100.0 * rate / w.limit,
            rate / w.vllm,
            1e3 * seconds / steps.max(1) as f64,
            first[first.len() / 2] as f64 / 1e6,
        );
    }
}

fn log_normal(rng: &mut SplitMix64, median: f64, sigma: f64) -> f64 {
    let (u, v) = (f64::from(rng.unit()).max(1e-9), f64::from(rng.unit()));
    median * (sigma * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()).exp()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).map(|i| arguments[i + 1].clone());
    let (device, more) = (option("--device"), option("--config"));
    let device = device.as_deref().unwrap_or("auto");
    let more: Value = serde_json::from_str(more.as_deref().unwrap_or("{}")).expect("--config is JSON");
    let mut names: Vec<&String> = vec![];
    let mut rest = arguments.iter();
    while let Some(a) = rest.next() {
        if a.starts_with("--") {
            rest.next();
        } else {
            names.push(a);
        }
    }
    if names.iter().any(|n| *n == "tiny") {
        let tiny = Workload { shape: "tiny", ..fixed("s8-tiny", 64, (40, 20, 0), (1.0, 1.0)) };
        return Host::start("tiny", device, &more).measure(&tiny);
    }
    println!("{:<11} {:>10} {:>10} {:>10} {:>7} {:>8}", "workload", "limit", "vllm", "ours", "limit", "vllm");
    let mut shapes = vec!["s8", "s7", "s13", "s05"];
    if names.iter().any(|n| n.starts_with("s13v")) {
        shapes.push("s13v300k");
    }
    for shape in shapes {
        let chosen = |w: &&Workload| names.is_empty() || names.iter().any(|n| w.name.starts_with(n.as_str()));
        let chosen: Vec<_> = WORKLOADS.iter().filter(|w| w.shape == shape).filter(chosen).collect();
        if !chosen.is_empty() {
            let host = Host::start(shape, device, &more);
            chosen.into_iter().for_each(|w| host.measure(w));
        }
    }
}
