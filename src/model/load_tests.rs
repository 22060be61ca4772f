use super::*;
use crate::hal::registry as devices;
use crate::hal::registry::DeviceOptions;
use crate::model;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::json;

/// Two layers, untied.
fn whole() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![24, 16]),
        ("model.norm.weight".to_owned(), vec![16]),
        ("lm_head.weight".to_owned(), vec![24, 16]),
    ];
    for i in 0..2 {
        let parts = [
            ("input_layernorm", vec![16]),
            ("self_attn.q_proj", vec![16, 16]),
            ("self_attn.k_proj", vec![8, 16]),
            ("self_attn.v_proj", vec![8, 16]),
            ("self_attn.o_proj", vec![16, 16]),
            ("post_attention_layernorm", vec![16]),
            ("mlp.gate_proj", vec![32, 16]),
            ("mlp.up_proj", vec![32, 16]),
            ("mlp.down_proj", vec![16, 32]),
        ];
        all.extend(parts.map(|(part, shape)| (format!("model.layers.{i}.{part}.weight"), shape)));
    }
    all
}

fn write(dir: &Path, file: &str, tensors: &[(String, Vec<usize>)]) {
    let zeros = vec![0_u8; 1 << 16];
    let view = |shape: &Vec<usize>| {
        let bytes = shape.iter().product::<usize>() * 4;
        TensorView::new(safetensors::Dtype::F32, shape.clone(), &zeros[..bytes]).unwrap()
    };
    let views: Vec<_> = tensors.iter().map(|(name, shape)| (name.clone(), view(shape))).collect();
    serialize_to_file(views, None, &dir.join(file)).unwrap();
}

fn config(dir: &Path) -> ModelInfo {
    let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 24,
        "max_position_embeddings": 64, "torch_dtype": "float32", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    model::inspect(dir).unwrap()
}

/// Loads what is in `dir`; the last progress told.
fn try_load(dir: &Path, format: LoadFormat) -> Result<LoadProgress> {
    let info = config(dir);
    let device = devices::open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() })?;
    let mut last = None;
    let mut progress = |p: LoadProgress| {
        last = Some(p);
        Ok(())
    };
    load(&info, dir, format, device.as_ref(), (64, &mut progress))?;
    Ok(last.unwrap())
}

#[test]
fn whole_sharded_and_dummy_models_load_to_the_last_byte() {
    let dir = tempfile::tempdir().unwrap();
    let p = try_load(dir.path(), LoadFormat::Dummy).unwrap();
    assert_eq!(p.bytes_done, p.bytes_total);
    let (all, mut map) = (whole(), serde_json::Map::new());
    for (file, part) in [("a.safetensors", &all[..9]), ("b.safetensors", &all[9..])] {
        write(dir.path(), file, part);
        map.extend(part.iter().map(|t| (t.0.clone(), json!(file))));
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(try_load(dir.path(), LoadFormat::Auto).unwrap(), p);
}

#[test]
fn an_error_of_the_listener_ends_the_loading() {
    let dir = tempfile::tempdir().unwrap();
    let info = config(dir.path());
    let device = devices::open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
    let mut calls = 0;
    let mut stop = |_| {
        calls += 1;
        Err(Error::invalid("enough"))
    };
    let e = load(&info, dir.path(), LoadFormat::Dummy, device.as_ref(), (64, &mut stop)).unwrap_err();
    assert_eq!((e.message.as_str(), calls), ("enough", 1));
}
