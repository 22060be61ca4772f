//! The ranks of one model as one runner: every rank launches each step on its own thread, all must come to the same, and
//! rank 0 tells what it was. All ranks have launched a step before one of them is sent the next; how far their devices have
//! come with it is known when it lands.

use super::worker::{Flight, StepRunner, Work};
use crate::base::error::panic_text;
use crate::base::{Error, Result, StepId, threads};
use crate::hal::comm::LocalGroup;
use crate::plan::{StepOutcome, StepOutput, StepPart, StepPlan, TokenMask};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// `Err` is the text of a panic.
type Verdict = std::result::Result<Result<Box<dyn Flight>>, String>;

/// Makes one rank's runner.
pub type StartRank<'a> = Box<dyn FnOnce() -> Result<Box<dyn StepRunner>> + Send + 'a>;

/// Bugs a fan-out could have; `tests/sim` shows that each is caught.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// Every seventh step does not reach the last rank, and its silence counts as success.
    NotSent,
    /// Every seventh step reaches the last rank as the one before it.
    StalePlan,
    /// Rank 0's answer counts although another rank failed.
    FailureIgnored,
    /// A failure is not forgotten with its step.
    FailureKept,
    /// A panic counts as an error of the step.
    PanicForgiven,
}

/// A rank above 0: its thread owns its runner.
#[derive(Debug)]
struct Rank {
    orders: Option<Sender<Arc<Work>>>,
    verdicts: Receiver<Verdict>,
    thread: Option<JoinHandle<()>>,
}

/// Ranks that meet in a [`LocalGroup`]. Rank 0 runs on the caller's thread. Dropping it ends the threads.
#[derive(Debug)]
pub struct RankRunner {
    first: Box<dyn StepRunner>,
    others: Vec<Rank>,
    group: LocalGroup,
    planted: Option<Planted>,
    /// For [`Planted::StalePlan`].
    before: Option<Arc<Work>>,
}

impl RankRunner {
    /// Makes the ranks side by side, as each may wait for the others in its warm-up, and one runner of them. The error is
    /// that of the rank which failed first.
    pub fn start(ranks: Vec<StartRank<'_>>, group: LocalGroup) -> Result<Self> {
        let make = &|(rank, start): (usize, StartRank<'_>)| {
            let panicked = |payload: Box<dyn std::any::Any + Send>| {
                Err(Error::internal(format!("panicked while it started: {}", panic_text(&*payload))))
            };
            let made = catch_unwind(AssertUnwindSafe(start)).unwrap_or_else(panicked);
            // Whoever waits for this rank must hear of it.
            made.inspect_err(|e| group.fail(&e.clone().within(format!("rank {rank}"))))
        };
        let made = std::thread::scope(|scope| {
            let each = ranks.into_iter().enumerate().map(|(rank, start)| {
                let thread = threads::named(format!("yn-worker-{rank}"));
                let spawned = thread.spawn_scoped(scope, move || make((rank, start)));
                spawned.map_err(|e| {
                    let error = Error::io(format!("the worker thread of rank {rank} does not start: {e}"));
                    group.fail(&error);
                    error
                })
            });
            let threads: Vec<_> = each.collect();
            let lost = || Err(Error::internal("a rank's thread was lost while it started"));
            threads.into_iter().map(|t| t?.join().unwrap_or_else(|_| lost())).collect::<Result<Vec<_>>>()
        });
        // What a rank says that waited for another is not the cause.
        let mut made = group.reset().map_or(made, Err)?;
        let others = made.split_off(1);
        Self::spawn(made.swap_remove(0), others, group)
    }

