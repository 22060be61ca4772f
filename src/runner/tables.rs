//! Block tables among a step's inputs: a buffer that is packed again mostly holds them from the last time.

use super::inputs::Words;
use crate::plan::tables::RowTable;
use crate::plan::{RowTables, StepPlan};

/// Where the tables of one step stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TableLayout {
    /// Word of the first table.
    pub(super) first: usize,
    /// Words from one table to the next.
    pub(super) stride: usize,
    /// What is added to every block's number.
    pub(super) shift: usize,
}

/// A table that a buffer holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    row: u32,
    version: u64,
    blocks: usize,
}

/// The tables that a buffer holds since it was packed last.
#[derive(Debug, Default)]
pub(super) struct HeldTables {
    layout: TableLayout,
    entries: Vec<Held>,
}

impl HeldTables {
    /// Writes what the buffer behind `words` lacks of the tables of a plan, which `tables` has taken in.
    pub(super) fn pack(&mut self, (plan, tables): (&StepPlan, &RowTables), layout: TableLayout, words: &mut Words<'_>) {
        if std::mem::replace(&mut self.layout, layout) != layout {
            self.entries.clear();
        }
        self.entries.truncate(plan.entries.len());
        for (i, entry) in plan.entries.iter().enumerate() {
            let RowTable { version, blocks: table, .. } = tables.of(entry);
            let now = Held { row: entry.row.0, version: *version, blocks: table.len() };
            let held = match self.entries.get_mut(i) {
                Some(held) => std::mem::replace(held, now),
                None => {
                    self.entries.push(now);
                    Held { blocks: 0, ..now }
                }
            };
            let same = (held.row, held.version) == (now.row, now.version);
            let from = if same { held.blocks.min(table.len()) } else { 0 };
            let new = table[from..].iter().map(|id| (layout.shift + id.0 as usize) as i32);
            words.set_all(layout.first + i * layout.stride + from, new);
        }
    }

    /// For a buffer whose next tables have their versions from elsewhere.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::SplitMix64;
    use crate::base::{BlockId, Row, SeqId, StepId};
    use crate::hal::registry::{DeviceOptions, open_host};
    use crate::plan::StepEntry;

    const ROWS: u64 = 4;
    const STRIDE: usize = 8;

    /// A step of some rows in some order, whose tables grow, stay or start over.
    fn step(rng: &mut SplitMix64, lens: &mut [u32; ROWS as usize], next: &mut u32) -> StepPlan {
        let (first, count) = (rng.below(ROWS), rng.below(ROWS + 1));
        let mut plan = StepPlan {
            id: StepId(0),
            entries: vec![],
            tokens: vec![],
            blocks: vec![],
            targets: vec![],
            row_inits: vec![],
        };
        for row in (first..first + count).map(|i| i % ROWS) {
            let len = &mut lens[row as usize];
            let known = if rng.below(5) == 0 || *len as usize == STRIDE { 0 } else { *len };
            let new = rng.below(3).min((STRIDE as u32 - known).into()) as u32;
            *len = known + new;
            let from = plan.blocks.len() as u32;
            plan.blocks.extend((*next..*next + new).map(BlockId));
            *next += new;
            plan.entries.push(StepEntry {
                seq: SeqId(row),
                row: Row(row as u32),
                start: 0,
                len: 1,
                tokens: 0..0,
                known_blocks: known,
                blocks: from..from + new,
                samples: true,
                logprobs: None,
                scores: None,
                awaits_mask: false,
            });
        }
        plan
    }

    #[test]
    fn buffers_that_hold_tables_come_to_the_same_as_fresh_ones() {
        let device = open_host(&DeviceOptions::default()).unwrap();
        let mut buffers: Vec<_> = (0..2).map(|_| (device.host_buffer(4096).unwrap(), HeldTables::default())).collect();
        let (mut rng, mut tables, mut lens, mut next) = (SplitMix64(5), RowTables::default(), [0; ROWS as usize], 1);
        for i in 0..2000 {
            let plan = step(&mut rng, &mut lens, &mut next);
            tables.apply(&plan).unwrap();
            let (host, held) = &mut buffers[i % 2];
            let layout = TableLayout { first: 16 * rng.below(8).min(1) as usize, stride: STRIDE, shift: 1 };
            held.pack((&plan, &tables), layout, &mut Words::of(host.as_mut()));
            let words: Vec<_> =
                host.bytes().chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
            for (s, entry) in plan.entries.iter().enumerate() {
                let whole: Vec<_> = tables.of(entry).blocks.iter().map(|id| id.0 + 1).collect();
                assert_eq!(words[layout.first + s * STRIDE..][..whole.len()], whole, "step {i}, entry {s}");
            }
            // What pads a step is written over tables that nobody has.
            for s in plan.entries.len()..ROWS as usize {
                Words::of(host.as_mut()).set(layout.first + s * STRIDE, 0);
            }
        }
    }
}
