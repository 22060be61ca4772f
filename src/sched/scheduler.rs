//! The scheduler's state and its calls; how it admits, preempts and lands is in the files beside.
//!
//! Progress is one subtraction: a sequence's `computed` catches up with its `target` under the step's token budget.
//! A step takes running sequences that decode first, in rank order, then prompts under way, then admits waiting ones.

use crate::base::hash::NumberMap;
use crate::base::{BlockId, Row, SeqId, StepId};
use crate::plan::cost::Load;
use crate::plan::{FinishReason, Request, StepPart, StepPlan};
use crate::sched::block_pool::BlockPool;
use crate::sched::draft::{Draft, Flight, FlightEntry};
use crate::sched::growth::{Grower, Outputs};
use crate::sched::pace::Pace;
use crate::sched::policy::{Candidate, ChunkView, Policy, Rank};
use crate::sched::prefix::PrefixCache;
use crate::sched::sequence::{Place, Sequence, Slab};
use crate::sched::{Event, Planted, SchedConfig, SchedStats};
use std::collections::{BTreeSet, VecDeque};

/// A vacated place in the running order; swept before anything is inserted.
pub(super) const NOBODY: u32 = u32::MAX;

/// Decides what every step does. One owner, one thread, no clock; the same calls give the same plans.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) cfg: SchedConfig,
    pub(super) planted: Option<Planted>,
    pub(super) policy: Box<dyn Policy>,
    pub(super) pool: BlockPool,
    pub(super) prefix: PrefixCache,
    pub(super) seqs: Slab,
    pub(super) by_id: NumberMap<SeqId, u32>,
    /// Running sequences by rank. Vacated places hold [`NOBODY`] until swept.
    pub(super) running: Vec<(Rank, u32)>,
    pub(super) vacated: usize,
    /// Waiting sequences by rank, without those their lead holds back.
    pub(super) waiting: BTreeSet<(Rank, u32)>,
    pub(super) leaving: Vec<u32>,
    /// Those with full blocks that [`Scheduler::publish_all`] has not looked at.
    pub(super) full: Vec<u32>,
    pub(super) hashes: Vec<u64>,
    /// Those that landed and may need a block for their next token; a hint.
    pub(super) short: Vec<u32>,
    pub(super) refused: Vec<SeqId>,
    pub(super) inflight: VecDeque<Flight>,
    pub(super) rows: Vec<Row>,
    /// A step failed: nothing is planned until the pipeline has drained.
    pub(super) draining: bool,
    /// Some sequence may be a suspect.
    pub(super) suspects: bool,
    pub(super) stats: SchedStats,
    /// Tokens computed by sequences that are gone; closes the balance of [`super::invariants`].
    pub(super) retired_tokens: u64,
    pub(super) prefills: Vec<u32>,
    pub(super) scan: Vec<u32>,
    pub(super) hits: Vec<BlockId>,
    pub(super) outputs: Outputs,
    /// What all who run will come to, one by one; scratch of [`super::growth`].
    pub(super) growers: Vec<Grower>,
    pub(super) pace: Pace,
    /// Calls of `schedule`.
    pub(super) calls: u64,
    arrivals: u64,
    next_step: u64,
    spare: Vec<Vec<FlightEntry>>,
    /// Sizes of the last plan's tables, to allocate the next one at once.
    sizes: (usize, usize),
}

impl Scheduler {
    /// `cfg` must have positive sizes.
    pub fn new(cfg: SchedConfig, policy: Box<dyn Policy>) -> Self {
        Self::with_planted(cfg, policy, None)
    }

    /// A scheduler with a known bug, for the simulator to find.
    #[doc(hidden)]
    pub fn with_planted(cfg: SchedConfig, policy: Box<dyn Policy>, planted: Option<Planted>) -> Self {
        let mut prefix = PrefixCache::new(cfg.num_blocks, cfg.block_size, cfg.hash_bits);
        prefix.verify = planted != Some(Planted::HitUnverified);
        Self {
            pool: BlockPool::new(cfg.num_blocks),
            prefix,
            seqs: Slab::default(),
            by_id: NumberMap::default(),
            running: Vec::with_capacity(cfg.max_seqs),
            vacated: 0,
            waiting: BTreeSet::new(),
            leaving: Vec::new(),
            full: Vec::new(),
            hashes: Vec::new(),
            short: Vec::new(),
            refused: Vec::new(),
            inflight: VecDeque::new(),
            rows: (0..cfg.max_seqs as u32).rev().map(Row).collect(),
            draining: false,
            suspects: false,
            stats: SchedStats::default(),
            retired_tokens: 0,
            prefills: Vec::new(),
            scan: Vec::new(),
            hits: Vec::new(),
            outputs: Outputs::new(&cfg),
            growers: Vec::new(),
            pace: Pace::default(),
            calls: 0,
            arrivals: 0,
            next_step: 0,
            spare: Vec::new(),
            sizes: (0, 0),
            cfg,
            planted,
            policy,
        }
    }