    /// Starts `yn-worker-1` and up, one for each of `others`, which are the ranks behind `first`.
    pub fn spawn(first: Box<dyn StepRunner>, others: Vec<Box<dyn StepRunner>>, group: LocalGroup) -> Result<Self> {
        let start = |(i, mut runner): (usize, Box<dyn StepRunner>)| {
            let rank = i + 1;
            let (orders, inbox) = bounded::<Arc<Work>>(1);
            let (outbox, verdicts) = bounded(1);
            let group = group.clone();
            let work = move || {
                while let Ok(work) = inbox.recv() {
                    if outbox.send(step((rank, runner.as_mut()), &work, &group)).is_err() {
                        break;
                    }
                }
            };
            let thread = threads::named(format!("yn-worker-{rank}"))
                .spawn(work)
                .map_err(|e| Error::io(format!("the worker thread of rank {rank} does not start: {e}")))?;
            Ok(Rank { orders: Some(orders), verdicts, thread: Some(thread) })
        };
        let others = others.into_iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Self { first, others, group, planted: None, before: None })
    }

    /// The same with a known bug, for the simulator to find.
    #[doc(hidden)]
    #[must_use]
    pub fn with_planted(mut self, bug: Option<Planted>) -> Self {
        self.planted = bug;
        self
    }

    /// What `rank` is sent for `work`.
    fn order(&self, rank: usize, work: &Arc<Work>) -> Option<Arc<Work>> {
        let odd = rank == self.others.len() && work.id().0 % 7 == 3;
        match self.planted {
            Some(Planted::NotSent) if odd => None,
            Some(Planted::StalePlan) if odd => Some(Arc::clone(self.before.as_ref().unwrap_or(work))),
            _ => Some(Arc::clone(work)),
        }
    }
}

/// Launches a step of one rank. When it fails or ends otherwise than the others, those are not left waiting for it.
fn step((rank, runner): (usize, &mut dyn StepRunner), work: &Work, group: &LocalGroup) -> Verdict {
    let launched = catch_unwind(AssertUnwindSafe(|| work.launch_on(runner)));
    let verdict = launched.map_err(|payload| panic_text(&*payload).to_string());
    match &verdict {
        Ok(Ok(_)) => group.leave(rank),
        Ok(Err(e)) => group.fail(&e.clone().within(format!("rank {rank}"))),
        Err(text) => group.fail(&Error::internal(format!("rank {rank} panicked: {text}"))),
    }
    verdict
}

/// A step of all ranks under way.
#[derive(Debug)]
struct RankFlight {
    id: StepId,
    part: StepPart,
    ranks: Vec<Box<dyn Flight>>,
}

impl Flight for RankFlight {
    /// The failure of any rank is the step's.
    fn land(self: Box<Self>) -> StepOutput {
        let mut outputs: Vec<_> = self.ranks.into_iter().map(Flight::land).collect();
        let failed = outputs.iter().enumerate().find_map(|(rank, output)| match &output.outcome {
            StepOutcome::Failed(e) => Some(e.clone().within(format!("rank {rank}"))),
            StepOutcome::Done(_) => None,
        });
        let error = match failed.map_or_else(|| agree(self.id, &outputs), Err) {
            Ok(()) if !outputs.is_empty() => return outputs.swap_remove(0),
            Ok(()) => Error::internal("no rank ran the step"),
            Err(e) => e,
        };
        StepOutput { id: self.id, part: self.part, outcome: StepOutcome::Failed(error) }
    }
}

/// Whether every rank ran the step that was due and drew what rank 0 drew: from there on each has its own copy of it.
fn agree(id: StepId, outputs: &[StepOutput]) -> Result<()> {
    if let Some((rank, wrong)) = outputs.iter().enumerate().find(|(_, output)| output.id != id) {
        let (found, due) = (wrong.id.0, id.0);
        return Err(Error::internal(format!("rank {rank} answered step {found} where step {due} was due")));
    }
    let drawn = |output: &StepOutput| match &output.outcome {
        StepOutcome::Done(results) => results.sampled.iter().map(|s| (s.seq, s.token)).collect(),
        StepOutcome::Failed(_) => Vec::new(),
    };
    let first = outputs.first().map(drawn);
    match outputs.iter().position(|output| Some(drawn(output)) != first) {
        None => Ok(()),
        Some(rank) => Err(Error::internal(format!("ranks 0 and {rank} drew different tokens in step {}", id.0))),
    }
}

impl StepRunner for RankRunner {
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
        self.launch_on_all(Work::Step(plan.clone()))
    }

    fn supply(&mut self, step: StepId, masks: &[TokenMask]) -> Result<Box<dyn Flight>> {
        self.launch_on_all(Work::Late(step, masks.to_vec()))
    }

    fn group(&self) -> Option<LocalGroup> {
        Some(self.group.clone())
    }
}

