//! The engine's configuration: one JSON object, every key known, typed and bounded.

use crate::base::planted::Planted;
use crate::base::{Error, ErrorKind, Result, json};
use serde::Deserialize;
use std::sync::Arc;

/// Where a key stands in this build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    Built,
    /// Known and planned; any value but the given default answers UNSUPPORTED.
    OnlyDefault(&'static str),
}

/// One configuration key, for documentation and for errors.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    /// JSON type, unit and range.
    pub kind: &'static str,
    pub default: &'static str,
    pub support: Support,
    pub doc: &'static str,
}

const fn key(name: &'static str, kind: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, support: Support::Built, doc }
}

/// A key whose feature is not built: `default` (JSON) is accepted, anything else is refused.
const fn later(name: &'static str, kind: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, support: Support::OnlyDefault(default), doc }
}

/// Every key. The README's table and the error texts come from here.
pub const KEYS: &[Key] = &[
    key("model", "string", "required", "Hugging Face model directory, or mock:NAME for the built-in test model"),
    key("tokenizer", "string", "the model directory", "directory or tokenizer.json to use instead of the model's own"),
    key("chat_template", "string", "the model's own", "Jinja chat template text, or the path of a .jinja file"),
    key("served_model_name", "string", "last part of model", "name reported by info and metrics"),
    key(
        "device",
        "string: auto | cpu | cuda | cuda:N | ascend | ascend:N",
        "\"auto\"",
        "where the model runs; auto is the first GPU or NPU that can be used, else the CPU",
    ),
    key("device_library_dir", "string", "the loader's path", "vendor libraries, and NPU kernels by chip"),
    later("dtype", "string", "\"auto\"", "weights are kept as the model stores them"),
    key("load_format", "string: auto | safetensors | dummy", "\"auto\"", "dummy makes random weights from config.json"),
    key(
        "numeric_mode",
        "string: fast | invariant | aligned",
        "\"fast\"",
        "invariant: tokens do not depend on the batch, on a GPU with slower kernels; aligned: activations are rounded where the reference implementation \
         with eager attention rounds them (on GPUs; with float32 models the same as fast); the CPU backend is invariant in \
         both fast and invariant, and refuses aligned",
    ),
    key(
        "embedding_placement",
        "string: device | host",
        "\"device\"",
        "where the embedding table lives; host keeps it in page-locked host memory that a GPU reads rows from, and leaves its \
         bytes on the GPU to the KV cache; a model whose output head is the table keeps it on the device; on the CPU both are \
         the same",
    ),
    key("tensor_parallel_size", "integer, 1..=64", "1", "ranks one model is spread over; divides its heads"),
    key("threads", "integer, 1..=256", "cores of the process", "compute threads of the CPU backend"),
    key("pipeline_depth", "integer, 1..=3", "2", "steps in flight"),
    key("max_model_len", "integer, tokens, >= 1", "the model's", "longest prompt plus output of one request"),
    key("max_num_seqs", "integer, 1..=4096", "256", "sequences that run at once"),
    key(
        "max_num_batched_tokens",
        "integer, tokens, 1..=65536",
        "8192 on an NVIDIA GPU, else 512",
        "tokens of one step",
    ),
    key(
        "max_decode_slowdown",
        "number, 0 or 1..=100",
        "1.4 on a GPU, else 0",
        "how many times longer a step may take because prompts run beside its decodes, by a model of the device: long prompts \
         go in smaller chunks while at least twice as many sequences decode as prompts wait; 0 bounds steps by max_num_batched_tokens alone",
    ),
    key("block_size", "integer, tokens, power of two 1..=256", "the device's", "tokens per KV block"),
    key(
        "gpu_memory_utilization",
        "number above 0, at most 1",
        "0.9 on a GPU",
        "share of the device's memory that weights, buffers and KV cache may take together; the KV cache is sized once all else \
         is loaded and warm",
    ),
    key(
        "kv_cache_bytes",
        "integer, bytes",
        "by gpu_memory_utilization on a GPU, else a quarter of free memory; at most what max_num_seqs can use",
        "KV cache size",
    ),
    key(
        "device_memory_bytes",
        "integer, bytes, >= 1",
        "all of it",
        "the device counts as one with this much memory, of which only this engine's own use is taken off: the driver's context \
         and kernels, which engines share, do not count",
    ),
    key(
        "tuning_cache",
        "string, path of a file",
        "none",
        "the GPU's matrix products are timed at start, for one second at most, and the fastest algorithms kept here for the \
         next start; without it none are timed, and all come from the vendor library's own guess",
    ),
    key("self_test", "string, path of a file", "none", "at start: a JSON of how the device's ops agree with the CPU's"),
    key("enable_prefix_caching", "boolean", "true", "share KV blocks of equal prefixes"),
    later("kv_cache_dtype", "string", "\"auto\"", "KV is kept in the weights' dtype"),
    later("kv_tiers", "array", "null", "host and disk tiers of the KV cache"),
    key(
        "scheduling_policy",
        "string: fcfs | priority | shortest_prompt",
        "\"fcfs\"",
        "who starts first, and who gives way when blocks are short; priority looks at the requests' priority",
    ),
    key(
        "max_waiting",
        "integer, requests, >= 1",
        "4096",
        "accepted requests that do not run yet, and requests that have ended unread; above it submit answers BUSY",
    ),
    key(
        "max_unread_bytes",
        "integer, bytes, >= 4096",
        "1048576",
        "unread output of one choice of a request before the request ends with OVERRUN",
    ),
    key("default_timeout_ms", "integer, milliseconds", "0", "deadline of requests that name none; 0 is none"),
    key("watchdog_ms", "integer, milliseconds", "60000", "a step that takes longer fails the engine; 0 is off"),
    key("async_load", "boolean", "false", "create returns at once and progress arrives as events"),
    key(
        "log_level",
        "string: off | error | warn | info | debug | trace",
        "\"info\"",
        "most verbose level this engine logs",
    ),
    key("seed", "integer", "from the system", "seed of requests that bring none"),
    key("cpu_features", "string: portable | avx2 | avx512", "the best there is", "mask of instruction sets, for tests"),
];

