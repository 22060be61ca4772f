//! The ranks of one model as one runner: every rank runs each step on its own thread, and rank 0 tells what was drawn.

use super::worker::StepRunner;
use crate::base::error::panic_text;
use crate::base::{Error, ErrorKind, Result, threads};
use crate::hal::comm::LocalGroup;
use crate::plan::{StepOutcome, StepOutput, StepPlan};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// `Err` is the text of a panic.
type Verdict = std::result::Result<Result<StepOutput>, String>;

/// A rank above 0: its thread owns its runner.
#[derive(Debug)]
struct Rank {
    orders: Option<Sender<Arc<StepPlan>>>,
    verdicts: Receiver<Verdict>,
    thread: Option<JoinHandle<()>>,
}

/// Ranks that meet in a [`LocalGroup`]. Rank 0 runs on the caller's thread. Dropping it ends the threads.
#[derive(Debug)]
pub struct RankRunner {
    first: Box<dyn StepRunner>,
    others: Vec<Rank>,
    group: LocalGroup,
    done: VecDeque<StepOutput>,
}

impl RankRunner {
    /// Starts `yn-worker-1` and up, one for each of `others`, which are the ranks behind `first`.
    pub fn spawn(first: Box<dyn StepRunner>, others: Vec<Box<dyn StepRunner>>, group: LocalGroup) -> Result<Self> {
        let start = |(i, mut runner): (usize, Box<dyn StepRunner>)| {
            let (orders, inbox) = bounded::<Arc<StepPlan>>(1);
            let (outbox, verdicts) = bounded(1);
            let group = group.clone();
            let work = move || {
                while let Ok(plan) = inbox.recv() {
                    if outbox.send(step(runner.as_mut(), &plan, &group)).is_err() {
                        break;
                    }
                }
            };
            let thread = threads::named(format!("yn-worker-{}", i + 1))
                .spawn(work)
                .map_err(|e| Error::io(format!("the worker thread of rank {} does not start: {e}", i + 1)))?;
            Ok(Rank { orders: Some(orders), verdicts, thread: Some(thread) })
        };
        let others = others.into_iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Self { first, others, group, done: VecDeque::new() })
    }
}

/// Runs a step of one rank. When it fails, the others are not left waiting for it.
fn step(runner: &mut dyn StepRunner, plan: &StepPlan, group: &LocalGroup) -> Verdict {
    let run = || {
        let output = runner.launch(plan).and_then(|()| runner.finish())?;
        match output.outcome {
            StepOutcome::Failed(e) => Err(e),
            StepOutcome::Done(_) => Ok(output),
        }
    };
    let verdict = catch_unwind(AssertUnwindSafe(run)).map_err(|payload| panic_text(&*payload).to_string());
    match &verdict {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => group.fail(e),
        Err(text) => group.fail(&Error::internal(format!("it panicked: {text}"))),
    }
    verdict
}

