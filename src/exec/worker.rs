//! Two threads per device: `yn-worker-0` owns the runner and launches steps as their plans come, `yn-landing-0` waits for
//! them in order and reports what came of them. So the device finds the next step enqueued when one ends, and neither a
//! new plan nor a landed step waits for the other.

use super::Executor;
use crate::base::error::panic_text;
use crate::base::signal::Signal;
use crate::base::{Error, ErrorKind, Result, StepId, threads};
use crate::hal::comm::Group;
use crate::plan::{StepOutcome, StepOutput, StepPart, StepPlan, TokenMask};
use crate::runner::{self, ModelRunner};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use std::any::Any;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long whoever drops an executor waits for its thread.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// A launched step on its way back.
pub trait Flight: Send + Debug {
    /// Sleeps until the step has ended on the device, and tells what came of it. Called in the order of launches, by a
    /// thread of its own.
    fn land(self: Box<Self>) -> StepOutput;
}

/// A step that had ended before its flight began.
#[derive(Debug)]
pub struct Landed(pub StepOutput);

impl Flight for Landed {
    fn land(self: Box<Self>) -> StepOutput {
        self.0
    }
}

/// What a worker drives.
pub trait StepRunner: Send + Debug {
    /// Enqueues a step behind those launched before it, which need not have landed: at most as many are under way as the
    /// pipeline is deep. It waits for no step. On an error nothing of the step counts and nothing of it runs any more. A
    /// step behind one that fails may have been launched before that was seen; it is landed and does not count.
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>>;
    /// The same for a late part of a launched step; see [`Executor::supply`].
    fn supply(&mut self, step: StepId, masks: &[TokenMask]) -> Result<Box<dyn Flight>> {
        let _ = masks;
        Err(Error::internal(format!("masks for step {}, but this runner takes none", step.0)))
    }
    /// Where its ranks meet, if it has several.
    fn group(&self) -> Option<Arc<dyn Group>> {
        None
    }
}

impl StepRunner for ModelRunner {
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
        Ok(Box::new(self.launch_step(plan)?))
    }
    fn supply(&mut self, step: StepId, masks: &[TokenMask]) -> Result<Box<dyn Flight>> {
        Ok(Box::new(ModelRunner::supply(self, step, masks)?))
    }
}

impl Flight for runner::Flight {
    fn land(self: Box<Self>) -> StepOutput {
        runner::Flight::land(*self)
    }
}

/// What a runner is told to launch.
#[derive(Debug)]
pub enum Work {
    Step(StepPlan),
    Late(StepId, Vec<TokenMask>),
}

impl Work {
    pub(super) fn id(&self) -> StepId {
        match self {
            Self::Step(plan) => plan.id,
            Self::Late(step, _) => *step,
        }
    }

    pub(super) fn part(&self) -> StepPart {
        match self {
            Self::Step(_) => StepPart::First,
            Self::Late(..) => StepPart::Late,
        }
    }

    pub(super) fn launch_on(&self, runner: &mut dyn StepRunner) -> Result<Box<dyn Flight>> {
        match self {
            Self::Step(plan) => runner.launch(plan),
            Self::Late(step, masks) => runner.supply(*step, masks),
        }
    }
}

/// Work on its way to the worker.
#[derive(Debug)]
struct Order {
    work: Work,
    /// Failures the engine had seen when it submitted the work. What is from before a failure must not count.
    epoch: u64,
}

/// What became of an order, on its way to the landing thread.
#[derive(Debug)]
struct Launched {
    id: StepId,
    part: StepPart,
    epoch: u64,
    host_ns: u64,
    step: Launch,
}

#[derive(Debug)]
enum Launch {
    Flies(Box<dyn Flight>),
    Failed(Error),
    /// The runner's state cannot be trusted any more.
    Panicked(Error),
}

/// A step that has landed, and what launching it cost the host.
#[derive(Debug)]
struct Report {
    output: Result<StepOutput>,
    host_ns: u64,
}

