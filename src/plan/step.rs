//! What one step does and what came of it. Data only; immutable once submitted.

use crate::base::{BlockId, Error, Row, SeqId, StepId, Token};
use crate::plan::SamplingParams;
use std::ops::Range;

/// One sequence's share of a step: run tokens `start..start + len` of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepEntry {
    pub seq: SeqId,
    pub row: Row,
    /// Position of the first token of this step.
    pub start: u32,
    /// Tokens run, at least 1.
    pub len: u32,
    /// Where the known inputs stand in [`StepPlan::tokens`]. One shorter than `len` when the last input is the token
    /// that an earlier step in flight samples into `row`.
    pub tokens: Range<u32>,
    /// Leading blocks of its table that earlier steps have told of this row; 0 when the row may hold another's.
    pub known_blocks: u32,
    /// Where the rest of the block table stands in [`StepPlan::blocks`]; the whole covers positions `0..start + len`. See
    /// [`crate::plan::RowTables`].
    pub blocks: Range<u32>,
    /// Whether the last token's logits are sampled (the entry reaches the end of the sequence).
    pub samples: bool,
    /// With `samples`: how many of the most probable tokens to report beside the sampled one. `None` reports nothing.
    pub logprobs: Option<u32>,
    /// Prompt tokens whose probability this entry's logits tell.
    pub scores: Option<Box<Scores>>,
    /// With `samples`: the token is not drawn before a [`TokenMask`] is supplied, and lands in the step's late part. What
    /// else the step does waits for nothing.
    pub awaits_mask: bool,
}

/// The tokens that an entry which waits for its mask may draw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    pub seq: SeqId,
    /// Bit `t % 32` of word `t / 32` allows token t; as many words as the vocabulary needs, at least one bit set.
    pub words: Vec<u32>,
}

/// Prompt tokens to report the probability of. The logits of a position are those of the token after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scores {
    /// Position of the first logits, one before the first token reported; within the entry.
    pub from: u32,
    /// Where the tokens stand in [`StepPlan::targets`]; at least one, one for each position from `from` on.
    pub targets: Range<u32>,
    /// How many of the most probable tokens to report beside each.
    pub alternatives: u32,
}

/// Sampler state of a row before this step runs: written when a sequence enters the row, fresh or resumed.
#[derive(Debug, Clone, PartialEq)]
pub struct RowInit {
    pub row: Row,
    pub sampling: SamplingParams,
    /// Choice of the request; keys the generator beside `seed`.
    pub choice: u32,
    /// Length of the original prompt: the output index of a token is its position minus this.
    pub prompt_len: u32,
    /// Output index before which `end_tokens` are not sampled.
    pub min_tokens: u32,
    /// At most [`crate::plan::params::MAX_STOP_TOKENS`].
    pub end_tokens: Vec<Token>,
    /// Prompt and output so far, when `sampling` counts tokens; otherwise empty.
    pub history: Vec<Token>,
}

impl RowInit {
    /// Adds a drawn token to the history of a row that counts tokens.
    pub fn remember(&mut self, token: Token) {
        if self.sampling.counts_tokens() {
            self.history.push(token);
        }
    }
}

/// One forward pass over a batch of sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlan {
    pub id: StepId,
    pub entries: Vec<StepEntry>,
    /// Known inputs of all entries, one after another.
    pub tokens: Vec<Token>,
    /// What is new of the block tables of all entries, one after another.
    pub blocks: Vec<BlockId>,
    /// Prompt tokens that entries score, one entry's after another.
    pub targets: Vec<Token>,
    /// Rows to set before the forward pass.
    pub row_inits: Vec<RowInit>,
}

impl StepEntry {
    /// Blocks of its whole table.
    pub fn num_blocks(&self) -> usize {
        self.known_blocks as usize + self.blocks.len()
    }
}

impl StepPlan {
    /// Tokens run over all entries.
    pub fn num_tokens(&self) -> usize {
        self.entries.iter().map(|e| e.len as usize).sum()
    }

    /// Known inputs of `entry`.
    pub fn inputs(&self, entry: &StepEntry) -> &[Token] {
        &self.tokens[entry.tokens.start as usize..entry.tokens.end as usize]
    }

    /// What is new of the block table of `entry`.
    pub fn new_blocks(&self, entry: &StepEntry) -> &[BlockId] {
        &self.blocks[entry.blocks.start as usize..entry.blocks.end as usize]
    }

    /// Prompt tokens that `scores` asks for.
    pub fn scored(&self, scores: &Scores) -> &[Token] {
        &self.targets[scores.targets.start as usize..scores.targets.end as usize]
    }
}

/// How probable a token was, before any processor touched the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logprob {
    pub token: Token,
    /// 1 is the most probable; of equals the smaller id comes first.
    pub rank: u32,
    /// Natural logarithm.
    pub logprob: f32,
}

/// A token sampled for a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    pub seq: SeqId,
    pub token: Token,
    /// Of the token, then of the most probable ones, when the entry asked for them; otherwise empty.
    pub logprobs: Vec<Logprob>,
}

impl Sampled {
    /// A token without logprobs.
    pub fn new(seq: SeqId, token: Token) -> Self {
        Self { seq, token, logprobs: Vec::new() }
    }
}

/// How probable the prompt tokens of an entry were.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub seq: SeqId,
    /// The same number for each token: of the token, then of the most probable ones.
    pub logprobs: Vec<Logprob>,
}

/// What a step was asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepResults {
    /// One per sampling entry that waits for no mask, in the plan's order; in a late part, one per mask in the order in
    /// which they were supplied.
    pub sampled: Vec<Sampled>,
    /// One per entry with [`Scores`], in the plan's order.
    pub scored: Vec<Scored>,
}

impl From<Vec<Sampled>> for StepResults {
    fn from(sampled: Vec<Sampled>) -> Self {
        Self { sampled, scored: Vec::new() }
    }
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq)]
pub enum StepOutcome {
    Done(StepResults),
    /// Nothing of this step counts. Every step submitted before this failure was polled lands as failed too.
    Failed(Error),
}

/// Which part of a step has landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepPart {
    /// The forward pass and all draws that waited for no mask.
    First,
    /// Draws whose masks came in one supply.
    Late,
}

/// A step that has landed, or a late part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutput {
    pub id: StepId,
    pub part: StepPart,
    pub outcome: StepOutcome,
}

impl StepOutput {
    /// The first part of a step.
    pub fn first(id: StepId, outcome: StepOutcome) -> Self {
        Self { id, part: StepPart::First, outcome }
    }
}