/// A parsed configuration. Optional values are filled from the model and the device when the engine is built.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    pub model: String,
    pub tokenizer: Option<String>,
    pub chat_template: Option<String>,
    pub served_model_name: Option<String>,
    pub device: String,
    pub device_library_dir: Option<String>,
    pub load_format: LoadFormat,
    pub numeric_mode: NumericMode,
    pub embedding_placement: Placement,
    pub tensor_parallel_size: usize,
    pub threads: Option<usize>,
    pub pipeline_depth: usize,
    pub max_model_len: Option<usize>,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: Option<usize>,
    pub max_decode_slowdown: Option<f64>,
    pub block_size: Option<u32>,
    pub kv_cache_bytes: Option<usize>,
    pub gpu_memory_utilization: Option<f64>,
    pub device_memory_bytes: Option<usize>,
    pub tuning_cache: Option<String>,
    pub self_test: Option<String>,
    pub enable_prefix_caching: bool,
    pub scheduling_policy: String,
    pub max_waiting: usize,
    pub max_unread_bytes: usize,
    pub default_timeout_ms: u32,
    pub watchdog_ms: u32,
    pub async_load: bool,
    pub log_level: LogLevel,
    pub seed: Option<u64>,
    pub cpu_features: Option<String>,
    /// Set by tests only.
    #[doc(hidden)]
    #[serde(skip)]
    pub planted: Option<Arc<Planted>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadFormat {
    Auto,
    Safetensors,
    Dummy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumericMode {
    /// Tokens may depend on the batch where logits nearly tie.
    #[default]
    Fast,
    /// Tokens do not depend on the batch, bit for bit.
    Invariant,
    /// Numbers are rounded where the reference implementation with eager attention rounds them.
    Aligned,
}

impl NumericMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Invariant => "invariant",
            Self::Aligned => "aligned",
        }
    }
}

/// Whose memory a matrix is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    #[default]
    Device,
    /// Memory of the host that the device reads.
    Host,
}

impl Placement {
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            tokenizer: None,
            chat_template: None,
            served_model_name: None,
            device: "auto".to_owned(),
            device_library_dir: None,
            load_format: LoadFormat::Auto,
            numeric_mode: NumericMode::Fast,
            embedding_placement: Placement::Device,
            tensor_parallel_size: 1,
            threads: None,
            pipeline_depth: 2,
            max_model_len: None,
            max_num_seqs: 256,
            max_num_batched_tokens: None,
            max_decode_slowdown: None,
            block_size: None,
            kv_cache_bytes: None,
            gpu_memory_utilization: None,
            device_memory_bytes: None,
            tuning_cache: None,
            self_test: None,
            enable_prefix_caching: true,
            scheduling_policy: "fcfs".to_owned(),
            max_waiting: 4096,
            max_unread_bytes: 1 << 20,
            default_timeout_ms: 0,
            watchdog_ms: 60_000,
            async_load: false,
            log_level: LogLevel::Info,
            seed: None,
            cpu_features: None,
            planted: None,
        }
    }
}

