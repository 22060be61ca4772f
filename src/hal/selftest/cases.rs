//! All ops but those of attention.

use super::{Case, Outcome, Side, timed};
use crate::base::{DType, Result};
use crate::hal::ops::{
    Activation, Logprobs, SAMPLER_BIASES, SAMPLER_END_TOKENS, SAMPLER_IN_PROMPT, SAMPLER_WORDS, Sample, SamplerWord,
};

pub(super) fn all() -> Vec<Case> {
    let mut cases = vec![
        Case::new("embed", "5 of 300 x 96", embed),
        Case::new("soft_cap", "3 x 1000", soft_cap),
        Case::new("gather_rows", "4 of 9 x 96", gather_rows),
        Case::new("copy_rows", "3 of 8 x 40", copy_rows),
        Case::new("mask_logits", "2 x 1001", mask_logits),
        Case::new("sample", "8 x 1003", sample),
        Case::new("logprobs", "3 x 1003, 5 best", logprobs),
    ];
    for (rows, cols) in [(1, 896), (3, 100), (5, 4096), (2, 8192)] {
        let shape = format!("{rows} x {cols}");
        cases.push(Case::new("rms_norm", shape.clone(), move |side| rms_norm(side, rows, cols)));
        cases.push(Case::new("add_rms_norm", shape, move |side| add_rms_norm(side, rows, cols)));
    }
    for (m, n, k) in [(1, 64, 96), (5, 256, 128), (33, 96, 512), (1, 1024, 2048), (128, 512, 896)] {
        for biased in [false, true] {
            let shape = format!("{m} x {n} x {k}{}", if biased { ", bias" } else { "" });
            cases.push(Case::new("linear", shape, move |side| linear(side, (m, n, k), biased, side.act)));
        }
        let shape = format!("{m} x {n} x {k}, logits");
        cases.push(Case::new("linear", shape, move |side| linear(side, (m, n, k), false, DType::F32)));
    }
    for (rows, cols) in [(1, 176), (7, 4864), (3, 100)] {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let shape = format!("{rows} x {cols}, {activation:?}");
            cases.push(Case::new("act_mul", shape, move |side| act_mul(side, rows, cols, activation)));
        }
    }
    cases
}

fn done(numbers: Vec<f32>, (roundings, exact): (f64, f64), took: std::time::Duration) -> Outcome {
    Outcome { numbers, roundings, exact, took }
}

fn embed(side: &Side) -> Result<Outcome> {
    let table = side.matrix(1, 300, 96)?;
    let ids = side.ints(&[0, 299, 17, -2, 17], 1)?;
    let mut words = vec![0; 3 * SAMPLER_WORDS];
    words[SAMPLER_WORDS + SamplerWord::LastToken as usize] = 42;
    let (state, out) = (side.ints(&words, SAMPLER_WORDS)?, side.out(5, 96)?);
    let took = timed(side, || side.stream.embed(&out, &table, &ids, &state, 2.0))?;
    Ok(done(side.read(&out)?, (1.0, 0.0), took))
}

fn rms_norm(side: &Side, rows: usize, cols: usize) -> Result<Outcome> {
    let (x, weight) = (side.acts(&side.noise(2, rows * cols), cols)?, side.floats(&side.noise(3, cols), cols)?);
    let out = side.out(rows, cols)?;
    let took = timed(side, || side.stream.rms_norm(&out, &x, &weight, 1e-5))?;
    Ok(done(side.read(&out)?, (1.0, 1e-5), took))
}

fn add_rms_norm(side: &Side, rows: usize, cols: usize) -> Result<Outcome> {
    let (x, weight) = (side.acts(&side.noise(4, rows * cols), cols)?, side.floats(&side.noise(5, cols), cols)?);
    let (residual, out) = (side.acts(&side.noise(6, rows * cols), cols)?, side.out(rows, cols)?);
    let took = timed(side, || side.stream.add_rms_norm(&out, &residual, &x, &weight, 1e-5))?;
    // The residual is rounded before it is normed, which doubles numbers at most here.
    let numbers = [side.read(&out)?, side.read(&residual)?].concat();
    Ok(done(numbers, (3.0, 1e-5), took))
}

