use super::*;
use crate::base::config::LoadFormat;
use crate::base::{Error, ErrorKind};
use crate::hal::registry::{DeviceOptions, open};
use crate::model::{inspect, load};
use serde_json::{Value, json};
use std::path::Path;

const HIDDEN: usize = 8;

/// Names and shapes of a one-layer model.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![20, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![20, HIDDEN]),
        (layer("input_layernorm"), vec![HIDDEN]),
        (layer("post_attention_layernorm"), vec![HIDDEN]),
        (layer("self_attn.q_proj"), vec![8, HIDDEN]),
        (layer("self_attn.k_proj"), vec![4, HIDDEN]),
        (layer("self_attn.v_proj"), vec![4, HIDDEN]),
        (layer("self_attn.o_proj"), vec![HIDDEN, 8]),
        (layer("mlp.gate_proj"), vec![6, HIDDEN]),
        (layer("mlp.up_proj"), vec![6, HIDDEN]),
        (layer("mlp.down_proj"), vec![HIDDEN, 6]),
    ];
    all.sort();
    all
}

/// A safetensors file of zeros in f32, with `claim` added to the claimed header length.
fn file(tensors: &[(String, Vec<usize>)], dtype: &str, claim: u64) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let from = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [from, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64 + claim).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + end, 0);
    bytes
}

fn directory(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 20, "hidden_size": HIDDEN,
        "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn try_load(dir: &Path) -> Result<()> {
    let info = inspect(dir)?;
    let device = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() })?;
    load(&info, dir, LoadFormat::Auto, device.as_ref(), (32, &mut |_| Ok(()))).map(drop)
}

fn refused(bytes: Vec<u8>) -> Error {
    try_load(directory(&[("model.safetensors", bytes)]).path()).unwrap_err()
}

#[test]
fn whole_files_load() {
    try_load(directory(&[("model.safetensors", file(&shapes(), "F32", 0))]).path()).unwrap();
}

#[test]
fn broken_files_are_named() {
    let whole = file(&shapes(), "F32", 0);
    let short = whole[..whole.len() - 1].to_vec();
    for bytes in [short, whole[..4].to_vec(), whole[..40].to_vec(), vec![], file(&shapes(), "F32", 1 << 40)] {
        let e = refused(bytes);
        assert!(matches!(e.kind, ErrorKind::Invalid | ErrorKind::Io), "{e:?}");
        assert!(e.message.contains("model.safetensors"), "{e}");
    }
    assert!(try_load(directory(&[]).path()).unwrap_err().message.contains("model.safetensors"));
}

#[test]
fn wrong_tensors_are_named() {
    let mut missing = shapes();
    missing.retain(|t| !t.0.contains("up_proj"));
    assert!(refused(file(&missing, "F32", 0)).message.contains("mlp.up_proj"));

    let mut extra = shapes();
    extra.push(("model.layers.1.mlp.up_proj.weight".to_owned(), vec![6, HIDDEN]));
    assert!(refused(file(&extra, "F32", 0)).message.contains("model.layers.1.mlp"));

    let mut leftover = shapes();
    leftover.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![2]));
    try_load(directory(&[("model.safetensors", file(&leftover, "F32", 0))]).path()).unwrap();

    let mut shape = shapes();
    shape.iter_mut().filter(|t| t.0.contains("k_proj")).for_each(|t| t.1 = vec![HIDDEN, 4]);
    let e = refused(file(&shape, "F32", 0));
    assert!(["k_proj", "[8, 4]", "[4, 8]"].iter().all(|word| e.message.contains(word)), "{e}");

    let e = refused(file(&shapes(), "I32", 0));
    assert!(e.kind == ErrorKind::Unsupported && e.message.contains("I32"), "{e}");
}

#[test]
fn shards_are_followed_and_stay_in_the_directory() {
    let all = shapes();
    let (first, second) = all.split_at(5);
    let map = |to: &dyn Fn(usize) -> &'static str| -> Vec<u8> {
        let entries = all.iter().enumerate().map(|(i, t)| (t.0.clone(), Value::from(to(i))));
        json!({"weight_map": Value::Object(entries.collect())}).to_string().into_bytes()
    };
    let right = |i: usize| if i < 5 { "a.safetensors" } else { "b.safetensors" };
    let with = |index: Vec<u8>| {
        directory(&[
            ("a.safetensors", file(first, "F32", 0)),
            ("b.safetensors", file(second, "F32", 0)),
            ("model.safetensors.index.json", index),
        ])
    };
    try_load(with(map(&right)).path()).unwrap();
    let swapped = map(&|i| if i == 0 { "b.safetensors" } else { right(i) });
    assert!(try_load(with(swapped).path()).unwrap_err().message.contains("a.safetensors"));
    let outside = map(&|i| if i == 0 { "../a.safetensors" } else { right(i) });
    assert!(try_load(with(outside).path()).unwrap_err().message.contains("beside"));
    let absent = map(&|i| if i == 0 { "c.safetensors" } else { right(i) });
    assert!(try_load(with(absent).path()).unwrap_err().message.contains("c.safetensors"));
}
