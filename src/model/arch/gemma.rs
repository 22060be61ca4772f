//! Gemma 2 and the text models of Gemma 3: scaled embeddings, norms around both branches with weights that count from 1,
//! sliding and full layers in turn.

use crate::base::{DType, Result};
use crate::hal::ops::Activation;
use crate::model::arch::llama;
use crate::model::config;
use crate::model::dense::{self, Defaults, dense_decoder};
use crate::model::fields::Fields;
use crate::model::registry::Family;
use crate::model::spec::{Biases, DecoderSpec, RopeScaling, RopeSpec, WeightNames};
use half::{bf16, f16};

pub(crate) const GEMMA2: Family = Family { architecture: "Gemma2ForCausalLM", spec: gemma2, names: &NAMES };
pub(crate) const GEMMA3: Family = Family { architecture: "Gemma3ForCausalLM", spec: gemma3, names: &NAMES };

const NAMES: WeightNames = WeightNames {
    attention_norm: "post_attention_layernorm.weight",
    post_norm: "pre_feedforward_layernorm.weight",
    mlp_norm: "post_feedforward_layernorm.weight",
    ..llama::NAMES
};

const DEFAULTS: Defaults =
    Defaults { head_dim: Some(256), tied: true, activation: ("hidden_activation", Activation::GeluTanh) };

fn gemma2(fields: &Fields) -> Result<DecoderSpec> {
    let mut spec = gemma(fields, dense_decoder(fields, DEFAULTS)?)?;
    spec.attention_cap = cap(fields, "attn_logit_softcapping", Some(50.0))?;
    spec.logit_cap = cap(fields, "final_logit_softcapping", Some(30.0))?;
    let slides = dense::sliding_layers(fields, spec.layers.len(), |i| i % 2 == 0)?;
    dense::set_windows(&mut spec, fields, &slides, dense::window(fields, 4096)?)?;
    Ok(spec)
}

fn gemma3(fields: &Fields) -> Result<DecoderSpec> {
    let ropes = ropes(fields)?;
    let mut spec = gemma(fields, dense_decoder(&fields.without("rope_parameters"), DEFAULTS)?)?;
    spec.head_norms = true;
    spec.attention_cap = cap(fields, "attn_logit_softcapping", None)?;
    spec.logit_cap = cap(fields, "final_logit_softcapping", None)?;
    spec.ropes = ropes;
    let pattern = fields.count("sliding_window_pattern", dense::MAX_LAYERS)?.unwrap_or(6);
    let slides = dense::sliding_layers(fields, spec.layers.len(), |i| !(i + 1).is_multiple_of(pattern))?;
    dense::set_windows(&mut spec, fields, &slides, dense::window(fields, 4096)?)?;
    for (layer, slides) in spec.layers.iter_mut().zip(slides) {
        layer.rope = usize::from(slides);
    }
    Ok(spec)
}

/// What both generations have.
fn gemma(fields: &Fields, spec: DecoderSpec) -> Result<DecoderSpec> {
    if fields.flag("use_bidirectional_attention")? == Some(true) {
        return Err(fields.unsupported("use_bidirectional_attention", "only false"));
    }
    let biases = fields.flag("attention_bias")?.unwrap_or(false);
    let scalar = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    // The reference keeps the factor in the dtype of the table.
    let root = (spec.hidden_size as f32).sqrt();
    let embed_scale = match config::dtype(fields)? {
        DType::F16 => f16::from_f32(root).to_f32(),
        DType::Bf16 => bf16::from_f32(root).to_f32(),
        _ => root,
    };
    Ok(DecoderSpec {
        biases: Biases { qkv: biases, output: biases, mlp: false },
        branch_norms: true,
        norm_shift: 1.0,
        embed_scale,
        attention_scale: 1.0 / (scalar as f32).sqrt(),
        ..spec
    })
}

fn cap(fields: &Fields, key: &str, default: Option<f64>) -> Result<Option<f32>> {
    let cap = if fields.is_null(key) { None } else { fields.positive(key)?.or(default) };
    Ok(cap.map(|cap| cap as f32))
}

/// The ropes of full layers and of sliding ones. Scaling at the top level of a file counts for full layers alone.
fn ropes(fields: &Fields) -> Result<Vec<RopeSpec>> {
    let parameters = fields.object("rope_parameters")?;
    let read = |layers: &str, scaling: Option<&str>, (key, default): (&str, f64)| -> Result<RopeSpec> {
        let nested = match (&parameters, scaling) {
            (Some(parameters), _) => match parameters.object(layers)? {
                Some(nested) => Some(nested),
                None => return Err(parameters.missing(layers, "an object with rope_theta and rope_type")),
            },
            (None, Some(scaling)) => fields.object(scaling)?,
            (None, None) => None,
        };
        let inner = nested.as_ref().map(|n| n.positive("rope_theta")).transpose()?.flatten();
        let theta = inner.or(fields.positive(key)?).unwrap_or(default) as f32;
        Ok(RopeSpec { theta, scaling: nested.as_ref().map_or(Ok(RopeScaling::None), dense::rope_scaling)? })
    };
    Ok(vec![
        read("full_attention", Some("rope_scaling"), ("rope_theta", 1e6))?,
        read("sliding_attention", None, ("rope_local_base_freq", 1e4))?,
    ])
}
