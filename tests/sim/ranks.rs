//! Simulated ranks behind the fan-out and the worker of a real device, with faults of single ranks. When steps run is real
//! time; when they are seen to land is not, so a seed repeats.

use crate::case::{Case, one_in};
use crate::world::{Watched, device};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use yinian::base::rng::{SplitMix64, mix};
use yinian::base::signal::Signal;
use yinian::base::{DType, Error, ErrorKind, Result as Outcome, StepId};
use yinian::exec::Executor;
use yinian::exec::ranks::{Planted, RankRunner, StartRank};
use yinian::exec::sim::{SimConfig, SimDevice};
use yinian::exec::worker::{Flight, Landed, StepRunner, WorkerExecutor};
use yinian::hal::comm::{Communicator, LocalGroup};
use yinian::hal::registry::{DeviceOptions, open_host};
use yinian::hal::{Device, HostBuffer, Stream, Tensor};
use yinian::plan::{StepOutcome, StepOutput, StepPlan};

pub(crate) const MOST_RANKS: usize = 4;
/// Longest that a thread may take for what takes microseconds.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Before the ranks meet.
    FailsEarly,
    /// After they have met: the others end the step.
    FailsLate,
    /// When the step lands: what is behind it may have been launched.
    FailsLanding,
    Panics,
    /// Never comes to the meeting.
    Hangs,
    Slow,
}

/// A fault, its step and its rank. At most one of a step.
pub(crate) type Faults = HashMap<u64, (usize, Fault)>;

/// Random faults of a case; the last of them may end the device.
pub(crate) fn faults(r: &mut SplitMix64, ranks: usize) -> Faults {
    let mut faults = Faults::new();
    for _ in 0..r.below(5) {
        let kind = [Fault::FailsEarly, Fault::FailsLate, Fault::FailsLanding, Fault::Slow][r.below(4) as usize];
        faults.insert(r.below(40), (r.below(ranks as u64) as usize, kind));
    }
    if one_in(r, 3) {
        let (at, kind) = (4 + r.below(30), if one_in(r, 2) { Fault::Panics } else { Fault::Hangs });
        // What is in flight behind a failure is never run, and this one must be.
        faults.retain(|step, _| *step + 4 < at);
        faults.insert(at, (r.below(ranks as u64) as usize, kind));
    }
    faults
}

/// What a rank did with a plan: its number, the plan, and a digest of the memory behind it if it got to the end.
type Ran = (StepId, u64, Option<u64>);

/// What ranks tell the test.
#[derive(Debug, Default)]
struct Notes {
    ran: Vec<Vec<Ran>>,
    complaint: Option<String>,
    hangs: Option<usize>,
    released: bool,
}

#[derive(Debug, Default)]
struct Board {
    notes: Mutex<Notes>,
    changed: Condvar,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().expect("nobody panics while he holds it")
    }

    /// Hangs until the test is over.
    fn hang(&self, rank: usize) {
        let mut notes = self.lock();
        notes.hangs = Some(rank);
        self.changed.notify_all();
        drop(self.changed.wait_while(notes, |n| !n.released));
    }

    fn release(&self) {
        self.lock().released = true;
        self.changed.notify_all();
    }
}

/// One rank: its own rows and blocks, and the meeting in which the ranks add up what they read.
#[derive(Debug)]
struct SimRank {
    rank: usize,
    device: SimDevice,
    faults: Arc<Faults>,
    board: Arc<Board>,
    /// This rank does something else than every plan says.
    mutate: Option<fn(&mut StepPlan)>,
    stream: Box<dyn Stream>,
    place: Box<dyn Communicator>,
    x: Tensor,
    host: Box<dyn HostBuffer>,
}

/// Words of a number on its way through F32, so small that sums of ranks are exact.
const WORDS: usize = 4;

