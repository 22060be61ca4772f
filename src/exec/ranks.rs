//! The ranks of one model as one runner: every rank runs each step on its own thread, all must come to the same, and rank 0
//! tells what it was. Steps are launched on all ranks and later finished on all, so several can be under way.

use super::worker::StepRunner;
use crate::base::error::panic_text;
use crate::base::{Error, Result, threads};
use crate::hal::comm::Group;
use crate::plan::{StepOutcome, StepOutput, StepPlan};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What a rank does next.
#[derive(Debug)]
enum Order {
    Launch(Arc<StepPlan>),
    Finish,
}

/// What came of an order; only a finished step has an output. `Err` is the text of a panic.
type Verdict = std::result::Result<Result<Option<StepOutput>>, String>;

/// Makes one rank's runner.
pub type StartRank<'a> = Box<dyn FnOnce() -> Result<Box<dyn StepRunner>> + Send + 'a>;

/// A step that was launched.
#[derive(Debug)]
struct Flight {
    plan: Arc<StepPlan>,
    /// Ranks that launched it and have to finish it.
    ranks: Vec<usize>,
    /// Another rank did not, and the step has failed: what comes of it is nobody's.
    failed: bool,
}

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
    orders: Option<Sender<Order>>,
    verdicts: Receiver<Verdict>,
    thread: Option<JoinHandle<()>>,
}

/// Ranks that meet in a [`Group`]. Rank 0 runs on the caller's thread. Dropping it ends the threads.
#[derive(Debug)]
pub struct RankRunner {
    first: Box<dyn StepRunner>,
    others: Vec<Rank>,
    group: Arc<dyn Group>,
    flights: VecDeque<Flight>,
    planted: Option<Planted>,
    /// For [`Planted::StalePlan`].
    before: Option<Arc<StepPlan>>,
}