impl StepRunner for RankRunner {
    /// Runs the step on all ranks. A rank's failure is the step's; a rank's panic goes on here.
    fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        let plan = Arc::new(plan.clone());
        for rank in &self.others {
            let sent = rank.orders.as_ref().is_some_and(|orders| orders.send(Arc::clone(&plan)).is_ok());
            if !sent {
                self.group.fail(&Error::internal("a rank's thread has ended"));
            }
        }
        let mut verdicts = vec![step(self.first.as_mut(), &plan, &self.group)];
        let gone = || Err("its thread has ended".to_owned());
        verdicts.extend(self.others.iter().map(|rank| rank.verdicts.recv().unwrap_or_else(|_| gone())));
        let failure = self.group.reset();
        if let Some((rank, Err(text))) = verdicts.iter().enumerate().find(|(_, v)| v.is_err()) {
            resume_unwind(Box::new(format!("rank {rank}: {text}")));
        }
        match (failure, verdicts.swap_remove(0)) {
            (Some(e), _) => Err(Error::new(ErrorKind::Device, format!("a rank failed: {e}"))),
            (None, Ok(first)) => {
                self.done.push_back(first?);
                Ok(())
            }
            (None, Err(text)) => Err(Error::internal(text)),
        }
    }

    fn finish(&mut self) -> Result<StepOutput> {
        self.done.pop_front().ok_or_else(|| Error::internal("no step was launched"))
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
    use crate::base::{DType, StepId};
    use crate::exec::Executor;
    use crate::exec::worker::WorkerExecutor;
    use crate::hal::comm::Communicator;
    use crate::hal::registry::{DeviceOptions, open};
    use crate::hal::{Stream, Tensor};
    use crate::plan::StepResults;

    /// Meets the other ranks in every step, unless told otherwise.
    #[derive(Debug)]
    struct Meets {
        stream: Box<dyn Stream>,
        x: Tensor,
        place: Box<dyn Communicator>,
        fails: Option<u64>,
        panics: Option<u64>,
        last: StepId,
    }

    impl StepRunner for Meets {
        fn launch(&mut self, plan: &StepPlan) -> Result<()> {
            self.last = plan.id;
            assert!(self.panics != Some(plan.id.0), "told to panic");
            if self.fails == Some(plan.id.0) {
                return Err(Error::new(ErrorKind::Device, "told to fail"));
            }
            self.place.all_reduce(self.stream.as_ref(), &self.x)
        }
        fn finish(&mut self) -> Result<StepOutput> {
            Ok(StepOutput { id: self.last, outcome: StepOutcome::Done(StepResults::default()) })
        }
    }

    /// Three ranks, of which `odd` fails or panics at a step.
    fn worker(odd: usize, (fails, panics): (Option<u64>, Option<u64>)) -> (WorkerExecutor, Arc<Signal>) {
        let group = LocalGroup::new(3, 4);
        let rank = |rank: usize| -> Box<dyn StepRunner> {
            let device = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
            let only = |step: Option<u64>| step.filter(|_| rank == odd);
            Box::new(Meets {
                stream: device.stream().unwrap(),
                x: Tensor::new(device.alloc(16).unwrap(), 0, 1, 4, DType::F32),
                place: group.join(rank, device.as_ref()).unwrap(),
                fails: only(fails),
                panics: only(panics),
                last: StepId(0),
            })
        };
        let ranks = RankRunner::spawn(rank(0), vec![rank(1), rank(2)], group.clone()).unwrap();
        let signal = Arc::new(Signal::default());
        (WorkerExecutor::spawn(Box::new(ranks), 2, Arc::clone(&signal)).unwrap(), signal)
    }

    fn run(worker: &mut WorkerExecutor, signal: &Signal, id: u64) -> Result<StepOutcome> {
        let (entries, row_inits) = (vec![], vec![]);
        worker.submit(StepPlan {
            id: StepId(id),
            entries,
            tokens: vec![],
            blocks: vec![],
            targets: vec![],
            row_inits,
        })?;
        loop {
            if let Some(output) = worker.poll()? {
                return Ok(output.outcome);
            }
            signal.wait(None);
        }
    }

    #[test]
    fn a_failing_rank_fails_the_step_and_the_next_one_runs() {
        for odd in 0..3 {
            let (mut w, signal) = worker(odd, (Some(1), None));
            assert_eq!(run(&mut w, &signal, 0).unwrap(), StepOutcome::Done(StepResults::default()));
            let StepOutcome::Failed(e) = run(&mut w, &signal, 1).unwrap() else { panic!("rank {odd} did not fail") };
            assert!(e.message.contains("told to fail"), "{e}");
            assert_eq!(run(&mut w, &signal, 2).unwrap(), StepOutcome::Done(StepResults::default()));
        }
    }

    #[test]
    fn a_panicking_rank_ends_the_executor() {
        for odd in 0..3 {
            let (mut w, signal) = worker(odd, (None, Some(1)));
            run(&mut w, &signal, 0).unwrap();
            let e = run(&mut w, &signal, 1).unwrap_err();
            assert!(e.message.contains(&format!("rank {odd}")) && e.message.contains("told to panic"), "{e}");
        }
    }
}