impl SimRank {
    /// The sum of all ranks' reads. They meet when there are none, too.
    fn add_up(&mut self, reads: &[u64]) -> Outcome<Vec<u64>> {
        let n = (WORDS * reads.len()).max(1);
        let words = reads.iter().flat_map(|read| (0..WORDS).map(move |w| (read >> (16 * w)) as u16 as f32));
        let places = self.host.bytes_mut().chunks_exact_mut(4);
        places.zip(words).for_each(|(place, word)| place.copy_from_slice(&word.to_ne_bytes()));
        let x = self.x.reshape(1, n);
        self.stream.upload(&x, self.host.as_ref())?;
        self.place.all_reduce(self.stream.as_ref(), &x)?;
        self.stream.download(self.host.as_mut(), &x)?;
        let sums = self.host.bytes().chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as u64);
        let sums: Vec<u64> = sums.take(WORDS * reads.len()).collect();
        let whole = |s: &[u64]| s.iter().enumerate().fold(0, |sum: u64, (w, s)| sum.wrapping_add(s << (16 * w)));
        Ok(sums.chunks_exact(WORDS).map(whole).collect())
    }

    fn run(&mut self, plan: &StepPlan, fault: Option<Fault>) -> Outcome<StepOutput> {
        let told = || Err(Error::new(ErrorKind::Device, "told to fail"));
        match fault {
            Some(Fault::Panics) => panic!("told to panic"),
            Some(Fault::Hangs) => {
                self.board.hang(self.rank);
                return told();
            }
            Some(Fault::Slow) => std::thread::sleep(Duration::from_micros(200)),
            Some(Fault::FailsEarly) => return told(),
            Some(Fault::FailsLate | Fault::FailsLanding) | None => {}
        }
        self.device.write_all(plan);
        let reads = self.device.reads(plan);
        let sums = self.add_up(&reads)?;
        if fault == Some(Fault::FailsLate) {
            return told();
        }
        let results = self.device.draw(plan, &sums);
        let outcome = match fault {
            Some(Fault::FailsLanding) => StepOutcome::Failed(Error::new(ErrorKind::Device, "told to fail")),
            _ => StepOutcome::Done(results),
        };
        Ok(StepOutput::first(plan.id, outcome))
    }
}

impl StepRunner for SimRank {
    fn launch(&mut self, plan: &StepPlan) -> Outcome<Box<dyn Flight>> {
        let hash = format!("{plan:?}").bytes().fold(0, |sum, b| mix(sum, u64::from(b)));
        self.board.lock().ran[self.rank].push((plan.id, hash, None));
        let fault = self.faults.get(&plan.id.0).filter(|f| f.0 == self.rank).map(|f| f.1);
        let mut does = plan.clone();
        if let Some(mutate) = self.mutate {
            mutate(&mut does);
        }
        let output = self.run(&does, fault).inspect_err(|_| self.device.ruin(plan))?;
        let mut notes = self.board.lock();
        if let Some(last) = notes.ran[self.rank].last_mut() {
            last.2 = Some(self.device.digest(plan));
        }
        let complaint = self.device.complaint().map(|c| format!("rank {}: {c}", self.rank));
        notes.complaint = notes.complaint.take().or(complaint);
        Ok(Box::new(Landed(output)))
    }
}

/// What is planted in a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wrong {
    pub fan_out: Option<Planted>,
    /// Of the last rank.
    pub rank: Option<fn(&mut StepPlan)>,
}

/// Ranks as an [`Executor`] whose steps are seen to land at simulated times.
#[derive(Debug)]
pub(crate) struct SimRanks {
    inner: Option<WorkerExecutor>,
    signal: Arc<Signal>,
    board: Arc<Board>,
    faults: Arc<Faults>,
    depth: usize,
    slowest: u64,
    /// Steps in flight and when they are seen.
    queue: VecDeque<(u64, StepId)>,
    /// Steps behind a failure.
    doomed: HashSet<StepId>,
    /// What every rank ran of steps that have landed.
    landed: usize,
    now: u64,
    rng: SplitMix64,
    /// What was seen that must not be.
    wrong: Option<String>,
    patience: Duration,
}

/// The host as the device of all simulated ranks: it holds nothing but what they meet with.
fn host() -> Arc<dyn Device> {
    static HOST: OnceLock<Arc<dyn Device>> = OnceLock::new();
    let one = DeviceOptions { threads: Some(1), ..DeviceOptions::default() };
    Arc::clone(HOST.get_or_init(|| open_host(&one).expect("the host")))
}

