//! Baichuan 7B, the first and the second: Llama with one packed matrix for queries, keys and values. The second divides
//! every row of its output head by the row's length.

use crate::base::{Error, Result};
use crate::model::arch::llama;
use crate::model::dense::{Defaults, dense_decoder};
use crate::model::fields::Fields;
use crate::model::registry::Family;
use crate::model::spec::{DecoderSpec, Qkv, WeightNames};

pub(crate) const BAICHUAN: Family = Family { architecture: "BaichuanForCausalLM", spec, names: &NAMES };
/// The first 7B model spells itself so.
pub(crate) const BAICHUAN1: Family = Family { architecture: "BaiChuanForCausalLM", spec: plain, names: &NAMES };

const NAMES: WeightNames = WeightNames { qkv: Qkv::Packed("self_attn.W_pack.weight"), ..llama::NAMES };

/// Vocabulary of the first generation, whose head is a plain matrix.
const FIRST_VOCABULARY: usize = 64_000;

fn plain(fields: &Fields) -> Result<DecoderSpec> {
    let spec = dense_decoder(fields, Defaults::LLAMA)?;
    if spec.hidden_size == 5120 || spec.layers.len() == 40 {
        return Err(Error::unsupported(format!(
            "{}: hidden_size {} and num_hidden_layers {} are a Baichuan 13B, whose attention uses ALiBi position biases; \
             this build has rotary positions only and supports the 7B models",
            fields.place(),
            spec.hidden_size,
            spec.layers.len()
        )));
    }
    if spec.kv_heads != spec.heads {
        return Err(fields.unsupported("num_key_value_heads", "as many as num_attention_heads in this family"));
    }
    Ok(spec)
}

fn spec(fields: &Fields) -> Result<DecoderSpec> {
    let mut spec = plain(fields)?;
    spec.unit_head = spec.vocab_size != FIRST_VOCABULARY;
    if spec.unit_head && spec.tied {
        return Err(fields.unsupported("tie_word_embeddings", "only false beside a normed head"));
    }
    Ok(spec)
}
