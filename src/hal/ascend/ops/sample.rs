//! Sampling and logprobs on the host: the library's own operator for it knows no penalties, no seeds and no temperature.

use super::super::host::int_bytes;
use super::super::stream::AscendStream;
use super::shape;
use crate::base::{DType, Result};
use crate::hal::Tensor;
use crate::hal::ops::{Logprobs, SAMPLER_BIASES, SAMPLER_WORDS, Sample, SamplerWord};

/// A sequence's sampler row, and whether its tokens are counted.
struct Drawn {
    sequence: usize,
    row: usize,
    counts: bool,
}

pub(crate) fn sample(s: &AscendStream, args: &Sample<'_>) -> Result<()> {
    let Sample { logits, rows, positions, state, counts, biases, out } = *args;
    let n = logits.rows();
    assert_eq!((rows.rows(), positions.rows(), out.rows()), (n, n, n), "sequences of a sample op");
    assert_eq!((state.cols(), biases.cols()), (SAMPLER_WORDS, 2 * SAMPLER_BIASES), "words of a sampler row");
    assert_eq!(counts.cols(), 2 * logits.cols(), "counts of a sampler row");
    let (host, known, places) = (&s.host, s.ints(rows)?, s.ints(positions)?);
    let on_host = Sample {
        logits: &host.tensor(&s.fetch(logits)?, shape(logits), DType::F32)?,
        // Each has the row of its own number there.
        rows: &host.ints(
            &known.iter().enumerate().map(|(i, row)| if *row < 0 { -1 } else { i as i32 }).collect::<Vec<_>>(),
            1,
        )?,
        positions: &host.ints(&places, 1)?,
        state: &host.zeros(n, SAMPLER_WORDS, DType::I32)?,
        counts: &host.zeros(n, counts.cols(), DType::U8)?,
        biases: &host.zeros(n, biases.cols(), DType::I32)?,
        out: &host.ints(&s.ints(out)?, 1)?,
    };
    let mut drawn = Vec::new();
    for (sequence, row) in known.iter().enumerate().filter(|(_, row)| **row >= 0) {
        let row = *row as usize;
        let words = s.ints(&state.slice_rows(row, 1))?;
        host.write(&on_host.state.slice_rows(sequence, 1), &int_bytes(&words))?;
        let counted = words[SamplerWord::CountsTokens as usize] != 0;
        if counted {
            host.write(&on_host.counts.slice_rows(sequence, 1), &s.fetch(&counts.slice_rows(row, 1))?)?;
        }
        if words[SamplerWord::NumBiases as usize] > 0 {
            let pairs = s.ints(&biases.slice_rows(row, 1))?;
            host.write(&on_host.biases.slice_rows(sequence, 1), &int_bytes(&pairs))?;
        }
        drawn.push(Drawn { sequence, row, counts: counted });
    }
    host.stream.sample(&on_host)?;
    for Drawn { sequence, row, counts: counted } in drawn {
        s.put(&state.slice_rows(row, 1), &host.read(&on_host.state.slice_rows(sequence, 1))?)?;
        if counted {
            s.put(&counts.slice_rows(row, 1), &host.read(&on_host.counts.slice_rows(sequence, 1))?)?;
        }
    }
    s.put(out, &host.read(on_host.out)?)
}

pub(crate) fn logprobs(s: &AscendStream, args: &Logprobs<'_>) -> Result<()> {
    let Logprobs { logits, index, tokens, out } = *args;
    assert_eq!((index.rows(), tokens.rows()), (out.rows(), logits.rows()), "rows of a logprobs op");
    let host = &s.host;
    let column = |ints: &Tensor| -> Result<Tensor> { host.ints(&s.ints(ints)?, 1) };
    let reports = host.zeros(out.rows(), out.cols(), DType::I32)?;
    let logits = host.tensor(&s.fetch(logits)?, shape(logits), DType::F32)?;
    host.stream.logprobs(&Logprobs {
        logits: &logits,
        index: &column(index)?,
        tokens: &column(tokens)?,
        out: &reports,
    })?;
    s.put(out, &host.read(&reports)?)
}