impl RankRunner {
    /// Makes the ranks side by side, as each may wait for the others in its warm-up, and one runner of them. The error is
    /// that of the rank which failed first.
    pub fn start(ranks: Vec<StartRank<'_>>, group: Arc<dyn Group>) -> Result<Self> {
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
    pub fn spawn(first: Box<dyn StepRunner>, others: Vec<Box<dyn StepRunner>>, group: Arc<dyn Group>) -> Result<Self> {
        let start = |(i, mut runner): (usize, Box<dyn StepRunner>)| {
            let rank = i + 1;
            let (orders, inbox) = bounded(1);
            let (outbox, verdicts) = bounded(1);
            let group = Arc::clone(&group);
            let work = move || {
                while let Ok(order) = inbox.recv() {
                    if outbox.send(obey((rank, runner.as_mut()), &order, group.as_ref())).is_err() {
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
        Ok(Self { first, others, group, flights: VecDeque::new(), planted: None, before: None })
    }

    /// The same with a known bug, for the simulator to find.
    #[doc(hidden)]
    #[must_use]
    pub fn with_planted(mut self, bug: Option<Planted>) -> Self {
        self.planted = bug;
        self
    }

    /// What `rank` is sent for `plan`.
    fn order(&self, rank: usize, plan: &Arc<StepPlan>) -> Option<Arc<StepPlan>> {
        let odd = rank == self.others.len() && plan.id.0 % 7 == 3;
        match self.planted {
            Some(Planted::NotSent) if odd => None,
            Some(Planted::StalePlan) if odd => Some(Arc::clone(self.before.as_ref().unwrap_or(plan))),
            _ => Some(Arc::clone(plan)),
        }
    }

    /// Has each of these ranks do what `order` says for it, at the same time; what came of it, rank for rank.
    fn all(&mut self, ranks: &[usize], order: impl Fn(&Self, usize) -> Order) -> Vec<Verdict> {
        for &rank in ranks.iter().filter(|rank| **rank > 0) {
            let sent = self.others[rank - 1].orders.as_ref().is_some_and(|o| o.send(order(self, rank)).is_ok());
            if !sent {
                self.group.fail(&Error::internal(format!("the thread of rank {rank} has ended")));
            }
        }
        let first = order(self, 0);
        let gone = || Err("its thread has ended".to_owned());
        let verdict = |&rank: &usize| match rank {
            0 => obey((0, self.first.as_mut()), &first, self.group.as_ref()),
            _ => self.others[rank - 1].verdicts.recv().unwrap_or_else(|_| gone()),
        };
        ranks.iter().map(verdict).collect()
    }

    /// The failure that an order came to, if any. A rank's panic goes on here.
    fn failure(&self, ranks: &[usize], verdicts: &[Verdict]) -> Option<Error> {
        let failure = self.group.reset();
        if let Some(kept) = failure.as_ref().filter(|_| self.planted == Some(Planted::FailureKept)) {
            self.group.fail(kept);
        }
        let panic = ranks.iter().zip(verdicts).find_map(|(rank, v)| Some((rank, v.as_ref().err()?)));
        if let Some((rank, text)) = panic.filter(|_| self.planted != Some(Planted::PanicForgiven)) {
            resume_unwind(Box::new(format!("rank {rank}: {text}")));
        }
        let ignored = self.planted == Some(Planted::FailureIgnored) && matches!(verdicts[0], Ok(Ok(_)));
        failure.filter(|_| !ignored)
    }

    /// Ends the oldest steps that have failed on their way.
    fn discard(&mut self) {
        while let Some(flight) = self.flights.pop_front_if(|flight| flight.failed) {
            self.all(&flight.ranks, |_, _| Order::Finish);
            self.group.reset();
        }
    }
}

/// Does what one rank is told. When it fails or ends otherwise than the others, those are not left waiting for it.
fn obey((rank, runner): (usize, &mut dyn StepRunner), order: &Order, group: &dyn Group) -> Verdict {
    let run = || match order {
        Order::Launch(plan) => runner.launch(plan).map(|()| None),
        Order::Finish => match runner.finish()? {
            StepOutput { outcome: StepOutcome::Failed(e), .. } => Err(e),
            output => Ok(Some(output)),
        },
    };
    let verdict = catch_unwind(AssertUnwindSafe(run)).map_err(|payload| panic_text(&*payload).to_string());
    match &verdict {
        Ok(Ok(_)) => group.leave(rank),
        Ok(Err(e)) => group.fail(&e.clone().within(format!("rank {rank}"))),
        Err(text) => group.fail(&Error::internal(format!("rank {rank} panicked: {text}"))),
    }
    verdict
}

/// Whether every rank ran the step that was due and drew what rank 0 drew: from there on each has its own copy of it.
fn agree(plan: &StepPlan, outputs: &[StepOutput]) -> Result<()> {
    if let Some((rank, wrong)) = outputs.iter().enumerate().find(|(_, output)| output.id != plan.id) {
        let (found, due) = (wrong.id.0, plan.id.0);
        return Err(Error::internal(format!("rank {rank} answered step {found} where step {due} was due")));
    }
    let drawn = |output: &StepOutput| match &output.outcome {
        StepOutcome::Done(results) => results.sampled.iter().map(|s| (s.seq, s.token)).collect(),
        StepOutcome::Failed(_) => Vec::new(),
    };
    let first = outputs.first().map(drawn);
    match outputs.iter().position(|output| Some(drawn(output)) != first) {
        None => Ok(()),
        Some(rank) => Err(Error::internal(format!("ranks 0 and {rank} drew different tokens in step {}", plan.id.0))),
    }
}

impl StepRunner for RankRunner {
    /// Launches the step on all ranks. A rank's failure is the step's; a rank's panic goes on here.
    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        self.discard();
        let plan = Arc::new(plan.clone());
        let all = 0..=self.others.len();
        let ranks: Vec<_> = all.filter(|rank| *rank == 0 || self.order(*rank, &plan).is_some()).collect();
        let verdicts = self.all(&ranks, |me, rank| {
            Order::Launch(me.order(rank, &plan).filter(|_| rank > 0).unwrap_or_else(|| Arc::clone(&plan)))
        });
        if self.planted == Some(Planted::StalePlan) {
            self.before = Some(Arc::clone(&plan));
        }
        let failure = self.failure(&ranks, &verdicts);
        let launched = ranks.iter().zip(&verdicts).filter(|(_, v)| matches!(v, Ok(Ok(_)))).map(|(rank, _)| *rank);
        let flight = Flight { plan, ranks: launched.collect(), failed: failure.is_some() };
        if !flight.ranks.is_empty() && self.group.lost().is_none() {
            self.flights.push_back(flight);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Waits for the oldest launched step on all ranks.
    fn finish(&mut self) -> Result<StepOutput> {
        self.discard();
        let flight = self.flights.pop_front().ok_or_else(|| Error::internal("no step was launched"))?;
        let verdicts = self.all(&flight.ranks, |_, _| Order::Finish);
        if let Some(e) = self.failure(&flight.ranks, &verdicts) {
            return Err(e);
        }
        let outputs: Vec<_> = verdicts.into_iter().filter_map(|v| v.ok()?.ok()?).collect();
        agree(&flight.plan, &outputs)?;
        outputs.into_iter().next().ok_or_else(|| Error::internal("no rank finished its step"))
    }

    fn group(&self) -> Option<Arc<dyn Group>> {
        Some(Arc::clone(&self.group))
    }

    fn lost(&self) -> Option<Error> {
        self.group.lost()
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
    use crate::base::{DType, ErrorKind, StepId};
    use crate::exec::Executor;
    use crate::exec::worker::WorkerExecutor;
    use crate::hal::comm::{Communicator, LocalGroup};
    use crate::hal::registry::{DeviceOptions, open};
    use crate::hal::{Stream, Tensor};
    use crate::plan::StepResults;

    /// What a rank does in step 1 instead of meeting the others.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Odd {
        Fails,
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
        launched: VecDeque<StepId>,
    }

    impl StepRunner for Meets {
        fn launch(&mut self, plan: &StepPlan) -> Result<()> {
            let odd = self.odd.filter(|_| plan.id.0 == 1);
            let x = if odd == Some(Odd::Short) { self.x.reshape(1, 2) } else { self.x.clone() };
            match odd {
                Some(Odd::Panics) => panic!("told to panic"),
                Some(Odd::Fails) => return Err(Error::no_memory("told to fail")),
                Some(Odd::Absent) => {}
                _ => self.place.all_reduce(self.stream.as_ref(), &x)?,
            }
            self.launched.push_back(if odd == Some(Odd::Stale) { StepId(0) } else { plan.id });
            Ok(())
        }
        fn finish(&mut self) -> Result<StepOutput> {
            let id = self.launched.pop_front().expect("a step was launched");
            Ok(StepOutput { id, outcome: StepOutcome::Done(StepResults::default()) })
        }
    }

    fn meets(group: &LocalGroup, rank: usize, odd: Option<Odd>) -> Result<Meets> {
        let device = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() })?;
        Ok(Meets {
            stream: device.stream()?,
            x: Tensor::new(device.alloc(16)?, 0, 1, 4, DType::F32),
            place: group.join(rank, device.as_ref())?,
            odd,
            launched: VecDeque::new(),
        })
    }

    fn plan(id: u64) -> StepPlan {
        StepPlan { id: StepId(id), entries: vec![], tokens: vec![], blocks: vec![], targets: vec![], row_inits: vec![] }
    }

    /// Three ranks, of which one is odd.
    fn ranks(rank: usize, odd: Odd) -> RankRunner {
        let group = LocalGroup::new(3, 4);
        let start = |i: usize| -> StartRank<'_> {
            let group = &group;
            Box::new(move || Ok(Box::new(meets(group, i, (i == rank).then_some(odd))?)))
        };
        RankRunner::start((0..3).map(start).collect(), Arc::new(group.clone())).unwrap()
    }

    fn worker(rank: usize, odd: Odd) -> (WorkerExecutor, Arc<Signal>) {
        let ranks = ranks(rank, odd);
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
    fn steps_are_launched_ahead_and_one_that_fails_on_its_way_is_nobodys() {
        for rank in 0..3 {
            let mut ranks = ranks(rank, Odd::Fails);
            let id = |output: Result<StepOutput>| output.unwrap().id.0;
            ranks.launch(&plan(0)).unwrap();
            ranks.launch(&plan(2)).unwrap();
            assert_eq!(id(ranks.finish()), 0);
            let e = ranks.launch(&plan(1)).unwrap_err();
            assert!(e.message.contains(&format!("rank {rank}: told to fail")), "{e}");
            ranks.launch(&plan(3)).unwrap();
            assert_eq!([2, 3].map(|_| id(ranks.finish())), [2, 3]);
            ranks.launch(&plan(4)).unwrap();
            assert_eq!(id(ranks.finish()), 4);
            assert!(ranks.finish().unwrap_err().message.contains("no step was launched"));
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
                let e = RankRunner::start((0..3).map(start).collect(), Arc::new(group.clone())).unwrap_err();
                let says = e.message.contains(&format!("rank {rank}:")) && e.message.contains("told to");
                assert!(e.kind == kind && says, "{e}");
            }
        }
    }
}
