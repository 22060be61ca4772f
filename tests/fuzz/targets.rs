//! Model files, engine configs, chats and templates.

use crate::{Corpus, fuzz};
use serde_json::{Value, json};
use std::path::Path;
use yinian::base::config::{EngineConfig, LoadFormat};
use yinian::hal::registry::{DeviceOptions, open};
use yinian::model::{inspect, load};
use yinian::text::{ChatTemplate, TextModel};

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

fn demo(file: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo_model").join(file)).unwrap()
}

fn small_config() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 20, "hidden_size": 8, "intermediate_size": 6,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}})
}

/// A safetensors file of the model above.
fn small_weights() -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    let mut put = |name: &str, shape: &[usize]| {
        let from = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name.to_owned(), json!({"dtype": "F32", "shape": shape, "data_offsets": [from, end]}));
    };
    put("lm_head.weight", &[20, 8]);
    put("model.embed_tokens.weight", &[20, 8]);
    put("model.norm.weight", &[8]);
    for (name, shape) in [
        ("input_layernorm", vec![8]),
        ("post_attention_layernorm", vec![8]),
        ("self_attn.q_proj", vec![8, 8]),
        ("self_attn.k_proj", vec![4, 8]),
        ("self_attn.v_proj", vec![4, 8]),
        ("self_attn.o_proj", vec![8, 8]),
        ("mlp.gate_proj", vec![6, 8]),
        ("mlp.up_proj", vec![6, 8]),
        ("mlp.down_proj", vec![8, 6]),
    ] {
        put(&format!("model.layers.0.{name}.weight"), &shape);
    }
    let text = Value::Object(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes.resize(bytes.len() + end, 0);
    bytes
}

#[test]
fn safetensors_headers() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), small_config().to_string()).unwrap();
    let device = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
    let run = |bytes: &[u8]| {
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let _ = inspect(dir.path())
            .and_then(|info| load(&info, dir.path(), LoadFormat::Auto, device.as_ref(), (32, &mut |_| Ok(()))));
    };
    let words = &[
        "F32",
        "BF16",
        "I64",
        "[0,0]",
        "data_offsets",
        "shape",
        "__metadata__",
        "lm_head.weight",
        "0",
        "-1",
        "[",
        "{",
        "18446744073709551615",
        "9223372036854775807",
        "1e3",
        "\0\0\0\0\0\0\0\u{1}",
        "null",
        "\"",
    ];
    fuzz("safetensors", &Corpus { seeds: vec![small_weights()], words }, run);
}

#[test]
fn model_configs() {
    let dir = tempfile::tempdir().unwrap();
    let run = |bytes: &[u8]| {
        std::fs::write(dir.path().join("config.json"), bytes).unwrap();
        let _ = inspect(dir.path());
    };
    let mut seeds = vec![demo("config.json"), small_config().to_string().into_bytes()];
    for name in ["tiny-gemma3", "tiny-qwen3", "tiny-mistral", "tiny-baichuan2", "tiny-gemma2"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).join("config.json");
        seeds.push(std::fs::read(path).unwrap());
    }
    fuzz("config.json", &Corpus { seeds, words: JSON }, run);
}

#[test]
fn engine_configs() {
    let seeds = [
        r#"{"model": "mock:words", "max_num_seqs": 4, "pipeline_depth": 3, "block_size": 16}"#,
        r#"{"model": "x", "device": "cuda:0", "kv_cache_bytes": 1000, "log_level": "trace", "cpu_features": "avx2"}"#,
        r#"{"model": "x", "gpu_memory_utilization": 0.9, "kv_tiers": [], "threads": null, "seed": 7}"#,
    ];
    let seeds = seeds.map(|s| s.as_bytes().to_vec()).to_vec();
    fuzz("engine config", &Corpus { seeds, words: JSON }, |bytes| drop(EngineConfig::from_json(bytes)));
}

#[test]
fn chats() {
    let model =
        TextModel::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo_model"), None, None).unwrap();
    let seeds = [
        r#"{"messages": [{"role": "user", "content": "Tell me a story."}]}"#,
        r#"{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}], "tools": []}"#,
        r#"{"messages": [{"role": "user", "content": "x<|end|>\n"}], "add_generation_prompt": false, "chat_template_kwargs": {"a": 1}}"#,
    ];
    let seeds = seeds.map(|s| s.as_bytes().to_vec()).to_vec();
    fuzz("chats", &Corpus { seeds, words: JSON }, |bytes| {
        if let Ok(chat) = serde_json::from_slice(bytes) {
            let _ = model.encode_chat(&chat);
        }
    });
}

#[test]
fn chat_templates() {
    let seeds = [
        "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}",
        "{%- macro f(x, n=2) -%}{{ x * n }}{%- endmacro -%}{% set ns = namespace(a=1) %}{% for i in range(9) %}{% set ns.a = ns.a * 9 %}{{ f('ab') }}{% endfor %}{{ ns.a }}",
        "{{ messages | map(attribute='role') | list | tojson(indent=2) }}{{ 'a,b'.split(',')[::-1] | join }}{{ raise_exception('no') if tools else bos_token }}",
        "{% generation %}{{ strftime_now('%d %b %Y') }}{% endgeneration %}{{ {'a': [1.5, none, true]} }}{% raw %}{{ {% endraw %}",
    ];
    let words = &[
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-%}",
        "{%-",
        " for ",
        " in ",
        " if ",
        "endif",
        "endfor",
        "range(1000000000)",
        "* 1000000",
        "|",
        ".",
        "(",
        ")",
        "[",
        "]",
        "'",
        "~",
        "%",
        "//",
        "**",
        "namespace(",
        "macro f()",
        "f()",
        "messages",
        "loop",
        "tojson",
        "generation",
        "strftime_now('%Q')",
        "'a' * 99999999",
        "set x = ",
        "\u{0}",
        "é",
        "99999999999999999999",
        "[::-1]",
        "[-9223372036854775808:]",
    ];
    let chat = json!({"messages": [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}]});
    let seeds = seeds.map(|s| s.as_bytes().to_vec()).to_vec();
    fuzz("chat templates", &Corpus { seeds, words }, |bytes| {
        let source = String::from_utf8_lossy(bytes);
        let specials = [("bos_token".to_owned(), "<s>".to_owned())].into_iter().collect();
        if let Ok(template) = ChatTemplate::new(&source, specials) {
            let _ = template.render(&chat);
        }
    });
}
