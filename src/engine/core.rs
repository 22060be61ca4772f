//! The engine thread: owns the scheduler, keeps the device fed, folds back what has landed. Sleeps when neither can be done.

use crate::base::error::panic_text;
use crate::base::hash::NumberMap;
use crate::base::{Error, ErrorKind, SeqId, StepId};
use crate::engine::State;
use crate::engine::deadlines::Deadlines;
use crate::engine::output::{OutputMsg, STOP_LEAD};
use crate::engine::shared::{Command, Live, Shared};
use crate::exec::Executor;
use crate::plan::{FinishReason, Request, StepOutcome};
use crate::sched::{Event, Scheduler};
use crossbeam_channel::Sender;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a freed engine waits for its worker thread to let go of the device, and how long when it has given the device
/// up, as what runs there may never end.
const LEAVE_WAIT: Duration = Duration::from_secs(10);
const ABANDONED_WAIT: Duration = Duration::from_secs(1);

/// State of the engine thread.
#[derive(Debug)]
pub(crate) struct Core {
    sched: Scheduler,
    exec: Box<dyn Executor>,
    shared: Arc<Shared>,
    outputs: Vec<Sender<OutputMsg>>,
    /// Every sequence whose Finished has not gone to its output thread.
    seqs: NumberMap<SeqId, Arc<Live>>,
    /// Sequences with stop strings: the scheduler holds them back until their text has been looked at.
    gated: Vec<(SeqId, Arc<Live>)>,
    deadlines: Deadlines,
    /// Submission times of the steps in flight, oldest first.
    inflight: VecDeque<(StepId, u64)>,
    watchdog_ns: u64,
    closing: bool,
    events: Vec<Event>,
    commands: Vec<Command>,
    /// What happened to the sequences of each output thread.
    batches: Vec<Vec<Event>>,
}

impl Core {
    pub(crate) fn new(
        sched: Scheduler,
        exec: Box<dyn Executor>,
        shared: Arc<Shared>,
        outputs: Vec<Sender<OutputMsg>>,
        watchdog_ms: u32,
    ) -> Self {
        let batches = outputs.iter().map(|_| Vec::new()).collect();
        let core = Self {
            sched,
            exec,
            shared,
            outputs,
            seqs: NumberMap::default(),
            gated: Vec::new(),
            deadlines: Deadlines::default(),
            inflight: VecDeque::new(),
            watchdog_ns: u64::from(watchdog_ms) * 1_000_000,
            closing: false,
            events: Vec::new(),
            commands: Vec::new(),
            batches,
        };
        // Whoever waits for the engine may ask at once.
        core.publish_stats();
        core
    }