/// Bytes of JSON a configuration may have.
pub const MAX_JSON_BYTES: usize = 1 << 20;

impl EngineConfig {
    /// Parses and checks a JSON object. Errors name the key, what was expected and, for a typo, the nearest key.
    pub fn from_json(text: &[u8]) -> Result<Self> {
        if text.len() > MAX_JSON_BYTES {
            return Err(Error::invalid(format!(
                "the config has {} bytes; at most {MAX_JSON_BYTES} are read",
                text.len()
            )));
        }
        let value = json::parse(text).map_err(|e| Error::invalid(format!("the config is not JSON: {e}")))?;
        let serde_json::Value::Object(mut map) = value else {
            return Err(Error::invalid("the config is not a JSON object; expected {\"model\": ...}"));
        };
        for (name, value) in &map {
            check_key(name, value)?;
        }
        map.retain(|name, value| find(name).is_some_and(|k| k.support == Support::Built) && !value.is_null());
        let config = Self::from_keys(map)?;
        config.check()?;
        Ok(config)
    }

    fn from_keys(map: serde_json::Map<String, serde_json::Value>) -> Result<Self> {
        for (name, value) in &map {
            // One key at a time first: serde's own message does not say which key had the wrong type.
            let one = serde_json::Map::from_iter([(name.clone(), value.clone())]);
            if serde_json::from_value::<Self>(one.into()).is_err() {
                let kind = find(name).map_or("another type", |k| k.kind);
                return Err(Error::invalid(format!("config key {name:?} is {value}; expected {kind}")));
            }
        }
        serde_json::from_value(map.into()).map_err(|e| Error::invalid(format!("the config does not parse: {e}")))
    }

    fn check(&self) -> Result<()> {
        if self.model.is_empty() {
            return Err(Error::invalid("config key \"model\" is missing; expected a model directory or mock:NAME"));
        }
        let range = |name: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            let kind = find(name).map_or("", |k| k.kind);
            Err(Error::invalid(format!("config key {name:?} is {value}; expected {kind}")))
        };
        range("pipeline_depth", self.pipeline_depth, 1, 3)?;
        range("tensor_parallel_size", self.tensor_parallel_size, 1, 64)?;
        range("max_num_seqs", self.max_num_seqs, 1, 4096)?;
        range("max_waiting", self.max_waiting, 1, 1 << 24)?;
        range("max_unread_bytes", self.max_unread_bytes, 4096, 1 << 40)?;
        for (name, value, most) in [
            ("max_num_batched_tokens", self.max_num_batched_tokens, 65_536),
            ("threads", self.threads, 256),
            ("device_memory_bytes", self.device_memory_bytes, usize::MAX),
            ("max_model_len", self.max_model_len, 1 << 30),
        ] {
            range(name, value.unwrap_or(1), 1, most)?;
        }
        for (key, path) in [("tuning_cache", &self.tuning_cache), ("self_test", &self.self_test)] {
            if path.as_deref() == Some("") {
                return Err(Error::invalid(format!("config key \"{key}\" is \"\"; expected the path of a file")));
            }
        }
        if let Some(share) = self.gpu_memory_utilization
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(Error::invalid(format!(
                "config key \"gpu_memory_utilization\" is {share}; expected a number above 0, at most 1"
            )));
        }
        if let Some(factor) = self.max_decode_slowdown
            && factor != 0.0
            && !(1.0..=100.0).contains(&factor)
        {
            return Err(Error::invalid(format!(
                "config key \"max_decode_slowdown\" is {factor}; expected 0 or a number from 1 to 100"
            )));
        }
        if let Some(size) = self.block_size {
            range("block_size", if size.is_power_of_two() { size as usize } else { 0 }, 1, 256).map_err(|_| {
                Error::invalid(format!("config key \"block_size\" is {size}; expected a power of two up to 256"))
            })?;
        }
        match self.cpu_features.as_deref() {
            None | Some("portable" | "avx2" | "avx512") => Ok(()),
            Some(other) => Err(Error::invalid(format!(
                "config key \"cpu_features\" is {other:?}; expected portable, avx2 or avx512"
            ))),
        }
    }
}

fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

