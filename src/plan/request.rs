//! One generation as the scheduler accepts it.

use crate::base::{Error, Result, SeqId, Token};
use crate::plan::{SamplingParams, StopCriteria};

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model sampled an end-of-sequence id.
    Eos,
    /// A stop token or stop text of the caller.
    Stop,
    /// `max_tokens` or the model's length.
    Length,
    /// The caller cancelled it.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The caller did not read its output.
    Overrun,
    /// It failed; an error says why.
    Error,
}

impl FinishReason {
    pub const ALL: [Self; 7] =
        [Self::Eos, Self::Stop, Self::Length, Self::Cancelled, Self::Deadline, Self::Overrun, Self::Error];

    /// Lower case, for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
            Self::Overrun => "overrun",
            Self::Error => "error",
        }
    }
}

/// A tokenized prompt with everything that decides its output. Not empty, and within `u32` positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub seq: SeqId,
    prompt: Vec<Token>,
    pub sampling: SamplingParams,
    pub stop: StopCriteria,
    /// Which choice of its caller's request this is; keys the sampler beside the seed.
    pub choice: u32,
    /// How many of the most probable tokens to report beside each sampled one, at most
    /// [`crate::plan::params::MAX_LOGPROBS`]. `None` reports nothing.
    pub logprobs: Option<u32>,
    /// The same for every prompt token but the first.
    pub prompt_logprobs: Option<u32>,
    /// For policies that look at it; smaller is more urgent.
    pub priority: i32,
    /// Prefixes are shared only between requests of equal salt; 0 is the common salt.
    pub cache_salt: u64,
    /// Whether each of its tokens waits for a mask; see `Scheduler::supply`.
    pub masked: bool,
    /// Generated tokens the sequence may reach before `Scheduler::allow` raises it; `u32::MAX` never waits.
    pub lead: u32,
}

impl Request {
    pub fn new(seq: SeqId, prompt: Vec<Token>, sampling: SamplingParams, stop: StopCriteria) -> Result<Self> {
        if prompt.is_empty() {
            return Err(Error::invalid("the prompt has no tokens; expected at least one"));
        }
        if prompt.len() as u64 + u64::from(stop.max_tokens()) > u64::from(u32::MAX) / 2 {
            return Err(Error::invalid(format!(
                "prompt of {} tokens plus max_tokens {} is beyond any model's length",
                prompt.len(),
                stop.max_tokens()
            )));
        }
        Ok(Self {
            seq,
            prompt,
            sampling,
            stop,
            choice: 0,
            logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            cache_salt: 0,
            masked: false,
            lead: u32::MAX,
        })
    }

    /// Token ids; never empty.
    pub fn prompt(&self) -> &[Token] {
        &self.prompt
    }

    pub fn into_prompt(self) -> Vec<Token> {
        self.prompt
    }

    /// The same request as another sequence. The prompt is reported once, with the first choice.
    pub fn for_choice(&self, seq: SeqId, choice: u32) -> Self {
        let prompt_logprobs = self.prompt_logprobs.filter(|_| choice == 0);
        Self { seq, choice, prompt_logprobs, ..self.clone() }
    }
}