fn linear(side: &Side, (m, n, k): (usize, usize, usize), biased: bool, out: DType) -> Result<Outcome> {
    let (x, w) = (side.acts(&side.noise(7, m * k), k)?, side.matrix(8, n, k)?);
    let bias = side.floats(&side.noise(9, n), n)?;
    let poison = vec![f32::NAN; m * n];
    let out = if out == DType::F32 { side.floats(&poison, n)? } else { side.out(m, n)? };
    let took = timed(side, || side.stream.linear(&out, &x, &w, biased.then_some(&bias)))?;
    // The product may be rounded before the bias is added, and logits to the dtype of activations before they are widened.
    Ok(done(side.read(&out)?, (if biased { 3.0 } else { 1.0 }, 4e-7 * k as f64), took))
}

fn act_mul(side: &Side, rows: usize, cols: usize, activation: Activation) -> Result<Outcome> {
    let wide: Vec<f32> = side.noise(10, rows * 2 * cols).iter().map(|x| x * 8.0).collect();
    let (gate_up, out) = (side.acts(&wide, 2 * cols)?, side.out(rows, cols)?);
    let took = timed(side, || side.stream.act_mul(&out, &gate_up, activation))?;
    Ok(done(side.read(&out)?, (2.0, 1e-5), took))
}

fn soft_cap(side: &Side) -> Result<Outcome> {
    let wide: Vec<f32> = side.noise(11, 3000).iter().map(|x| x * 90.0).collect();
    let x = side.floats(&wide, 1000)?;
    let took = timed(side, || side.stream.soft_cap(&x, 30.0, side.act))?;
    Ok(done(side.read(&x)?, (0.0, 1e-5), took))
}

fn gather_rows(side: &Side) -> Result<Outcome> {
    let (x, index, out) = (side.acts(&side.noise(12, 9 * 96), 96)?, side.ints(&[8, 0, 3, 3], 1)?, side.out(4, 96)?);
    let took = timed(side, || side.stream.gather_rows(&out, &x, &index))?;
    Ok(done(side.read(&out)?, (0.0, 0.0), took))
}

fn copy_rows(side: &Side) -> Result<Outcome> {
    let (x, out) = (side.floats(&side.noise(13, 8 * 40), 40)?, side.floats(&vec![f32::NAN; 8 * 40], 40)?);
    let (from, to) = (side.ints(&[7, 0, 7], 1)?, side.ints(&[2, 6, 0], 1)?);
    let took = timed(side, || side.stream.copy_rows((&out, &to), (&x, &from)))?;
    Ok(done(side.read(&out)?, (0.0, 0.0), took))
}

fn mask_logits(side: &Side) -> Result<Outcome> {
    let logits = side.floats(&side.noise(14, 2 * 1001), 1001)?;
    let words: Vec<i32> = (0..64).map(|i: i32| i.wrapping_mul(0x3779_b9f1)).collect();
    let masks = side.ints(&words, 32)?;
    let took = timed(side, || side.stream.mask_logits(&logits, &masks))?;
    Ok(done(side.read(&logits)?, (0.0, 0.0), took))
}

