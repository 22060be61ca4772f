//! The `mock:` model: deterministic tokens and delays without weights, for tests of hosts and wrappers.

use super::worker::{Flight, Landed, StepRunner};
use crate::base::rng::mix;
use crate::base::{Error, ErrorKind, Result, Token};
use crate::hal::comm::Communicator;
use crate::hal::{Stream, Tensor};
use crate::plan::{Logprob, RowInit, Sampled, Scored, StepOutcome, StepOutput, StepPlan, StepResults};
use std::time::Duration;

/// End-of-sequence id of the mock model: one above the 256 bytes.
pub const MOCK_EOS: Token = 256;

/// What follows `mock:` in the config's `model`: `words` and options, separated by commas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MockSpec {
    /// Time one step takes.
    delay: Duration,
    /// The step with this number fails once.
    fail_step: Option<u64>,
    /// Steps from this number on fail.
    fail_from: Option<u64>,
    /// The step with this number finds its device lost.
    lost_step: Option<u64>,
    /// Steps of more tokens find too little memory.
    memory_tokens: Option<u64>,
    /// The step with this number panics.
    panic_step: Option<u64>,
    /// The step with this number never ends.
    hang_step: Option<u64>,
    /// The rank that does so.
    pub fault_rank: usize,
    /// The tokenizer panics when it meets this byte.
    pub panic_byte: Option<u8>,
    /// Time loading takes.
    pub load: Duration,
    /// Loading panics after that time.
    pub panic_load: bool,
}

impl MockSpec {
    /// Parses `mock:words[,delay_us=N][,fail_step=N][,fail_from=N][,lost_step=N][,memory_tokens=N][,panic_step=N]
    /// [,hang_step=N][,fault_rank=N][,panic_byte=N][,load_ms=N][,panic_load=1]`.
    pub fn parse(model: &str) -> Result<Self> {
        let usage = "expected mock:words, with options delay_us, fail_step, fail_from, lost_step, memory_tokens, \
                     panic_step, hang_step, fault_rank, panic_byte, load_ms, panic_load as name=number";
        let mut parts = model.strip_prefix("mock:").unwrap_or_default().split(',');
        if parts.next() != Some("words") {
            return Err(Error::invalid(format!("model {model:?} is no mock model; {usage}")));
        }
        let mut spec = Self::default();
        for part in parts {
            let parsed = part.split_once('=').and_then(|(name, n)| Some((name, n.parse::<u64>().ok()?)));
            match parsed {
                Some(("delay_us", n)) => spec.delay = Duration::from_micros(n),
                Some(("fail_step", n)) => spec.fail_step = Some(n),
                Some(("fail_from", n)) => spec.fail_from = Some(n),
                Some(("lost_step", n)) => spec.lost_step = Some(n),
                Some(("memory_tokens", n)) => spec.memory_tokens = Some(n),
                Some(("panic_step", n)) => spec.panic_step = Some(n),
                Some(("hang_step", n)) => spec.hang_step = Some(n),
                Some(("fault_rank", n @ 0..64)) => spec.fault_rank = n as usize,
                Some(("panic_byte", n @ 0..=255)) => spec.panic_byte = Some(n as u8),
                Some(("load_ms", n @ 0..=60_000)) => spec.load = Duration::from_millis(n),
                Some(("panic_load", n @ 0..=1)) => spec.panic_load = n == 1,
                _ => return Err(Error::invalid(format!("option {part:?} of model {model:?} is unknown; {usage}"))),
            }
        }
        Ok(spec)
    }
}

/// Runs plans over bytes: the next token is a function of the last one and its position. Of sampling it knows
/// `min_tokens` alone.
#[derive(Debug)]
pub struct MockRunner {
    spec: MockSpec,
    rows: Vec<MockRow>,
    rank: Option<MockRank>,
}

/// One of several ranks of a mock model: all of them run everything, and meet in every step.
#[derive(Debug)]
pub struct MockRank {
    pub rank: usize,
    pub place: Box<dyn Communicator>,
    pub stream: Box<dyn Stream>,
    /// F32, of one element.
    pub x: Tensor,
}

#[derive(Debug, Clone, Default)]
struct MockRow {
    last: Token,
    prompt_len: u32,
    min_tokens: u32,
    end_tokens: Vec<Token>,
    choice: u32,
}

impl MockRunner {
    pub fn new(spec: MockSpec, max_num_seqs: usize) -> Self {
        Self { spec, rows: vec![MockRow::default(); max_num_seqs], rank: None }
    }