    /// The body of the engine thread; returns after `Command::Close`, when every sequence has ended.
    pub(crate) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let error = match served {
            Ok(Ok(())) => return self.leave(LEAVE_WAIT),
            Ok(Err(e)) => e,
            Err(payload) => Error::internal(format!("the engine thread panicked: {}", panic_text(&*payload))),
        };
        self.shared.fail(error.clone());
        self.exec.abandon();
        self.serve_failed(&error);
        self.leave(ABANDONED_WAIT);
    }

    fn leave(mut self, wait: Duration) {
        if !self.exec.leave(wait) {
            self.shared.log.warn(format_args!(
                "freed, but the device's worker thread has not ended within {} ms: it is left behind with the device memory \
                 that it holds",
                wait.as_millis()
            ));
        }
    }

    fn serve(&mut self) -> Result<(), Error> {
        loop {
            self.take_commands();
            self.end_late();
            self.open_gates();
            let worked = self.tick()?;
            self.emit();
            self.publish_stats();
            if self.closing && self.sched.is_idle() && self.inflight.is_empty() {
                return Ok(());
            }
            if !worked {
                self.check_watchdog()?;
                self.shared.signal.wait(self.nap());
            }
        }
    }

    fn take_commands(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        self.shared.receive(&mut commands);
        for command in commands.drain(..) {
            match command {
                Command::Add(request, live) => self.add(*request, live),
                Command::End(seq, reason) => self.sched.abort(seq, reason, &mut self.events),
                Command::Close => {
                    self.closing = true;
                    let seqs: Vec<_> = self.seqs.keys().copied().collect();
                    for seq in seqs {
                        self.sched.abort(seq, FinishReason::Cancelled, &mut self.events);
                    }
                }
            }
        }
        self.commands = commands;
    }

    fn add(&mut self, request: Request, live: Arc<Live>) {
        let seq = request.seq;
        if live.deadline_ns != u64::MAX {
            let seqs = &self.seqs;
            self.deadlines.add(live.deadline_ns, seq, seqs.len(), |seq| seqs.contains_key(&seq));
        }
        if request.lead != u32::MAX {
            self.gated.push((seq, Arc::clone(&live)));
        }
        let cancelled = self.closing || live.cancelled.load(Ordering::Acquire);
        self.seqs.insert(seq, live);
        self.sched.add(request);
        if cancelled {
            self.sched.abort(seq, FinishReason::Cancelled, &mut self.events);
        }
    }

    fn end_late(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = self.shared.clock.now_ns();
        while let Some(seq) = self.deadlines.pop_late(now) {
            if self.seqs.contains_key(&seq) {
                self.sched.abort(seq, FinishReason::Deadline, &mut self.events);
            }
        }
    }

    fn open_gates(&mut self) {
        let (sched, seqs) = (&mut self.sched, &self.seqs);
        self.gated.retain(|(seq, live)| {
            let choice = (seq.0 - live.first_seq.0) as usize;
            sched.allow(*seq, live.detokenized[choice].load(Ordering::Acquire).saturating_add(STOP_LEAD));
            seqs.contains_key(seq)
        });
    }

    /// Plans and submits as many steps as the pipeline takes. False when there is none.
    fn feed(&mut self) -> Result<bool, Error> {
        let mut fed = false;
        while self.inflight.len() < self.exec.depth() {
            let from_ns = self.shared.clock.now_ns();
            let Some(plan) = self.sched.schedule(&mut self.events) else { break };
            self.inflight.push_back((plan.id, from_ns));
            self.shared.histograms.step_tokens.observe(plan.num_tokens() as u64);
            self.exec.submit(plan)?;
            self.shared.histograms.step_plan.observe(self.shared.clock.now_ns().saturating_sub(from_ns));
            fed = true;
        }
        Ok(fed)
    }

    /// Feeds the device first, then folds one landed step back and feeds again, before anybody hears of it or looks for its
    /// blocks. False when nothing could be done.
    fn tick(&mut self) -> Result<bool, Error> {
        let mut worked = self.feed()?;
        if let Some(output) = self.exec.poll()? {
            self.inflight.pop_front();
            if let StepOutcome::Failed(e) = &output.outcome {
                self.shared.log.warn(format_args!("step {} failed, its sequences run again: {e}", output.id.0));
            }
            let from_ns = self.shared.clock.now_ns();
            self.sched.update(&output, &mut self.events);
            let folded_ns = self.shared.clock.now_ns().saturating_sub(from_ns);
            self.shared.histograms.step_launch.observe(self.exec.launch_ns());
            self.shared.counters.steps.add(1);
            self.feed()?;
            let from_ns = self.shared.clock.now_ns();
            self.sched.publish_all();
            let published_ns = self.shared.clock.now_ns().saturating_sub(from_ns);
            self.shared.histograms.step_fold.observe(folded_ns + published_ns);
            worked = true;
        }
        Ok(worked)
    }

    /// Sends what happened to the output threads, one message for each of them.
    fn emit(&mut self) {
        if self.events.is_empty() {
            return;
        }
        for event in self.events.drain(..) {
            let seq = event.seq();
            match &event {
                Event::Started { .. } => {
                    if let Some(live) = self.seqs.get(&seq) {
                        self.shared.left_waiting(live);
                    }
                }
                Event::Finished { .. } => {
                    self.seqs.remove(&seq);
                }
                Event::Prompt { .. } | Event::Token { .. } => {}
            }
            let shard = seq.0 as usize % self.batches.len();
            self.batches[shard].push(event);
        }
        self.flush();
    }

    fn flush(&mut self) {
        let t_ns = self.shared.clock.now_ns();
        for (batch, output) in self.batches.iter_mut().zip(&self.outputs) {
            if !batch.is_empty() {
                // An output thread ends only after this one.
                let next = Vec::with_capacity(batch.len());
                let _ = output.send(OutputMsg::Step { t_ns, events: std::mem::replace(batch, next) });
            }
        }
    }

    fn publish_stats(&self) {
        let (s, c) = (self.sched.stats(), &self.shared.counters);
        c.running.set(s.running as u64);
        c.preempted.set(s.preempted);
        c.prefix_hit_tokens.set(s.hit_tokens);
        c.blocks_total.set(u64::from(s.blocks_total));
        c.blocks_free.set(u64::from(s.blocks_free));
        c.blocks_cached.set(u64::from(s.blocks_cached));
        c.prefix_lookup_tokens.set(s.lookup_tokens);
        c.lost_tokens.set(s.lost_tokens);
        c.failed_steps.set(s.failed_steps);
    }

    /// How long there is certainly nothing to do; `None` until somebody notifies.
    fn nap(&self) -> Option<Duration> {
        let now = self.shared.clock.now_ns();
        let deadline = self.deadlines.next_ns();
        let watchdog = self.inflight.front().filter(|_| self.watchdog_ns > 0).map(|s| s.1 + self.watchdog_ns);
        let next = deadline.into_iter().chain(watchdog).min()?;
        Some(Duration::from_nanos(next.saturating_sub(now).max(1_000_000)))
    }

    fn check_watchdog(&self) -> Result<(), Error> {
        let Some(&(step, since)) = self.inflight.front() else { return Ok(()) };
        let waited = self.shared.clock.now_ns().saturating_sub(since);
        if self.watchdog_ns == 0 || waited < self.watchdog_ns {
            return Ok(());
        }
        let late: Vec<_> = self.exec.late().iter().map(usize::to_string).collect();
        let who =
            if late.is_empty() { String::new() } else { format!("; the others wait for rank {}", late.join(", ")) };
        let text = format!("step {} has not ended after {} ms (watchdog_ms){who}", step.0, waited / 1_000_000);
        Err(Error::new(ErrorKind::Device, text))
    }

    /// Ends every sequence, and every one that still arrives, with the engine's error.
    fn serve_failed(&mut self, error: &Error) {
        debug_assert_eq!(self.shared.state(), State::Failed);
        self.seqs.clear();
        for (batch, output) in self.batches.iter_mut().zip(&self.outputs) {
            batch.clear();
            // An output thread ends only after this one.
            let _ = output.send(OutputMsg::Fail(error.clone()));
        }
        let counters = &self.shared.counters;
        counters.running.set(0);
        counters.blocks_free.set(counters.blocks_total.get());
        let mut commands = std::mem::take(&mut self.commands);
        loop {
            self.shared.receive(&mut commands);
            for command in commands.drain(..) {
                match command {
                    Command::Add(request, _) => self.end_failed(request.seq, error),
                    Command::End(..) => {}
                    Command::Close => self.closing = true,
                }
            }
            self.flush();
            if self.closing {
                return;
            }
            self.shared.signal.wait(None);
        }
    }

    fn end_failed(&mut self, seq: SeqId, error: &Error) {
        let shard = seq.0 as usize % self.outputs.len();
        self.batches[shard].push(Event::Finished { seq, reason: FinishReason::Error, error: Some(error.clone()) });
    }
}
