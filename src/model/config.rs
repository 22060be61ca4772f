//! config.json and generation_config.json of a Hugging Face model directory.

use crate::base::{DType, Error, Result, Token};
use crate::model::fields::Fields;
use crate::model::registry;
use crate::model::spec::DecoderSpec;
use serde_json::Value;
use std::path::Path;

/// Bytes of a config file that are read.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
pub(crate) const MAX_POSITION: usize = 1 << 24;

/// What a model directory says about itself, before any weight is read.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// First entry of config.json's `architectures`.
    pub architecture: String,
    pub spec: DecoderSpec,
    /// Dtype the config names for the matrices; also that of the KV cache.
    pub dtype: DType,
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub max_position: usize,
    /// Sorted, without duplicates; generation_config.json goes before config.json.
    pub eos_tokens: Vec<Token>,
    pub bos_token: Option<Token>,
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<i32>,
    pub top_p: Option<f32>,
    /// Bytes of the weights on a device without a backend's padding.
    pub weight_bytes: usize,
}

/// How requests are sampled that do not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    pub temperature: f32,
    pub top_k: i32,
    pub top_p: f32,
}

impl ModelInfo {
    /// The generation config's values; 1, all and 1 where it is silent, and greedy where it switches sampling off.
    pub fn sampling_defaults(&self) -> SamplingDefaults {
        let temperature = if self.do_sample == Some(false) { 0.0 } else { self.temperature.unwrap_or(1.0) };
        SamplingDefaults { temperature, top_k: self.top_k.unwrap_or(0), top_p: self.top_p.unwrap_or(1.0) }
    }
}

/// Reads config.json and, where there is one, generation_config.json. Errors name the file and the key; an architecture,
/// rope scaling or bias that is not built is `Unsupported`.
pub fn inspect(dir: &Path) -> Result<ModelInfo> {
    let fields = Fields::read(&dir.join("config.json"), MAX_CONFIG_BYTES)?;
    let architecture = architecture(&fields)?;
    let spec = (registry::find(&architecture).map_err(|e| e.within(fields.place()))?.spec)(&fields)?;
    let dtype = dtype(&fields)?;
    let vocab_size = spec.vocab_size;
    let path = dir.join("generation_config.json");
    let generation = if path.exists() { Some(Fields::read(&path, MAX_CONFIG_BYTES)?) } else { None };
    let (matrices, vectors) = spec.weight_elements();
    let mut info = ModelInfo {
        architecture,
        dtype,
        vocab_size,
        max_position: fields.need_count("max_position_embeddings", MAX_POSITION)?,
        eos_tokens: fields.tokens("eos_token_id", vocab_size)?.unwrap_or_default(),
        bos_token: fields.tokens("bos_token_id", vocab_size)?.and_then(|t| t.first().copied()),
        do_sample: None,
        temperature: None,
        top_k: None,
        top_p: None,
        weight_bytes: matrices * dtype.size() + vectors * DType::F32.size(),
        spec,
    };
    if let Some(generation) = generation {
        add_generation(&mut info, &generation)?;
    }
    info.eos_tokens.sort_unstable();
    info.eos_tokens.dedup();
    Ok(info)
}

fn add_generation(info: &mut ModelInfo, fields: &Fields) -> Result<()> {
    if let Some(eos) = fields.tokens("eos_token_id", info.vocab_size)? {
        info.eos_tokens = eos;
    }
    if let Some(bos) = fields.tokens("bos_token_id", info.vocab_size)? {
        info.bos_token = bos.first().copied();
    }
    let number = |key: &str, low: f64, high: f64| match fields.get(key).map(Value::as_f64) {
        None => Ok(None),
        Some(Some(x)) if (low..=high).contains(&x) => Ok(Some(x)),
        Some(_) => Err(fields.wrong(key, &format!("a number from {low} to {high}"))),
    };
    info.do_sample = fields.flag("do_sample")?;
    info.temperature = number("temperature", 0.0, 100.0)?.map(|x| x as f32);
    info.top_k = number("top_k", -1.0, f64::from(i32::MAX))?.map(|x| x as i32);
    info.top_p = number("top_p", f64::from(f32::MIN_POSITIVE), 1.0)?.map(|x| x as f32);
    Ok(())
}