fn check_key(name: &str, value: &serde_json::Value) -> Result<()> {
    let Some(key) = find(name) else {
        let hint =
            nearest(name, KEYS.iter().map(|k| k.name)).map_or(String::new(), |n| format!("; did you mean {n:?}?"));
        return Err(Error::invalid(format!("config key {name:?} is unknown{hint}")));
    };
    match key.support {
        Support::OnlyDefault(default) if !value.is_null() && *default != *value.to_string() => Err(Error::new(
            ErrorKind::Unsupported,
            format!("config key {name:?} is {value}, but this build supports only {default}; leave the key out"),
        )),
        _ => Ok(()),
    }
}

/// The name at the smallest edit distance from `wrong`, when it is close enough to be a typo.
pub fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Long input is no typo, and the distance below costs its square.
    if wrong.len() > 64 {
        return None;
    }
    names.map(|n| (edit_distance(wrong, n), n)).filter(|(d, n)| *d * 3 <= n.len().max(3)).min().map(|(_, n)| n)
}

/// Levenshtein distance over bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> Error {
        EngineConfig::from_json(json.as_bytes()).expect_err(json)
    }

    #[test]
    fn defaults_and_every_built_key_parse() {
        let c = EngineConfig::from_json(
            br#"{"model": "m", "threads": 2, "max_num_seqs": 8, "seed": 1, "tokenizer": null}"#,
        )
        .unwrap();
        assert_eq!(c.embedding_placement, Placement::Device);
        let host = EngineConfig::from_json(br#"{"model": "m", "embedding_placement": "host"}"#).unwrap();
        assert_eq!(host.embedding_placement, Placement::Host);
        assert_eq!((c.threads, c.max_num_seqs, c.pipeline_depth, c.seed), (Some(2), 8, 2, Some(1)));
    }

    #[test]
    fn typos_get_a_suggestion() {
        let e = refused(r#"{"model": "m", "max_num_seq": 8}"#);
        assert_eq!(e.kind, ErrorKind::Invalid);
        assert!(e.message.contains("\"max_num_seqs\""), "{e}");
        assert!(!refused(r#"{"model": "m", "frobnicate": 8}"#).message.contains("did you mean"));
    }

    #[test]
    fn planned_keys_answer_unsupported_by_name() {
        let e = refused(r#"{"model": "m", "kv_cache_dtype": "fp8"}"#);
        assert_eq!(e.kind, ErrorKind::Unsupported);
        assert!(e.message.contains("kv_cache_dtype"), "{e}");
        EngineConfig::from_json(br#"{"model": "m", "tensor_parallel_size": 1, "kv_cache_dtype": "auto"}"#).unwrap();
    }

    #[test]
    fn wrong_types_and_ranges_name_the_key() {
        for (json, name) in [
            (r#"{"model": 3}"#, "model"),
            (r#"{"model": "m", "threads": "two"}"#, "threads"),
            (r#"{"model": "m", "threads": 0}"#, "threads"),
            (r#"{"model": "m", "tensor_parallel_size": 0}"#, "tensor_parallel_size"),
            (r#"{"model": "m", "max_num_seqs": -1}"#, "max_num_seqs"),
            (r#"{"model": "m", "pipeline_depth": 4}"#, "pipeline_depth"),
            (r#"{"model": "m", "block_size": 24}"#, "block_size"),
            (r#"{"model": "m", "load_format": "gguf"}"#, "load_format"),
            (r#"{"model": "m", "embedding_placement": "disk"}"#, "embedding_placement"),
            (r#"{"model": "m", "max_decode_slowdown": 0.5}"#, "max_decode_slowdown"),
            (r#"{"model": "m", "max_decode_slowdown": 101}"#, "max_decode_slowdown"),
            (r#"{"model": "m", "cpu_features": "sse9"}"#, "cpu_features"),
            (r#"{}"#, "model"),
        ] {
            let e = refused(json);
            assert!(e.kind == ErrorKind::Invalid && e.message.contains(name), "{json}: {e}");
        }
        assert!(refused("[1]").message.contains("object"));
        assert!(refused("{").message.contains("not JSON"));
    }

    #[test]
    fn struct_and_key_table_agree() {
        for k in KEYS.iter().filter(|k| k.support == Support::Built) {
            let null = format!("{{{:?}: null}}", k.name);
            let known = serde_json::from_str::<EngineConfig>(&null).map_err(|e| e.to_string());
            assert!(!known.is_err_and(|e| e.contains("unknown field")), "{} is in KEYS but not in the struct", k.name);
        }
    }
}