impl RankRunner {
    /// Launches the step on all ranks. A rank's failure is the step's; a rank's panic goes on here.
    fn launch_on_all(&mut self, work: Work) -> Result<Box<dyn Flight>> {
        let work = Arc::new(work);
        let mut silent = None;
        for (rank, other) in (1..).zip(&self.others) {
            let Some(order) = self.order(rank, &work) else {
                silent = Some(rank);
                continue;
            };
            let sent = other.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
            if !sent {
                self.group.fail(&Error::internal(format!("the thread of rank {rank} has ended")));
            }
        }
        if self.planted == Some(Planted::StalePlan) {
            self.before = Some(Arc::clone(&work));
        }
        let mut verdicts = vec![step((0, self.first.as_mut()), &work, &self.group)];
        let gone = || Err("its thread has ended".to_owned());
        let others = (1..).zip(&self.others).filter(|(rank, _)| silent != Some(*rank));
        verdicts.extend(others.map(|(_, other)| other.verdicts.recv().unwrap_or_else(|_| gone())));
        let failure = self.group.reset();
        if let Some(kept) = failure.as_ref().filter(|_| self.planted == Some(Planted::FailureKept)) {
            self.group.fail(kept);
        }
        let panic = verdicts.iter().enumerate().find_map(|(rank, v)| Some((rank, v.as_ref().err()?)));
        if let Some((rank, text)) = panic.filter(|_| self.planted != Some(Planted::PanicForgiven)) {
            resume_unwind(Box::new(format!("rank {rank}: {text}")));
        }
        let ignored = self.planted == Some(Planted::FailureIgnored) && matches!(verdicts[0], Ok(Ok(_)));
        let flights: Vec<_> = verdicts.into_iter().filter_map(|v| v.ok()?.ok()).collect();
        if let Some(e) = failure.filter(|_| !ignored) {
            // Nothing of it may run beside the next step.
            flights.into_iter().for_each(|flight| drop(flight.land()));
            return Err(e);
        }
        Ok(Box::new(RankFlight { id: work.id(), part: work.part(), ranks: flights }))
    }
}

impl Drop for RankRunner {
    fn drop(&mut self) {
        self.others.iter_mut().for_each(|rank| rank.orders = None);
        for thread in self.others.iter_mut().filter_map(|rank| rank.thread.take()) {
            // Its panics were caught and told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::signal::Signal;
    use crate::base::{DType, ErrorKind};
    use crate::exec::Executor;
    use crate::exec::worker::{Landed, WorkerExecutor};
    use crate::hal::comm::Communicator;
    use crate::hal::registry::{DeviceOptions, open};
    use crate::hal::{Stream, Tensor};
    use crate::plan::StepResults;

    /// What a rank does in step 1 instead of meeting the others.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Odd {
        Fails,
        /// Fails when the step lands.
        FailsLate,
        Panics,
        /// Ends the step without meeting them.
        Absent,
        /// Brings fewer values.
        Short,
        /// Meets them and answers the step before.
        Stale,
    }

    #[derive(Debug)]
    struct Meets {
        stream: Box<dyn Stream>,
        x: Tensor,
        place: Box<dyn Communicator>,
        odd: Option<Odd>,
    }

    impl StepRunner for Meets {
        fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
            let odd = self.odd.filter(|_| plan.id.0 == 1);
            let x = if odd == Some(Odd::Short) { self.x.reshape(1, 2) } else { self.x.clone() };
            let id = if odd == Some(Odd::Stale) { StepId(0) } else { plan.id };
            match odd {
                Some(Odd::Panics) => panic!("told to panic"),
                Some(Odd::Fails) => return Err(Error::no_memory("told to fail")),
                Some(Odd::Absent) => {}
                _ => self.place.all_reduce(self.stream.as_ref(), &x)?,
            }
            let late = Error::no_memory("told to fail late");
            let done = StepOutcome::Done(StepResults::default());
            let outcome = if odd == Some(Odd::FailsLate) { StepOutcome::Failed(late) } else { done };
            Ok(Box::new(Landed(StepOutput::first(id, outcome))))
        }
    }

