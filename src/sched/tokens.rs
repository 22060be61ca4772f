//! The tokens of a sequence. What a step adds stays beside the sequence's counters and moves to memory of its own a block's worth
//! at a time: a step adds a token to every sequence, and where the rest of each stands is as far from the processor's caches as
//! can be.

use crate::base::Token;
use std::ops::Range;

/// A usual block of KV, after which the prefix cache looks at them all.
const RECENT: usize = 16;

#[derive(Debug)]
#[repr(C)]
pub(super) struct Tokens {
    settled: Vec<Token>,
    num_recent: u32,
    recent: [Token; RECENT],
}

impl From<Vec<Token>> for Tokens {
    fn from(settled: Vec<Token>) -> Self {
        Self { settled, num_recent: 0, recent: [0; RECENT] }
    }
}

impl Tokens {
    pub(super) fn len(&self) -> u32 {
        self.settled.len() as u32 + self.num_recent
    }

    #[inline]
    pub(super) fn push(&mut self, token: Token) {
        if self.num_recent as usize == RECENT {
            self.settle();
        }
        self.recent[self.num_recent as usize] = token;
        self.num_recent += 1;
    }

    /// The tokens at these positions; all must be there.
    pub(super) fn part(&mut self, positions: Range<u32>) -> &[Token] {
        let (from, to) = (positions.start as usize, positions.end as usize);
        match from.checked_sub(self.settled.len()) {
            Some(recent) => &self.recent[..self.num_recent as usize][recent..recent + (to - from)],
            None => &self.all()[from..to],
        }
    }

    pub(super) fn all(&mut self) -> &[Token] {
        if self.num_recent > 0 {
            self.settle();
        }
        &self.settled
    }

    /// Reads where recent tokens will settle.
    pub(super) fn glimpse(&self) -> Token {
        self.settled.last().copied().unwrap_or(0)
    }

    fn settle(&mut self) {
        self.settled.extend_from_slice(&self.recent[..self.num_recent as usize]);
        self.num_recent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stand_where_they_were_put_however_many_are_recent() {
        let want: Vec<Token> = (100..200).collect();
        for settled in [1, 15, 40] {
            let mut tokens = Tokens::from(want[..settled].to_vec());
            for (n, &token) in want.iter().enumerate().skip(settled) {
                assert_eq!(tokens.len() as usize, n);
                tokens.push(token);
                assert_eq!(tokens.part(n as u32..n as u32 + 1), &want[n..=n]);
                if n % 37 == 0 {
                    assert_eq!(tokens.part(0..n as u32), &want[..n]);
                }
                if n % 23 == 0 {
                    assert_eq!(tokens.all(), &want[..=n]);
                }
            }
            let n = tokens.len();
            assert!(tokens.part(n..n).is_empty());
            assert_eq!(tokens.all(), want);
        }
    }
}
