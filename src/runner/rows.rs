//! Sampler rows on the device: what a sequence's draws depend on, written when it enters its row.

use super::inputs::{RowTensors, Words};
use super::memory::{STAGED_ROWS, WORD, row_extra_bytes};
use crate::base::{DType, Error, Result};
use crate::hal::ops::{SAMPLER_BIASES, SAMPLER_END_TOKENS, SAMPLER_IN_PROMPT, SAMPLER_WORDS, SamplerWord};
use crate::hal::{Device, HostBuffer, Stream, Tensor};
use crate::plan::RowInit;

/// The rows on the device.
#[derive(Debug)]
pub(super) struct SamplerRows {
    /// I32 `[rows, SAMPLER_WORDS]`.
    pub(super) state: Tensor,
    /// U8 `[rows, 2 * vocab_size]`.
    pub(super) counts: Tensor,
    /// I32 `[rows, 2 * SAMPLER_BIASES]`.
    pub(super) biases: Tensor,
}

/// Host memory for the token counts and biases of rows that one step sets.
#[derive(Debug)]
pub(super) struct RowBuffers {
    extras: Vec<Box<dyn HostBuffer>>,
}

impl RowBuffers {
    pub(super) fn new(device: &dyn Device, vocab_size: usize) -> Result<Self> {
        let (counts, biases) = row_extra_bytes(vocab_size);
        let extras = (0..STAGED_ROWS).map(|_| device.host_buffer(counts.max(biases)));
        Ok(Self { extras: extras.collect::<Result<_>>()? })
    }

    /// For a step that sets no rows.
    pub(super) fn none() -> Self {
        Self { extras: Vec::new() }
    }
}

impl SamplerRows {
    pub(super) fn new(device: &dyn Device, rows: usize, vocab_size: usize) -> Result<Self> {
        let (counts, biases) = row_extra_bytes(vocab_size);
        let tensor = |cols: usize, dtype: DType| -> Result<Tensor> {
            Ok(Tensor::new(device.alloc(rows * cols * dtype.size())?, 0, rows, cols, dtype))
        };
        Ok(Self {
            state: tensor(SAMPLER_WORDS, DType::I32)?,
            counts: tensor(counts, DType::U8)?,
            biases: tensor(biases / WORD, DType::I32)?,
        })
    }

    /// Enqueues the writing of rows. The buffers stay untouched until an event recorded later is done.
    pub(super) fn set(
        &self,
        (inits, uploaded): (&[RowInit], Option<&RowTensors>),
        stream: &dyn Stream,
        buffers: &mut RowBuffers,
    ) -> Result<()> {
        if let Some(RowTensors { words, rows, every }) = uploaded {
            stream.copy_rows((&self.state, rows), (words, every))?;
        }
        let mut staged = 0;
        for init in inits {
            let row = init.row.0 as usize;
            if init.sampling.counts_tokens() {
                let host = next(&mut buffers.extras, &mut staged, stream)?;
                pack_counts(init, self.counts.cols(), host)?;
                stream.upload(&self.counts.slice_rows(row, 1), host)?;
            }
            if !init.sampling.logit_bias().is_empty() {
                let host = next(&mut buffers.extras, &mut staged, stream)?;
                pack_biases(init, host);
                stream.upload(&self.biases.slice_rows(row, 1), host)?;
            }
        }
        Ok(())
    }
}

/// A buffer the device is not reading: when all are in use, waits until it has read them.
fn next<'a>(
    buffers: &'a mut [Box<dyn HostBuffer>],
    staged: &mut usize,
    stream: &dyn Stream,
) -> Result<&'a mut dyn HostBuffer> {
    if *staged == buffers.len() {
        stream.record()?.wait()?;
        *staged = 0;
    }
    *staged += 1;
    Ok(buffers[*staged - 1].as_mut())
}

/// Writes the state of a row as the [`SAMPLER_WORDS`] words from `first` on.
pub(super) fn pack_row(init: &RowInit, words: &mut Words<'_>, first: usize) -> Result<()> {
    if init.end_tokens.len() > SAMPLER_WORDS - SAMPLER_END_TOKENS {
        return Err(Error::internal(format!("{} end tokens for a sampler row", init.end_tokens.len())));
    }
    words.set_all(first, std::iter::repeat_n(0, SAMPLER_WORDS));
    let clamped = |x: u32| i32::try_from(x).unwrap_or(i32::MAX);
    let bits = |x: f32| x.to_bits() as i32;
    let (sampling, penalties) = (&init.sampling, init.sampling.penalties());
    for (word, value) in [
        (SamplerWord::Temperature, bits(sampling.temperature())),
        (SamplerWord::TopK, clamped(sampling.top_k())),
        (SamplerWord::TopP, bits(sampling.top_p())),
        (SamplerWord::MinP, bits(sampling.min_p())),
        (SamplerWord::SeedLow, sampling.seed() as i32),
        (SamplerWord::SeedHigh, (sampling.seed() >> 32) as i32),
        (SamplerWord::Choice, init.choice as i32),
        (SamplerWord::PromptLen, clamped(init.prompt_len)),
        (SamplerWord::MinTokens, clamped(init.min_tokens)),
        (SamplerWord::NumEndTokens, init.end_tokens.len() as i32),
        (SamplerWord::CountsTokens, i32::from(sampling.counts_tokens())),
        (SamplerWord::RepetitionPenalty, bits(penalties.repetition)),
        (SamplerWord::PresencePenalty, bits(penalties.presence)),
        (SamplerWord::FrequencyPenalty, bits(penalties.frequency)),
        (SamplerWord::NumBiases, sampling.logit_bias().len() as i32),
    ] {
        words.set(first + word as usize, value);
    }
    for (i, token) in init.end_tokens.iter().enumerate() {
        words.set(first + SAMPLER_END_TOKENS + i, *token as i32);
    }
    Ok(())
}

/// Counts the history: prompt tokens are marked, output tokens counted.
fn pack_counts(init: &RowInit, bytes: usize, host: &mut dyn HostBuffer) -> Result<()> {
    let row = &mut host.bytes_mut()[..bytes];
    row.fill(0);
    for (i, token) in init.history.iter().enumerate() {
        let at = 2 * *token as usize;
        let cell = row.get_mut(at..at + 2).ok_or_else(|| {
            Error::invalid(format!("token id {token} is not below the vocabulary size {}", bytes / 2))
        })?;
        let count = u16::from_ne_bytes([cell[0], cell[1]]);
        let count = if i < init.prompt_len as usize {
            count | SAMPLER_IN_PROMPT
        } else {
            (count & SAMPLER_IN_PROMPT) | ((count & !SAMPLER_IN_PROMPT) + 1).min(!SAMPLER_IN_PROMPT)
        };
        cell.copy_from_slice(&count.to_ne_bytes());
    }
    Ok(())
}

fn pack_biases(init: &RowInit, host: &mut dyn HostBuffer) {
    let mut words = Words::of(host);
    for (i, (token, bias)) in init.sampling.logit_bias().iter().take(SAMPLER_BIASES).enumerate() {
        words.set(2 * i, *token as i32);
        words.set(2 * i + 1, bias.to_bits() as i32);
    }
}