    fn meets(group: &LocalGroup, rank: usize, odd: Option<Odd>) -> Result<Meets> {
        let device = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() })?;
        Ok(Meets {
            stream: device.stream()?,
            x: Tensor::new(device.alloc(16)?, 0, 1, 4, DType::F32),
            place: group.join(rank, device.as_ref())?,
            odd,
        })
    }

    fn plan(id: u64) -> StepPlan {
        StepPlan { id: StepId(id), entries: vec![], tokens: vec![], blocks: vec![], targets: vec![], row_inits: vec![] }
    }

    /// Three ranks, of which one is odd.
    fn worker(rank: usize, odd: Odd) -> (WorkerExecutor, Arc<Signal>) {
        let group = LocalGroup::new(3, 4);
        let start = |i: usize| -> StartRank<'_> {
            let group = &group;
            Box::new(move || Ok(Box::new(meets(group, i, (i == rank).then_some(odd))?)))
        };
        let ranks = RankRunner::start((0..3).map(start).collect(), group.clone()).unwrap();
        let signal = Arc::new(Signal::default());
        (WorkerExecutor::spawn(Box::new(ranks), 2, Arc::clone(&signal)).unwrap(), signal)
    }

    fn run(worker: &mut WorkerExecutor, signal: &Signal, id: u64) -> Result<StepOutcome> {
        worker.submit(plan(id))?;
        loop {
            if let Some(output) = worker.poll()? {
                return Ok(output.outcome);
            }
            signal.wait(None);
        }
    }

    #[test]
    fn an_odd_rank_fails_the_step_and_the_next_one_runs() {
        for rank in 0..3 {
            let short = if rank == 0 { "rank 1 adds 4 values to the 2 of rank 0" } else { "adds 2 values to the 4 of" };
            for (odd, kind, says) in [
                (Odd::Fails, ErrorKind::NoMemory, format!("rank {rank}: told to fail")),
                (Odd::FailsLate, ErrorKind::NoMemory, format!("rank {rank}: told to fail late")),
                (Odd::Absent, ErrorKind::Internal, format!("rank {rank} has ended the step where rank ")),
                (Odd::Short, ErrorKind::Internal, short.to_owned()),
                (Odd::Stale, ErrorKind::Internal, format!("rank {rank} answered step 0 where step 1 was due")),
            ] {
                let (mut w, signal) = worker(rank, odd);
                assert_eq!(run(&mut w, &signal, 0).unwrap(), StepOutcome::Done(StepResults::default()));
                let StepOutcome::Failed(e) = run(&mut w, &signal, 1).unwrap() else { panic!("{odd:?} did not fail") };
                assert!(e.kind == kind && e.message.contains(&says), "{odd:?} of rank {rank}: {e}");
                assert_eq!(run(&mut w, &signal, 2).unwrap(), StepOutcome::Done(StepResults::default()));
            }
        }
    }

    #[test]
    fn a_panicking_rank_ends_the_executor() {
        for rank in 0..3 {
            let (mut w, signal) = worker(rank, Odd::Panics);
            run(&mut w, &signal, 0).unwrap();
            let e = run(&mut w, &signal, 1).unwrap_err();
            assert!(e.message.contains(&format!("rank {rank}: told to panic")), "{e}");
        }
    }

    #[test]
    fn a_rank_that_does_not_start_frees_the_others_and_is_named() {
        for rank in 0..3 {
            for (odd, kind) in [(Odd::Fails, ErrorKind::NoMemory), (Odd::Panics, ErrorKind::Internal)] {
                let group = LocalGroup::new(3, 4);
                let start = |i: usize| -> StartRank<'_> {
                    let group = &group;
                    Box::new(move || {
                        let mut runner = meets(group, i, (i == rank).then_some(odd))?;
                        runner.launch(&plan(1))?;
                        Ok(Box::new(runner))
                    })
                };
                let e = RankRunner::start((0..3).map(start).collect(), group.clone()).unwrap_err();
                let says = e.message.contains(&format!("rank {rank}:")) && e.message.contains("told to");
                assert!(e.kind == kind && says, "{e}");
            }
        }
    }
}
