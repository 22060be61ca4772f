//! Host work of a step at 256 sequences, two steps in flight: `schedule` alone, and schedule, update and events together. The
//! budget is 20 us and 50 us. `cold`: with nothing of it left in the processor's caches, as when a device has run a step meanwhile.

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::{Duration, Instant};
use yinian::base::SeqId;
use yinian::plan::{Request, Sampled, SamplingParams, StepOutcome, StepOutput, StepPlan, StopCriteria};
use yinian::sched::{Event, SchedConfig, Scheduler, policy};

const SEQS: u64 = 256;
const BLOCK_SIZE: u32 = 16;
/// Blocks per sequence when measuring begins and when the sequences are replaced.
const BLOCKS: std::ops::Range<u32> = 32..64;

/// More than the caches hold.
const OTHER_BYTES: usize = 96 << 20;

struct Host {
    sched: Scheduler,
    events: Vec<Event>,
    next_seq: u64,
    /// What the step in flight will come to.
    flying: Option<StepOutput>,
}

impl Host {
    fn new(seqs: u64, num_blocks: u32) -> Self {
        let cfg = SchedConfig {
            max_seqs: seqs as usize,
            max_tokens: 2048,
            bound: None,
            max_model_len: 1 << 20,
            num_blocks,
            block_size: BLOCK_SIZE,
            prefix_cache: true,
            hash_bits: 64,
        };
        let policy = policy::by_name("fcfs").expect("fcfs is registered");
        Self { sched: Scheduler::new(cfg, policy), events: Vec::new(), next_seq: 1, flying: None }
    }

    /// Runs prompts of different content until all sequences decode.
    fn fill(&mut self) {
        while let Some(plan) = self.sched.schedule(&mut self.events) {
            self.sched.update(&answer(&plan), &mut self.events);
            if plan.entries.len() as u64 == SEQS && plan.num_tokens() as u64 == SEQS {
                return;
            }
            self.events.clear();
        }
        assert!(self.sched.is_idle());
        for _ in 0..SEQS {
            let id = self.next_seq;
            self.next_seq += 1;
            let prompt = (0..BLOCKS.start * BLOCK_SIZE).map(|i| (id as u32).wrapping_mul(7919) + i).collect();
            let stop = StopCriteria::new((BLOCKS.end - BLOCKS.start) * BLOCK_SIZE, 0, vec![1, 2], vec![]);
            let request = Request::new(SeqId(id), prompt, SamplingParams::greedy(), stop.expect("a criterion"));
            self.sched.add(request.expect("a request"));
        }
        self.fill();
    }

    /// Times one decode step of all sequences: `schedule`, and everything the host does. `between` runs before each.
    fn step(&mut self, between: &mut dyn FnMut()) -> (Duration, Duration) {
        between();
        let start = Instant::now();
        let plan = self.sched.schedule(&mut self.events);
        let planned = start.elapsed();
        let Some(plan) = plan else {
            // The last tokens are in flight.
            let last = self.flying.take().expect("a step in flight");
            self.sched.update(&last, &mut self.events);
            self.events.clear();
            self.fill();
            return self.step(between);
        };
        let Some(landed) = self.flying.replace(answer(&plan)) else { return self.step(between) };
        between();
        let start = Instant::now();
        self.sched.update(&landed, &mut self.events);
        std::hint::black_box(&self.events);
        self.events.clear();
        (planned, planned + start.elapsed())
    }
}

fn answer(plan: &StepPlan) -> StepOutput {
    let token = |e: &yinian::plan::StepEntry| 1000 + (e.seq.0 as u32 * 31 + e.start) % 30_000;
    let sampled = plan.entries.iter().filter(|e| e.samples).map(|e| Sampled::new(e.seq, token(e)));
    StepOutput::first(plan.id, StepOutcome::Done(sampled.collect::<Vec<_>>().into()))
}

/// Requests without end on a quarter of the blocks they would like: admission, preemption and eviction at every step.
struct Crowd {
    host: Host,
}

impl Crowd {
    fn new(seqs: u64) -> Self {
        Self { host: Host::new(seqs, seqs as u32 * BLOCKS.end / 4) }
    }

    fn step(&mut self) -> Duration {
        let Host { sched, events, next_seq, .. } = &mut self.host;
        while sched.stats().waiting < 1000 {
            let id = *next_seq;
            *next_seq += 1;
            // Sixteen stems of half a prompt, then content of its own.
            let half = BLOCKS.start * BLOCK_SIZE / 2;
            let stem = (0..half).map(|i| (id as u32 % 16) * 100_000 + i);
            let prompt = stem.chain((0..half).map(|i| (id as u32).wrapping_mul(7919) + i)).collect();
            let stop = StopCriteria::new(64 + (id as u32 * 37) % 448, 0, vec![], vec![]).expect("a criterion");
            sched.add(Request::new(SeqId(id), prompt, SamplingParams::greedy(), stop).expect("a request"));
        }
        let start = Instant::now();
        let plan = sched.schedule(events).expect("there is always work");
        let planned = start.elapsed();
        let output = answer(&plan);
        let start = Instant::now();
        sched.update(&output, events);
        events.clear();
        planned + start.elapsed()
    }
}

fn bench(c: &mut Criterion) {
    let mut host = Host::new(SEQS, SEQS as u32 * (BLOCKS.end + 2));
    host.fill();
    c.bench_function("schedule_256_decodes", |b| {
        b.iter_custom(|n| (0..n).map(|_| host.step(&mut || {}).0).sum());
    });
    c.bench_function("schedule_update_events_256_decodes", |b| {
        b.iter_custom(|n| (0..n).map(|_| host.step(&mut || {}).1).sum());
    });
    let mut other = vec![0u8; OTHER_BYTES];
    let mut spoil = || other.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
    c.bench_function("schedule_256_decodes_cold", |b| {
        b.iter_custom(|n| (0..n).map(|_| host.step(&mut spoil).0).sum());
    });
    c.bench_function("schedule_update_events_256_decodes_cold", |b| {
        b.iter_custom(|n| (0..n).map(|_| host.step(&mut spoil).1).sum());
    });
    for (seqs, name) in
        [(SEQS, "schedule_update_events_under_pressure"), (1024, "schedule_update_events_under_pressure_1024")]
    {
        let mut crowd = Crowd::new(seqs);
        c.bench_function(name, |b| b.iter_custom(|n| (0..n).map(|_| crowd.step()).sum()));
        let s = crowd.host.sched.stats();
        println!(
            "under pressure: {} steps, {:.0} tokens a step, {} running, {} preempted, {:.1} % of tokens computed again, {:.1} % hit",
            s.steps,
            s.planned_tokens as f64 / s.steps as f64,
            s.running,
            s.preempted,
            100.0 * s.lost_tokens as f64 / s.planned_tokens as f64,
            100.0 * s.hit_tokens as f64 / s.lookup_tokens as f64,
        );
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
