//! Loading a model's weights from files, and the way from nothing to the first token, each in a process of its own.
//!
//! `cargo bench --bench load -- [--device cuda] [--dir DIRECTORY] [--gb 16] [--runs 3] [--config JSON] [--cold]`
//! writes a model of the shape of Llama 3 8B (of a 0.5B model below 4 GB) with random numbers into DIRECTORY, and removes it.
//! `--cold` also loads it with nothing of it in the page cache, against how fast the files can be read at all; it needs `dd`.
//! Bars: 80 % of the slower of reading and the bus (55 GB/s from page-locked memory on an H200), 1 GB of host memory beside
//! page-locked buffers, 4 s from the start of the process to the first token with the files in the page cache.

use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use yinian::base::clock::MonotonicClock;
use yinian::base::config::{EngineConfig, LoadFormat};
use yinian::base::rng::SplitMix64;
use yinian::engine::queue::{Record, RecordSink, Taken};
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission};
use yinian::hal::registry::{DeviceOptions, open};
use yinian::model::{inspect, load};

const BUS: f64 = 55e9;
const SHARE: f64 = 0.8;
const HOST_BYTES: usize = 1_000_000_000;
const COLD_START: f64 = 4.0;
const SHARD_BYTES: usize = 4 << 30;
/// As loading reads.
const READ_BYTES: usize = 2 << 20;
const MAX_LEN: usize = 8192;

type Tensors = Vec<(String, Vec<usize>)>;

/// config.json of a model of about `gb` gigabytes, and its tensors.
fn model(gb: f64) -> (Value, Tensors) {
    let (hidden, inner, heads, kv_heads, vocab) =
        if gb < 4.0 { (896, 4864, 14, 2, 8192) } else { (4096, 14_336, 32, 8, 128_256) };
    let dim = hidden / heads;
    let layer = 2 * (2 * hidden * hidden + 2 * hidden * kv_heads * dim + 3 * hidden * inner + 2 * hidden);
    let tables = 2 * 2 * vocab * hidden;
    let layers = (((gb * 1e9 - tables as f64) / layer as f64).round() as usize).clamp(1, 128);
    let config = json!({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5, "max_position_embeddings": 16_384,
        "rope_theta": 500_000.0, "tie_word_embeddings": false});
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for i in 0..layers {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv_heads * dim, hidden]),
            ("self_attn.v_proj", vec![kv_heads * dim, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        all.extend(parts.map(|(part, shape)| (format!("model.layers.{i}.{part}.weight"), shape)));
    }
    all.push(("model.norm.weight".to_owned(), vec![hidden]));
    all.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    (config, all)
}

fn bytes_of(shape: &[usize]) -> usize {
    2 * shape.iter().product::<usize>()
}

/// Small finite numbers.
fn noise() -> Vec<u8> {
    let mut rng = SplitMix64(1);
    let words = (0..(16 << 20) / 8).map(|_| rng.next_u64() & 0x80ff_80ff_80ff_80ff | 0x3c00_3c00_3c00_3c00);
    words.flat_map(u64::to_le_bytes).collect()
}

fn write_shard(path: &Path, tensors: &[(String, Vec<usize>)], noise: &[u8]) {
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + bytes_of(shape);
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    // Files of other programs pad their headers to whole words too.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = File::create(path).expect("a shard");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room for the model");
    file.write_all(header.as_bytes()).expect("room for the model");
    while at > 0 {
        let n = at.min(noise.len());
        file.write_all(&noise[..n]).expect("room for the model");
        at -= n;
    }
}

/// Writes the model, and tells its bytes of weights.
fn write(dir: &Path, gb: f64) -> usize {
    let (config, tensors) = model(gb);
    std::fs::create_dir_all(dir).expect("the directory");
    std::fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
    let words = json!({"version": "1.0", "added_tokens": [],
                       "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
    std::fs::write(dir.join("tokenizer.json"), words.to_string()).expect("tokenizer.json");
    let (mut shards, mut bytes): (Vec<Tensors>, _) = (vec![vec![]], 0);
    for tensor in tensors {
        if bytes > SHARD_BYTES {
            shards.push(vec![]);
            bytes = 0;
        }
        bytes += bytes_of(&tensor.1);
        shards.last_mut().expect("a shard").push(tensor);
    }
    let (mut map, noise) = (Map::new(), noise());
    let name = |i: usize| format!("model-{:05}.safetensors", i + 1);
    for (i, shard) in shards.iter().enumerate() {
        map.extend(shard.iter().map(|t| (t.0.clone(), json!(name(i)))));
    }
    std::fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).expect("index");
    std::thread::scope(|scope| {
        for (i, shard) in shards.iter().enumerate() {
            let (path, noise) = (dir.join(name(i)), &noise);
            scope.spawn(move || write_shard(&path, shard, noise));
        }
    });
    shards.iter().flatten().map(|t| bytes_of(&t.1)).sum()
}

fn shards(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).expect("the directory").map(|f| f.expect("a file").path());
    files.filter(|f| f.extension().is_some_and(|e| e == "safetensors")).collect()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(16)
}

