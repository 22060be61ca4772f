//! F1: text in and out: tokenizer, chat templates, incremental detokenizing, stop strings. Host code only.

/// Tokenizer and chat template of one model.
#[derive(Debug)]
pub struct TextModel {}
