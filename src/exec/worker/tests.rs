//! The worker on the mock model and on steps that land when a test lets them.

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

/// Steps that land when the test lets them.
#[derive(Debug)]
struct Gated {
    launched: Sender<u64>,
    gate: Receiver<Gate>,
}

#[derive(Debug)]
enum Gate {
    Done,
    Failed,
    Panics,
}

#[derive(Debug)]
struct GatedFlight(StepId, Receiver<Gate>);

impl Flight for GatedFlight {
    fn land(self: Box<Self>) -> StepOutput {
        let outcome = match self.1.recv().unwrap() {
            Gate::Done => StepOutcome::Done(StepResults::default()),
            Gate::Failed => StepOutcome::Failed(Error::new(ErrorKind::Device, "told to fail")),
            Gate::Panics => panic!("told to panic"),
        };
        StepOutput::first(self.0, outcome)
    }
}

impl StepRunner for Gated {
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
        self.launched.send(plan.id.0).unwrap();
        Ok(Box::new(GatedFlight(plan.id, self.gate.clone())))
    }
}

/// A worker of depth 2, what it launches, and the way to let a step land.
fn gated() -> (WorkerExecutor, Arc<Signal>, Receiver<u64>, Sender<Gate>) {
    let ((launched, launches), (open, gate)) = (unbounded(), unbounded());
    let signal = Arc::new(Signal::default());
    let worker = WorkerExecutor::spawn(Box::new(Gated { launched, gate }), 2, Arc::clone(&signal)).unwrap();
    (worker, signal, launches, open)
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

#[test]
fn steps_are_launched_while_others_run_and_land_in_order() {
    let (mut w, signal, launches, open) = gated();
    w.submit(plan(0)).unwrap();
    w.submit(plan(1)).unwrap();
    assert!(w.submit(plan(2)).unwrap_err().message.contains("more steps"));
    assert_eq!([launches.recv_timeout(PATIENCE), launches.recv_timeout(PATIENCE)], [Ok(0), Ok(1)]);
    assert_eq!(w.poll().unwrap(), None, "nothing has landed");
    for id in 2..50 {
        open.send(Gate::Done).unwrap();
        assert_eq!(poll(&mut w, &signal).unwrap().id, StepId(id - 2));
        w.submit(plan(id)).unwrap();
        assert_eq!(launches.recv_timeout(PATIENCE), Ok(id), "launched while step {} runs", id - 1);
        assert_eq!(w.poll().unwrap(), None);
    }
    open.send(Gate::Done).unwrap();
    open.send(Gate::Done).unwrap();
}

#[test]
fn a_step_launched_behind_one_that_fails_lands_and_fails() {
    let (mut w, signal, launches, open) = gated();
    w.submit(plan(0)).unwrap();
    w.submit(plan(1)).unwrap();
    assert_eq!([launches.recv_timeout(PATIENCE), launches.recv_timeout(PATIENCE)], [Ok(0), Ok(1)]);
    open.send(Gate::Failed).unwrap();
    let failed = |output: StepOutput, says: &str| match output.outcome {
        StepOutcome::Failed(e) => assert!(e.message.contains(says), "{e}"),
        StepOutcome::Done(_) => panic!("step {} counts", output.id.0),
    };
    failed(poll(&mut w, &signal).unwrap(), "told to fail");
    assert_eq!(w.poll().unwrap(), None, "step 1 still runs");
    open.send(Gate::Done).unwrap();
    failed(poll(&mut w, &signal).unwrap(), "an earlier step failed");
    w.submit(plan(2)).unwrap();
    open.send(Gate::Done).unwrap();
    let output = poll(&mut w, &signal).unwrap();
    assert_eq!((output.id, output.outcome), (StepId(2), StepOutcome::Done(StepResults::default())));
    assert_eq!(launches.try_iter().collect::<Vec<_>>(), [2]);
}

#[test]
fn a_panic_while_a_step_lands_is_an_error_of_the_executor() {
    let (mut w, signal, _launches, open) = gated();
    w.submit(plan(0)).unwrap();
    open.send(Gate::Panics).unwrap();
    let e = poll(&mut w, &signal).unwrap_err();
    assert!(e.message.contains("step 0 panicked"), "{e}");
    assert!(poll(&mut w, &signal).is_err());
}