/// Bytes per second at which `threads` threads can read all shards, from their byte `first` on.
fn read_speed(dir: &Path, threads: usize, first: usize) -> f64 {
    let files: Vec<_> = shards(dir).iter().map(|f| File::open(f).expect("a shard")).collect();
    let sizes: Vec<_> = files.iter().map(|f| f.metadata().expect("a shard").len() as usize).collect();
    let pieces = |i: usize| (first..sizes[i]).step_by(READ_BYTES).map(move |at| (i, at));
    let pieces: Vec<_> = (0..files.len()).flat_map(pieces).collect();
    let (next, from) = (AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = vec![0; READ_BYTES];
                while let Some((i, at)) = pieces.get(next.fetch_add(1, Relaxed)) {
                    let n = READ_BYTES.min(sizes[*i] - at);
                    files[*i].read_exact_at(&mut buffer[..n], *at as u64).expect("a shard");
                }
            });
        }
    });
    sizes.iter().sum::<usize>() as f64 / from.elapsed().as_secs_f64()
}

/// Takes the shards out of the page cache.
fn forget(dir: &Path) {
    for file in shards(dir) {
        File::open(&file).and_then(|f| f.sync_all()).expect("a shard on disk");
        let done = Command::new("dd").arg(format!("if={}", file.display())).args(["iflag=nocache", "count=0"]).output();
        assert!(done.expect("dd").status.success(), "dd does not drop {}", file.display());
    }
}

/// Bytes of a line of this process's status.
fn status(key: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    let number = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse::<usize>().ok());
    1024 * number.unwrap_or(0)
}

fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Prints where loading says its time went.
struct Phases;

impl log::Log for Phases {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "yinian::load"
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            println!("phases: {}", record.args());
        }
    }
    fn flush(&self) {}
}

/// Loads all weights once. Prints the rate and the host memory it took.
fn child_load(dir: &Path, device: &str, limit: f64) {
    let info = inspect(dir).expect("a model");
    let from = Instant::now();
    let options = DeviceOptions { load_bytes: info.weight_bytes, ..DeviceOptions::default() };
    let device = open(device, &options).expect("a device");
    println!("phases: device opened in {:.1} ms", from.elapsed().as_secs_f64() * 1e3);
    log::set_logger(&Phases).expect("no logger yet");
    log::set_max_level(log::LevelFilter::Debug);
    let (before, from) = (status("VmHWM"), Instant::now());
    let mut reports = 0;
    let mut progress = |_| {
        reports += 1;
        Ok(())
    };
    let model = load(&info, dir, LoadFormat::Auto, device.as_ref(), (MAX_LEN, &mut progress)).expect("weights");
    let seconds = from.elapsed().as_secs_f64();
    let rate = info.weight_bytes as f64 / seconds;
    let taken = status("VmHWM").saturating_sub(before);
    let own = device.caps().own_memory;
    let bar = |good: bool| {
        if !own {
            "no bar on this device"
        } else if good {
            "ok"
        } else {
            "BELOW THE BAR"
        }
    };
    println!(
        "load: {:.2} GB in {seconds:.3} s: {:.1} GB/s, {:.0}% of {:.1} GB/s ({}), {reports} reports",
        info.weight_bytes as f64 / 1e9,
        rate / 1e9,
        100.0 * rate / limit,
        limit / 1e9,
        bar(rate >= SHARE * limit),
    );
    println!(
        "load: peak resident {:.0} MB, {:.0} MB of it before loading, {:.0} MB by loading ({}); now anonymous {:.0}, \
         file {:.0}, shared {:.0}, locked {:.0}, pinned {:.0} MB",
        mb(status("VmHWM")),
        mb(before),
        mb(taken),
        bar(taken <= HOST_BYTES),
        mb(status("RssAnon")),
        mb(status("RssFile")),
        mb(status("RssShmem")),
        mb(status("VmLck")),
        mb(status("VmPin")),
    );
    drop(model);
}