/// Greedy, seeded, with penalties, with biases, held back by min_tokens, and padding.
fn sample(side: &Side) -> Result<Outcome> {
    const S: usize = 8;
    const V: usize = 1003;
    let mut state = vec![0_i32; S * SAMPLER_WORDS];
    let mut biases = vec![0_i32; S * 2 * SAMPLER_BIASES];
    let mut counts = vec![0_u16; S * V];
    for (s, words) in state.chunks_exact_mut(SAMPLER_WORDS).enumerate() {
        let mut put = |word: SamplerWord, value: i32| words[word as usize] = value;
        let float = |x: f32| x.to_bits() as i32;
        put(SamplerWord::Temperature, float(if s % 2 == 0 { 0.0 } else { 0.8 }));
        put(SamplerWord::TopK, [0, 5, 0, 0, 1, 40, 0, 0][s]);
        put(SamplerWord::TopP, float([1.0, 1.0, 1.0, 0.7, 1.0, 0.9, 1.0, 1.0][s]));
        put(SamplerWord::MinP, float(if s == 7 { 0.2 } else { 0.0 }));
        put(SamplerWord::SeedLow, 77 + s as i32);
        put(SamplerWord::PromptLen, 4);
        put(SamplerWord::MinTokens, if s >= 6 { 30 } else { 0 });
        put(SamplerWord::NumEndTokens, 2);
        put(SamplerWord::CountsTokens, i32::from(s >= 4));
        put(SamplerWord::RepetitionPenalty, float(1.3));
        put(SamplerWord::PresencePenalty, float(0.4));
        put(SamplerWord::FrequencyPenalty, float(0.2));
        put(SamplerWord::NumBiases, if s % 3 == 2 { 2 } else { 0 });
        words[SAMPLER_END_TOKENS] = 900;
        words[SAMPLER_END_TOKENS + 1] = 3;
        biases[s * 2 * SAMPLER_BIASES..][..4].copy_from_slice(&[11, float(2.5), 500, float(-3.0)]);
        for v in (s..V).step_by(7) {
            counts[s * V + v] = (v % 5) as u16 | if v % 2 == 0 { SAMPLER_IN_PROMPT } else { 0 };
        }
    }
    let wide: Vec<f32> = side.noise(15, S * V).iter().map(|x| x * 6.0).collect();
    let logits = side.floats(&wide, V)?;
    let rows = side.ints(&[3, 0, 1, 2, 4, -1, 6, 7], 1)?;
    let positions = side.ints(&[9; S], 1)?;
    let (state, biases) = (side.ints(&state, SAMPLER_WORDS)?, side.ints(&biases, 2 * SAMPLER_BIASES)?);
    let bytes: Vec<u8> = counts.iter().flat_map(|c| c.to_le_bytes()).collect();
    let counts = side.upload(&bytes, S, 2 * V, DType::U8)?;
    let out = side.ints(&[-7; S], 1)?;
    let args = Sample {
        logits: &logits,
        rows: &rows,
        positions: &positions,
        state: &state,
        counts: &counts,
        biases: &biases,
        out: &out,
    };
    let took = timed(side, || side.stream.sample(&args))?;
    let after = side.bytes(&counts)?;
    let counts = after.chunks_exact(2).map(|b| f32::from(u16::from_le_bytes([b[0], b[1]])));
    let drawn = side.read(&out)?;
    let last = side.read(&state)?.into_iter().skip(SamplerWord::LastToken as usize).step_by(SAMPLER_WORDS);
    Ok(done(drawn.into_iter().chain(last).chain(counts).collect(), (0.0, 0.0), took))
}

fn logprobs(side: &Side) -> Result<Outcome> {
    let wide: Vec<f32> = side.noise(16, 3 * 1003).iter().map(|x| x * 6.0).collect();
    let (logits, index, tokens) = (side.floats(&wide, 1003)?, side.ints(&[2, 0], 1)?, side.ints(&[5, 6, 1002], 1)?);
    let out = side.ints(&[0; 2 * 18], 18)?;
    let args = Logprobs { logits: &logits, index: &index, tokens: &tokens, out: &out };
    let took = timed(side, || side.stream.logprobs(&args))?;
    let words: Vec<i32> =
        side.bytes(&out)?.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let number = |(i, word): (usize, &i32)| if i % 3 == 2 { f32::from_bits(*word as u32) } else { *word as f32 };
    Ok(done(words.iter().enumerate().map(number).collect(), (0.0, 1e-4), took))
}