/// The engine's end of the worker's threads. Dropping it ends them and waits a while for them.
#[derive(Debug)]
pub struct WorkerExecutor {
    orders: Option<Sender<Order>>,
    landed: Receiver<Report>,
    depth: usize,
    /// Steps submitted and not polled.
    outstanding: usize,
    epoch: u64,
    /// Of the step polled last.
    launch_ns: u64,
    group: Option<Arc<dyn Group>>,
    thread: Option<JoinHandle<()>>,
    /// Closes once the runner is gone, too: to give its memory back can take as long as a step that hangs.
    ended: Receiver<()>,
}

impl WorkerExecutor {
    /// Starts the two threads. `signal` is notified whenever a step has landed.
    pub fn spawn(runner: Box<dyn StepRunner>, depth: usize, signal: Arc<Signal>) -> Result<Self> {
        let group = runner.group();
        // As many messages as there are steps and late parts outstanding, which are bounded by depth and sequences, and
        // the worker's last words.
        let (orders, inbox) = unbounded();
        let (outbox, landed) = unbounded();
        let outbox = Outbox { landed: Some(outbox), signal };
        let (flights, launched) = unbounded();
        let failed = Arc::new(AtomicU64::new(0));
        let start_error = |e| Error::io(format!("the worker thread does not start: {e}"));
        let landing = {
            let failed = Arc::clone(&failed);
            let land = move || land_all(&launched, &failed, &outbox);
            threads::named("yn-landing-0").spawn(land).map_err(start_error)?
        };
        // Closed when all of the closure's own is gone.
        let (alive, ended) = bounded::<()>(0);
        let work = move || {
            let _alive = &alive;
            let mut runner = runner;
            launch_all(runner.as_mut(), &inbox, &flights, &failed);
            drop(flights);
            // The runner's memory is given back once nothing is under way. A panic there has closed `landed`.
            let _ = landing.join();
        };
        let thread = threads::named("yn-worker-0").spawn(work).map_err(start_error)?;
        let (epoch, outstanding, launch_ns) = (0, 0, 0);
        let (orders, thread) = (Some(orders), Some(thread));
        Ok(Self { orders, landed, depth, outstanding, epoch, launch_ns, group, thread, ended })
    }
}

impl Executor for WorkerExecutor {
    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, plan: StepPlan) -> Result<()> {
        if self.outstanding == self.depth {
            return Err(Error::internal("more steps submitted than the pipeline is deep"));
        }
        self.order(Work::Step(plan))?;
        self.outstanding += 1;
        Ok(())
    }

    fn supply(&mut self, step: StepId, masks: Vec<TokenMask>) -> Result<()> {
        self.order(Work::Late(step, masks))
    }

    fn poll(&mut self) -> Result<Option<StepOutput>> {
        match self.landed.try_recv() {
            Ok(Report { output, host_ns }) => {
                let output = output?;
                self.outstanding -= usize::from(output.part == StepPart::First);
                self.launch_ns = host_ns;
                if matches!(output.outcome, StepOutcome::Failed(_)) {
                    self.epoch += 1;
                }
                Ok(Some(output))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(self.last_words()),
        }
    }

    fn launch_ns(&self) -> u64 {
        self.launch_ns
    }

    fn late(&self) -> Vec<usize> {
        self.group.as_ref().map_or(Vec::new(), |group| group.late())
    }

    fn abandon(&mut self) {
        if let Some(group) = &self.group {
            group.give_up(&Error::new(ErrorKind::Shutdown, "the engine has given its device up"));
        }
        self.orders = None;
    }

    fn leave(&mut self, wait: Duration) -> bool {
        self.orders = None;
        let Some(thread) = self.thread.take() else { return true };
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(wait) {
            return false;
        }
        // A panic of the thread was already reported through `landed`.
        let _ = thread.join();
        true
    }
}

impl WorkerExecutor {
    fn order(&self, work: Work) -> Result<()> {
        let orders = self.orders.as_ref().ok_or_else(|| self.last_words())?;
        orders.send(Order { work, epoch: self.epoch }).map_err(|_| self.last_words())
    }

