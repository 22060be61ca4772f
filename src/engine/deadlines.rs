//! When which sequence is late. A sequence that ended earlier is forgotten before the list gets long.

use crate::base::SeqId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Entries that are kept whatever has become of their sequences.
const FEW: usize = 64;

/// Deadlines on the engine's clock, the next one first.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(u64, SeqId)>>,
}

impl Deadlines {
    /// `live` counts the engine's sequences and `is_live` knows them: most of what is kept is live.
    pub(crate) fn add(&mut self, deadline_ns: u64, seq: SeqId, live: usize, is_live: impl Fn(SeqId) -> bool) {
        if self.heap.len() > 2 * live + FEW {
            self.heap.retain(|d| is_live(d.0.1));
        }
        self.heap.push(Reverse((deadline_ns, seq)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|d| d.0.0)
    }

    /// Takes out a sequence, live or not, whose deadline is `now_ns` or earlier.
    pub(crate) fn pop_late(&mut self, now_ns: u64) -> Option<SeqId> {
        self.next_ns().filter(|next| *next <= now_ns)?;
        self.heap.pop().map(|d| d.0.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_late_come_out_in_order() {
        let mut d = Deadlines::default();
        for (ns, seq) in [(30, 3), (10, 1), (20, 2)] {
            d.add(ns, SeqId(seq), 3, |_| true);
        }
        assert_eq!((d.pop_late(9), d.next_ns()), (None, Some(10)));
        assert_eq!([d.pop_late(20), d.pop_late(20), d.pop_late(20)], [Some(SeqId(1)), Some(SeqId(2)), None]);
    }

    #[test]
    fn sequences_that_ended_long_before_their_deadline_are_forgotten() {
        let mut d = Deadlines::default();
        for i in 0..100_000u64 {
            // The last ten are live.
            d.add(1 << 40, SeqId(i), 10, |seq| seq.0 + 10 > i);
            assert!(d.heap.len() <= 2 * 10 + FEW + 1);
        }
        let late = std::iter::from_fn(|| d.pop_late(1 << 40)).filter(|seq| seq.0 >= 99_990).count();
        assert_eq!(late, 10);
    }
}
