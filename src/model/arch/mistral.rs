//! Mistral: Llama with, in some versions, a sliding window in every layer.

use crate::base::Result;
use crate::model::arch::llama;
use crate::model::dense::{self, Defaults, dense_decoder};
use crate::model::fields::Fields;
use crate::model::registry::Family;
use crate::model::spec::DecoderSpec;

pub(crate) const FAMILY: Family = Family { architecture: "MistralForCausalLM", spec, names: &llama::NAMES };

fn spec(fields: &Fields) -> Result<DecoderSpec> {
    let mut spec = dense_decoder(fields, Defaults::LLAMA)?;
    // The reference reads a list of layer kinds in its Ministral class alone.
    if fields.get("layer_types").is_some() {
        return Err(fields.unsupported("layer_types", "only files of this family without that key"));
    }
    let window = dense::window(fields, 4096)?;
    let slides = vec![window.is_some(); spec.layers.len()];
    dense::set_windows(&mut spec, fields, &slides, window)?;
    Ok(spec)
}
