//! Drawing tokens from processed logits: temperature, top-k, top-p, min-p, then an inverse of the cumulative distribution over the candidates in order
//! of falling logit. The vocabulary is never sorted whole; candidates are ranked in growing portions as the draw asks.

use super::mem::{floats, ints, shorts};
use super::pool::Pool;
use super::processors::RowState;
use super::simd::{Isa, Kernel, Simd, dispatch, exp16};
use crate::base::{Error, Result, rng};
use crate::hal::ops::{SAMPLER_BIASES, SAMPLER_WORDS, Sample, SamplerWord};
use std::sync::{Mutex, PoisonError};

/// Logits this many temperatures below the largest weigh less than 1e-5 of it and are looked at last.
pub(super) const LIKELY: f32 = 12.0;
/// Candidates ranked first; each further portion is eight times as large.
const FIRST_PORTION: usize = 64;

/// One thread's working memory, kept between steps.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// Logits of a row whose biases, penalties or mask change them.
    processed: Vec<f32>,
    /// Candidates as sort keys.
    pub(super) keys: Vec<u64>,
}

/// Draws for every row of the step.
pub(super) fn sample(pool: &Pool, isa: Isa, spaces: &[Mutex<Workspace>], args: &Sample<'_>) -> Result<()> {
    let (logits, rows, positions) = (floats(args.logits), ints(args.rows), ints(args.positions));
    let (state, out) = (ints(args.state), ints(args.out));
    let n = logits.rows;
    assert_eq!((rows.rows, positions.rows, out.rows), (n, n, n), "sequences of a sample op");
    assert_eq!(state.cols, SAMPLER_WORDS, "words of a sampler row");
    let (counts, biases) = (shorts(args.counts), ints(args.biases));
    assert_eq!((counts.cols, biases.cols), (logits.cols, 2 * SAMPLER_BIASES), "counts and biases of a sampler row");
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    pool.split(n, 1, &|thread, rows_of_chunk| {
        let mut space = spaces[thread].lock().unwrap_or_else(PoisonError::into_inner);
        for s in rows_of_chunk {
            // SAFETY: sequences of a step have rows of their own, and each is handled by one thread.
            unsafe {
                let row = rows.row(s)[0];
                if row < 0 {
                    continue;
                }
                let words = state.row_mut(row as usize);
                let output_index = positions.row(s)[0] - words[SamplerWord::PromptLen as usize];
                let (counts, biases) = (counts.row_mut(row as usize), biases.row(row as usize));
                let mut state = RowState { words, counts, biases, output_index };
                match draw(isa, &mut space, logits.row(s), &state) {
                    Ok(Some(token)) => {
                        out.row_mut(s)[0] = token as i32;
                        state.drew(token);
                    }
                    Ok(None) => out.row_mut(s)[0] = -1,
                    Err(e) => {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        if failed.as_ref().is_none_or(|(first, _)| s < *first) {
                            *failed = Some((s, e.within(format!("row {s} of a sample op"))));
                        }
                    }
                }
            }
        }
    })?;
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, e)| Err(e))
}

/// What a sampler row asks for.
struct Wish {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f64,
    /// The random number of this draw.
    uniform: f32,
}

impl Wish {
    fn of(words: &[i32], output_index: i32) -> Self {
        let word = |w: SamplerWord| words[w as usize] as u32;
        let seed = u64::from(word(SamplerWord::SeedLow)) | u64::from(word(SamplerWord::SeedHigh)) << 32;
        Self {
            temperature: f32::from_bits(word(SamplerWord::Temperature)),
            top_k: words[SamplerWord::TopK as usize].max(0) as usize,
            top_p: f32::from_bits(word(SamplerWord::TopP)),
            min_p: f64::from(f32::from_bits(word(SamplerWord::MinP))),
            uniform: rng::uniform(seed, word(SamplerWord::Choice), output_index as u32),
        }
    }
}

/// `None` when a logit is NaN.
fn draw(isa: Isa, space: &mut Workspace, logits: &[f32], row: &RowState<'_>) -> Result<Option<usize>> {
    let Workspace { processed, keys } = space;
    let logits = row.processed(logits, processed)?;
    let mut best = (0, 0.0);
    // SAFETY: plain slices.
    unsafe { dispatch(isa, Largest { logits, best: &mut best }) };
    if best.1.is_nan() {
        return Ok(None);
    }
    let wish = Wish::of(row.words, row.output_index);
    let greedy = wish.temperature <= 0.0 || wish.top_k == 1 || !best.1.is_finite();
    if greedy { Ok(Some(best.0)) } else { draw_random(isa, keys, logits, (&wish, best.1)).map(Some) }
}

/// First index of the largest element, and that element; NaN when there is any.
struct Largest<'a> {
    logits: &'a [f32],
    best: &'a mut (usize, f32),
}

