//! Who leaves: victims when blocks are short, sequences that have ended, and `reap`, the only place that frees.

use crate::base::Error;
use crate::plan::FinishReason;
use crate::sched::block_pool::Content;
use crate::sched::draft::Draft;
use crate::sched::policy::VictimView;
use crate::sched::scheduler::{NOBODY, Scheduler};
use crate::sched::sequence::Place;
use crate::sched::{Event, Planted};

impl Scheduler {
    /// Gets a decoding sequence its next block. False when it sits this step out, gives way itself, or has ended.
    pub(super) fn reserve(&mut self, slot: u32, draft: &mut Draft, events: &mut Vec<Event>) -> bool {
        if self.seqs[slot].num_blocks() == self.cfg.num_blocks {
            // The token in flight may still be its last.
            if self.seqs[slot].pending == 0 {
                let error = self.too_large(self.seqs[slot].tokens.len() as usize);
                self.finish(slot, FinishReason::Error, Some(error), events);
                self.reap();
            }
            return false;
        }
        while self.pool.num_free() == 0 {
            draft.short = true;
            // Blocks already on their way back count: otherwise a pipelined engine takes one more victim per step in
            // flight.
            if self.pool.num_returning() > draft.claims && !self.planted(Planted::ReturningIgnored) {
                draft.claims += 1;
                return false;
            }
            let victim = self.victim(slot, draft);
            self.preempt(victim);
            if victim == slot {
                return false;
            }
        }
        let Some(block) = self.pool.alloc() else { return false };
        self.prefix.evict(block);
        self.seqs[slot].add_block(block);
        true
    }

    /// Who gives way to `slot`: one that is held by its lead, or one ranked after it, or itself.
    fn victim(&self, slot: u32, draft: &Draft) -> u32 {
        let (rank, step) = (self.seqs[slot].rest.rank, draft.plan.id.0 + 1);
        let views = self.running.iter().filter(|r| r.1 != NOBODY && r.1 != slot).filter_map(|&(r, other)| {
            let s = &self.seqs[other];
            let held = s.is_held();
            let may = s.planned_in != step && (held || r > rank);
            may.then(|| (self.policy.victim(&VictimView { rank: r, held }), other))
        });
        views.max().map_or(slot, |(_, other)| other)
    }

    /// When the first that waits has found no room, the last running one that the policy lets yield to it gives way: one
    /// at a time, and only once what the one before it held is back.
    pub(super) fn yield_to_waiting(&mut self) {
        let Some(&(rank, slot)) = self.waiting.first() else { return };
        // As many as the step has tokens decode, and leave none.
        let no_tokens = self.num_running() >= self.cfg.max_tokens;
        let no_room = self.rows.is_empty() || self.pool.num_free() == 0 || no_tokens;
        let stuck = no_room || self.seqs[slot].rest.misfit.is_some();
        if !stuck || !self.leaving.is_empty() || self.planted(Planted::YieldForgotten) {
            return;
        }
        let last = self.running.iter().rev().find(|r| r.1 != NOBODY);
        if let Some(&(running, victim)) = last
            && self.policy.yields(running, rank)
        {
            self.preempt(victim);
            self.sweep();
        }
    }

    fn preempt(&mut self, slot: u32) {
        self.stats.preempted += 1;
        self.leave(slot);
        self.reap();
    }

    /// Ends a sequence, once: its one `Finished`. The caller reaps.
    pub(super) fn finish(&mut self, slot: u32, reason: FinishReason, error: Option<Error>, events: &mut Vec<Event>) {
        let s = &mut self.seqs[slot];
        debug_assert!(s.finish.is_none(), "{:?} ends twice", s.id);
        s.finish = Some(reason);
        if matches!(reason, FinishReason::Eos | FinishReason::Stop | FinishReason::Length) {
            self.outputs.ended(s.generated());
        }
        self.by_id.remove(&s.id);
        events.push(Event::Finished { seq: s.id, reason, error });
        self.leave(slot);
    }

    pub(super) fn failed_too_often(last: &Error) -> Error {
        last.clone().within("three steps in a row failed, the last one with this sequence alone")
    }

    /// Takes a sequence out of the order it stands in; `reap` takes what it holds.
    fn leave(&mut self, slot: u32) {
        let keep_announced = self.planted(Planted::AnnouncedForEver);
        let s = &mut self.seqs[slot];
        match s.place {
            Place::Leaving => return,
            Place::Waiting => {
                self.waiting.remove(&(s.rest.rank, slot));
            }
            Place::Running => {
                let at = self.running.partition_point(|r| r.0 < s.rest.rank);
                self.running[at].1 = NOBODY;
                self.vacated += 1;
                for &block in &s.rest.blocks {
                    self.pool.mark_leaving(block);
                }
                for &hash in s.rest.chain.iter().take(s.rest.announced as usize).skip(s.published as usize) {
                    if !keep_announced {
                        self.prefix.withdraw(hash, slot);
                    }
                }
                s.rest.announced = 0;
            }
        }
        s.place = Place::Leaving;
        self.leaving.push(slot);
    }

    /// Takes back what sequences hold that leave and that no step in flight mentions. The only place that frees.
    pub(super) fn reap(&mut self) {
        if !self.leaving.is_empty() {
            self.publish_all();
        }
        let mut i = 0;
        while let Some(&slot) = self.leaving.get(i) {
            if self.seqs[slot].inflight > 0 && !(self.planted(Planted::EarlyFree) && self.seqs[slot].finish.is_none()) {
                i += 1;
                continue;
            }
            self.leaving.swap_remove(i);
            self.free(slot);
        }
    }

    fn free(&mut self, slot: u32) {
        let s = &mut self.seqs[slot];
        if s.num_blocks() > 0 {
            self.rows.push(s.row);
        }
        // From the end of the chain to its start, so that eviction eats it from the leaf.
        for block in s.take_blocks().into_iter().rev() {
            let cached = self.prefix.is_published(block);
            self.pool.release(block, if cached { Content::Cached } else { Content::Garbage });
        }
        let computed = u64::from(s.computed);
        if s.finish.is_some() {
            self.retired_tokens += computed;
            self.seqs.remove(slot);
            return;
        }
        self.stats.lost_tokens += computed;
        s.reset();
        if self.planted == Some(Planted::ScoredAgain) && s.rest.prompt_logprobs.is_some() {
            s.rest.scored = 0;
        }
        s.place = Place::Waiting;
        if self.cfg.prefix_cache {
            self.prefix.extend_chain(s.rest.salt, s.tokens.all(), &mut s.rest.chain);
        }
        if !s.is_held() {
            let key = (s.rest.rank, slot);
            self.waiting.insert(key);
        }
    }

    /// Closes the places that leaving sequences vacated in the running order.
    pub(super) fn sweep(&mut self) {
        if self.vacated > 0 {
            self.running.retain(|r| r.1 != NOBODY);
            self.vacated = 0;
        }
    }
}