    /// Whether `bug` is switched on. Asked on cold paths only.
    pub(super) fn planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    /// Accepts a request. Ids are unique per engine. One that can never run ends at the next `schedule`.
    pub fn add(&mut self, request: Request) {
        debug_assert!(!self.by_id.contains_key(&request.seq), "{:?} added twice", request.seq);
        let prompt_len = request.prompt().len() as u32;
        let max_tokens = request.stop.max_tokens();
        let priority = if self.planted(Planted::PriorityIgnored) { 0 } else { request.priority };
        let candidate = Candidate { arrival: self.arrivals, priority, prompt_len, max_tokens };
        self.arrivals += 1;
        let salt = if self.planted(Planted::SaltIgnored) { 0 } else { request.cache_salt };
        let limit = (self.cfg.max_model_len as u32).saturating_sub(prompt_len);
        let ranked = (self.policy.rank(&candidate), salt);
        let mut seq = Sequence::new(request, ranked, limit, self.refusal(prompt_len));
        if seq.rest.refusal.is_some() {
            self.refused.push(seq.id);
        } else if self.cfg.prefix_cache {
            self.prefix.extend_chain(salt, seq.tokens.all(), &mut seq.rest.chain);
        }
        let (id, key, queued) = (seq.id, seq.rest.rank, seq.rest.refusal.is_none() && !seq.is_held());
        let slot = self.seqs.insert(seq);
        self.by_id.insert(id, slot);
        if queued {
            self.waiting.insert((key, slot));
        }
    }

    /// Ends a sequence for `reason`; its blocks come back once no step in flight mentions it. An id that is unknown or
    /// has ended is left alone.
    pub fn abort(&mut self, seq: SeqId, reason: FinishReason, events: &mut Vec<Event>) {
        if let Some(&slot) = self.by_id.get(&seq) {
            self.finish(slot, reason, None, events);
            self.reap();
            self.sweep();
        }
    }

    /// Raises the generated tokens a sequence may reach; see [`Request::lead`]. Never lowers it.
    pub fn allow(&mut self, seq: SeqId, lead: u32) {
        let Some(&slot) = self.by_id.get(&seq) else { return };
        let s = &mut self.seqs[slot];
        s.lead = s.lead.max(lead);
        if s.place == Place::Waiting && s.rest.refusal.is_none() && !s.is_held() {
            let key = (s.rest.rank, slot);
            self.waiting.insert(key);
        }
    }

    /// The next step, or `None` when nothing can run now: everything is in flight, held back, or waits for blocks that
    /// come back when a step lands.
    pub fn schedule(&mut self, events: &mut Vec<Event>) -> Option<StepPlan> {
        self.refuse(events);
        if self.draining {
            return None;
        }
        self.calls += 1;
        self.yield_to_waiting();
        let mut draft = self.draft();
        self.plan_suspect(&mut draft);
        if draft.flight.is_empty() {
            self.plan_decodes(&mut draft, events);
            self.set_limit(&mut draft);
            self.pace(&mut draft);
            self.plan_prefills(&mut draft);
            self.admit(&mut draft, events);
        }
        self.commit(draft)
    }

    /// Whether no sequence is left, not even one that only waits for its steps to land.
    pub fn is_idle(&self) -> bool {
        self.seqs.len() == 0
    }
    pub fn has_inflight(&self) -> bool {
        !self.inflight.is_empty()
    }
    /// Steps planned and not landed.
    pub fn num_inflight(&self) -> usize {
        self.inflight.len()
    }
    /// Who holds which block.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Places in the running order that are not vacated.
    pub(super) fn num_running(&self) -> usize {
        self.running.len() - self.vacated
    }

    pub fn stats(&self) -> SchedStats {
        let running = self.num_running();
        SchedStats {
            waiting: self.seqs.len() - running - self.leaving.len(),
            running,
            blocks_total: self.pool.num_blocks(),
            blocks_free: self.pool.num_free(),
            blocks_cached: self.prefix.num_published() as u32,
            ..self.stats
        }
    }

