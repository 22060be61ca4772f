//! One thread per device: it owns the runner, takes plans in order and reports what came of them.

use super::Executor;
use crate::base::error::panic_text;
use crate::base::signal::Signal;
use crate::base::{Error, ErrorKind, Result, StepId, threads};
use crate::hal::comm::Group;
use crate::plan::{StepOutcome, StepOutput, StepPlan};
use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What a worker drives: enqueues a step, then waits for the oldest one.
pub trait StepRunner: Send + std::fmt::Debug {
    fn launch(&mut self, plan: &StepPlan) -> Result<()>;
    fn finish(&mut self) -> Result<StepOutput>;
    /// Where its ranks meet, if it has several.
    fn group(&self) -> Option<Arc<dyn Group>> {
        None
    }
    /// Why no step will ever run again, if so.
    fn lost(&self) -> Option<Error> {
        None
    }
}

impl StepRunner for crate::runner::ModelRunner {
    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        Self::launch(self, plan)
    }
    fn finish(&mut self) -> Result<StepOutput> {
        Self::finish(self)
    }
}

/// A step on its way to the worker.
#[derive(Debug)]
struct Order {
    plan: StepPlan,
    /// Failures the engine had seen when it submitted the step. A step from before a failure must not run.
    epoch: u64,
}

/// The engine's end of a worker thread. Dropping it ends the thread and waits for it, unless abandoned.
#[derive(Debug)]
pub struct WorkerExecutor {
    orders: Option<Sender<Order>>,
    landed: Receiver<Result<StepOutput>>,
    depth: usize,
    epoch: u64,
    group: Option<Arc<dyn Group>>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerExecutor {
    /// Starts the thread `yn-worker-0`. `signal` is notified whenever a step has landed.
    pub fn spawn(runner: Box<dyn StepRunner>, depth: usize, signal: Arc<Signal>) -> Result<Self> {
        let group = runner.group();
        let (orders, inbox) = bounded(depth);
        // One place more than can be outstanding, for the worker's last words.
        let (outbox, landed) = bounded(depth + 1);
        let outbox = Outbox { landed: Some(outbox), signal };
        let thread = threads::named("yn-worker-0")
            .spawn(move || work(runner, &inbox, &outbox))
            .map_err(|e| Error::io(format!("the worker thread does not start: {e}")))?;
        Ok(Self { orders: Some(orders), landed, depth, epoch: 0, group, thread: Some(thread) })
    }
}

impl Executor for WorkerExecutor {
    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, plan: StepPlan) -> Result<()> {
        let Some(orders) = &self.orders else { return Err(self.last_words()) };
        orders.try_send(Order { plan, epoch: self.epoch }).map_err(|e| match e {
            TrySendError::Full(_) => Error::internal("more steps submitted than the pipeline is deep"),
            TrySendError::Disconnected(_) => self.last_words(),
        })
    }

    fn poll(&mut self) -> Result<Option<StepOutput>> {
        match self.landed.try_recv() {
            Ok(Ok(output)) => {
                if matches!(output.outcome, StepOutcome::Failed(_)) {
                    self.epoch += 1;
                }
                Ok(Some(output))
            }
            Ok(Err(e)) => Err(e),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(self.last_words()),
        }
    }

    fn late(&self) -> Vec<usize> {
        self.group.as_ref().map_or(Vec::new(), |group| group.late())
    }

    fn abandon(&mut self) {
        if let Some(group) = &self.group {
            group.give_up(&Error::new(ErrorKind::Shutdown, "the engine has given its device up"));
        }
        self.orders = None;
        self.thread = None;
    }
}

impl WorkerExecutor {
    /// Why the thread has ended: the panic it reported, if nobody has read it yet.
    fn last_words(&self) -> Error {
        let cause = self.landed.try_iter().find_map(std::result::Result::err);
        cause.unwrap_or_else(|| Error::new(ErrorKind::Internal, "the device's worker thread has ended"))
    }
}

impl Drop for WorkerExecutor {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already reported through `landed`.
            let _ = thread.join();
        }
    }
}

/// The worker's end of `landed`. However the thread ends, whoever waits is told after the channel has closed.
#[derive(Debug)]
struct Outbox {
    landed: Option<Sender<Result<StepOutput>>>,
    signal: Arc<Signal>,
}

