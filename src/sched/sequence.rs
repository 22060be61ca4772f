//! One generation in progress: counters, and where it stands.

use crate::base::{BlockId, Error, Row, SeqId, StepId, Token};
use crate::plan::{FinishReason, Request, RowInit, SamplingParams, Scores, StopCriteria};
use crate::sched::draft::push_all;
use crate::sched::policy::Rank;
use crate::sched::prefix::{PrefixCache, ROOT};
use crate::sched::tokens::Tokens;
use std::ops::{Index, IndexMut, Range};

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

/// What every step reads and writes, side by side and apart from the rest: while a device runs a step, the host's caches grow
/// cold, and a step walks over all sequences.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Sequence {
    pub(super) id: SeqId,
    /// The step that last took it, plus one.
    pub(super) planned_in: u64,
    pub(super) rest: Box<Rest>,
    /// Tokens whose KV is written or will be by a step in flight.
    pub(super) computed: u32,
    /// Tokens whose KV is known to be written.
    pub(super) done: u32,
    /// Tokens that steps in flight will sample.
    pub(super) pending: u16,
    /// Steps and late parts in flight that mention this sequence.
    pub(super) inflight: u16,
    /// Generated tokens it may reach now.
    pub(super) lead: u32,
    /// Generated tokens it may reach ever.
    pub(super) limit: u32,
    pub(super) prompt_len: u32,
    /// Leading blocks that are published or shared.
    pub(super) published: u32,
    /// Leading blocks that plans have told its row of.
    pub(super) told: u32,
    /// Blocks it holds.
    num_blocks: u32,
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
    logprobs: Option<u8>,
    /// Which classes of tokens may end it; see [`Sequence::may_end`].
    ends: u64,
    /// The step whose late part will draw its pending token. Until that lands it sits out.
    pub(super) late: Option<StepId>,
    /// Prompt and generated tokens the host knows.
    pub(super) tokens: Tokens,
}

/// Three cache lines.
const _: () = assert!(size_of::<Option<Sequence>>() == 192);