fn architecture(fields: &Fields) -> Result<String> {
    let expected = "a list with the name of a model class";
    match fields.get("architectures") {
        None => Err(fields.missing("architectures", expected)),
        Some(Value::Array(names)) => match names.first() {
            Some(Value::String(name)) => Ok(name.clone()),
            _ => Err(fields.wrong("architectures", expected)),
        },
        Some(_) => Err(fields.wrong("architectures", expected)),
    }
}

/// The dtype the config names.
pub(crate) fn dtype(fields: &Fields) -> Result<DType> {
    let key = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match fields.text(key)? {
        None | Some("float32") => Ok(DType::F32),
        Some("float16") => Ok(DType::F16),
        Some("bfloat16") => Ok(DType::Bf16),
        Some(_) => Err(fields.unsupported(key, "float32, float16 and bfloat16")),
    }
}

/// Refuses a longer sequence than a size check can hold.
pub(crate) fn check_length(max_len: usize) -> Result<()> {
    if (1..=MAX_POSITION).contains(&max_len) {
        return Ok(());
    }
    Err(Error::invalid(format!("max_model_len is {max_len}; expected 1 to {MAX_POSITION}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;
    use crate::model::spec::{RopeScaling, RopeSpec};
    use serde_json::json;

    fn base() -> Value {
        json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
               "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
               "max_position_embeddings": 256, "torch_dtype": "bfloat16", "eos_token_id": [7, 3, 7]})
    }

    fn with(changes: Value) -> Result<ModelInfo> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = base();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        inspect(dir.path())
    }

    #[test]
    fn a_plain_config_parses() {
        let info = with(json!({})).unwrap();
        assert_eq!((info.spec.head_dim, info.spec.kv_heads, info.dtype), (16, 2, DType::Bf16));
        assert_eq!(info.eos_tokens, [3, 7]);
        assert_eq!(info.spec.ropes, [RopeSpec { theta: 10_000.0, scaling: RopeScaling::None }]);
    }

    #[test]
    fn both_rope_layouts_agree() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 64});
        let mut parameters = scaling.clone();
        parameters["rope_theta"] = json!(500000.0);
        let old = with(json!({"rope_theta": 500000.0, "rope_scaling": scaling})).unwrap();
        let new = with(json!({"rope_parameters": parameters})).unwrap();
        assert_eq!(old, new);
        assert_eq!(old.spec.ropes[0].theta, 500_000.0);
    }

    #[test]
    fn errors_name_the_key_and_the_kind() {
        use ErrorKind::{Invalid, Unsupported};
        for (change, kind, word) in [
            (json!({"hidden_size": 0}), Invalid, "hidden_size"),
            (json!({"hidden_size": null}), Invalid, "hidden_size"),
            (json!({"num_hidden_layers": 1e30}), Invalid, "num_hidden_layers"),
            (json!({"num_key_value_heads": 3}), Invalid, "num_key_value_heads"),
            (json!({"rms_norm_eps": -1.0}), Invalid, "rms_norm_eps"),
            (json!({"eos_token_id": 100}), Invalid, "eos_token_id"),
            (json!({"head_dim": 15}), Invalid, "head_dim"),
            (json!({"architectures": []}), Invalid, "architectures"),
            (json!({"architectures": ["BertModel"]}), Unsupported, "LlamaForCausalLM"),
            (json!({"attention_bias": 1}), Invalid, "attention_bias"),
            (json!({"hidden_act": "gelu"}), Unsupported, "hidden_act"),
            (json!({"torch_dtype": "int8"}), Unsupported, "torch_dtype"),
            (json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}), Unsupported, "yarn"),
            (json!({"rope_scaling": {"type": "linear"}}), Invalid, "factor"),
            (json!({"quantization_config": {}}), Unsupported, "quantization_config"),
        ] {
            let e = with(change.clone()).expect_err(&change.to_string());
            assert!(e.kind == kind && e.message.contains(word), "{change}: {e:?}");
        }
    }

    #[test]
    fn generation_config_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), base().to_string()).unwrap();
        let generation = json!({"eos_token_id": 9, "temperature": 0.6, "top_p": 0.9, "do_sample": true});
        std::fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
        let info = inspect(dir.path()).unwrap();
        assert_eq!(info.eos_tokens, [9]);
        assert_eq!(info.sampling_defaults(), SamplingDefaults { temperature: 0.6, top_k: 0, top_p: 0.9 });
    }
}
