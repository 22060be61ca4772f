//! The ranks of one model as one runner: every rank launches each step on its own thread, all must come to the same, and
//! rank 0 tells what it was. All ranks have launched a step before one of them is sent the next; how far their devices have
//! come with it is known when it lands.

use super::worker::{Flight, StepRunner, Work};
use crate::base::error::panic_text;
use crate::base::{Error, Result, StepId, threads};
use crate::hal::comm::Group;
use crate::plan::{StepOutcome, StepOutput, StepPart, StepPlan, TokenMask};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// `Err` is the text of a panic.
type Verdict = std::result::Result<Result<Box<dyn Flight>>, String>;
type Landing = std::result::Result<StepOutput, String>;
/// A step to land, and where to say what came of it.
type ToLand = (Box<dyn Flight>, Sender<Landing>);

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
    /// Lands its steps, beside the other ranks: their devices may wait for this one, which may have failed.
    landing: Lander,
}

/// A thread that lands steps in order, each for whoever holds the other end of its channel.
#[derive(Debug)]
struct Lander {
    flights: Option<Sender<ToLand>>,
    thread: Option<JoinHandle<()>>,
}

impl Lander {
    fn spawn(rank: usize, group: Arc<dyn Group>) -> Result<Self> {
        let (flights, inbox) = unbounded::<ToLand>();
        let work = move || {
            while let Ok((flight, home)) = inbox.recv() {
                // Nobody may want it any more.
                let _ = home.send(land((rank, flight), group.as_ref()));
            }
        };
        let thread = threads::named(format!("yn-landing-{rank}"))
            .spawn(work)
            .map_err(|e| Error::io(format!("the landing thread of rank {rank} does not start: {e}")))?;
        Ok(Self { flights: Some(flights), thread: Some(thread) })
    }

    /// Where the step's output will be.
    fn land(&self, flight: Box<dyn Flight>) -> Receiver<Landing> {
        let (home, landing) = bounded(1);
        if let Some(flights) = &self.flights {
            // A thread that has ended drops the flight, and the channel tells.
            let _ = flights.send((flight, home));
        }
        landing
    }
}

impl Drop for Lander {
    fn drop(&mut self) {
        self.flights = None;
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and told.
            let _ = thread.join();
        }
    }
}

