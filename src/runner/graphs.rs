//! Recorded decode steps, where the device records work: one graph for each number of sequences and width of block tables
//! that steps are padded to. Padding entries run token 0 in a KV block and a sampler row that nobody else has.

use crate::base::Row;
use crate::hal::Graph;
use crate::plan::{StepEntry, StepPlan};
use std::collections::HashMap;

/// Steps of more sequences are not recorded: the host's part of them is small beside the device's.
const MOST_SEQS: usize = 512;
/// Narrowest block tables, and how much wider the next ones are.
const BLOCKS: usize = 64;
const WIDER: usize = 4;

/// Shape of a recorded step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    pub(super) seqs: usize,
    /// Columns of the block tables.
    pub(super) blocks: usize,
}

/// How a step is padded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Padding {
    pub(super) bucket: Bucket,
    pub(super) row: Row,
}

#[derive(Debug)]
pub(super) struct Graphs {
    /// Rising.
    seqs: Vec<usize>,
    /// Rising.
    blocks: Vec<usize>,
    row: Row,
    recorded: HashMap<Bucket, Box<dyn Graph>>,
}

impl Graphs {
    /// For steps of up to `seqs` sequences with up to `blocks` blocks, padded with `row`.
    pub(super) fn new((seqs, blocks): (usize, usize), row: Row) -> Self {
        let wider = std::iter::successors(Some(BLOCKS), |b| Some(b * WIDER)).take_while(|b| *b < blocks);
        let blocks = wider.chain([blocks]).collect();
        Self { seqs: sizes(seqs.min(MOST_SEQS)), blocks, row, recorded: HashMap::new() }
    }

    /// How `plan` is padded to be run from a recording: it decodes only, and reports nothing.
    pub(super) fn padding(&self, plan: &StepPlan) -> Option<Padding> {
        let plain = plan.entries.iter().all(|e| e.len == 1 && e.samples && e.logprobs.is_none() && e.scores.is_none());
        if !plain {
            return None;
        }
        let widest = plan.entries.iter().map(StepEntry::num_blocks).max().unwrap_or(0);
        let at_least = |sizes: &[usize], n: usize| sizes.iter().copied().find(|size| *size >= n);
        let bucket =
            Bucket { seqs: at_least(&self.seqs, plan.entries.len())?, blocks: at_least(&self.blocks, widest)? };
        Some(self.padded_to(bucket))
    }

    pub(super) fn padded_to(&self, bucket: Bucket) -> Padding {
        Padding { bucket, row: self.row }
    }

    /// All shapes, widest steps first and narrowest tables first.
    pub(super) fn buckets(&self) -> Vec<Bucket> {
        let of = |seqs: usize| self.blocks.iter().map(move |&blocks| Bucket { seqs, blocks });
        self.seqs.iter().rev().flat_map(|&seqs| of(seqs)).collect()
    }

    pub(super) fn get(&self, bucket: Bucket) -> Option<&dyn Graph> {
        self.recorded.get(&bucket).map(Box::as_ref)
    }

    pub(super) fn insert(&mut self, bucket: Bucket, graph: Box<dyn Graph>) {
        self.recorded.insert(bucket, graph);
    }
}

/// 1, 2, 4, then steps that waste at most a ninth of the rows above 64; ends with `most`.
fn sizes(most: usize) -> Vec<usize> {
    let fine = [1, 2, 4].into_iter().chain((8..64).step_by(8));
    let all = fine.chain((64..256).step_by(16)).chain((256..).step_by(32));
    all.take_while(|n| *n < most).chain([most]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rise_to_the_most_and_waste_little() {
        for most in [1, 3, 8, 100, 256, 512] {
            let all = sizes(most);
            assert!(all.windows(2).all(|w| w[0] < w[1]) && all.last() == Some(&most), "{all:?}");
            assert!(all.windows(2).all(|w| w[1] < 64 || (w[1] - w[0]) * 4 <= w[1]), "{all:?}");
        }
        assert_eq!(sizes(512).len(), 31);
    }

    #[test]
    fn tables_grow_to_the_longest() {
        let graphs = Graphs::new((4, 1024), Row(4));
        assert_eq!(graphs.blocks, [64, 256, 1024]);
        assert_eq!(Graphs::new((4, 40), Row(4)).blocks, [40]);
        assert_eq!(graphs.buckets().len(), 9);
        assert_eq!(graphs.buckets()[0], Bucket { seqs: 4, blocks: 64 });
    }
}
