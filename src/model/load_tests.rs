use super::*;
use crate::hal::registry as devices;
use crate::hal::registry::DeviceOptions;
use crate::model;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

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

fn config(dir: &Path, more: &Value) -> ModelInfo {
    let mut config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 24,
        "max_position_embeddings": 64, "torch_dtype": "float32", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    model::inspect(dir).unwrap()
}

/// Loads what is in `dir`; the last progress told.
fn try_load(dir: &Path, more: &Value, format: LoadFormat) -> Result<LoadProgress> {
    let info = config(dir, more);
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
    let p = try_load(dir.path(), &json!({}), LoadFormat::Dummy).unwrap();
    assert_eq!(p.bytes_done, p.bytes_total);
    let (all, mut map) = (whole(), serde_json::Map::new());
    for (file, part) in [("a.safetensors", &all[..9]), ("b.safetensors", &all[9..])] {
        write(dir.path(), file, part);
        map.extend(part.iter().map(|t| (t.0.clone(), json!(file))));
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(try_load(dir.path(), &json!({}), LoadFormat::Auto).unwrap(), p);
}

#[test]
fn an_error_of_the_listener_ends_the_loading() {
    let dir = tempfile::tempdir().unwrap();
    let info = config(dir.path(), &json!({}));
    let device = devices::open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
    let mut calls = 0;
    let mut stop = |_| {
        calls += 1;
        Err(Error::invalid("enough"))
    };
    let e = load(&info, dir.path(), LoadFormat::Dummy, device.as_ref(), (64, &mut stop)).unwrap_err();
    assert_eq!((e.message.as_str(), calls), ("enough", 1));
}

/// What the families add to [`whole`]: parts of a layer and their shapes.
const BIASES: [(&str, &[usize]); 3] =
    [("self_attn.q_proj.bias", &[16]), ("self_attn.k_proj.bias", &[8]), ("self_attn.v_proj.bias", &[8])];
const HEAD_NORMS: [(&str, &[usize]); 2] = [("self_attn.q_norm.weight", &[4]), ("self_attn.k_norm.weight", &[4])];
const BRANCH_NORMS: [(&str, &[usize]); 2] =
    [("pre_feedforward_layernorm.weight", &[16]), ("post_feedforward_layernorm.weight", &[16])];

fn with(parts: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    let mut all = whole();
    for i in 0..2 {
        all.extend(parts.iter().map(|(part, shape)| (format!("model.layers.{i}.{part}"), shape.to_vec())));
    }
    all
}

#[test]
fn parts_of_families_load_and_what_is_wrong_with_them_is_named() {
    let qwen3 = json!({"architectures": ["Qwen3ForCausalLM"], "head_dim": 4});
    let gemma = json!({"architectures": ["Gemma3ForCausalLM"], "head_dim": 4});
    let gemma_parts = [HEAD_NORMS, BRANCH_NORMS].concat();
    let load_of = |more: &Value, tensors: &[(String, Vec<usize>)]| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", tensors);
        try_load(dir.path(), more, LoadFormat::Auto)
    };
    for (more, parts) in [
        (json!({"architectures": ["Qwen2ForCausalLM"]}), BIASES.as_slice()),
        (qwen3.clone(), HEAD_NORMS.as_slice()),
        (gemma, gemma_parts.as_slice()),
    ] {
        let p = load_of(&more, &with(parts)).unwrap();
        assert_eq!(p.bytes_done, p.bytes_total, "{more}");
        assert_eq!(p, try_load(tempfile::tempdir().unwrap().path(), &more, LoadFormat::Dummy).unwrap(), "{more}");
        for (i, part) in parts.iter().enumerate() {
            let missing = [&parts[..i], &parts[i + 1..]].concat();
            let e = load_of(&more, &with(&missing)).unwrap_err();
            let name = format!("model.layers.0.{}", part.0);
            assert!(e.message.contains(&name) && e.message.contains("missing"), "{e}");
            let mut wrong = parts.to_vec();
            wrong[i].1 = &[5];
            let e = load_of(&more, &with(&wrong)).unwrap_err();
            assert!(e.message.contains(&name) && e.message.contains("[5]"), "{e}");
        }
        // The same tensors are too many for a plain Llama.
        let e = load_of(&json!({}), &with(parts)).unwrap_err();
        assert!(e.message.contains("no place"), "{e}");
    }
}

#[test]
fn a_head_of_unit_rows_keeps_its_dtype() {
    let bytes: Vec<u8> = [3.0, 4.0, 0.0, 0.0].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    let data = WeightData { dtype: DType::Bf16, bytes: Cow::Owned(bytes), file: None };
    let unit = with_unit_rows(&data, 2).unwrap();
    let values = widened(&unit).bytes;
    let values: Vec<f32> = values.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(unit.dtype, DType::Bf16);
    assert_eq!(values, [bf16::from_f32(0.6).to_f32(), bf16::from_f32(0.8).to_f32(), 0.0, 0.0]);
}
