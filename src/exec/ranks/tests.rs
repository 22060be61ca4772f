use super::*;
use crate::base::signal::Signal;
use crate::base::{DType, ErrorKind};
use crate::exec::Executor;
use crate::exec::worker::{Landed, WorkerExecutor};
use crate::hal::comm::{Communicator, LocalGroup};
use crate::hal::registry::{DeviceOptions, open};
use crate::hal::{Device, Stream, Tensor};
use crate::plan::StepResults;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

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
    let ranks = RankRunner::start((0..3).map(start).collect(), Arc::new(group.clone())).unwrap();
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
            let e = RankRunner::start((0..3).map(start).collect(), Arc::new(group.clone())).unwrap_err();
            let says = e.message.contains(&format!("rank {rank}:")) && e.message.contains("told to");
            assert!(e.kind == kind && says, "{e}");
        }
    }
}

/// A group whose ranks wait for each other on their devices: a failure ends it.
#[derive(Debug)]
struct OnDevices {
    inner: LocalGroup,
    lost: Arc<(Mutex<Option<Error>>, Condvar)>,
}

impl Group for OnDevices {
    fn join(&self, rank: usize, device: &dyn Device) -> Result<Box<dyn Communicator>> {
        self.inner.join(rank, device)
    }
    fn rank_bytes(&self) -> usize {
        self.inner.rank_bytes()
    }
    fn ordered(&self) -> bool {
        false
    }
    fn fail(&self, error: &Error) {
        let lost = Error::new(ErrorKind::DeviceLost, error.message.clone());
        self.lost.0.lock().unwrap().get_or_insert(lost);
        self.lost.1.notify_all();
        self.inner.fail(error);
    }
    fn device_failed(&self, error: &Error) {
        self.fail(error);
    }
    fn leave(&self, rank: usize) {
        self.inner.leave(rank);
    }
    fn reset(&self) -> Option<Error> {
        self.inner.reset()
    }
    fn lost(&self) -> Option<Error> {
        self.lost.0.lock().unwrap().clone()
    }
    fn late(&self) -> Vec<usize> {
        self.inner.late()
    }
}

/// A step on a device, which ends at once, or when the exchange is broken off.
#[derive(Debug)]
struct OnDevice {
    id: StepId,
    waits: bool,
    fails: bool,
    lost: Arc<(Mutex<Option<Error>>, Condvar)>,
}

impl Flight for OnDevice {
    fn land(self: Box<Self>) -> StepOutput {
        if self.waits {
            let (lost, changed) = &*self.lost;
            let patience = Duration::from_secs(20);
            let waited = changed.wait_timeout_while(lost.lock().unwrap(), patience, |lost| lost.is_none()).unwrap();
            assert!(!waited.1.timed_out(), "nobody freed the device");
        }
        let failed = StepOutcome::Failed(Error::new(ErrorKind::Device, "told to fail on the device"));
        let done = StepOutcome::Done(StepResults::default());
        StepOutput::first(self.id, if self.fails { failed } else { done })
    }
}

/// Launches what waits in step 1, but the odd rank, whose device fails.
#[derive(Debug)]
struct Launches {
    odd: bool,
    lost: Arc<(Mutex<Option<Error>>, Condvar)>,
}

impl StepRunner for Launches {
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
        let at = plan.id.0 == 1;
        let (waits, fails) = (at && !self.odd, at && self.odd);
        Ok(Box::new(OnDevice { id: plan.id, waits, fails, lost: Arc::clone(&self.lost) }))
    }
}

#[test]
fn a_rank_whose_device_fails_frees_those_that_wait_on_theirs_and_ends_the_executor() {
    for odd in 0..3 {
        let lost = Arc::new((Mutex::new(None), Condvar::new()));
        let group = Arc::new(OnDevices { inner: LocalGroup::new(3, 1), lost: Arc::clone(&lost) });
        let start = |rank: usize| -> StartRank<'_> {
            let lost = Arc::clone(&lost);
            Box::new(move || Ok(Box::new(Launches { odd: rank == odd, lost })))
        };
        let ranks = RankRunner::start((0..3).map(start).collect(), group).unwrap();
        let signal = Arc::new(Signal::default());
        let mut worker = WorkerExecutor::spawn(Box::new(ranks), 2, Arc::clone(&signal)).unwrap();
        assert_eq!(run(&mut worker, &signal, 0).unwrap(), StepOutcome::Done(StepResults::default()));
        let e = run(&mut worker, &signal, 1).unwrap_err();
        let says = format!("rank {odd}: told to fail on the device");
        assert!(e.kind == ErrorKind::DeviceLost && e.message.contains(&says), "{e}");
    }
}
