//! One file per family: config keys to a [`crate::model::DecoderSpec`], and the names of its weights.

pub mod llama;