/// What a step that decodes asks for seldom or never. What it does ask for now and then stands first.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Rest {
    pub(super) blocks: Vec<BlockId>,
    /// Serial of the last published block; `None` once the chain is broken by a hash collision.
    pub(super) serial: Option<u64>,
    /// Hash of the last published block; of the first one's predecessor it is the salt.
    pub(super) link: u64,
    pub(super) salt: u64,
    /// Hashes of the full blocks that it had when it was added, or gave way.
    pub(super) chain: Vec<u64>,
    pub(super) rank: Rank,
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
    /// A sequence that has not begun, of a model with room for `limit` more tokens.
    pub(super) fn new(request: Request, (rank, salt): (Rank, u64), limit: u32, refusal: Option<Error>) -> Self {
        let prompt_len = request.prompt().len() as u32;
        let rest = Rest {
            blocks: Vec::new(),
            prompt_logprobs: request.prompt_logprobs,
            scored: if request.prompt_logprobs.is_some() { 0 } else { prompt_len - 1 },
            choice: request.choice,
            started: false,
            announced: 0,
            passed: 0,
            serial: Some(ROOT),
            link: salt,
            salt,
            chain: Vec::new(),
            rank,
            awaits: None,
            misfit: None,
            refusal,
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
        };
        Self {
            id: request.seq,
            planned_in: 0,
            computed: 0,
            done: 0,
            pending: 0,
            inflight: 0,
            lead: request.lead,
            limit: limit.min(request.stop.max_tokens()),
            prompt_len,
            published: 0,
            told: 0,
            num_blocks: 0,
            row: Row(0),
            place: Place::Waiting,
            row_init: true,
            masked: request.masked,
            supplied: false,
            failures: 0,
            finish: None,
            logprobs: request.logprobs.map(|k| u8::try_from(k).unwrap_or(u8::MAX)),
            ends: request.stop.end_tokens().fold(0, |classes, token| classes | 1 << (token % u64::BITS)),
            late: None,
            tokens: Tokens::from(request.into_prompt()),
            rest: Box::new(rest),
        }
    }

    /// Its length once every step in flight has landed.
    pub(super) fn target(&self) -> u32 {
        self.tokens.len() + u32::from(self.pending)
    }

    /// Generated tokens, those in flight included.
    pub(super) fn generated(&self) -> u32 {
        self.target() - self.prompt_len
    }

    /// Tokens to run now. Prompts, chunks, decoding and resuming are all this one subtraction.
    #[inline]
    pub(super) fn todo(&self) -> u32 {
        let waits = self.late.is_some() || self.generated() >= self.limit.min(self.lead);
        if waits { 0 } else { self.target() - self.computed }
    }

    /// Whether only its lead keeps it from running.
    pub(super) fn is_held(&self) -> bool {
        self.generated() >= self.lead
    }

    pub(super) fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    pub(super) fn add_block(&mut self, block: BlockId) {
        self.rest.blocks.push(block);
        self.num_blocks += 1;
    }

    /// Leaves it without blocks.
    pub(super) fn take_blocks(&mut self) -> Vec<BlockId> {
        self.num_blocks = 0;
        std::mem::take(&mut self.rest.blocks)
    }

    /// Adds a token; why the sequence ends with it.
    #[inline]
    pub(super) fn take(&mut self, token: Token) -> Option<FinishReason> {
        self.tokens.push(token);
        let generated = self.tokens.len() - self.prompt_len;
        if self.may_end(token) {
            let stop = &self.rest.stop;
            // The sampler holds ends back before `min_tokens`.
            let may = generated > stop.min_tokens();
            if may && stop.eos_tokens().contains(&token) {
                return Some(FinishReason::Eos);
            }
            if may && stop.stop_tokens().contains(&token) {
                return Some(FinishReason::Stop);
            }
        }
        (generated >= self.limit).then_some(FinishReason::Length)
    }

    /// False of most tokens that do not end it, without a look at the lists of those that do.
    fn may_end(&self, token: Token) -> bool {
        self.ends >> (token % u64::BITS) & 1 == 1
    }

    /// How many of the most probable tokens to report beside each.
    pub(super) fn logprobs(&self) -> Option<u32> {
        self.logprobs.map(u32::from)
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
        self.failures = self.failures.min(1);
        let rest = &mut self.rest;
        rest.announced = 0;
        rest.serial = Some(ROOT);
        rest.link = rest.salt;
        rest.awaits = None;
        rest.misfit = None;
    }

    /// The token that waits for its mask is not drawn any more.
    pub(super) fn forget_late(&mut self) {
        if self.late.take().is_some() {
            self.pending -= 1;
            self.supplied = false;
        }
    }

    /// Reads what making its next full block findable needs.
    pub(super) fn glimpse_rest(&self) -> Token {
        self.rest.blocks.get(self.published as usize).map_or(0, |block| block.0) ^ self.tokens.glimpse()
    }

    /// Its first full block that is not published.
    pub(super) fn next_full(&self, block_size: u32) -> Option<BlockId> {
        let end = (self.published + 1) * block_size;
        let block = self.rest.blocks.get(self.published as usize).copied();
        block.filter(|_| end <= self.done.min(self.tokens.len()))
    }

    /// The hash of the block that [`Sequence::next_full`] names.
    pub(super) fn next_hash(&mut self, prefix: &PrefixCache, block_size: u32) -> u64 {
        let from = self.published * block_size;
        match self.rest.chain.get(self.published as usize) {
            Some(hash) => *hash,
            None => prefix.link(self.rest.link, self.tokens.part(from..from + block_size)),
        }
    }

    /// Positions among `start..end` whose logits tell of a prompt token that is not reported yet.
    pub(super) fn unscored(&self, start: u32, end: u32) -> Range<u32> {
        start.max(self.rest.scored)..end.min(self.prompt_len - 1)
    }

    /// Asks for the report of prompt tokens, where anybody wants it; their number is that of the positions.
    pub(super) fn scores(&mut self, unscored: Range<u32>, targets: &mut Vec<Token>) -> Option<Box<Scores>> {
        let alternatives = self.rest.prompt_logprobs?;
        let targets = push_all(targets, self.tokens.part(unscored.start + 1..unscored.end + 1));
        Some(Box::new(Scores { from: unscored.start, targets, alternatives }))
    }

    pub(super) fn row_state(&mut self) -> RowInit {
        let (stop, sampling) = (&self.rest.stop, &self.rest.sampling);
        let min_tokens = stop.min_tokens();
        RowInit {
            row: self.row,
            sampling: sampling.clone(),
            choice: self.rest.choice,
            prompt_len: self.prompt_len,
            min_tokens,
            end_tokens: if min_tokens > 0 { stop.end_tokens().collect() } else { Vec::new() },
            history: if sampling.counts_tokens() { self.tokens.all().to_vec() } else { Vec::new() },
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

    pub(super) fn get(&self, slot: u32) -> Option<&Sequence> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Sequence> {
        self.slots.get_mut(slot as usize)?.as_mut()
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