fn rank_runner(case: &Case, cfg: &SimConfig, parts: (&Arc<Faults>, &Arc<Board>, Wrong)) -> RankRunner {
    let (faults, board, wrong) = parts;
    let reads = case.cfg.max_seqs + case.cfg.max_tokens + 1;
    let group = LocalGroup::new(case.ranks, WORDS * reads);
    let start = |rank: usize| -> StartRank<'_> {
        let group = &group;
        Box::new(move || {
            let (host, bytes) = (host(), WORDS * reads * DType::F32.size());
            Ok(Box::new(SimRank {
                rank,
                device: SimDevice::new(cfg, rank, case.ranks),
                faults: Arc::clone(faults),
                board: Arc::clone(board),
                mutate: wrong.rank.filter(|_| rank + 1 == case.ranks),
                stream: host.stream()?,
                place: group.join(rank, host.as_ref())?,
                x: Tensor::new(host.alloc(bytes)?, 0, 1, WORDS * reads, DType::F32),
                host: host.host_buffer(bytes)?,
            }))
        })
    };
    let ranks = (0..case.ranks).map(start).collect();
    RankRunner::start(ranks, group.clone()).expect("ranks start").with_planted(wrong.fan_out)
}

impl SimRanks {
    pub(crate) fn new(seed: u64, case: &Case, (depth, faults, wrong): (usize, Faults, Wrong)) -> Self {
        let (cfg, faults) = (device(seed, case, depth), Arc::new(faults));
        let board = Arc::new(Board::default());
        board.lock().ran = vec![Vec::new(); case.ranks];
        let runner = rank_runner(case, &cfg, (&faults, &board, wrong));
        let signal = Arc::new(Signal::default());
        let inner = WorkerExecutor::spawn(Box::new(runner), depth, Arc::clone(&signal)).expect("a worker");
        let planted = wrong.fan_out.is_some();
        Self {
            inner: Some(inner),
            signal,
            board,
            faults,
            depth,
            slowest: case.slowest,
            queue: VecDeque::new(),
            doomed: HashSet::new(),
            landed: 0,
            now: 0,
            rng: SplitMix64(mix(seed, 3)),
            wrong: None,
            patience: if planted { Duration::from_millis(300) } else { DEADLINE },
        }
    }

    /// The fault of a step that is run.
    fn fault(&self, step: StepId) -> Option<(usize, Fault)> {
        self.faults.get(&step.0).copied().filter(|_| !self.doomed.contains(&step))
    }

    /// Waits for the oldest step, as an engine waits that has nothing else to do.
    fn wait(&mut self, step: StepId) -> Outcome<StepOutput> {
        let since = Instant::now();
        let hangs = self.fault(step).is_some_and(|f| f.1 == Fault::Hangs);
        loop {
            let Some(inner) = &mut self.inner else { return Err(Error::internal("the device is gone")) };
            if let Some(output) = inner.poll()? {
                return Ok(output);
            }
            let late = inner.late();
            let all_wait = hangs && self.board.lock().hangs.is_some_and(|rank| late == [rank]);
            if all_wait || since.elapsed() > self.patience {
                inner.abandon();
                let text = format!("step {} does not end: the others wait for ranks {late:?}", step.0);
                return Err(Error::new(ErrorKind::Device, text));
            }
            self.signal.wait(Some(if hangs { Duration::from_micros(50) } else { Duration::from_millis(20) }));
        }
    }

    /// Whether the step may land like this.
    fn check(&self, output: &StepOutput) -> Result<(), String> {
        let step = output.id.0;
        let doomed = self.doomed.contains(&output.id);
        match (&output.outcome, self.fault(output.id)) {
            (StepOutcome::Done(_), None | Some((_, Fault::Slow))) if !doomed => Ok(()),
            (StepOutcome::Done(_), _) => Err(format!("step {step} counts although a rank failed")),
            (StepOutcome::Failed(_), _) if doomed => Ok(()),
            (StepOutcome::Failed(e), Some((rank, Fault::FailsEarly | Fault::FailsLate | Fault::FailsLanding))) => {
                let named = e.message.starts_with(&format!("rank {rank}: told to fail"));
                if named { Ok(()) } else { Err(format!("the failure of rank {rank} is told as {e}")) }
            }
            (StepOutcome::Failed(_), Some((rank, fault))) => {
                Err(format!("step {step}: rank {rank} {fault:?} and the device goes on"))
            }
            (StepOutcome::Failed(e), None) => Err(format!("step {step} failed without a fault: {e}")),
        }
    }

