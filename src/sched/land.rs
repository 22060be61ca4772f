//! What a landed step changes: tokens, ends, published blocks, or a rollback.

use crate::base::Error;
use crate::plan::{FinishReason, Sampled, Scored, StepOutcome, StepOutput, StepPart, StepResults};
use crate::sched::draft::{Flight, FlightEntry};
use crate::sched::scheduler::Scheduler;
use crate::sched::sequence::{Place, Sequence};
use crate::sched::{Event, Planted};

/// Failed steps in a row that end a sequence.
const MAX_FAILURES: u8 = 3;

impl Scheduler {
    /// Folds the oldest step in flight back in. An output that does not answer that step counts as its failure. What need not be
    /// done before the device has its next step is left to [`Scheduler::publish_all`].
    pub fn update(&mut self, output: &StepOutput, events: &mut Vec<Event>) {
        let Some(flight) = self.inflight.pop_front() else { return };
        self.publish_all();
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

    /// Reads something of every sequence on the way. These reads wait for memory side by side; the work of landing a sequence is
    /// too long for the processor to see the next one's reads from it.
    fn answers(&self, flight: &Flight, output: &StepOutput, results: &StepResults) -> bool {
        if (output.id, output.part) != (flight.id, flight.part) {
            return false;
        }
        let (mut sampled, mut scored) = (results.sampled.iter(), results.scored.iter());
        let (mut same, mut seen) = (true, 0);
        for e in &flight.entries {
            seen ^= self.seqs[e.slot].done;
            if e.lands_token() {
                same &= sampled.next().is_some_and(|s| s.seq == e.seq);
            }
            if e.has_scores() {
                same &= scored.next().is_some_and(|s| s.seq == e.seq);
            }
        }
        std::hint::black_box(seen);
        same && sampled.len() + scored.len() == 0
    }

    fn land(&mut self, flight: &Flight, results: &StepResults, events: &mut Vec<Event>) {
        let (mut sampled, mut scored) = (&results.sampled[..], results.scored.iter());
        let mut entries = &flight.entries[..];
        events.reserve(sampled.len());
        self.short.clear();
        loop {
            if flight.part == StepPart::First {
                let landed = self.land_plain(entries, sampled, events);
                (entries, sampled) = (&entries[landed..], &sampled[landed..]);
            }
            let Some((e, others)) = entries.split_first() else { return };
            entries = others;
            let s = &mut self.seqs[e.slot];
            s.inflight -= 1;
            if flight.part == StepPart::Late {
                (s.late, s.supplied) = (None, false);
            }
            // `answers` counted them.
            if e.has_scores()
                && let Some(scored) = scored.next()
            {
                Self::take_scores(s, e.scores, scored, events);
            }
            // The last position of one that waits is run again should its late part fail, so that it is not done before.
            s.done = if e.waits { s.done.max(e.end - 1) } else { e.end };
            if !e.waits {
                s.failures = 0;
            }
            let mut end = None;
            if e.lands_token()
                && let Some((token, others)) = sampled.split_first()
            {
                sampled = others;
                s.pending -= 1;
                end = Self::take_token(s, token, self.planted, events);
            }
            self.after_landing(e.slot, end, events);
        }
    }

    /// Lands the leading entries that do nothing but draw a token, of sequences that want no more than that; their number.
    /// Most steps land here.
    #[inline(never)]
    fn land_plain(&mut self, entries: &[FlightEntry], sampled: &[Sampled], events: &mut Vec<Event>) -> usize {
        if self.planted == Some(Planted::PendingLost) {
            return 0;
        }
        for (landed, (e, drawn)) in entries.iter().zip(sampled).enumerate() {
            let size = self.cfg.block_size;
            let s = &mut self.seqs[e.slot];
            let plain = e.lands_token() & !e.has_scores() & drawn.logprobs.is_empty();
            if !plain || s.finish.is_some() {
                return landed;
            }
            s.inflight -= 1;
            s.pending -= 1;
            s.done = e.end;
            s.failures = 0;
            events.push(Event::Token { seq: e.seq, token: drawn.token, logprobs: Vec::new() });
            let end = s.take(drawn.token);
            if s.computed == s.num_blocks() * size {
                self.short.push(e.slot);
            }
            if end.is_some() | (e.end >= (s.published + 1) * size) {
                self.after_landing(e.slot, end, events);
            }
        }
        entries.len().min(sampled.len())
    }

    fn after_landing(&mut self, slot: u32, end: Option<FinishReason>, events: &mut Vec<Event>) {
        let s = &self.seqs[slot];
        if s.done >= (s.published + 1) * self.cfg.block_size {
            self.full.push(slot);
        }
        if let Some(reason) = end {
            self.finish(slot, reason, None, events);
        }
    }

    /// Reports the prompt tokens behind the positions `from..to`.
    fn take_scores(s: &mut Sequence, (from, to): (u32, u32), scored: &Scored, events: &mut Vec<Event>) {
        s.rest.scored = to;
        if s.finish.is_none() {
            let tokens = s.tokens.part(from + 1..to + 1).to_vec();
            events.push(Event::Prompt { seq: s.id, tokens, logprobs: scored.logprobs.clone() });
        }
    }

    /// Why the sequence ends with this token.
    fn take_token(
        s: &mut Sequence,
        sampled: &Sampled,
        planted: Option<Planted>,
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        if s.finish.is_some() && planted != Some(Planted::TokenAfterEnd) {
            return None;
        }
        let token = sampled.token;
        events.push(Event::Token { seq: s.id, token, logprobs: sampled.logprobs.clone() });
        if s.finish.is_some() || s.place == Place::Leaving && planted == Some(Planted::PendingLost) {
            return None;
        }
        s.take(token)
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
                s.pending -= u16::from(e.samples);
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
}
