//! Qwen2 and 2.5 (biases on queries, keys and values) and Qwen3 (norms of query and key heads instead).

use crate::base::Result;
use crate::model::arch::llama;
use crate::model::dense::{self, Defaults, dense_decoder};
use crate::model::fields::Fields;
use crate::model::registry::Family;
use crate::model::spec::{Biases, DecoderSpec};

pub(crate) const QWEN2: Family = Family { architecture: "Qwen2ForCausalLM", spec: qwen2, names: &llama::NAMES };
pub(crate) const QWEN3: Family = Family { architecture: "Qwen3ForCausalLM", spec: qwen3, names: &llama::NAMES };

fn qwen2(fields: &Fields) -> Result<DecoderSpec> {
    let mut spec = dense_decoder(fields, Defaults::LLAMA)?;
    spec.biases.qkv = true;
    set_windows(&mut spec, fields)?;
    Ok(spec)
}

fn qwen3(fields: &Fields) -> Result<DecoderSpec> {
    let mut spec = dense_decoder(fields, Defaults { head_dim: Some(128), ..Defaults::LLAMA })?;
    let biases = fields.flag("attention_bias")?.unwrap_or(false);
    spec.biases = Biases { qkv: biases, output: biases, mlp: false };
    spec.head_norms = true;
    set_windows(&mut spec, fields)?;
    Ok(spec)
}

/// `sliding_window` counts only with `use_sliding_window`, and then in the layers from `max_window_layers` on.
fn set_windows(spec: &mut DecoderSpec, fields: &Fields) -> Result<()> {
    let window = match fields.flag("use_sliding_window")? {
        Some(true) => dense::window(fields, 4096)?,
        _ => None,
    };
    let first = fields.whole("max_window_layers", dense::MAX_LAYERS)?.unwrap_or(28);
    let slides = dense::sliding_layers(fields, spec.layers.len(), |i| window.is_some() && i >= first)?;
    dense::set_windows(spec, fields, &slides, window)
}
