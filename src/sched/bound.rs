//! What a step may cost: prompts that run beside decoding sequences are cut so that these wait little longer for their next
//! token than they do without prompts. A step in which nobody decodes is bounded by its tokens alone, and so is one in which
//! few decode for each prompt that waits: long steps make them many soon, and throughput goes first.

use crate::plan::StepCost;
use crate::plan::cost::Load;
use crate::sched::Planted;
use crate::sched::draft::{Draft, Flight, FlightEntry};
use crate::sched::scheduler::Scheduler;

/// Decodes for each prompt that waits, from which on the step is bounded.
const DECODES_A_PROMPT: usize = 2;

/// How much prompts may slow down the sequences that decode beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBound {
    pub cost: StepCost,
    /// What a step with prompts may cost of what its decodes cost alone; at least 100.
    pub percent: u32,
    /// Tokens that the first prompt of a step gets whatever they cost, so that every prompt comes to its end. Others, and shares
    /// beyond it, come in multiples of it, so that a device meets few shapes. At least 1.
    pub min_chunk: u32,
}

impl StepBound {
    fn load(&self, entries: &[FlightEntry]) -> Load {
        entries.iter().fold(Load::default(), |load, e| self.cost.with(load, e.start, e.end - e.start))
    }

    /// Most that a step may cost whose decodes are this load.
    fn limit(&self, decodes: Load) -> u64 {
        let alone = self.cost.of(decodes);
        u64::try_from(u128::from(alone) * u128::from(self.percent) / 100).unwrap_or(u64::MAX)
    }
}

impl Scheduler {
    /// Fixes what the step may cost once all that decodes is in it.
    pub(super) fn set_limit(&self, draft: &mut Draft) {
        let prompts = self.prefills.len() + self.waiting.len();
        if draft.flight.len() < (DECODES_A_PROMPT * prompts).max(1) {
            return;
        }
        draft.decodes = draft.flight.len();
        // Without prompts nothing asks what decodes cost.
        if let Some(bound) = self.cfg.bound.filter(|_| prompts > 0 && !self.planted(Planted::CostIgnored)) {
            draft.load = bound.load(&draft.flight);
            draft.limit = Some(bound.limit(draft.load));
        }
    }

    /// Tokens from position `start` on that a prompt may run in what is left of the step.
    pub(super) fn room(&self, start: u32, draft: &Draft) -> u32 {
        let Some((bound, limit)) = self.cfg.bound.zip(draft.limit) else { return draft.left };
        let fits = bound.cost.fit(draft.load, (start, draft.left), limit);
        let whole = if fits == draft.left { fits } else { fits - fits % bound.min_chunk };
        let first = draft.flight.len() == draft.decodes;
        if first { whole.max(bound.min_chunk.min(draft.left)) } else { whole }
    }

    /// Whether a step keeps to its bound; for the invariants.
    pub(super) fn keeps_bound(&self, flight: &Flight) -> bool {
        let Some(bound) = self.cfg.bound.filter(|_| flight.decodes > 0) else { return true };
        let (decodes, prompts) = flight.entries.split_at(flight.decodes);
        let alone = bound.load(decodes);
        let smallest = prompts.len() <= 1 && prompts.iter().all(|e| e.end - e.start <= bound.min_chunk);
        smallest || bound.cost.of(bound.load(&flight.entries)) <= bound.limit(alone)
    }
}
