//! Log probabilities of sampled tokens and of the most probable ones, over the raw logits.

use super::mem::{floats, ints};
use super::pool::Pool;
use super::sample::{LIKELY, Mass, Ranked, Workspace};
use super::simd::{Isa, dispatch};
use crate::base::Result;
use crate::hal::ops::Logprobs;
use std::sync::{Mutex, PoisonError};

/// Words of one entry: id, rank, f32 bits.
const ENTRY: usize = 3;

pub(super) fn logprobs(pool: &Pool, isa: Isa, spaces: &[Mutex<Workspace>], args: &Logprobs<'_>) -> Result<()> {
    let (logits, index, tokens, out) = (floats(args.logits), ints(args.index), ints(args.tokens), ints(args.out));
    assert_eq!((index.rows, tokens.rows), (out.rows, logits.rows), "rows of a logprobs op");
    assert!(out.cols >= ENTRY && out.cols.is_multiple_of(ENTRY), "columns of a logprobs op");
    let failed = Mutex::new(None);
    pool.split(index.rows, 1, &|thread, rows| {
        let mut space = spaces[thread].lock().unwrap_or_else(PoisonError::into_inner);
        for n in rows {
            // SAFETY: the inputs are only read, and each row of `out` is written by the thread that has it.
            let (logits, token, out) = unsafe {
                let row = usize::try_from(index.row(n)[0]).expect("a row of the logits");
                (logits.row(row), tokens.row(row)[0], out.row_mut(n))
            };
            if let Err(e) = report(isa, &mut space, (logits, token as usize), out) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
            }
        }
    })?;
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn report(isa: Isa, space: &mut Workspace, (logits, token): (&[f32], usize), out: &mut [i32]) -> Result<()> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    // SAFETY: plain slices.
    unsafe { dispatch(isa, Mass { logits, max, inverse: 1.0, total: &mut sum }) };
    let log_sum = f64::from(max) + sum.ln();
    let write = |entry: &mut [i32], id: usize, rank: usize| {
        let logprob = (f64::from(logits[id]) - log_sum) as f32;
        entry.copy_from_slice(&[id as i32, rank as i32, logprob.to_bits() as i32]);
    };
    let (first, rest) = out.split_at_mut(ENTRY);
    let x = logits[token];
    let before = logits.iter().enumerate().filter(|(id, y)| **y > x || **y == x && *id < token).count();
    write(first, token, before + 1);
    super::reserve(&mut space.keys, logits.len())?;
    let mut ranked = Ranked::new(&mut space.keys, logits, max - LIKELY);
    for (rank, entry) in rest.chunks_exact_mut(ENTRY).enumerate() {
        if rank < logits.len() {
            write(entry, ranked.id(rank), rank + 1);
        } else {
            entry.copy_from_slice(&[-1, 0, 0]);
        }
    }
    Ok(())
}