    /// Why the threads have ended: the panic they reported, if nobody has read it yet.
    fn last_words(&self) -> Error {
        let cause = self.landed.try_iter().find_map(|report| report.output.err());
        cause.unwrap_or_else(|| Error::new(ErrorKind::Internal, "the device's worker thread has ended"))
    }
}

impl Drop for WorkerExecutor {
    fn drop(&mut self) {
        self.leave(DROP_WAIT);
    }
}

/// The landing thread's end of `landed`. However it ends, whoever waits is told after the channel has closed.
#[derive(Debug)]
struct Outbox {
    landed: Option<Sender<Report>>,
    signal: Arc<Signal>,
}

impl Outbox {
    /// False when nobody listens any more.
    fn send(&self, report: Report) -> bool {
        let sent = self.landed.as_ref().is_some_and(|channel| channel.send(report).is_ok());
        self.signal.notify();
        sent
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.landed = None;
        self.signal.notify();
    }
}

/// Launches every order until the channel closes or a step panics. `failed` is one more than the epoch of the last step
/// that was seen to fail as it landed.
fn launch_all(runner: &mut dyn StepRunner, inbox: &Receiver<Order>, flights: &Sender<Launched>, failed: &AtomicU64) {
    let mut failed_here = 0;
    while let Ok(Order { work, epoch }) = inbox.recv() {
        let since = Instant::now();
        let step = if epoch < failed.load(Ordering::Acquire).max(failed_here) {
            Launch::Failed(behind_a_failure())
        } else {
            launch(runner, &work)
        };
        if matches!(step, Launch::Failed(_)) {
            failed_here = epoch + 1;
        }
        let over = matches!(step, Launch::Panicked(_));
        let host_ns = since.elapsed().as_nanos() as u64;
        let (id, part) = (work.id(), work.part());
        if flights.send(Launched { id, part, epoch, host_ns, step }).is_err() || over {
            break;
        }
    }
}

fn launch(runner: &mut dyn StepRunner, work: &Work) -> Launch {
    match catch_unwind(AssertUnwindSafe(|| work.launch_on(runner))) {
        Ok(Ok(flight)) => Launch::Flies(flight),
        Ok(Err(e)) => Launch::Failed(e),
        Err(payload) => Launch::Panicked(panicked(work.id(), &*payload)),
    }
}

/// Lands every launched step in order. One that was launched behind a failure is waited for and fails with it.
fn land_all(launched: &Receiver<Launched>, failed: &AtomicU64, outbox: &Outbox) {
    while let Ok(Launched { id, part, epoch, host_ns, step }) = launched.recv() {
        let failed_step = |e| StepOutput { id, part, outcome: StepOutcome::Failed(e) };
        let behind = epoch < failed.load(Ordering::Acquire);
        let output = match step {
            Launch::Flies(flight) => catch_unwind(AssertUnwindSafe(|| flight.land())).map_err(|p| panicked(id, &*p)),
            Launch::Failed(e) => Ok(failed_step(e)),
            Launch::Panicked(e) => Err(e),
        };
        let output = match output {
            Ok(StepOutput { outcome: StepOutcome::Done(_), .. }) if behind => Ok(failed_step(behind_a_failure())),
            output => output.and_then(unless_lost),
        };
        if output.as_ref().is_ok_and(|o| matches!(o.outcome, StepOutcome::Failed(_))) {
            failed.store(epoch + 1, Ordering::Release);
        }
        let over = output.is_err();
        if !outbox.send(Report { output, host_ns }) || over {
            break;
        }
    }
}

fn behind_a_failure() -> Error {
    Error::new(ErrorKind::Device, "an earlier step failed")
}

fn panicked(id: StepId, payload: &(dyn Any + Send)) -> Error {
    Error::internal(format!("step {} panicked in the worker: {}", id.0, panic_text(payload)))
}

/// A step that failed because its device is lost is the executor's end: no other step can do better.
fn unless_lost(output: StepOutput) -> Result<StepOutput> {
    match output.outcome {
        StepOutcome::Failed(e) if e.kind == ErrorKind::DeviceLost => Err(e.within(format!("step {}", output.id.0))),
        _ => Ok(output),
    }
}

#[cfg(test)]
mod tests;
