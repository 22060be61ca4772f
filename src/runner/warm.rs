//! Steps of nobody, for the warm-up.

use super::memory::RunnerOptions;
use crate::base::{BlockId, Row, SeqId, StepId, Token};
use crate::plan::{StepEntry, StepPlan};

/// Longest sequence of a warm-up step: attention over more costs time and prepares nothing.
const LENGTH: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sampling {
    Draws,
    Skips,
}

/// A step of one sequence in row 0.
pub(super) fn single(tokens: &[Token], start: usize, table: Vec<BlockId>, sampling: Sampling) -> StepPlan {
    let mut plan = nothing();
    append(&mut plan, tokens.to_vec(), start, table);
    plan.entries[0].samples = sampling == Sampling::Draws;
    plan
}

/// A step of nobody.
pub(super) fn nothing() -> StepPlan {
    let (entries, tokens, blocks) = (Vec::new(), Vec::new(), Vec::new());
    StepPlan { id: StepId(0), entries, tokens, blocks, targets: Vec::new(), row_inits: Vec::new() }
}

/// A step of as many tokens as there may be. All of its sequences write into block 0 and nothing is drawn: what they leave
/// there is of no use.
pub(super) fn largest(options: &RunnerOptions, vocab_size: usize) -> StepPlan {
    let mut left = options.max_num_batched_tokens;
    let len = left.div_ceil(options.max_samples()).max(LENGTH).min(options.max_model_len);
    let mut plan = nothing();
    while left > 0 && plan.entries.len() < options.max_samples() {
        let n = len.min(left);
        let table = vec![BlockId(0); n.div_ceil(options.block_size as usize)];
        append(&mut plan, (0..n).map(|i| (i % vocab_size) as Token).collect(), 0, table);
        left -= n;
    }
    plan
}

/// A sequence of its own more, which draws nothing.
fn append(plan: &mut StepPlan, tokens: Vec<Token>, start: usize, table: Vec<BlockId>) {
    let index = plan.entries.len() as u32;
    let (token, block) = (plan.tokens.len() as u32, plan.blocks.len() as u32);
    plan.entries.push(StepEntry {
        seq: SeqId(u64::from(index)),
        row: Row(index),
        start: start as u32,
        len: tokens.len() as u32,
        tokens: token..token + tokens.len() as u32,
        known_blocks: 0,
        blocks: block..block + table.len() as u32,
        samples: false,
        logprobs: None,
        scores: None,
        awaits_mask: false,
    });
    plan.tokens.extend(tokens);
    plan.blocks.extend(table);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_step_has_all_tokens_in_sequences_that_fit() {
        for (seqs, tokens, len) in [(4, 512, 4096), (4, 512, 100), (256, 65_536, 128), (1, 1, 1), (8, 3, 5)] {
            let options = RunnerOptions {
                max_num_seqs: seqs,
                max_num_batched_tokens: tokens,
                max_model_len: len,
                block_size: 16,
                num_blocks: 1,
                depth: 1,
            };
            let plan = largest(&options, 50);
            assert_eq!(plan.num_tokens(), tokens.min(seqs * len), "{options:?}");
            assert!(plan.entries.len() <= seqs && plan.entries.iter().all(|e| e.len as usize <= len), "{options:?}");
            assert!(plan.entries.iter().all(|e| e.num_blocks() == (e.len as usize).div_ceil(16)));
        }
    }
}