/// Says when the first token came.
#[derive(Default)]
struct First(Option<Instant>, bool);

impl RecordSink for First {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        match record {
            Record::Output(o) => {
                self.0.get_or_insert_with(Instant::now);
                Some(Taken { tokens: o.tokens.len(), text: o.text.len() })
            }
            Record::Done { done, .. } => {
                assert!(done.error.is_none(), "{:?}", done.error);
                self.1 = true;
                Some(Taken { tokens: 0, text: 0 })
            }
            _ => Some(Taken { tokens: 0, text: 0 }),
        }
    }
}

/// From the start of this process to an engine, and to its first token.
fn child_start(dir: &Path, device: &str, more: &Value, from: Instant) {
    let mut keys = json!({"model": dir, "device": device, "log_level": "warn", "max_model_len": MAX_LEN});
    for (key, value) in more.as_object().expect("--config is an object") {
        keys[key] = value.clone();
    }
    let config = EngineConfig::from_json(keys.to_string().as_bytes()).expect("a config");
    let queue = EventQueue::new(None);
    let clock = Arc::new(MonotonicClock::starting_at(0));
    let engine = Engine::start(config, Arc::clone(&queue), clock).expect("an engine");
    let ready = from.elapsed().as_secs_f64();
    let output = OutputMode { text: false, tokens: true, logprobs: false, prompt_logprobs: false, final_only: false };
    let request = Submission::exactly(4, Prompt::Tokens((1..100).collect()), output, Arc::clone(&queue));
    engine.submit(request).expect("a place");
    let mut first = First::default();
    while !first.1 {
        queue.poll(Some(Duration::from_secs(60)), &mut first).expect("events");
    }
    let token = first.0.map_or(f64::NAN, |t| t.duration_since(from).as_secs_f64());
    let good = if token <= COLD_START { "ok" } else { "ABOVE THE BAR" };
    println!(
        "start: ready after {ready:.2} s, first token after {token:.2} s, bar {COLD_START} s ({good}); peak resident {:.0} MB",
        mb(status("VmHWM"))
    );
    println!("start: memory {}", engine.info()["memory"]);
}

fn main() {
    let from = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).map(|i| arguments[i + 1].as_str());
    let (device, config) = (option("--device").unwrap_or("auto"), option("--config").unwrap_or("{}"));
    let given = option("--dir").map(PathBuf::from);
    if let (Some(child), Some(dir)) = (option("--child"), &given) {
        return match child {
            "load" => child_load(dir, device, option("--limit").and_then(|l| l.parse().ok()).expect("a limit")),
            _ => child_start(dir, device, &serde_json::from_str(config).expect("--config is JSON"), from),
        };
    }
    let gb = option("--gb").map_or(16.06, |gb| gb.parse().expect("--gb is a number"));
    let runs = option("--runs").map_or(3, |n| n.parse().expect("--runs is a number"));
    let place = tempfile::tempdir_in(given.unwrap_or_else(std::env::temp_dir)).expect("a directory for the model");
    let dir = place.path();
    let bytes = write(dir, gb);
    println!("{:.2} GB of weights written in {:.1} s", bytes as f64 / 1e9, from.elapsed().as_secs_f64());
    let child = |kind: &str, limit: f64| {
        let program = std::env::current_exe().expect("this program");
        let limit = limit.to_string();
        let fixed = ["--child", kind, "--device", device, "--config", config, "--limit", &limit, "--dir"];
        let ended = Command::new(program).args(fixed).arg(dir).status().expect("a process");
        if !ended.success() {
            println!("{kind}: FAILED, {ended}");
        }
    };
    if arguments.iter().any(|a| a == "--cold") {
        forget(dir);
        let disk = read_speed(dir, threads(), 0);
        println!("files not in the page cache can be read at {:.1} GB/s", disk / 1e9);
        forget(dir);
        child("load", disk.min(BUS));
    }
    // Reads what is not cached yet.
    read_speed(dir, threads(), 0);
    for (threads, first) in [(threads(), 0), (threads(), 8), (threads().div_ceil(2), 0), (1, 0)] {
        let speed = read_speed(dir, threads, first) / 1e9;
        println!("files in the page cache can be read at {speed:.1} GB/s by {threads} threads from byte {first} on");
    }
    (0..runs).for_each(|_| child("load", BUS));
    (0..runs).for_each(|_| child("start", BUS));
}
