//! How tokens are chosen and when a generation ends.

use crate::base::{Error, Result, Token};
use std::sync::Arc;

/// Most ids that `min_tokens` can hold back per request: end-of-sequence ids and stop tokens together.
pub const MAX_STOP_TOKENS: usize = 64;

/// Most alternatives that are reported per token.
pub const MAX_LOGPROBS: u32 = 20;

/// Most entries of a logit bias.
pub const MAX_LOGIT_BIAS: usize = 300;

/// What tokens seen before cost. The neutral values are 1, 0 and 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Hugging Face's repetition penalty over prompt and output: a logit above 0 is divided by it, another multiplied.
    pub repetition: f32,
    /// OpenAI's presence penalty: taken off the logit of a token that the output has.
    pub presence: f32,
    /// OpenAI's frequency penalty: taken off as often as the output has the token.
    pub frequency: f32,
}

impl Penalties {
    pub const NONE: Self = Self { repetition: 1.0, presence: 0.0, frequency: 0.0 };
}

/// How one token is drawn from logits. Order of processors: logit_bias, penalties, the mask of `min_tokens`, temperature,
/// top_k, top_p, min_p.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy: the largest logit, the smaller id on a tie.
    temperature: f32,
    /// Candidates kept by rank; 0 keeps all.
    top_k: u32,
    /// Smallest set of candidates whose probability reaches this; 1 keeps all.
    top_p: f32,
    /// Candidates less probable than this share of the most probable one are dropped; 0 keeps all.
    min_p: f32,
    penalties: Penalties,
    /// Added to logits; at most [`MAX_LOGIT_BIAS`] entries, each id once, in rising order.
    logit_bias: Arc<[(Token, f32)]>,
    /// Key of the counter-based generator.
    seed: u64,
}

impl SamplingParams {
    /// Checks ranges: `temperature` finite and in 0..=100, `top_k` >= -1 (0 and -1 keep all), `top_p` in (0, 1].
    pub fn new(temperature: f32, top_k: i32, top_p: f32, seed: u64) -> Result<Self> {
        if !(0.0..=100.0).contains(&temperature) {
            return Err(Error::invalid(format!("temperature is {temperature}; expected a number from 0 to 100")));
        }
        if top_k < -1 {
            return Err(Error::invalid(format!("top_k is {top_k}; expected a positive count, or 0 or -1 to keep all")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::invalid(format!("top_p is {top_p}; expected a number above 0 and at most 1")));
        }
        Ok(Self { temperature, top_k: top_k.max(0) as u32, top_p, seed, ..Self::greedy() })
    }

    /// Largest logit every time.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            penalties: Penalties::NONE,
            logit_bias: Arc::from([]),
            seed: 0,
        }
    }

    /// Checks `min_p` in 0..=1.
    pub fn with_min_p(self, min_p: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&min_p) {
            return Err(Error::invalid(format!("min_p is {min_p}; expected a number from 0 to 1")));
        }
        Ok(Self { min_p, ..self })
    }

    /// Checks `repetition` in (0, 100], `presence` and `frequency` in -2..=2.
    pub fn with_penalties(self, penalties: Penalties) -> Result<Self> {
        let Penalties { repetition, presence, frequency } = penalties;
        if !(repetition > 0.0 && repetition <= 100.0) {
            return Err(Error::invalid(format!(
                "repetition_penalty is {repetition}; expected a number above 0 and at most 100, 1 for none"
            )));
        }
        for (name, value) in [("presence_penalty", presence), ("frequency_penalty", frequency)] {
            if !(-2.0..=2.0).contains(&value) {
                return Err(Error::invalid(format!("{name} is {value}; expected a number from -2 to 2")));
            }
        }
        Ok(Self { penalties, ..self })
    }

    /// Checks the number of entries and each in -100..=100, ids once.
    pub fn with_logit_bias(self, mut bias: Vec<(Token, f32)>) -> Result<Self> {
        if bias.len() > MAX_LOGIT_BIAS {
            return Err(Error::invalid(format!(
                "logit_bias has {} entries; at most {MAX_LOGIT_BIAS} are taken",
                bias.len()
            )));
        }
        if let Some((id, value)) = bias.iter().find(|(_, b)| !(-100.0..=100.0).contains(b)) {
            return Err(Error::invalid(format!(
                "logit_bias of token {id} is {value}; expected a number from -100 to 100"
            )));
        }
        bias.sort_unstable_by_key(|(id, _)| *id);
        if let Some(twice) = bias.windows(2).find(|w| w[0].0 == w[1].0) {
            return Err(Error::invalid(format!("logit_bias names token {} twice", twice[0].0)));
        }
        Ok(Self { logit_bias: bias.into(), ..self })
    }

    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    pub fn temperature(&self) -> f32 {
        self.temperature
    }
    pub fn top_k(&self) -> u32 {
        self.top_k
    }
    pub fn top_p(&self) -> f32 {
        self.top_p
    }
    pub fn min_p(&self) -> f32 {
        self.min_p
    }
    pub fn penalties(&self) -> Penalties {
        self.penalties
    }
    /// Whether the sampler must know which tokens came before.
    pub fn counts_tokens(&self) -> bool {
        self.penalties != Penalties::NONE
    }
    pub fn logit_bias(&self) -> &[(Token, f32)] {
        &self.logit_bias
    }
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

/// When a sequence ends. Stop texts are not here: they are the output threads' business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopCriteria {
    /// Tokens to generate at most, at least 1.
    max_tokens: u32,
    /// Tokens before which no end id is sampled.
    min_tokens: u32,
    /// Ids that end the sequence as end-of-sequence; empty with `ignore_eos`.
    eos_tokens: Vec<Token>,
    /// Ids of the caller that end the sequence as a stop.
    stop_tokens: Vec<Token>,
}

impl StopCriteria {
    /// Checks `1 <= max_tokens`, `min_tokens <= max_tokens` and the bound on ids. Duplicates are dropped.
    pub fn new(max_tokens: u32, min_tokens: u32, mut eos: Vec<Token>, mut stop: Vec<Token>) -> Result<Self> {
        if max_tokens == 0 {
            return Err(Error::invalid("max_tokens is 0; expected at least 1"));
        }
        if min_tokens > max_tokens {
            return Err(Error::invalid(format!("min_tokens {min_tokens} is above max_tokens {max_tokens}")));
        }
        eos.sort_unstable();
        eos.dedup();
        stop.sort_unstable();
        stop.dedup();
        stop.retain(|t| !eos.contains(t));
        if eos.len() + stop.len() > MAX_STOP_TOKENS {
            return Err(Error::invalid(format!(
                "{} stop and end-of-sequence ids; at most {MAX_STOP_TOKENS} are supported",
                eos.len() + stop.len()
            )));
        }
        Ok(Self { max_tokens, min_tokens, eos_tokens: eos, stop_tokens: stop })
    }

    pub fn max_tokens(&self) -> u32 {
        self.max_tokens
    }
    pub fn min_tokens(&self) -> u32 {
        self.min_tokens
    }
    pub fn eos_tokens(&self) -> &[Token] {
        &self.eos_tokens
    }
    pub fn stop_tokens(&self) -> &[Token] {
        &self.stop_tokens
    }
    /// Every id that ends the sequence: what the sampler holds back before `min_tokens`.
    pub fn end_tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.eos_tokens.iter().chain(&self.stop_tokens).copied()
    }
}
