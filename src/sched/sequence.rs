//! One generation in progress: counters, and where it stands.

use crate::base::{BlockId, Error, Row, SeqId, StepId, Token};
use crate::plan::{FinishReason, RowInit, SamplingParams, StopCriteria};
use crate::sched::policy::Rank;
use crate::sched::prefix::ROOT;
use std::ops::{Index, IndexMut};

/// Who owns a sequence's place in the scheduler's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Holds nothing and stands in the waiting order, unless its lead holds it back.
    Waiting,
    /// Holds a row and blocks.
    Running,
    /// Gives everything back once no step in flight mentions it; then it waits again, or is gone.
    Leaving,
}

/// Why a waiting sequence was not admitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Misfit {
    /// Free blocks it would have taken.
    pub(super) needed: u32,
    /// The call of `schedule` at which to look again.
    pub(super) retry: u64,
}

/// What every step reads and writes stands first, in as few cache lines as it takes: while a device runs a step, the host's
/// caches grow cold, and a step walks over all sequences.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Sequence {
    /// Prompt and generated tokens the host knows.
    pub(super) tokens: Vec<Token>,
    pub(super) blocks: Vec<BlockId>,
    pub(super) id: SeqId,
    /// The step that last took it, plus one.
    pub(super) planned_in: u64,
    /// The step whose late part will draw its pending token. Until that lands it sits out.
    pub(super) late: Option<StepId>,
    /// Tokens whose KV is written or will be by a step in flight.
    pub(super) computed: u32,
    /// Tokens whose KV is known to be written.
    pub(super) done: u32,
    /// Tokens that steps in flight will sample.
    pub(super) pending: u32,
    /// Steps and late parts in flight that mention this sequence.
    pub(super) inflight: u32,
    /// Generated tokens it may reach now.
    pub(super) lead: u32,
    /// Generated tokens it may reach ever.
    pub(super) limit: u32,
    pub(super) prompt_len: u32,
    /// Leading blocks that are published or shared.
    pub(super) published: u32,
    /// Leading blocks that plans have told its row of.
    pub(super) told: u32,
    pub(super) row: Row,
    pub(super) place: Place,
    /// The device's row state must be written before the next step.
    pub(super) row_init: bool,
    /// Each of its tokens waits for a mask.
    pub(super) masked: bool,
    /// Whether the part that draws its late token is in flight.
    pub(super) supplied: bool,
    /// Failed steps in a row.
    pub(super) failures: u8,
    pub(super) finish: Option<FinishReason>,
    /// Which classes of tokens may end it; see [`Sequence::may_end`].
    pub(super) ends: u16,
    pub(super) logprobs: Option<u32>,
    pub(super) prompt_logprobs: Option<u32>,
    /// Leading positions whose logits are no longer needed to report prompt tokens. Survives what takes the KV away.
    pub(super) scored: u32,
    pub(super) choice: u32,
    /// Whether it was ever admitted.
    pub(super) started: bool,
    /// Leading blocks announced at admission.
    pub(super) announced: u32,
    /// Admissions that passed it over because it did not fit.
    pub(super) passed: u32,
    /// Serial of the last published block; `None` once the chain is broken by a hash collision.
    pub(super) serial: Option<u64>,
    pub(super) salt: u64,
    /// Hashes of the full blocks of `tokens`.
    pub(super) chain: Vec<u64>,
    pub(super) rank: Rank,
    /// A block somebody computes and that it waits for.
    pub(super) awaits: Option<u64>,
    /// What it lacked when it last did not fit.
    pub(super) misfit: Option<Misfit>,
    /// Why it can never run.
    pub(super) refusal: Option<Error>,
    pub(super) sampling: SamplingParams,
    pub(super) stop: StopCriteria,
}

impl Sequence {
    /// Its length once every step in flight has landed.
    pub(super) fn target(&self) -> u32 {
        self.tokens.len() as u32 + self.pending
    }

