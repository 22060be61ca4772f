//! One file per family: config keys to a [`crate::model::DecoderSpec`], and the names of its weights.

pub mod baichuan;
pub mod gemma;
pub mod llama;
pub mod mistral;
pub mod qwen;
