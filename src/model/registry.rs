//! The one list of families.

use crate::base::{Error, Result};
use crate::model::arch;
use crate::model::fields::Fields;
use crate::model::spec::{DecoderSpec, WeightNames};

/// A model family as a table entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    /// The name in config.json's `architectures`.
    pub(crate) architecture: &'static str,
    pub(crate) spec: fn(&Fields) -> Result<DecoderSpec>,
    pub(crate) names: &'static WeightNames,
}

const FAMILIES: &[Family] = &[
    arch::llama::FAMILY,
    arch::mistral::FAMILY,
    arch::qwen::QWEN2,
    arch::qwen::QWEN3,
    arch::gemma::GEMMA2,
    arch::gemma::GEMMA3,
    arch::baichuan::BAICHUAN,
    arch::baichuan::BAICHUAN1,
];

/// The family of an architecture. `Unsupported` lists what there is.
pub(crate) fn find(architecture: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| f.architecture == architecture).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().map(|f| f.architecture).collect();
        Error::unsupported(format!("architecture {architecture:?} is not in this build; it has {}", known.join(", ")))
    })
}

#[cfg(test)]
#[path = "family_tests.rs"]
mod tests;