    /// Generated tokens, those in flight included.
    pub(super) fn generated(&self) -> u32 {
        self.target() - self.prompt_len
    }

    /// Tokens to run now. Prompts, chunks, decoding and resuming are all this one subtraction.
    pub(super) fn todo(&self) -> u32 {
        let waits = self.late.is_some() || self.generated() >= self.limit.min(self.lead);
        if waits { 0 } else { self.target() - self.computed }
    }

    /// Whether only its lead keeps it from running.
    pub(super) fn is_held(&self) -> bool {
        self.generated() >= self.lead
    }

    /// False of most tokens that do not end it, without a look at the lists of those that do.
    pub(super) fn may_end(&self, token: Token) -> bool {
        self.ends >> (token % u16::BITS) & 1 == 1
    }

    /// The classes of a sequence's last tokens.
    pub(super) fn classes(stop: &StopCriteria) -> u16 {
        stop.end_tokens().fold(0, |classes, token| classes | 1 << (token % u16::BITS))
    }

    /// Two failed steps in a row: its next step runs without others.
    pub(super) fn is_suspect(&self) -> bool {
        self.failures >= 2
    }

    /// Everything it held is gone.
    pub(super) fn reset(&mut self) {
        self.computed = 0;
        self.done = 0;
        self.forget_late();
        self.published = 0;
        self.announced = 0;
        self.serial = Some(ROOT);
        self.awaits = None;
        self.misfit = None;
        self.failures = self.failures.min(1);
    }

    /// The token that waits for its mask is not drawn any more.
    pub(super) fn forget_late(&mut self) {
        if self.late.take().is_some() {
            self.pending -= 1;
            self.supplied = false;
        }
    }

    /// Positions among `start..end` whose logits tell of a prompt token that is not reported yet.
    pub(super) fn unscored(&self, start: u32, end: u32) -> std::ops::Range<u32> {
        start.max(self.scored)..end.min(self.prompt_len - 1)
    }

    /// Something of each cache line that landing a step touches.
    pub(super) fn glimpse(&self) -> u32 {
        self.done ^ self.tokens.last().copied().unwrap_or(0)
    }

    pub(super) fn row_state(&self) -> RowInit {
        let min_tokens = self.stop.min_tokens();
        RowInit {
            row: self.row,
            sampling: self.sampling.clone(),
            choice: self.choice,
            prompt_len: self.prompt_len,
            min_tokens,
            end_tokens: if min_tokens > 0 { self.stop.end_tokens().collect() } else { Vec::new() },
            history: if self.sampling.counts_tokens() { self.tokens.clone() } else { Vec::new() },
        }
    }
}

/// Sequences by slot. A slot is stable while its sequence lives and is used again after.
#[derive(Debug, Default)]
pub(super) struct Slab {
    slots: Vec<Option<Sequence>>,
    vacant: Vec<u32>,
}

impl Slab {
    pub(super) fn insert(&mut self, seq: Sequence) -> u32 {
        if let Some(slot) = self.vacant.pop() {
            self.slots[slot as usize] = Some(seq);
            return slot;
        }
        self.slots.push(Some(seq));
        self.slots.len() as u32 - 1
    }

    pub(super) fn remove(&mut self, slot: u32) {
        if self.slots[slot as usize].take().is_some() {
            self.vacant.push(slot);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Sequence)> {
        self.slots.iter().enumerate().filter_map(|(i, s)| s.as_ref().map(|s| (i as u32, s)))
    }
}

// A slot leaves every list of the scheduler before `remove`, so a slot found in one is alive.
impl Index<u32> for Slab {
    type Output = Sequence;
    fn index(&self, slot: u32) -> &Sequence {
        self.slots[slot as usize].as_ref().expect("slots in lists are alive")
    }
}

impl IndexMut<u32> for Slab {
    fn index_mut(&mut self, slot: u32) -> &mut Sequence {
        self.slots[slot as usize].as_mut().expect("slots in lists are alive")
    }
}