impl Outbox {
    /// False when nobody listens any more.
    fn send(&self, landed: Result<StepOutput>) -> bool {
        let sent = self.landed.as_ref().is_some_and(|channel| channel.send(landed).is_ok());
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

fn work(mut runner: Box<dyn StepRunner>, inbox: &Receiver<Order>, outbox: &Outbox) {
    let mut failed_epoch = None;
    while let Ok(Order { plan, epoch }) = inbox.recv() {
        let landed = if failed_epoch.is_some_and(|failed| epoch <= failed) {
            Ok(failed_step(plan.id, Error::new(ErrorKind::Device, "an earlier step failed")))
        } else {
            run(runner.as_mut(), &plan)
        };
        if landed.as_ref().is_ok_and(|o| matches!(o.outcome, StepOutcome::Failed(_))) {
            failed_epoch = Some(epoch);
        }
        let over = landed.is_err();
        let sent = outbox.send(landed);
        if over || !sent {
            break;
        }
    }
}

/// `Err` is the end: a panic, after which the runner's state cannot be trusted any more, or a runner that says so.
fn run(runner: &mut dyn StepRunner, plan: &StepPlan) -> Result<StepOutput> {
    let step = || match runner.launch(plan).and_then(|()| runner.finish()) {
        Ok(output) => output,
        Err(e) => failed_step(plan.id, e),
    };
    let output = catch_unwind(AssertUnwindSafe(step)).map_err(|payload| {
        Error::internal(format!("step {} panicked in the worker: {}", plan.id.0, panic_text(&*payload)))
    })?;
    runner.lost().map_or(Ok(output), Err)
}

fn failed_step(id: StepId, error: Error) -> StepOutput {
    StepOutput { id, outcome: StepOutcome::Failed(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::mock::{MockRunner, MockSpec};
    use crate::plan::StepResults;

    fn plan(id: u64) -> StepPlan {
        StepPlan { id: StepId(id), entries: vec![], tokens: vec![], blocks: vec![], targets: vec![], row_inits: vec![] }
    }

    fn poll(worker: &mut WorkerExecutor, signal: &Signal) -> Result<StepOutput> {
        loop {
            if let Some(output) = worker.poll()? {
                return Ok(output);
            }
            signal.wait(None);
        }
    }

    fn worker(spec: &str) -> (WorkerExecutor, Arc<Signal>) {
        let signal = Arc::new(Signal::default());
        let runner = Box::new(MockRunner::new(MockSpec::parse(spec).unwrap(), 4));
        (WorkerExecutor::spawn(runner, 2, Arc::clone(&signal)).unwrap(), signal)
    }

    #[test]
    fn steps_submitted_before_a_failure_was_polled_fail_too() {
        let (mut w, signal) = worker("mock:words,fail_step=0");
        w.submit(plan(0)).unwrap();
        w.submit(plan(1)).unwrap();
        assert!(matches!(poll(&mut w, &signal).unwrap().outcome, StepOutcome::Failed(_)));
        assert!(matches!(poll(&mut w, &signal).unwrap().outcome, StepOutcome::Failed(_)));
        w.submit(plan(2)).unwrap();
        let output = poll(&mut w, &signal).unwrap();
        assert_eq!((output.id, output.outcome), (StepId(2), StepOutcome::Done(StepResults::default())));
    }

    #[test]
    fn a_panic_is_an_error_of_the_executor() {
        let (mut w, signal) = worker("mock:words,panic_step=0");
        w.submit(plan(0)).unwrap();
        let e = poll(&mut w, &signal).unwrap_err();
        assert!(e.message.contains("panicked"), "{e}");
        assert!(poll(&mut w, &signal).is_err());
    }

    #[test]
    fn a_submit_after_the_thread_ended_says_why_it_ended() {
        let (mut w, _) = worker("mock:words,panic_step=0");
        w.submit(plan(0)).unwrap();
        while !w.thread.as_ref().unwrap().is_finished() {
            std::thread::yield_now();
        }
        let e = w.submit(plan(1)).unwrap_err();
        assert!(e.message.contains("told to panic"), "{e}");
    }
}
