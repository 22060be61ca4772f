//! Steps in the making and in flight: how a sequence's next tokens become an entry of a plan, and what is kept of it to land it.

use crate::base::{SeqId, StepId};
use crate::plan::cost::Load;
use crate::plan::{RowInit, StepEntry, StepPart, StepPlan};
use crate::sched::Planted;
use crate::sched::growth::Growth;
use crate::sched::scheduler::Scheduler;
use crate::sched::sequence::Sequence;

/// One entry of a step in flight, by slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlightEntry {
    pub(super) seq: SeqId,
    pub(super) slot: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    /// Positions whose logits tell of prompt tokens, from and to; none of most entries.
    pub(super) scores: (u32, u32),
    pub(super) samples: bool,
    /// Its token waits for a mask.
    pub(super) waits: bool,
}

impl FlightEntry {
    pub(super) fn has_scores(&self) -> bool {
        self.scores.0 < self.scores.1
    }

    /// Whether a token lands with it.
    pub(super) fn lands_token(&self) -> bool {
        self.samples && !self.waits
    }
}

/// A submitted step, or a late part of one.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: StepId,
    pub(super) part: StepPart,
    pub(super) entries: Vec<FlightEntry>,
    /// Leading entries that decode, where they bound the step's cost.
    pub(super) decodes: usize,
}

/// A step in the making.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) plan: StepPlan,
    pub(super) flight: Vec<FlightEntry>,
    /// Budget left, in tokens.
    pub(super) left: u32,
    /// Leading entries that decode, where they bound the step's cost.
    pub(super) decodes: usize,
    /// Kept where there is a limit to what the step may cost.
    pub(super) load: Load,
    /// What the step may cost.
    pub(super) limit: Option<u64>,
    /// Sequences that sit this step out because blocks are on their way back to them.
    pub(super) claims: u32,
    /// Blocks were short, so nobody new is admitted.
    pub(super) short: bool,
    /// What all who run are taken to come to, once somebody asked.
    pub(super) growth: Option<Growth>,
}

impl Scheduler {
    /// Adds the next token of the running sequences from the one at `from` on, up to the first that asks for more, or less, than
    /// to go on decoding in its last block. Most steps are made here: it is what [`Scheduler::push_entry`] comes to then. The
    /// number of them.
    #[inline(never)]
    pub(super) fn push_plain(&mut self, from: usize, draft: &mut Draft) -> usize {
        if self.planted(Planted::PublishEarly) {
            return 0;
        }
        let (plan, flight, size) = (&mut draft.plan, &mut draft.flight, self.cfg.block_size);
        let (known, next) = (plan.blocks.len() as u32, plan.id.0 + 1);
        let before = flight.len();
        for &(_, slot) in self.running[from..].iter().take(draft.left as usize) {
            let Some(s) = self.seqs.get_mut(slot) else { break };
            let (start, end, told) = (s.computed, s.computed + 1, s.told * size);
            let decodes = s.todo() == 1 && end >= s.prompt_len && end <= told && told < end + size;
            if !decodes || s.row_init | s.masked | s.is_suspect() {
                break;
            }
            let token = plan.tokens.len() as u32;
            if s.pending == 0 {
                plan.tokens.extend_from_slice(s.tokens.part(start..end));
            }
            plan.entries.push(StepEntry {
                seq: s.id,
                row: s.row,
                start,
                len: 1,
                tokens: token..token + u32::from(s.pending == 0),
                known_blocks: s.told,
                blocks: known..known,
                samples: true,
                logprobs: s.logprobs(),
                scores: None,
                awaits_mask: false,
            });
            flight.push(FlightEntry { seq: s.id, slot, start, end, scores: (0, 0), samples: true, waits: false });
            s.computed = end;
            s.pending += 1;
            s.inflight += 1;
            s.planned_in = next;
        }
        let pushed = flight.len() - before;
        draft.left -= pushed as u32;
        self.stats.planned_tokens += pushed as u64;
        pushed
    }

    /// Adds the next `len` tokens of a sequence to the step. Its blocks cover them.
    pub(super) fn push_entry(&mut self, slot: u32, len: u32, draft: &mut Draft) {
        let s = &mut self.seqs[slot];
        let plan = &mut draft.plan;
        let (start, end) = (s.computed, s.computed + len);
        let samples = end == s.target();
        let known = s.tokens.len().min(end);
        let inputs = if start < known { s.tokens.part(start..known) } else { &[] };
        let tokens = push_all(&mut plan.tokens, inputs);
        let covered = end.div_ceil(self.cfg.block_size);
        let known_blocks = s.told.min(covered);
        let blocks = push_all(&mut plan.blocks, &s.rest.blocks[known_blocks as usize..covered as usize]);
        s.told = covered;
        if s.row_init {
            s.row_init = false;
            plan.row_inits.push(Self::row_state(s, self.planted));
        }
        let waits = samples && s.masked;
        if waits {
            s.late = Some(plan.id).filter(|_| self.planted != Some(Planted::LateForgotten));
        }
        // Most entries are behind their prompts.
        let unscored = if start + 1 < s.prompt_len { s.unscored(start, end) } else { 0..0 };
        let scores = if unscored.is_empty() { None } else { s.scores(unscored.clone(), &mut plan.targets) };
        plan.entries.push(StepEntry {
            seq: s.id,
            row: s.row,
            start,
            len,
            tokens,
            known_blocks,
            blocks,
            samples,
            logprobs: s.logprobs(),
            scores,
            awaits_mask: waits,
        });
        if self.planted == Some(Planted::ScoredEarly) && !unscored.is_empty() {
            s.rest.scored = unscored.end;
        }
        s.computed = end;
        s.pending += u16::from(samples);
        s.inflight += 1;
        s.planned_in = plan.id.0 + 1;
        let scores = (unscored.start, unscored.end);
        draft.flight.push(FlightEntry { seq: s.id, slot, start, end, scores, samples, waits });
        draft.left = draft.left.saturating_sub(len);
        if let Some((bound, _)) = self.cfg.bound.as_ref().zip(draft.limit) {
            draft.load = bound.cost.with(draft.load, start, len);
        }
        self.stats.planned_tokens += u64::from(len);
        if self.planted(Planted::PublishEarly) {
            self.seqs[slot].done = end;
            self.publish(slot, None);
        }
    }

    /// Of a sequence that enters its row.
    fn row_state(seq: &mut Sequence, planted: Option<Planted>) -> RowInit {
        let mut init = seq.row_state();
        if planted == Some(Planted::ChoiceLost) {
            init.choice = 0;
        }
        if planted == Some(Planted::HistoryLost) {
            init.history.truncate(seq.prompt_len as usize);
        }
        init
    }
}

/// Appends to one of a plan's tables; where it stands there.
pub(super) fn push_all<T: Copy>(table: &mut Vec<T>, items: &[T]) -> std::ops::Range<u32> {
    let from = table.len() as u32;
    // Of most entries there is nothing new.
    if !items.is_empty() {
        table.extend_from_slice(items);
    }
    from..table.len() as u32
}