impl Kernel for Largest<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut max = [f32::NEG_INFINITY; 32];
        let mut nan = [0_u32; 32];
        let chunks = self.logits.chunks_exact(32);
        let tail = chunks.remainder();
        for chunk in chunks {
            for ((m, n), x) in max.iter_mut().zip(&mut nan).zip(chunk) {
                *m = if *x > *m { *x } else { *m };
                *n |= u32::from(x.is_nan());
            }
        }
        let mut largest = f32::NEG_INFINITY;
        for x in max.iter().chain(tail) {
            largest = if *x > largest { *x } else { largest };
        }
        if nan.iter().any(|n| *n != 0) || tail.iter().any(|x| x.is_nan()) {
            *self.best = (0, f32::NAN);
            return;
        }
        let index = self.logits.iter().position(|x| *x == largest).unwrap_or(0);
        *self.best = (index, largest);
    }
}

/// Sum of `e^((x - max) / temperature)` in one fixed order.
pub(super) struct Mass<'a> {
    pub(super) logits: &'a [f32],
    pub(super) max: f32,
    pub(super) inverse: f32,
    pub(super) total: &'a mut f64,
}

impl Kernel for Mass<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut acc = [0.0_f64; 16];
        for chunk in self.logits.chunks(16) {
            let mut shift = [f32::NEG_INFINITY; 16];
            shift.iter_mut().zip(chunk).for_each(|(s, x)| *s = (x - self.max) * self.inverse);
            let e = exp16::<S>(&shift);
            acc.iter_mut().zip(e).for_each(|(a, e)| *a += f64::from(e));
        }
        *self.total = acc.iter().sum();
    }
}

fn draw_random(isa: Isa, keys: &mut Vec<u64>, logits: &[f32], (wish, max): (&Wish, f32)) -> Result<usize> {
    let inverse = 1.0 / wish.temperature;
    super::reserve(keys, logits.len())?;
    let mut ranked = Ranked::new(keys, logits, max - LIKELY * wish.temperature);
    let weight = |rank: usize, ranked: &mut Ranked<'_>| {
        let x = logits[ranked.id(rank)];
        f64::from(((x - max) * inverse).exp())
    };
    let candidates = if wish.top_k == 0 { logits.len() } else { wish.top_k.min(logits.len()) };
    let mut total = 0.0;
    if candidates == logits.len() {
        // SAFETY: plain slices.
        unsafe { dispatch(isa, Mass { logits, max, inverse, total: &mut total }) };
    } else {
        total = (0..candidates).map(|rank| weight(rank, &mut ranked)).sum();
    }
    // How many of the candidates top-p keeps, and their mass.
    let (mut kept, mut mass) = (candidates, total);
    if wish.top_p < 1.0 {
        (kept, mass) = (0, 0.0);
        while kept < candidates && (kept == 0 || mass < f64::from(wish.top_p) * total) {
            mass += weight(kept, &mut ranked);
            kept += 1;
        }
    }
    if wish.min_p > 0.0 {
        // The most probable candidate weighs 1.
        let before = kept;
        kept = (0..before).take_while(|rank| weight(*rank, &mut ranked) >= wish.min_p).count().max(1);
        if kept < before {
            mass = (0..kept).map(|rank| weight(rank, &mut ranked)).sum();
        }
    }
    let target = f64::from(wish.uniform) * mass;
    let (mut below, mut last) = (0.0, 0);
    for rank in 0..kept {
        let w = weight(rank, &mut ranked);
        below += w;
        if w > 0.0 {
            last = rank;
        }
        if below > target || w == 0.0 {
            break;
        }
    }
    Ok(ranked.id(last))
}

/// Sorts by falling logit, then rising id.
fn key(logit: f32, id: usize) -> u64 {
    let bits = (logit + 0.0).to_bits(); // -0.0 ranks as 0.0
    let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!rising) << 32 | id as u64
}

/// Candidates by rank, collected and sorted as far as somebody has asked.
pub(super) struct Ranked<'a> {
    keys: &'a mut Vec<u64>,
    sorted: usize,
    logits: &'a [f32],
    /// Logits from here up are among the keys; below, only once those are used up.
    floor: f32,
}

impl<'a> Ranked<'a> {
    pub(super) fn new(keys: &'a mut Vec<u64>, logits: &'a [f32], floor: f32) -> Self {
        let floor = floor.max(f32::MIN); // never NaN, which nothing is above or below
        keys.clear();
        keys.extend(logits.iter().enumerate().filter(|(_, x)| **x >= floor).map(|(id, x)| key(*x, id)));
        Self { keys, sorted: 0, logits, floor }
    }

    /// Token of a rank below the number of logits.
    pub(super) fn id(&mut self, rank: usize) -> usize {
        while rank >= self.sorted {
            if self.sorted == self.keys.len() {
                let rest = self.logits.iter().enumerate().filter(|(_, x)| **x < self.floor);
                self.keys.extend(rest.map(|(id, x)| key(*x, id)));
                self.floor = f32::NEG_INFINITY;
            }
            let rest = &mut self.keys[self.sorted..];
            let portion = (self.sorted * 7).max(FIRST_PORTION).min(rest.len());
            if portion < rest.len() {
                rest.select_nth_unstable(portion);
            }
            rest[..portion].sort_unstable();
            self.sorted += portion;
        }
        self.keys[rank] as u32 as usize
    }
}
