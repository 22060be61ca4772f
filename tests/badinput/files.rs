//! The tables of broken model files.

use crate::{Bad, demo_model};
use serde_json::{Value, json};
use yinian::base::ErrorKind::{self, Invalid, Io, NoMemory, NotFound, Unsupported};

const REFUSED: &[ErrorKind] = &[Invalid, Unsupported];
const BROKEN: &[ErrorKind] = &[Invalid, Io];

fn read(file: &str) -> Vec<u8> {
    std::fs::read(demo_model().join(file)).unwrap()
}

fn bad(
    what: impl Into<String>,
    file: &'static str,
    contents: impl Into<Vec<u8>>,
    (kinds, says): (&'static [ErrorKind], &'static str),
) -> Bad {
    Bad { what: what.into(), file, contents: Some(contents.into()), kinds, says }
}

/// The demo model's config.json with one key changed, or without it.
fn config_with(key: &'static str, value: Option<Value>) -> Vec<u8> {
    let mut config: Value = serde_json::from_slice(&read("config.json")).unwrap();
    match value {
        Some(value) => config[key] = value,
        None => {
            config.as_object_mut().unwrap().remove(key);
        }
    }
    config.to_string().into_bytes()
}

pub(crate) fn configs() -> Vec<Bad> {
    let file = "config.json";
    let mut table = vec![Bad { what: "missing".into(), file, contents: None, kinds: &[NotFound], says: file }];
    let deep = |open: &str| open.repeat(100_000);
    for (what, text) in [
        ("empty", String::new()),
        ("no JSON", "model: yes".to_owned()),
        ("cut", "{\"architectures\": [".to_owned()),
        ("an array", "[1, 2]".to_owned()),
        ("NaN", "{\"hidden_size\": NaN}".to_owned()),
        ("deep arrays", deep("[")),
        ("deep objects", deep("{\"a\":")),
    ] {
        table.push(bad(what, file, text, (BROKEN, "config.json")));
    }
    table.push(bad("broken UTF-8", file, b"{\"architectures\": [\"\xff\"]}".to_vec(), (BROKEN, "config.json")));
    for size in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"] {
        table.push(bad(format!("{size} missing"), file, config_with(size, None), (REFUSED, size)));
        for value in
            [json!(0), json!(-1), json!(1.5), json!("8"), json!(null), json!(1e30), json!([8]), json!(u64::MAX)]
        {
            let text = config_with(size, Some(value.clone()));
            table.push(bad(format!("{size} {value}"), file, text, (REFUSED, size)));
        }
        // Within range, but no file has such weights, and nothing may be allocated for it.
        let text = config_with(size, Some(json!(1 << 30)));
        table.push(bad(format!("{size} 2^30"), file, text, (&[Invalid, Unsupported, NoMemory, NotFound], "")));
    }
    for (key, value) in [
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(63)),
        ("head_dim", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
        ("rms_norm_eps", json!("small")),
        ("rms_norm_eps", json!(1e-46)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(1e39)),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 1e-320})),
        ("hidden_act", json!("x".repeat(10_000))),
        ("torch_dtype", json!(vec!["x"; 5000])),
        ("max_position_embeddings", json!(0)),
        ("architectures", json!(["GPT17ForCausalLM"])),
        ("architectures", json!([])),
        ("architectures", json!("LlamaForCausalLM")),
        ("hidden_act", json!("relu")),
        ("torch_dtype", json!("int3")),
        ("tie_word_embeddings", json!("yes")),
        ("rope_scaling", json!({"rope_type": "spiral", "factor": 2.0})),
        ("rope_scaling", json!({"rope_type": "llama3"})),
        ("quantization_config", json!({"quant_method": "gptq"})),
    ] {
        let text = config_with(key, Some(value.clone()));
        table.push(bad(format!("{key} {value}"), file, text, (REFUSED, "")));
    }
    let defaults = "generation_config.json";
    for (what, text) in [
        ("no JSON", "{"),
        ("negative temperature", r#"{"temperature": -1}"#),
        ("eos beyond the vocabulary", r#"{"eos_token_id": 99999999}"#),
        ("eos no number", r#"{"eos_token_id": "two"}"#),
        ("top_p 3", r#"{"top_p": 3}"#),
    ] {
        table.push(bad(what, defaults, text, (BROKEN, "generation_config.json")));
    }
    table
}

/// The demo model's weights with another header, whose length is told as `length` unless that is `None`.
fn weights_with(header: &Value, length: Option<u64>) -> Vec<u8> {
    let whole = read("model.safetensors");
    let old = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let text = header.to_string();
    let mut bytes = length.unwrap_or(text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes.extend(&whole[8 + old..]);
    bytes
}

fn header() -> Value {
    let whole = read("model.safetensors");
    let len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    serde_json::from_slice(&whole[8..8 + len]).unwrap()
}

const NORM: &str = "model.layers.1.input_layernorm.weight";
const QUERY: &str = "model.layers.2.self_attn.q_proj.weight";

pub(crate) fn weights() -> Vec<Bad> {
    let file = "model.safetensors";
    let whole = read(file);
    let mut table =
        vec![Bad { what: "missing".into(), file, contents: None, kinds: &[NotFound, Invalid], says: "safetensors" }];
    for n in [0, 1, 7, 8, 9, 100, 1000, 5000, 100_000, whole.len() / 2, whole.len() - 1] {
        table.push(bad(format!("cut to {n} bytes"), file, &whole[..n], (BROKEN, file)));
    }
    let mut longer = whole.clone();
    longer.extend([0; 9]);
    table.push(bad("bytes behind the tensors", file, longer, (BROKEN, file)));
    for length in [0, 1, 1 << 20, 1 << 31, 1 << 60, u64::MAX] {
        table.push(bad(format!("header of {length}"), file, weights_with(&header(), Some(length)), (BROKEN, file)));
    }
    let mut no_json = whole.clone();
    no_json[8] = b'<';
    table.push(bad("header no JSON", file, no_json, (BROKEN, file)));
    let mut broken = whole.clone();
    broken[12] = 0xff;
    table.push(bad("header broken UTF-8", file, broken, (BROKEN, file)));
    let deep = "[".repeat(100_000);
    let mut bytes = (deep.len() as u64).to_le_bytes().to_vec();
    bytes.extend(deep.bytes());
    table.push(bad("deep header", file, bytes, (BROKEN, file)));
    table.extend(headers(file));
    let index = "model.safetensors.index.json";
    for (what, text) in [
        ("no JSON", "{".to_owned()),
        ("no map", "{}".to_owned()),
        ("map no object", r#"{"weight_map": [1]}"#.to_owned()),
        ("missing file", json!({"weight_map": {NORM: "gone.safetensors"}}).to_string()),
        ("path above", json!({"weight_map": {NORM: "../../model.safetensors"}}).to_string()),
        ("absolute path", json!({"weight_map": {NORM: "/etc/passwd"}}).to_string()),
        ("path no text", json!({"weight_map": {NORM: 3}}).to_string()),
        ("NUL in a path", json!({"weight_map": {NORM: "a\u{0}b"}}).to_string()),
    ] {
        table.push(bad(format!("index: {what}"), index, text, (&[Invalid, Io, NotFound], "")));
    }
    table
}

fn headers(file: &'static str) -> Vec<Bad> {
    let mut table = Vec::new();
    let mut edit = |what: &str, says: &'static str, change: &dyn Fn(&mut Value)| {
        let mut header = header();
        change(&mut header);
        table.push(bad(what, file, weights_with(&header, None), (REFUSED, says)));
    };
    edit("a hole where a tensor was", "", &|h| drop(h.as_object_mut().unwrap().remove(NORM)));
    edit("tensor renamed", "self_attn.query.weight", &|h| {
        let tensor = h.as_object_mut().unwrap().remove(QUERY).unwrap();
        h["model.layers.2.self_attn.query.weight"] = tensor;
    });
    edit("dtype of integers", QUERY, &|h| h[QUERY]["dtype"] = json!("I16"));
    edit("dtype unknown", "", &|h| h[QUERY]["dtype"] = json!("BF17"));
    edit("dtype of another size", "", &|h| h[QUERY]["dtype"] = json!("F32"));
    edit("shape turned", "", &|h| h[NORM]["shape"] = json!([16, 16]));
    edit("shape of one more", "", &|h| h[NORM]["shape"] = json!([257]));
    edit("shape of nothing", "", &|h| h[NORM]["shape"] = json!([0]));
    edit("shape beyond 64 bits", "", &|h| h[QUERY]["shape"] = json!([u64::MAX, u64::MAX]));
    edit("shape negative", "", &|h| h[QUERY]["shape"] = json!([-1, 256]));
    edit("offsets turned", "", &|h| h[QUERY]["data_offsets"] = json!([100, 0]));
    edit("offsets overlap", "", &|h| h[QUERY]["data_offsets"] = h[NORM]["data_offsets"].clone());
    edit("offsets beyond the file", "", &|h| h[QUERY]["data_offsets"] = json!([1_u64 << 60, (1_u64 << 60) + 131_072]));
    edit("offsets wrap", "", &|h| h[QUERY]["data_offsets"] = json!([u64::MAX - 10, 10]));
    edit("offsets no numbers", "", &|h| h[QUERY]["data_offsets"] = json!(["0", "1"]));
    edit("a tensor too many", "extra.weight", &|h| {
        let end = h.as_object().unwrap().values().filter_map(|t| t["data_offsets"][1].as_u64()).max().unwrap();
        h["model.layers.0.extra.weight"] = json!({"dtype": "BF16", "shape": [0], "data_offsets": [end, end]});
    });
    table
}

pub(crate) fn texts() -> Vec<Bad> {
    let file = "tokenizer.json";
    let whole: Value = serde_json::from_slice(&read(file)).unwrap();
    let edited = |change: &dyn Fn(&mut Value)| {
        let mut t = whole.clone();
        change(&mut t);
        t.to_string()
    };
    let mut table = vec![Bad { what: "missing".into(), file, contents: None, kinds: &[NotFound], says: file }];
    for (what, text) in [
        ("empty", String::new()),
        ("no JSON", "tokens".to_owned()),
        ("cut", whole.to_string()[..1000].to_owned()),
        ("an array", "[]".to_owned()),
        ("no model", edited(&|t| drop(t.as_object_mut().unwrap().remove("model")))),
        ("no vocabulary", edited(&|t| drop(t["model"].as_object_mut().unwrap().remove("vocab")))),
        ("no merges", edited(&|t| drop(t["model"].as_object_mut().unwrap().remove("merges")))),
        ("merges of unknown tokens", edited(&|t| t["model"]["merges"] = json!([["☃☃", "☃"]]))),
        (
            "post-processor without its token",
            edited(&|t| {
                t["post_processor"] = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
                    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]});
            }),
        ),
        ("unknown kind of model", edited(&|t| t["model"]["type"] = json!("Magic"))),
        ("deep arrays", "[".repeat(100_000)),
        (
            "broken regular expression",
            edited(&|t| {
                t["pre_tokenizer"] =
                    json!({"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": false});
            }),
        ),
    ] {
        table.push(bad(what, file, text, (BROKEN, "tokenizer.json")));
    }
    let config = "tokenizer_config.json";
    for (what, text) in [
        ("no JSON", "{".to_owned()),
        ("template does not compile", json!({"chat_template": "{% for %}"}).to_string()),
        ("template no text", json!({"chat_template": 7}).to_string()),
        ("template without end", json!({"chat_template": "{{ ".repeat(100_000)}).to_string()),
        ("deep template", json!({"chat_template": "{% if a %}".repeat(100_000)}).to_string()),
        ("deep expression", json!({"chat_template": format!("{{{{ {}", "(".repeat(100_000))}).to_string()),
    ] {
        table.push(bad(what, config, text, (BROKEN, "")));
    }
    table
}
