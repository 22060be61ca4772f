//! Configs in the shape of published checkpoints, and what each family makes of them.

use crate::base::{Error, ErrorKind, Result};
use crate::hal::ops::Activation;
use crate::model::inspect;
use crate::model::spec::{Biases, DecoderSpec, RopeScaling};
use serde_json::{Value, json};

fn parse(config: &Value) -> Result<DecoderSpec> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    inspect(dir.path()).map(|info| info.spec)
}

/// `(hidden, inner, layers, heads, kv heads, vocabulary)` as config keys.
fn config(
    architecture: &str,
    (hidden, inner, layers, heads, kv_heads, vocab): (usize, usize, usize, usize, usize, usize),
    more: Value,
) -> Value {
    let mut all = json!({"architectures": [architecture], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16"});
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    all
}

fn windows(spec: &DecoderSpec) -> Vec<Option<u32>> {
    spec.layers.iter().map(|l| l.window).collect()
}

/// Parameters in billions.
fn size(spec: &DecoderSpec) -> f64 {
    let (matrices, vectors) = spec.weight_elements();
    (matrices + vectors) as f64 / 1e9
}

fn near(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 0.005, "{found}, expected {expected}");
}

#[test]
fn yi_is_a_llama() {
    let shape = (4096, 11008, 32, 32, 4, 64000);
    let more = json!({"hidden_act": "silu", "rope_theta": 5000000.0, "rope_scaling": null, "tie_word_embeddings": false,
        "pretraining_tp": 1, "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0});
    let spec = parse(&config("LlamaForCausalLM", shape, more)).unwrap();
    assert_eq!((spec.head_dim, spec.ropes[0].theta, spec.biases), (128, 5e6, Biases::default()));
    near(size(&spec), 6.06);
}

#[test]
fn mistral_slides_as_its_file_says() {
    let with = |more| parse(&config("MistralForCausalLM", (4096, 14336, 32, 32, 8, 32000), more)).unwrap();
    let spec = with(json!({"sliding_window": 4096, "hidden_act": "silu"}));
    assert_eq!(windows(&spec), [Some(4096); 32]);
    near(size(&spec), 7.24);
    assert_eq!(windows(&with(json!({"sliding_window": null}))), [None; 32]);
    // The reference's default where the key is absent.
    assert_eq!(windows(&with(json!({}))), [Some(4096); 32]);
    assert_eq!(with(json!({"head_dim": 160})).attention_size(), 32 * 160);
}

#[test]
fn qwen2_has_biases_and_may_slide_in_upper_layers() {
    let with = |more| parse(&config("Qwen2ForCausalLM", (3584, 18944, 28, 28, 4, 152064), more)).unwrap();
    let published =
        json!({"use_sliding_window": false, "sliding_window": 131072, "max_window_layers": 28, "rope_theta": 1e6});
    let spec = with(published);
    assert_eq!((windows(&spec), spec.tied), (vec![None; 28], false));
    assert_eq!(spec.biases, Biases { qkv: true, ..Biases::default() });
    near(size(&spec), 7.62);
    let spec = with(json!({"use_sliding_window": true, "sliding_window": 100, "max_window_layers": 26}));
    assert_eq!(windows(&spec)[25..], [None, Some(100), Some(100)]);
    let mut types = vec!["full_attention"; 28];
    types[3] = "sliding_attention";
    let spec = with(json!({"use_sliding_window": true, "sliding_window": 100, "layer_types": types}));
    assert_eq!(windows(&spec)[2..5], [None, Some(100), None]);
}

#[test]
fn qwen3_norms_heads() {
    let shape = (1024, 3072, 28, 16, 8, 151936);
    let more = json!({"head_dim": 128, "attention_bias": false, "tie_word_embeddings": true, "rope_theta": 1000000,
        "use_sliding_window": false, "sliding_window": null, "max_window_layers": 28});
    let spec = parse(&config("Qwen3ForCausalLM", shape, more)).unwrap();
    assert!(spec.head_norms && spec.tied && spec.biases == Biases::default());
    assert_eq!((spec.head_dim, spec.attention_size()), (128, 2048));
    near(size(&spec), 0.596);
    let spec = parse(&config("Qwen3ForCausalLM", shape, json!({"attention_bias": true}))).unwrap();
    assert_eq!((spec.head_dim, spec.biases), (128, Biases { qkv: true, output: true, mlp: false }));
}

#[test]
fn gemma2_slides_in_every_other_layer() {
    let more = json!({"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "cache_implementation": "hybrid"});
    let spec = parse(&config("Gemma2ForCausalLM", (2304, 9216, 26, 8, 4, 256000), more)).unwrap();
    assert_eq!(windows(&spec)[..3], [Some(4096), None, Some(4096)]);
    assert_eq!((spec.attention_cap, spec.logit_cap), (Some(50.0), Some(30.0)));
    assert_eq!((spec.embed_scale, spec.attention_scale, spec.norm_shift), (48.0, 1.0 / 16.0, 1.0));
    assert!(spec.tied && spec.branch_norms && !spec.head_norms && spec.activation == Activation::GeluTanh);
    near(size(&spec), 2.614);
    let none = json!({"final_logit_softcapping": null, "attn_logit_softcapping": null, "torch_dtype": "bfloat16"});
    let spec = parse(&config("Gemma2ForCausalLM", (3072, 64, 2, 8, 4, 64), none)).unwrap();
    assert_eq!((spec.attention_cap, spec.logit_cap, spec.head_dim), (None, None, 256));
    assert_eq!(spec.embed_scale, 55.5, "the root of 3072 in bfloat16");
}

#[test]
fn gemma3_has_a_rope_for_each_kind_of_layer() {
    let shape = (1152, 6912, 26, 4, 1, 262144);
    let more = json!({"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": null,
        "final_logit_softcapping": null, "query_pre_attn_scalar": 256, "rope_theta": 1000000,
        "rope_local_base_freq": 10000, "rope_scaling": null, "sliding_window": 512, "sliding_window_pattern": 6});
    let spec = parse(&config("Gemma3ForCausalLM", shape, more)).unwrap();
    assert_eq!(windows(&spec)[4..7], [Some(512), None, Some(512)]);
    let ropes: Vec<f32> = spec.layers[4..7].iter().map(|l| spec.ropes[l.rope].theta).collect();
    assert_eq!(ropes, [1e4, 1e6, 1e4]);
    assert!(spec.head_norms && spec.tied);
    near(size(&spec), 0.9999);

    let both = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e4}});
    let old = json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 2e6,
        "rope_local_base_freq": 3e4});
    let new = parse(&config("Gemma3ForCausalLM", shape, json!({"rope_parameters": both}))).unwrap();
    assert_eq!(new, parse(&config("Gemma3ForCausalLM", shape, old)).unwrap());
    assert_eq!(new.ropes[0].scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!((new.ropes[1].theta, new.ropes[1].scaling), (3e4, RopeScaling::None));
}

#[test]
fn baichuan_7b_packs_and_the_second_norms_its_head() {
    let of = |architecture, vocab| {
        let mut config = config(architecture, (4096, 11008, 32, 32, 32, vocab), json!({"model_max_length": 4096}));
        config.as_object_mut().unwrap().remove("num_key_value_heads");
        parse(&config).unwrap()
    };
    let second = of("BaichuanForCausalLM", 125_696);
    assert!(second.unit_head && second.kv_heads == 32);
    near(size(&second), 7.506);
    assert!(!of("BaichuanForCausalLM", 64_000).unit_head && !of("BaiChuanForCausalLM", 64_000).unit_head);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    use ErrorKind::{Invalid, Unsupported};
    let small = (64, 96, 4, 4, 2, 100);
    let refused = |architecture: &str, more: Value| -> Error {
        parse(&config(architecture, small, more.clone())).expect_err(&format!("{architecture} with {more}"))
    };
    for (architecture, more, kind, word) in [
        ("BaichuanForCausalLM", json!({"hidden_size": 5120, "num_attention_heads": 40}), Unsupported, "ALiBi"),
        ("BaichuanForCausalLM", json!({"num_hidden_layers": 40}), Unsupported, "ALiBi"),
        ("BaichuanForCausalLM", json!({}), Unsupported, "num_key_value_heads"),
        ("Gemma3ForConditionalGeneration", json!({}), Unsupported, "Gemma3ForCausalLM"),
        ("Gemma3ForCausalLM", json!({"use_bidirectional_attention": true}), Unsupported, "use_bidirectional"),
        ("Gemma2ForCausalLM", json!({"hidden_activation": "gelu"}), Unsupported, "hidden_activation"),
        ("Gemma2ForCausalLM", json!({"attn_logit_softcapping": -1.0}), Invalid, "attn_logit_softcapping"),
        ("Gemma2ForCausalLM", json!({"sliding_window": null}), Invalid, "sliding_window"),
        ("Gemma2ForCausalLM", json!({"layer_types": ["full_attention"]}), Invalid, "layer_types"),
        ("Gemma3ForCausalLM", json!({"layer_types": ["a", "b", "c", "d"]}), Invalid, "layer_types"),
        ("Gemma3ForCausalLM", json!({"sliding_window_pattern": 0}), Invalid, "sliding_window_pattern"),
        ("Gemma3ForCausalLM", json!({"rope_parameters": {"rope_theta": 1.0}}), Invalid, "full_attention"),
        ("Gemma3ForCausalLM", json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), Unsupported, "yarn"),
        ("MistralForCausalLM", json!({"sliding_window": 0}), Invalid, "sliding_window"),
        ("MistralForCausalLM", json!({"layer_types": ["full_attention"]}), Unsupported, "layer_types"),
        ("MistralForCausalLM", json!({"sliding_window": "4k"}), Invalid, "sliding_window"),
        ("Qwen2ForCausalLM", json!({"max_window_layers": -1}), Invalid, "max_window_layers"),
        ("Qwen2ForCausalLM", json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), Unsupported, "dynamic"),
        ("Qwen3ForCausalLM", json!({"rope_scaling": {"rope_type": "longrope"}}), Unsupported, "longrope"),
        ("Qwen3ForCausalLM", json!({"partial_rotary_factor": 0.5}), Unsupported, "partial_rotary_factor"),
        ("Qwen3ForCausalLM", json!({"head_dim": 9}), Invalid, "head_dim"),
    ] {
        let e = refused(architecture, more);
        assert!(e.kind == kind && e.message.contains(word), "{architecture}, {word}: {e:?}");
    }
}