    /// Whether all ranks ran this step next, from the same plan, and were left in the same state if they ended it.
    fn compare(&mut self, step: StepId) -> Result<(), String> {
        let (notes, i) = (self.board.lock(), self.landed);
        // Behind a failure it may have been launched or not, but on all ranks.
        if self.doomed.contains(&step) && notes.ran.iter().all(|ran| ran.get(i).is_none_or(|r| r.0 != step)) {
            return Ok(());
        }
        self.landed += 1;
        let of = |ran: &Vec<Ran>| ran.get(i).copied().ok_or(format!("a rank has not run step {}", step.0));
        let first = of(&notes.ran[0])?;
        for (rank, ran) in notes.ran.iter().enumerate() {
            let (id, plan, state) = of(ran)?;
            if (id, plan) != (step, first.1) {
                return Err(format!("ranks ran different plans: {rank} ran step {} where {} was due", id.0, step.0));
            }
            if state.is_some() && first.2.is_some() && state != first.2 {
                return Err(format!("ranks hold different rows or blocks: 0 and {rank} after step {}", step.0));
            }
        }
        Ok(())
    }
}

impl Executor for SimRanks {
    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, plan: StepPlan) -> Outcome<()> {
        let start = self.queue.back().map_or(self.now, |(end, _)| *end);
        // Behind a step that panics the worker may or may not be gone already.
        let withheld = self.queue.iter().any(|(_, id)| self.fault(*id).is_some_and(|f| f.1 == Fault::Panics));
        self.queue.push_back((start + 1 + self.rng.below(self.slowest), plan.id));
        match &mut self.inner {
            Some(inner) if !withheld => inner.submit(plan),
            _ => Ok(()),
        }
    }

    fn poll(&mut self) -> Outcome<Option<StepOutput>> {
        self.now += 1;
        let Some(&(end, step)) = self.queue.front() else { return Ok(None) };
        if end > self.now {
            return Ok(None);
        }
        let output = self.wait(step)?;
        self.queue.pop_front();
        // Both, as a bug may be the business of both.
        let found: Vec<String> =
            [self.compare(step), self.check(&output)].into_iter().filter_map(Result::err).collect();
        if !found.is_empty() {
            self.wrong.get_or_insert(found.join("; "));
        }
        if matches!(output.outcome, StepOutcome::Failed(_)) {
            self.doomed.extend(self.queue.iter().map(|(_, id)| *id));
        }
        Ok(Some(output))
    }
}

impl Watched for SimRanks {
    fn complaint(&self) -> Option<String> {
        self.wrong.clone().or_else(|| self.board.lock().complaint.clone())
    }

    fn may_be_lost(&self, error: &Error) -> Result<(), String> {
        let step = self.queue.front().map_or(StepId(0), |(_, id)| *id);
        let says = match self.fault(step) {
            Some((rank, Fault::Panics)) => format!("rank {rank}: told to panic"),
            Some((rank, Fault::Hangs)) => format!("the others wait for ranks [{rank}]"),
            _ => return Err(format!("the device is lost without a fault: {error}")),
        };
        if error.message.contains(&says) { Ok(()) } else { Err(format!("{error}, where due was: {says}")) }
    }

    fn end(&mut self) -> Result<(), String> {
        self.board.release();
        self.inner = None;
        // Joined, or on their own way out when they were given up.
        let since = Instant::now();
        while Arc::strong_count(&self.board) > 1 {
            if since.elapsed() > DEADLINE {
                return Err("a rank's thread does not end".into());
            }
            std::thread::yield_now();
        }
        let notes = self.board.lock();
        let counts: Vec<_> = notes.ran.iter().map(Vec::len).collect();
        let same = counts.iter().all(|n| *n == counts[0]);
        if same { Ok(()) } else { Err(format!("ranks ran different numbers of steps: {counts:?}")) }
    }
}

impl Drop for SimRanks {
    /// A run that went wrong must not leave threads waiting.
    fn drop(&mut self) {
        self.board.release();
        if let Some(inner) = &mut self.inner {
            inner.abandon();
        }
    }
}