    /// The same as one of several ranks.
    #[must_use]
    pub fn with_rank(mut self, rank: MockRank) -> Self {
        self.rank = Some(rank);
        self
    }

    fn init_row(&mut self, init: &RowInit) {
        self.rows[init.row.0 as usize] = MockRow {
            last: 0,
            prompt_len: init.prompt_len,
            min_tokens: init.min_tokens,
            end_tokens: init.end_tokens.clone(),
            choice: init.choice,
        };
    }
}

impl StepRunner for MockRunner {
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
        let rank = self.rank.as_ref().map_or(0, |r| r.rank);
        let at = |step: Option<u64>| step == Some(plan.id.0) && rank == self.spec.fault_rank;
        if !self.spec.delay.is_zero() {
            std::thread::sleep(self.spec.delay);
        }
        assert!(!at(self.spec.panic_step), "the mock model was told to panic at step {}", plan.id.0);
        while at(self.spec.hang_step) {
            std::thread::park();
        }
        let from = self.spec.fail_from.is_some_and(|from| rank == self.spec.fault_rank && from <= plan.id.0);
        if at(self.spec.fail_step) || from {
            return Err(Error::new(ErrorKind::Device, format!("the mock model was told to fail step {}", plan.id.0)));
        }
        if at(self.spec.lost_step) {
            return Err(Error::new(ErrorKind::DeviceLost, "the mock model was told to lose its device"));
        }
        let tokens = plan.num_tokens() as u64;
        if let Some(most) = self.spec.memory_tokens.filter(|most| tokens > *most) {
            return Err(Error::no_memory(format!(
                "the mock model has memory for {most} tokens, the step has {tokens}"
            )));
        }
        if let Some(MockRank { place, stream, x, .. }) = &self.rank {
            place.all_reduce(stream.as_ref(), x)?;
        }
        for init in &plan.row_inits {
            self.init_row(init);
        }
        let mut results = StepResults::default();
        for (e, scores) in plan.entries.iter().filter_map(|e| Some((e, e.scores.as_ref()?))) {
            let logprobs = plan.scored(scores).iter().flat_map(|&token| logprobs(token, scores.alternatives)).collect();
            results.scored.push(Scored { seq: e.seq, logprobs });
        }
        for e in plan.entries.iter().filter(|e| e.samples) {
            let row = &mut self.rows[e.row.0 as usize];
            let known = plan.inputs(e);
            let last = if known.len() == e.len as usize { known[known.len() - 1] } else { row.last };
            let position = e.start + e.len;
            let mut token = next_token(last, position, row.choice);
            if position - row.prompt_len < row.min_tokens && row.end_tokens.contains(&token) {
                token = u32::from(b'.');
            }
            row.last = token;
            results.sampled.push(Sampled {
                seq: e.seq,
                token,
                logprobs: e.logprobs.map_or(Vec::new(), |k| logprobs(token, k)),
            });
        }
        Ok(Box::new(Landed(StepOutput::first(plan.id, StepOutcome::Done(results)))))
    }
}

/// A lower-case letter, sometimes a space, one time in 512 the end.
fn next_token(last: Token, position: u32, choice: u32) -> Token {
    let h = mix(u64::from(last), u64::from(position) | u64::from(choice) << 32);
    match h % 512 {
        0 => MOCK_EOS,
        r if r % 6 == 1 && last != u32::from(b' ') => u32::from(b' '),
        _ => u32::from(b'a') + (h >> 32) as u32 % 26,
    }
}

/// The token as the most probable one, then the letters of the alphabet, each half as probable as the one before.
fn logprobs(token: Token, alternatives: u32) -> Vec<Logprob> {
    let others = (u32::from(b'a')..).filter(|t| *t != token);
    let ranked = std::iter::once(token).chain(others).zip(1..);
    let of = |(token, rank)| Logprob { token, rank, logprob: -std::f32::consts::LN_2 * rank as f32 };
    let mut all = vec![of((token, 1))];
    all.extend(ranked.take(alternatives as usize).map(of));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_parse_and_typos_are_refused() {
        let spec = MockSpec::parse("mock:words,delay_us=500,fail_step=7").unwrap();
        assert_eq!((spec.delay, spec.fail_step, spec.panic_step), (Duration::from_micros(500), Some(7), None));
        for wrong in ["mock:", "mock:word", "mock:words,delay=1", "mock:words,delay_us=x", "mock:words,"] {
            assert!(MockSpec::parse(wrong).unwrap_err().message.contains("delay_us"), "{wrong}");
        }
    }
}
