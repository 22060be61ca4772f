//! Llama 2 and 3.x.

use crate::base::Result;
use crate::model::config;
use crate::model::fields::Fields;
use crate::model::registry::Family;
use crate::model::spec::{DecoderSpec, WeightNames};

pub(crate) const FAMILY: Family = Family { architecture: "LlamaForCausalLM", spec, names: &NAMES };

const NAMES: WeightNames = WeightNames {
    embed: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    layer: "model.layers.{}.",
    input_norm: "input_layernorm.weight",
    query: "self_attn.q_proj.weight",
    key: "self_attn.k_proj.weight",
    value: "self_attn.v_proj.weight",
    output: "self_attn.o_proj.weight",
    post_norm: "post_attention_layernorm.weight",
    gate: "mlp.gate_proj.weight",
    up: "mlp.up_proj.weight",
    down: "mlp.down_proj.weight",
    ignored: &["rotary_emb.inv_freq"],
};

fn spec(fields: &Fields) -> Result<DecoderSpec> {
    for key in ["attention_bias", "mlp_bias"] {
        if fields.flag(key)? == Some(true) {
            return Err(fields.unsupported(key, "only false (no bias vectors)"));
        }
    }
    config::dense_decoder(fields)
}
