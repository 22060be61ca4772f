//! What each family adds to a Llama, seen in the golden models: it agrees with the reference, it matters, and it depends
//! on nothing beside a sequence in half precision either.

use super::{CHUNKS, agrees_with_the_reference, bits, cases, distance, folder};
use crate::world::{CHUNK_MOST, runner};
use serde_json::{Value, json};
use std::path::Path;
use yinian::base::config::LoadFormat;
use yinian::runner::ModelRunner;

#[test]
fn qwen2_with_biases_and_windows_in_upper_layers_agrees() {
    agrees_with_the_reference("tiny-qwen2");
}

#[test]
fn mistral_with_windows_agrees() {
    agrees_with_the_reference("tiny-mistral");
}

#[test]
fn qwen3_with_head_norms_and_biases_agrees() {
    agrees_with_the_reference("tiny-qwen3");
}

#[test]
fn llama_with_all_biases_agrees() {
    agrees_with_the_reference("tiny-llama-bias");
}

#[test]
fn gemma2_agrees() {
    agrees_with_the_reference("tiny-gemma2");
}

#[test]
fn gemma3_agrees() {
    agrees_with_the_reference("tiny-gemma3");
}

#[test]
fn baichuan2_agrees() {
    agrees_with_the_reference("tiny-baichuan2");
}

/// A golden model whose config.json has other values for some keys.
pub(crate) fn changed_dir(name: &str, changes: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let read = |file: &str| std::fs::read(folder(name).join(file)).unwrap();
    let mut config: Value = serde_json::from_slice(&read("config.json")).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let write = |file: &str, bytes: &[u8]| std::fs::write(Path::new(dir.path()).join(file), bytes).unwrap();
    write("config.json", config.to_string().as_bytes());
    if folder(name).join("model.safetensors").is_file() {
        write("model.safetensors", &read("model.safetensors"));
    }
    dir
}

fn changed(name: &str, changes: &Value, format: LoadFormat) -> ModelRunner {
    runner(changed_dir(name, changes).path(), format)
}

/// Were one of these read wrongly, the golden tests would see it.
#[test]
fn each_part_of_a_family_changes_logits() {
    for (name, change) in [
        ("tiny-qwen2", json!({"sliding_window": 9})),
        ("tiny-qwen2", json!({"max_window_layers": 2})),
        ("tiny-qwen2", json!({"use_sliding_window": false})),
        ("tiny-mistral", json!({"sliding_window": 7})),
        ("tiny-mistral", json!({"sliding_window": null})),
        ("tiny-qwen3", json!({"rope_theta": 10000.0})),
        ("tiny-gemma2", json!({"attn_logit_softcapping": null})),
        ("tiny-gemma2", json!({"final_logit_softcapping": null})),
        ("tiny-gemma2", json!({"query_pre_attn_scalar": 24})),
        ("tiny-gemma2", json!({"hidden_activation": "silu"})),
        ("tiny-gemma2", json!({"sliding_window": 9})),
        (
            "tiny-gemma2",
            json!({"layer_types": ["full_attention", "sliding_attention", "full_attention",
                                               "sliding_attention"]}),
        ),
        ("tiny-gemma3", json!({"rope_local_base_freq": 50000.0})),
        ("tiny-gemma3", json!({"rope_theta": 1000.0})),
        ("tiny-gemma3", json!({"rope_scaling": null})),
        ("tiny-gemma3", json!({"sliding_window_pattern": 6})),
        ("tiny-gemma3", json!({"sliding_window": 16})),
    ] {
        let longest = cases(&folder(name)).pop().unwrap();
        let found = changed(name, &change, LoadFormat::Auto).logits(&longest.prompt, CHUNK_MOST).unwrap();
        let last = &found[found.len() - longest.logits[0].len()..];
        let d = distance(last, longest.logits.last().unwrap());
        assert!(d > 5e-3, "{name} with {change} is {d:e} apart");
    }
}

#[test]
fn chunks_do_not_change_logits_in_half_precision() {
    for name in ["tiny-qwen2", "tiny-mistral", "tiny-qwen3", "tiny-gemma2", "tiny-gemma3", "tiny-baichuan2"] {
        for dtype in ["bfloat16", "float16"] {
            let mut runner = changed(name, &json!({"torch_dtype": dtype}), LoadFormat::Dummy);
            let prompt: Vec<u32> = (0..90).map(|i| i * 37 % 251).collect();
            let whole = runner.logits(&prompt, CHUNK_MOST).unwrap();
            assert!(whole.iter().all(|x| x.is_finite()) && whole.iter().any(|x| x.abs() > 0.05), "{name} {dtype}");
            for chunk in CHUNKS {
                let chunked = runner.logits(&prompt, chunk).unwrap();
                assert!(bits(&whole) == bits(&chunked), "{name} {dtype}, chunks of {chunk}");
            }
        }
    }
}