    fn draft(&mut self) -> Draft {
        let (tokens, blocks) = self.sizes;
        let entries = self.running.len();
        let plan = StepPlan {
            id: StepId(self.next_step),
            entries: Vec::with_capacity(entries),
            tokens: Vec::with_capacity(tokens),
            blocks: Vec::with_capacity(blocks),
            targets: Vec::new(),
            row_inits: Vec::new(),
        };
        let flight = self.take_spare();
        let left = self.cfg.max_tokens as u32;
        Draft {
            plan,
            flight,
            left,
            decodes: 0,
            load: Load::default(),
            limit: None,
            claims: 0,
            short: false,
            growth: None,
        }
    }

    /// Keeps what is needed to land the step.
    fn commit(&mut self, draft: Draft) -> Option<StepPlan> {
        if draft.flight.is_empty() {
            self.spare.push(draft.flight);
            return None;
        }
        self.next_step += 1;
        self.stats.steps += 1;
        self.sizes = (draft.plan.tokens.len(), draft.plan.blocks.len());
        self.inflight.push_back(Flight {
            id: draft.plan.id,
            part: StepPart::First,
            entries: draft.flight,
            decodes: draft.decodes,
        });
        Some(draft.plan)
    }

    pub(super) fn take_spare(&mut self) -> Vec<FlightEntry> {
        self.spare.pop().unwrap_or_default()
    }

    pub(super) fn recycle(&mut self, mut entries: Vec<FlightEntry>) {
        entries.clear();
        self.spare.push(entries);
    }

    /// A sequence whose last two steps failed runs alone, so that a third failure ends nobody but the culprit.
    fn plan_suspect(&mut self, draft: &mut Draft) {
        if !self.suspects {
            return;
        }
        self.suspects = false;
        for i in 0..self.running.len() {
            let slot = self.running[i].1;
            let s = &self.seqs[slot];
            if !s.is_suspect() {
                continue;
            }
            self.suspects = true;
            let len = s.todo().min(draft.left);
            let fits = s.num_blocks() * self.cfg.block_size >= s.computed + len;
            if s.inflight == 0 && len > 0 && fits {
                self.push_entry(slot, len, draft);
                return;
            }
        }
    }

    fn plan_decodes(&mut self, draft: &mut Draft, events: &mut Vec<Event>) {
        self.prefills.clear();
        self.warm_short();
        let mut i = 0;
        loop {
            i += self.push_plain(i, draft);
            if draft.left == 0 {
                break;
            }
            let Some(&(_, slot)) = self.running.get(i) else { break };
            i += 1;
            if slot == NOBODY {
                continue;
            }
            let s = &self.seqs[slot];
            match s.todo() {
                0 => continue,
                1 => {}
                _ => {
                    self.prefills.push(slot);
                    continue;
                }
            }
            let covered = s.num_blocks() * self.cfg.block_size > s.computed;
            // A suspect that lacks a block gets it here; its step is then its own.
            if (covered || self.reserve(slot, draft, events)) && !self.seqs[slot].is_suspect() {
                self.push_entry(slot, 1, draft);
            }
        }
        self.sweep();
    }

    fn plan_prefills(&mut self, draft: &mut Draft) {
        let prefills = std::mem::take(&mut self.prefills);
        for (i, &slot) in prefills.iter().enumerate() {
            if draft.left == 0 {
                break;
            }
            // It may have given way to a decoding one.
            if self.seqs[slot].place != Place::Running || self.seqs[slot].is_suspect() {
                continue;
            }
            let more = i + 1 < prefills.len() || !self.waiting.is_empty() && !self.rows.is_empty();
            let room = self.room(self.seqs[slot].computed, draft);
            if room > 0 {
                let len = self.chunk(self.seqs[slot].todo(), room, more);
                self.push_entry(slot, len, draft);
            }
        }
        self.prefills = prefills;
    }

    pub(super) fn chunk(&self, todo: u32, left: u32, contended: bool) -> u32 {
        if self.planted(Planted::BudgetIgnored) {
            return todo;
        }
        // A smallest chunk is not shared.
        let contended = contended && self.cfg.bound.is_none_or(|b| left > b.min_chunk);
        self.policy.chunk(&ChunkView { todo, left, contended }).clamp(1, todo.min(left))
    }
}
