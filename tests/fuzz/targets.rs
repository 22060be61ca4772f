//! Model files, engine configs, chats and templates.

use crate::corpus::Shape;
use crate::{CACHES, Target, fuzz};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;
use yinian::base::Error;
use yinian::base::config::{EngineConfig, LoadFormat};
use yinian::engine::plan_memory;
use yinian::hal::registry::{DeviceOptions, open};
use yinian::model::spec::{DecoderSpec, RopeScaling};
use yinian::model::{inspect, load};
use yinian::text::{ChatTemplate, ShowSpecial, SpecialTokens, TextModel, Tokenizer};

const JSON: &[&str] = &[
    "0",
    "-1",
    "1e999",
    "NaN",
    "null",
    "true",
    "[]",
    "{}",
    "[[[[[[[[",
    "{\"a\":",
    "18446744073709551615",
    "\"\\u0000\"",
    "\"",
    "\\",
    "9223372036854775808",
    "1152921504606846976",
    "0.5",
    ",",
    ":",
    "\u{feff}",
    "\\ud800",
    "4294967296",
];

/// In memory, where the machine has such a place: these targets write a file for every input.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn message(e: Error) -> String {
    e.message
}

/// The model that the corpus of weights is of.
fn small_config() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 20, "hidden_size": 8, "intermediate_size": 6,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32})
}

#[test]
fn safetensors() {
    let dir = directory();
    std::fs::write(dir.path().join("config.json"), small_config().to_string()).unwrap();
    let device = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
    let info = inspect(dir.path()).unwrap();
    let run = |bytes: &[u8]| {
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let model = load(&info, dir.path(), LoadFormat::Auto, device.as_ref(), (32, &mut |_| Ok(())));
        model.map(drop).map_err(message)
    };
    let words = &["F32", "F16", "BF16", "I64", "F8_E4M3", "shape", "data_offsets", "__metadata__", "lm_head.weight"];
    fuzz(&Target { name: "safetensors", shape: Shape::Weights, words, run: &run, least_taken: 5, most_left: CACHES });
}

/// What holds of every config that is taken.
fn sound(spec: &DecoderSpec) {
    assert!(spec.heads > 0 && spec.heads.is_multiple_of(spec.kv_heads) && spec.head_dim.is_multiple_of(2));
    assert!(spec.vocab_size > 0 && spec.hidden_size > 0 && spec.intermediate_size > 0 && !spec.layers.is_empty());
    assert!(spec.layers.iter().all(|l| l.rope < spec.ropes.len() && l.window != Some(0)));
    let mut above_zero = vec![spec.norm_eps, spec.embed_scale, spec.attention_scale];
    above_zero.extend(spec.attention_cap.iter().chain(&spec.logit_cap));
    for rope in &spec.ropes {
        above_zero.push(rope.theta);
        match rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => above_zero.push(factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                above_zero.extend([factor, low_freq_factor, high_freq_factor, original_max_position]);
                above_zero.push(high_freq_factor - low_freq_factor);
            }
        }
    }
    assert!(above_zero.iter().all(|x| x.is_finite() && *x > 0.0), "{spec:?}");
}

#[test]
fn model_configs() {
    let dir = directory();
    let config = json!({"model": dir.path(), "threads": 1, "kv_cache_bytes": 1 << 30, "max_num_seqs": 4});
    let config = EngineConfig::from_json(config.to_string().as_bytes()).unwrap();
    let run = |bytes: &[u8]| {
        std::fs::write(dir.path().join("config.json"), bytes).unwrap();
        let info = inspect(dir.path()).map_err(message)?;
        sound(&info.spec);
        assert!(info.eos_tokens.iter().all(|t| (*t as usize) < info.vocab_size));
        plan_memory(&config).map(drop).map_err(message)
    };
    fuzz(&Target {
        name: "model_config",
        shape: Shape::Json,
        words: JSON,
        run: &run,
        least_taken: 10,
        most_left: CACHES,
    });
}

#[test]
fn engine_configs() {
    let run = |bytes: &[u8]| EngineConfig::from_json(bytes).map(drop).map_err(message);
    fuzz(&Target {
        name: "engine_config",
        shape: Shape::Json,
        words: JSON,
        run: &run,
        least_taken: 10,
        most_left: CACHES,
    });
}

/// Tokenizers of model directories. What is taken is put to use: a panic then is the request's, and reported as ours.
#[test]
fn tokenizers() {
    let dir = directory();
    let path = dir.path().join("tokenizer.json");
    let run = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let tokenizer = Tokenizer::open(&path).map_err(message)?;
        let text = "Once upon a  time\n 2024 <s> \u{0}é🦊 <|user|>aaaaaaaa";
        let tokens = tokenizer.encode(text, SpecialTokens::Add).map_err(message)?;
        tokenizer.decode(&tokens, ShowSpecial::Show).map(drop).map_err(message)
    };
    let words =
        &["BPE", "WordPiece", "Unigram", "WordLevel", "Sequence", "Split", "Regex", "(a|a)*b", "(?=", "▁", "<0x00>"];
    // The crate keeps the words of each model that a thread used until the thread ends.
    let most_left = isize::MAX;
    fuzz(&Target { name: "tokenizer", shape: Shape::Json, words, run: &run, least_taken: 10, most_left });
}

#[test]
fn chats() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo_model");
    let model = TextModel::open(&demo, None, None).unwrap();
    let vocabulary = model.tokenizer.vocab_size();
    let run = |bytes: &[u8]| {
        let chat = serde_json::from_slice(bytes).map_err(|e| Error::invalid(e.to_string()).message)?;
        let tokens = model.encode_chat(&chat).map_err(message)?;
        assert!(tokens.iter().all(|t| (*t as usize) < vocabulary));
        Ok(())
    };
    fuzz(&Target { name: "chat", shape: Shape::Json, words: JSON, run: &run, least_taken: 10, most_left: CACHES });
}

#[test]
fn chat_templates() {
    let words = &[
        "{#",
        "#}",
        "-%}",
        "{%-",
        "range(1000000000)",
        "* 1000000",
        "**",
        "//",
        "namespace(",
        "loop(messages)",
        "strftime_now('%Q')",
        "'a' * 99999999",
        "tojson(indent=9999999)",
        "\u{0}",
        "é",
        "99999999999999999999",
        "[::-1]",
        "[-9223372036854775808:]",
        "recursive",
        "self",
        "include 'chat'",
        "import 'chat' as x",
        "extends 'chat'",
        "caller()",
        "break",
        "continue",
        "{% set ns.a = [ns.a] %}",
        "{% set ns.a = {'k': ns.a, 'l': ns} %}",
        "{% for a in [[1]] recursive %}",
        "{{ loop([a, a]) }}",
        "{% for i in range(9000) %}",
        "{% with a = [a] %}",
        "{{ ns.a == ns.a[0] }}",
    ];
    let chat = json!({"messages": [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}]});
    let run = |bytes: &[u8]| {
        let source = String::from_utf8_lossy(bytes);
        let specials = [("bos_token".to_owned(), "<s>".to_owned())].into_iter().collect();
        ChatTemplate::new(&source, specials).and_then(|t| t.render(&chat)).map(drop).map_err(message)
    };
    fuzz(&Target { name: "template", shape: Shape::Template, words, run: &run, least_taken: 10, most_left: CACHES });
}
