//! Llama 2 and 3.x, and what is published in its shape (Yi, for one). Other families start from these names.

use crate::base::Result;
use crate::model::dense::{Defaults, dense_decoder};
use crate::model::fields::Fields;
use crate::model::registry::Family;
use crate::model::spec::{Biases, DecoderSpec, Qkv, WeightNames};

pub(crate) const FAMILY: Family = Family { architecture: "LlamaForCausalLM", spec, names: &NAMES };

pub(crate) const NAMES: WeightNames = WeightNames {
    embed: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    layer: "model.layers.{}.",
    input_norm: "input_layernorm.weight",
    qkv: Qkv::Split(["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]),
    head_norms: ["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
    output: "self_attn.o_proj.weight",
    attention_norm: "",
    post_norm: "post_attention_layernorm.weight",
    gate: "mlp.gate_proj.weight",
    up: "mlp.up_proj.weight",
    down: "mlp.down_proj.weight",
    mlp_norm: "",
    ignored: &["rotary_emb.inv_freq"],
};

fn spec(fields: &Fields) -> Result<DecoderSpec> {
    let mut spec = dense_decoder(fields, Defaults::LLAMA)?;
    let attention = fields.flag("attention_bias")?.unwrap_or(false);
    spec.biases = Biases { qkv: attention, output: attention, mlp: fields.flag("mlp_bias")?.unwrap_or(false) };
    Ok(spec)
}