/// Ranks that meet in a [`Group`]. Rank 0 runs on the caller's thread. Dropping it ends the threads.
#[derive(Debug)]
pub struct RankRunner {
    first: Box<dyn StepRunner>,
    others: Vec<Rank>,
    group: Arc<dyn Group>,
    planted: Option<Planted>,
    /// For [`Planted::StalePlan`].
    before: Option<Arc<Work>>,
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
            let (orders, inbox) = bounded::<Arc<Work>>(1);
            let (outbox, verdicts) = bounded(1);
            let landing = Lander::spawn(rank, Arc::clone(&group))?;
            let group = Arc::clone(&group);
            let work = move || {
                while let Ok(work) = inbox.recv() {
                    if outbox.send(step((rank, runner.as_mut()), &work, group.as_ref())).is_err() {
                        break;
                    }
                }
            };
            let thread = threads::named(format!("yn-worker-{rank}"))
                .spawn(work)
                .map_err(|e| Error::io(format!("the worker thread of rank {rank} does not start: {e}")))?;
            Ok(Rank { orders: Some(orders), verdicts, thread: Some(thread), landing })
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
fn step((rank, runner): (usize, &mut dyn StepRunner), work: &Work, group: &dyn Group) -> Verdict {
    let launched = catch_unwind(AssertUnwindSafe(|| work.launch_on(runner)));
    let verdict = launched.map_err(|payload| panic_text(&*payload).to_string());
    match &verdict {
        Ok(Ok(_)) => group.leave(rank),
        Ok(Err(e)) => group.fail(&e.clone().within(format!("rank {rank}"))),
        Err(text) => group.fail(&Error::internal(format!("rank {rank} panicked: {text}"))),
    }
    verdict
}

/// Lands a step of one rank. When its device has failed, those that wait for it do not go on waiting.
fn land((rank, flight): (usize, Box<dyn Flight>), group: &dyn Group) -> Landing {
    let landing = catch_unwind(AssertUnwindSafe(|| flight.land())).map_err(|payload| panic_text(&*payload).to_string());
    match &landing {
        Ok(StepOutput { outcome: StepOutcome::Done(_), .. }) => {}
        Ok(StepOutput { outcome: StepOutcome::Failed(e), .. }) => {
            group.device_failed(&e.clone().within(format!("rank {rank}")));
        }
        Err(text) => group.device_failed(&Error::internal(format!("rank {rank} panicked: {text}"))),
    }
    landing
}

/// A step of all ranks under way.
#[derive(Debug)]
struct RankFlight {
    id: StepId,
    part: StepPart,
    group: Arc<dyn Group>,
    /// Of rank 0.
    first: Box<dyn Flight>,
    others: Vec<Receiver<Landing>>,
}

impl Flight for RankFlight {
    /// The failure of any rank is the step's; a rank's panic goes on here.
    fn land(self: Box<Self>) -> StepOutput {
        let Self { id, part, group, first, others } = *self;
        let gone = || Err("its landing thread has ended".to_owned());
        let mut landings = vec![land((0, first), group.as_ref())];
        landings.extend(others.iter().map(|landing| landing.recv().unwrap_or_else(|_| gone())));
        if let Some((rank, Err(text))) = landings.iter().enumerate().find(|(_, landing)| landing.is_err()) {
            resume_unwind(Box::new(format!("rank {rank}: {text}")));
        }
        let mut outputs: Vec<_> = landings.into_iter().flatten().collect();
        let failed = outputs.iter().enumerate().find_map(|(rank, output)| match &output.outcome {
            StepOutcome::Failed(e) => Some(e.clone().within(format!("rank {rank}"))),
            StepOutcome::Done(_) => None,
        });
        // What ranks whose exchange is broken off have come to is no result, and no cause.
        match group.lost().or(failed).map_or_else(|| agree(id, &outputs), Err) {
            Ok(()) => outputs.swap_remove(0),
            Err(e) => StepOutput { id, part, outcome: StepOutcome::Failed(e) },
        }
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

    fn group(&self) -> Option<Arc<dyn Group>> {
        Some(Arc::clone(&self.group))
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
        let mut verdicts = vec![step((0, self.first.as_mut()), &work, self.group.as_ref())];
        let gone = || Err("its thread has ended".to_owned());
        let others = (1..).zip(&self.others).filter(|(rank, _)| silent != Some(*rank));
        verdicts.extend(others.map(|(_, other)| other.verdicts.recv().unwrap_or_else(|_| gone())));
        let failure = self.group.reset();
        if let Some(kept) = failure.as_ref().filter(|_| self.planted == Some(Planted::FailureKept)) {
            self.group.fail(kept);
        }
        let panic = verdicts.iter().enumerate().find_map(|(rank, v)| Some((rank, v.as_ref().err()?)));
        if let Some((rank, text)) = panic.filter(|_| self.planted != Some(Planted::PanicForgiven)) {
            let text = format!("rank {rank}: {text}");
            // Devices write into what the flights hold.
            verdicts.into_iter().filter_map(|v| v.ok()?.ok()).for_each(|flight| drop(flight.land()));
            resume_unwind(Box::new(text));
        }
        let ignored = self.planted == Some(Planted::FailureIgnored) && matches!(verdicts[0], Ok(Ok(_)));
        let ranks = std::iter::once(0).chain((1..=self.others.len()).filter(|rank| silent != Some(*rank)));
        let mut flights: Vec<_> = ranks.zip(verdicts).filter_map(|(rank, v)| Some((rank, v.ok()?.ok()?))).collect();
        let failure = failure.filter(|_| !ignored).map(|e| self.group.lost().unwrap_or(e));
        if failure.is_some() || flights.first().is_none_or(|flight| flight.0 != 0) {
            // Nothing of it may run beside the next step.
            flights.into_iter().for_each(|(_, flight)| drop(flight.land()));
            return Err(failure.unwrap_or_else(|| Error::internal("rank 0 has not run the step")));
        }
        let (_, first) = flights.remove(0);
        let others = flights.into_iter().map(|(rank, flight)| self.others[rank - 1].landing.land(flight)).collect();
        Ok(Box::new(RankFlight { id: work.id(), part: work.part(), group: Arc::clone(&self.group), first, others }))
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
mod tests;
