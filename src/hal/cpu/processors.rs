//! Logits before the draw: biases, penalties, the mask of end tokens. Rows that ask for none are not copied.

use crate::base::Result;
use crate::hal::ops::{SAMPLER_BIASES, SAMPLER_END_TOKENS, SAMPLER_IN_PROMPT, SAMPLER_WORDS, SamplerWord};

/// What a row's draw depends on beside the logits.
#[derive(Debug)]
pub(super) struct RowState<'a> {
    pub(super) words: &'a mut [i32],
    /// One per token.
    pub(super) counts: &'a mut [u16],
    /// Pairs of an id and f32 bits.
    pub(super) biases: &'a [i32],
    /// Tokens of output before the one that is drawn.
    pub(super) output_index: i32,
}

impl RowState<'_> {
    fn number(&self, word: SamplerWord) -> f32 {
        f32::from_bits(self.words[word as usize] as u32)
    }

    fn biases(&self) -> usize {
        self.words[SamplerWord::NumBiases as usize].clamp(0, SAMPLER_BIASES as i32) as usize
    }

    /// End tokens that must not be drawn now.
    fn held_back(&self) -> &[i32] {
        let ends = self.words[SamplerWord::NumEndTokens as usize];
        let ends = ends.clamp(0, (SAMPLER_WORDS - SAMPLER_END_TOKENS) as i32) as usize;
        let held = self.output_index < self.words[SamplerWord::MinTokens as usize];
        &self.words[SAMPLER_END_TOKENS..SAMPLER_END_TOKENS + if held { ends } else { 0 }]
    }

    fn counts_tokens(&self) -> bool {
        self.words[SamplerWord::CountsTokens as usize] != 0
    }

    /// Remembers a drawn token.
    pub(super) fn drew(&mut self, token: usize) {
        self.words[SamplerWord::LastToken as usize] = token as i32;
        if self.counts_tokens() {
            let count = &mut self.counts[token];
            *count = (*count & SAMPLER_IN_PROMPT) | ((*count & !SAMPLER_IN_PROMPT) + 1).min(!SAMPLER_IN_PROMPT);
        }
    }

    /// The logits after all of that, in `space` when anything changes.
    pub(super) fn processed<'l>(&self, logits: &'l [f32], space: &'l mut Vec<f32>) -> Result<&'l [f32]> {
        let (biases, held) = (self.biases(), self.held_back());
        if biases == 0 && held.is_empty() && !self.counts_tokens() {
            return Ok(logits);
        }
        super::reserve(space, logits.len())?;
        space.clear();
        space.extend_from_slice(logits);
        for pair in self.biases[..2 * biases].chunks_exact(2) {
            if let Some(x) = usize::try_from(pair[0]).ok().and_then(|id| space.get_mut(id)) {
                *x += f32::from_bits(pair[1] as u32);
            }
        }
        if self.counts_tokens() {
            self.penalize(space);
        }
        for end in held {
            if let Some(x) = usize::try_from(*end).ok().and_then(|end| space.get_mut(end)) {
                *x = f32::NEG_INFINITY;
            }
        }
        Ok(space)
    }

    fn penalize(&self, logits: &mut [f32]) {
        let repetition = self.number(SamplerWord::RepetitionPenalty);
        let presence = self.number(SamplerWord::PresencePenalty);
        let frequency = self.number(SamplerWord::FrequencyPenalty);
        for (x, count) in logits.iter_mut().zip(&*self.counts).filter(|(_, count)| **count != 0) {
            *x = if *x > 0.0 { *x / repetition } else { *x * repetition };
            let outputs = count & !SAMPLER_IN_PROMPT;
            if outputs > 0 {
                *x -= presence + frequency * f32::from(outputs);
            }
        }
    }
}
