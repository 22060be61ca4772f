//! What a landed step changes: tokens, ends, published blocks, or a rollback.

use crate::base::Error;
use crate::plan::{FinishReason, Sampled, Scored, StepOutcome, StepOutput, StepPart, StepResults};
use crate::sched::prefix::Key;
use crate::sched::scheduler::{Flight, FlightEntry, Scheduler};
use crate::sched::sequence::Place;
use crate::sched::{Event, Planted};

/// Failed steps in a row that end a sequence.
const MAX_FAILURES: u8 = 3;

impl Scheduler {
    /// Folds the oldest step in flight back in. An output that does not answer that step counts as its failure.
    pub fn update(&mut self, output: &StepOutput, events: &mut Vec<Event>) {
        let Some(flight) = self.inflight.pop_front() else { return };
        match &output.outcome {
            StepOutcome::Failed(error) => self.fail(&flight, error, events),
            // What was in flight beside a failed step stands on what that step did not do.
            StepOutcome::Done(_) if self.draining => {
                self.fail(&flight, &Error::internal("an earlier step failed"), events)
            }
            StepOutcome::Done(results) if self.answers(&flight, output, results) => self.land(&flight, results, events),
            StepOutcome::Done(_) => {
                let text = format!(
                    "the executor answered step {} where step {} was due, or other sequences than \
                     planned: a bug in the executor",
                    output.id.0, flight.id.0
                );
                self.fail(&flight, &Error::internal(text), events);
            }
        }
        self.recycle(flight.entries);
        if self.inflight.is_empty() {
            self.draining = false;
        }
        if !self.leaving.is_empty() {
            self.reap();
            self.sweep();
        }
    }

    fn answers(&self, flight: &Flight, output: &StepOutput, results: &StepResults) -> bool {
        let id = |e: &FlightEntry| self.seqs[e.slot].id;
        let sampling = flight.entries.iter().filter(|e| e.samples && !e.waits).map(id);
        let scoring = flight.entries.iter().filter(|e| e.scores.is_some()).map(id);
        (output.id, output.part) == (flight.id, flight.part)
            && results.sampled.iter().map(|s| s.seq).eq(sampling)
            && results.scored.iter().map(|s| s.seq).eq(scoring)
    }

    /// Reads what landing needs of all sequences. These reads wait for memory side by side; the work of landing a sequence is
    /// too long for the processor to see the next one's reads from it.
    fn warm(&self, flight: &Flight) {
        std::hint::black_box(flight.entries.iter().fold(0, |all, e| all ^ self.seqs[e.slot].glimpse()));
    }

    fn land(&mut self, flight: &Flight, results: &StepResults, events: &mut Vec<Event>) {
        self.warm(flight);
        let (mut sampled, mut scored) = (results.sampled.iter(), results.scored.iter());
        for e in &flight.entries {
            let s = &mut self.seqs[e.slot];
            s.inflight -= 1;
            // Its last position is run again should its late part fail, so that one is not done before.
            s.done = if e.waits { s.done.max(e.end - 1) } else { e.end };
            if !e.waits {
                s.failures = 0;
            }
            if flight.part == StepPart::Late {
                (s.late, s.supplied) = (None, false);
            }
            // `answers` counted them.
            if let Some(range) = e.scores
                && let Some(scored) = scored.next()
            {
                self.take_scores(e.slot, range, scored, events);
            }
            if e.samples && !e.waits {
                self.seqs[e.slot].pending -= 1;
                if let Some(sampled) = sampled.next() {
                    self.take_token(e.slot, sampled, events);
                }
            }
            let s = &self.seqs[e.slot];
            if s.done >= (s.published + 1) * self.cfg.block_size {
                self.publish(e.slot);
            }
        }
    }

    /// Reports the prompt tokens behind the positions `from..to`.
    fn take_scores(&mut self, slot: u32, (from, to): (u32, u32), scored: &Scored, events: &mut Vec<Event>) {
        let s = &mut self.seqs[slot];
        s.scored = to;
        if s.finish.is_none() {
            let tokens = s.tokens[from as usize + 1..to as usize + 1].to_vec();
            events.push(Event::Prompt { seq: s.id, tokens, logprobs: scored.logprobs.clone() });
        }
    }

    fn take_token(&mut self, slot: u32, sampled: &Sampled, events: &mut Vec<Event>) {
        let s = &mut self.seqs[slot];
        let token = sampled.token;
        if s.finish.is_some() && self.planted != Some(Planted::TokenAfterEnd) {
            return;
        }
        events.push(Event::Token { seq: s.id, token, logprobs: sampled.logprobs.clone() });
        if s.finish.is_some() {
            return;
        }
        if s.place == Place::Leaving && self.planted == Some(Planted::PendingLost) {
            return;
        }
        s.tokens.push(token);
        let generated = s.tokens.len() as u32 - s.prompt_len;
        // The sampler holds ends back before `min_tokens`.
        let may_end = s.may_end(token) && generated > s.stop.min_tokens();
        let reason = if may_end && s.stop.eos_tokens().contains(&token) {
            FinishReason::Eos
        } else if may_end && s.stop.stop_tokens().contains(&token) {
            FinishReason::Stop
        } else if generated >= s.limit {
            FinishReason::Length
        } else {
            return;
        };
        self.finish(slot, reason, None, events);
    }

    /// Takes back what a failed step would have computed. Its blocks were not published, since only landed ones are.
    fn fail(&mut self, flight: &Flight, error: &Error, events: &mut Vec<Event>) {
        // Steps behind the first failure fail because of it and accuse nobody.
        let first = !self.draining;
        self.draining = true;
        if first {
            self.forget_doomed();
        }
        self.stats.failed_steps += 1;
        for e in &flight.entries {
            let rollback = !self.planted(Planted::NoRollback);
            let keeps_waiting = self.planted(Planted::LateNotRolledBack) && flight.part == StepPart::Late;
            let s = &mut self.seqs[e.slot];
            s.inflight -= 1;
            if !e.waits && flight.part == StepPart::First {
                s.pending -= u32::from(e.samples);
            }
            // What is behind the first failure fails too, so a token that waits will not be drawn.
            if !keeps_waiting {
                s.forget_late();
            }
            s.row_init = true;
            s.told = if self.planted == Some(Planted::TableHalfTold) { s.told } else { 0 };
            if s.computed > e.start && (rollback || e.samples) {
                self.stats.lost_tokens += u64::from(s.computed - e.start);
                s.computed = e.start;
            }
            if !first || s.finish.is_some() {
                continue;
            }
            s.failures += 1;
            self.suspects |= s.is_suspect();
            if s.failures >= MAX_FAILURES {
                self.finish(e.slot, FinishReason::Error, Some(Self::failed_too_often(error)), events);
            }
        }
    }

    /// Makes the full blocks findable that have landed since the last time.
    pub(super) fn publish(&mut self, slot: u32) {
        let size = self.cfg.block_size as usize;
        let s = &mut self.seqs[slot];
        let full = (s.done as usize).min(s.tokens.len()) / size;
        if !self.cfg.prefix_cache {
            s.published = full as u32;
            return;
        }
        self.prefix.extend_chain(s.salt, &s.tokens[..full * size], &mut s.chain);
        for i in s.published as usize..full.min(s.blocks.len()) {
            let hash = s.chain[i];
            self.prefix.withdraw(hash, slot);
            if let Some(parent) = s.serial {
                let key = Key { hash, parent, salt: s.salt, tokens: &s.tokens[i * size..(i + 1) * size] };
                s.serial = self.prefix.publish(s.blocks[i], &key);
            }
            s.published = i as u32 + 1;
        }
    }
}
