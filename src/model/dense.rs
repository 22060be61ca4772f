//! The config keys that dense decoders share, and what their absence means.

use crate::base::Result;
use crate::hal::ops::Activation;
use crate::model::config::MAX_POSITION;
use crate::model::fields::Fields;
use crate::model::spec::{Biases, DecoderSpec, LayerSpec, RopeScaling, RopeSpec};
use serde_json::Value;

const MAX_WIDTH: usize = 1 << 20;
pub(crate) const MAX_LAYERS: usize = 1024;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 1024;
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_WINDOW: usize = MAX_POSITION;

/// What a family's files may leave out, as the reference implementation reads them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    /// `None`: hidden size over heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) tied: bool,
    /// Key of the MLP's activation, and its value.
    pub(crate) activation: (&'static str, Activation),
}

impl Defaults {
    pub(crate) const LLAMA: Self = Self { head_dim: None, tied: false, activation: ("hidden_act", Activation::Silu) };
}

/// A decoder of Llama's shape: no biases, windows or caps, one rope.
pub(crate) fn dense_decoder(fields: &Fields, defaults: Defaults) -> Result<DecoderSpec> {
    if fields.get("quantization_config").is_some() {
        return Err(fields.unsupported("quantization_config", "only weights that are not quantized"));
    }
    let hidden_size = fields.need_count("hidden_size", MAX_WIDTH)?;
    let heads = fields.need_count("num_attention_heads", MAX_HEADS)?;
    let kv_heads = fields.count("num_key_value_heads", MAX_HEADS)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.wrong("num_key_value_heads", &format!("a divisor of num_attention_heads, {heads}")));
    }
    let head_dim = match fields.count("head_dim", MAX_HEAD_DIM)?.or(defaults.head_dim) {
        Some(dim) if dim.is_multiple_of(2) => dim,
        Some(_) => return Err(fields.wrong("head_dim", "an even number")),
        None if hidden_size.is_multiple_of(2 * heads) && hidden_size / heads <= MAX_HEAD_DIM => hidden_size / heads,
        None => {
            return Err(fields.wrong("hidden_size", &format!("an even multiple of num_attention_heads, {heads}")));
        }
    };
    let layers = fields.need_count("num_hidden_layers", MAX_LAYERS)?;
    Ok(DecoderSpec {
        vocab_size: fields.need_count("vocab_size", MAX_VOCABULARY)?,
        hidden_size,
        intermediate_size: fields.need_count("intermediate_size", MAX_WIDTH)?,
        layers: vec![LayerSpec { window: None, rope: 0 }; layers],
        heads,
        kv_heads,
        head_dim,
        activation: activation(fields, defaults.activation)?,
        biases: Biases::default(),
        head_norms: false,
        branch_norms: false,
        norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        norm_shift: 0.0,
        embed_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        ropes: vec![rope(fields)?],
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
        unit_head: false,
    })
}

fn activation(fields: &Fields, (key, default): (&str, Activation)) -> Result<Activation> {
    match fields.text(key)? {
        None => Ok(default),
        Some("silu") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(_) => Err(fields.unsupported(key, "\"silu\" and \"gelu_pytorch_tanh\"")),
    }
}

/// Base and scaling, from `rope_parameters` (newer files) or `rope_theta` and `rope_scaling`.
fn rope(fields: &Fields) -> Result<RopeSpec> {
    let nested = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let theta = match nested.as_ref().map(|n| n.positive("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => fields.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    whole_heads_rotate(fields)?;
    Ok(RopeSpec { theta: theta as f32, scaling: nested.as_ref().map_or(Ok(RopeScaling::None), rope_scaling)? })
}

/// Refuses rotation of a part of each head.
pub(crate) fn whole_heads_rotate(fields: &Fields) -> Result<()> {
    match fields.positive("partial_rotary_factor")? {
        Some(f) if f != 1.0 => Err(fields.unsupported("partial_rotary_factor", "only 1")),
        _ => Ok(()),
    }
}

/// The scaling that an object with `rope_type` (or, in old files, `type`) describes.
pub(crate) fn rope_scaling(rope: &Fields) -> Result<RopeScaling> {
    whole_heads_rotate(rope)?;
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    let number = |key: &str| rope.need_positive(key).map(|x| x as f32);
    match rope.text(key)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if low >= high {
                return Err(rope.wrong("high_freq_factor", &format!("a number above low_freq_factor, {low}")));
            }
            let original = rope.need_count("original_max_position_embeddings", MAX_POSITION)?;
            Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position: original as f32,
            })
        }
        Some(_) => Err(rope.unsupported(key, "default, linear and llama3")),
    }
}

/// `sliding_window`; a file that is silent means `default`, null means none.
pub(crate) fn window(fields: &Fields, default: u32) -> Result<Option<u32>> {
    if fields.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(Some(fields.count("sliding_window", MAX_WINDOW)?.map_or(default, |n| n as u32)))
}

/// Which layers slide: `layer_types` where the file has it, else the family's rule.
pub(crate) fn sliding_layers(fields: &Fields, layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let expected = format!("a list of \"sliding_attention\" or \"full_attention\" for each of {layers} layers");
    let Some(types) = fields.get("layer_types") else { return Ok((0..layers).map(rule).collect()) };
    let slides = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let kinds: Option<Vec<bool>> = types.as_array().and_then(|list| list.iter().map(slides).collect());
    kinds.filter(|k| k.len() == layers).ok_or_else(|| fields.wrong("layer_types", &expected))
}

/// The window of each layer.
pub(crate) fn set_windows(spec: &mut DecoderSpec, fields: &Fields, slides: &[bool], window: Option<u32>) -> Result<()> {
    if window.is_none() && slides.contains(&true) {
        return Err(fields.wrong("sliding_window", "a number of tokens, as layer_types has sliding layers"));
    }
    for (layer, slides) in spec.layers.iter_mut().zip(slides) {
        layer.window = window.filter(|_| *slides);
    }
    Ok(())
}
