//! A request as a host hands it in, parsed but not yet tokenized.

use crate::base::Token;
use crate::engine::EventQueue;
use crate::plan::SamplingParams;
use std::sync::Arc;

/// What to generate from.
#[derive(Debug, Clone)]
pub enum Prompt {
    Tokens(Vec<Token>),
    Text(String),
    /// `{"messages": [...], "tools": [...], "add_generation_prompt": true, ...}`.
    Chat(serde_json::Value),
}

/// What the host wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputMode {
    pub text: bool,
    pub tokens: bool,
    /// Brings the tokens along.
    pub logprobs: bool,
    /// How probable the tokens of the prompt were, once per request.
    pub prompt_logprobs: bool,
    /// One output record before Done instead of a stream.
    pub final_only: bool,
}

/// A request of a host. Ranges are checked by `Engine::submit`, lengths and templates on the text threads.
#[derive(Debug, Clone)]
pub struct Submission {
    pub prompt: Prompt,
    /// Text prompts only: leave out the tokenizer's own begin and end tokens.
    pub no_special_tokens: bool,
    pub output: OutputMode,
    /// Echoed in every event.
    pub user_data: u64,
    /// Where events go.
    pub queue: Arc<EventQueue>,
    /// Choices, at least 1.
    pub n: u32,
    /// With `output.logprobs`: alternatives reported beside each token.
    pub n_logprobs: u32,
    /// With `output.prompt_logprobs`: alternatives reported beside each token of the prompt.
    pub n_prompt_logprobs: u32,
    /// `None`: as many as the model's length allows.
    pub max_tokens: Option<u32>,
    pub min_tokens: u32,
    pub ignore_eos: bool,
    /// Its seed is not looked at.
    pub sampling: SamplingParams,
    /// `None`: the engine draws one.
    pub seed: Option<u64>,
    pub stop_tokens: Vec<Token>,
    pub stop_texts: Vec<String>,
    /// Smaller is more urgent; other than 0 only with the policy `priority`.
    pub priority: i32,
    /// From submit to Done, waiting included; 0 takes the config's default.
    pub timeout_ms: u32,
    /// Prefixes are shared only between equal salts; empty is the common salt.
    pub cache_salt: Vec<u8>,
}

impl Submission {
    /// One greedy choice of `max_tokens` tokens, whether the model would end or not, and nothing else asked for.
    pub fn exactly(max_tokens: u32, prompt: Prompt, output: OutputMode, queue: Arc<EventQueue>) -> Self {
        Self {
            prompt,
            no_special_tokens: false,
            output,
            user_data: 0,
            queue,
            n: 1,
            n_logprobs: 0,
            n_prompt_logprobs: 0,
            max_tokens: Some(max_tokens),
            min_tokens: 0,
            ignore_eos: true,
            sampling: SamplingParams::greedy(),
            seed: None,
            stop_tokens: vec![],
            stop_texts: vec![],
            priority: 0,
            timeout_ms: 0,
            cache_salt: vec![],
        }
    }
}
