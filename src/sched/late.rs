//! Tokens that wait for masks: their sequences sit out until the step's late part has landed, and are otherwise like any
//! other: they may end or give way meanwhile, and then their token is drawn for nobody or not at all.

use crate::base::{SeqId, StepId};
use crate::plan::StepPart;
use crate::sched::Planted;
use crate::sched::draft::{Flight, FlightEntry};
use crate::sched::scheduler::Scheduler;

impl Scheduler {
    /// The step in which a sequence waits for a mask that is not supplied yet.
    pub fn awaits_mask(&self, seq: SeqId) -> Option<StepId> {
        let s = &self.seqs[*self.by_id.get(&seq)?];
        s.late.filter(|_| !s.supplied)
    }

    /// The masks of these sequences' tokens in `step` are ready. Returns those that still want them, in order: exactly
    /// these are to be supplied to the executor now, in one late part, whose output `update` takes in its turn. When none
    /// does there is none.
    pub fn supply(&mut self, step: StepId, seqs: &[SeqId]) -> Vec<SeqId> {
        let mut entries = self.take_spare();
        let mut wanted = Vec::new();
        for &seq in seqs {
            let Some(&slot) = self.by_id.get(&seq) else { continue };
            let any_step = self.planted(Planted::LateStepIgnored);
            let s = &mut self.seqs[slot];
            if s.supplied || s.late.is_none_or(|late| late != step && !any_step) {
                continue;
            }
            s.supplied = true;
            s.inflight += 1;
            // The position whose logits are drawn from.
            let (start, end) = (s.computed - 1, s.computed);
            entries.push(FlightEntry { seq, slot, start, end, scores: (0, 0), samples: true, waits: false });
            wanted.push(seq);
        }
        if wanted.is_empty() {
            self.recycle(entries);
        } else {
            self.inflight.push_back(Flight { id: step, part: StepPart::Late, entries, decodes: 0 });
        }
        wanted
    }

    /// Steps in flight behind a failure fail too: no mask is taken for them any more.
    pub(super) fn forget_doomed(&mut self) {
        for e in self.inflight.iter().flat_map(|f| &f.entries).filter(|e| e.waits) {
            self.seqs[e.slot].forget_late();
        }
    }
}
