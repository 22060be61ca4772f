//! Block tables by row, as whoever runs plans keeps them: a plan tells only what is new of them, so what a decode step costs
//! the host does not grow with the context.

use crate::base::{BlockId, Error, Result};
use crate::plan::{StepEntry, StepPlan};

/// The tables of the rows that plans have named so far.
#[derive(Debug, Clone, Default)]
pub struct RowTables {
    rows: Vec<RowTable>,
}

/// The block table of a row.
#[derive(Debug, Clone, Default)]
pub struct RowTable {
    /// Counts the times that it started over or lost blocks: of one version it has only grown.
    pub version: u64,
    pub blocks: Vec<BlockId>,
    /// Of `blocks`; what a decode step needs of them, in one place with their number.
    last: Option<BlockId>,
}

/// Of rows that no plan has named.
static NO_TABLE: RowTable = RowTable { version: 0, blocks: Vec::new(), last: None };

impl RowTable {
    /// The block with this index.
    pub fn block(&self, index: usize) -> Option<BlockId> {
        if index + 1 == self.blocks.len() { self.last } else { self.blocks.get(index).copied() }
    }
}

impl RowTables {
    /// Takes in what a plan tells. Plans come in order; one that was left out has failed, and those that come after the
    /// failure was seen start from whole tables. `Internal` when a plan builds on blocks that nobody told of.
    pub fn apply(&mut self, plan: &StepPlan) -> Result<()> {
        for entry in &plan.entries {
            let (row, known) = (entry.row.0 as usize, entry.known_blocks as usize);
            if row >= self.rows.len() {
                self.rows.resize_with(row + 1, RowTable::default);
            }
            let RowTable { version, blocks: table, last } = &mut self.rows[row];
            if table.len() < known {
                return Err(Error::internal(format!(
                    "step {} builds on {known} blocks of row {row}, which has {}",
                    plan.id.0,
                    table.len()
                )));
            }
            let (new, starts_over) = (plan.new_blocks(entry), known == 0 || known < table.len());
            if starts_over || !new.is_empty() {
                *version += u64::from(starts_over);
                table.truncate(known);
                table.extend_from_slice(new);
                *last = table.last().copied();
            }
        }
        Ok(())
    }

    /// The whole table of an entry whose plan was taken in last.
    pub fn of(&self, entry: &StepEntry) -> &RowTable {
        self.rows.get(entry.row.0 as usize).unwrap_or(&NO_TABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Row, SeqId, StepId};

    /// A decode step of row 2.
    fn plan(known_blocks: u32, blocks: &[u32]) -> StepPlan {
        let entry = StepEntry {
            seq: SeqId(1),
            row: Row(2),
            start: 0,
            len: 1,
            tokens: 0..1,
            known_blocks,
            blocks: 0..blocks.len() as u32,
            samples: true,
            logprobs: None,
            scores: None,
            awaits_mask: false,
        };
        let blocks = blocks.iter().copied().map(BlockId).collect();
        StepPlan { id: StepId(7), entries: vec![entry], tokens: vec![1], blocks, targets: vec![], row_inits: vec![] }
    }

    #[test]
    fn tables_grow_and_start_over() {
        let mut tables = RowTables::default();
        for (known, new, whole) in
            [(0, &[4, 5][..], &[4, 5][..]), (2, &[], &[4, 5]), (2, &[9], &[4, 5, 9]), (0, &[3], &[3])]
        {
            let plan = plan(known, new);
            tables.apply(&plan).unwrap();
            let table = tables.of(&plan.entries[0]);
            assert_eq!(table.blocks, whole.iter().copied().map(BlockId).collect::<Vec<_>>());
            assert!((0..4).all(|i| table.block(i) == table.blocks.get(i).copied()));
        }
    }

    #[test]
    fn what_nobody_told_of_is_an_error() {
        let mut tables = RowTables::default();
        assert!(tables.apply(&plan(1, &[])).unwrap_err().message.contains("builds on 1 blocks of row 2"));
    }
}
