//! Host work of a step at 256 sequences: `schedule` alone, and schedule, update and events together. The budget is
//! 20 us and 50 us.

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::{Duration, Instant};
use yinian::base::SeqId;
use yinian::plan::{Request, Sampled, SamplingParams, StepOutcome, StepOutput, StepPlan, StopCriteria};
use yinian::sched::{Event, SchedConfig, Scheduler, policy};

const SEQS: u64 = 256;
const BLOCK_SIZE: u32 = 16;
/// Blocks per sequence when measuring begins and when the sequences are replaced.
const BLOCKS: std::ops::Range<u32> = 32..64;

struct Host {
    sched: Scheduler,
    events: Vec<Event>,
    next_seq: u64,
}

impl Host {
    fn new() -> Self {
        let cfg = SchedConfig {
            max_seqs: SEQS as usize,
            max_tokens: 8192,
            max_model_len: 1 << 20,
            num_blocks: SEQS as u32 * (BLOCKS.end + 2),
            block_size: BLOCK_SIZE,
            prefix_cache: true,
            hash_bits: 64,
        };
        let policy = policy::by_name("fcfs").expect("fcfs is registered");
        let mut host = Self { sched: Scheduler::new(cfg, policy), events: Vec::new(), next_seq: 1 };
        host.fill();
        host
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

    /// Times one decode step of all sequences: `schedule`, and everything the host does.
    fn step(&mut self) -> (Duration, Duration) {
        let start = Instant::now();
        let plan = self.sched.schedule(&mut self.events);
        let planned = start.elapsed();
        let Some(plan) = plan else {
            self.fill();
            return self.step();
        };
        let output = answer(&plan);
        let start = Instant::now();
        self.sched.update(&output, &mut self.events);
        std::hint::black_box(&self.events);
        self.events.clear();
        (planned, planned + start.elapsed())
    }
}

fn answer(plan: &StepPlan) -> StepOutput {
    let token = |e: &yinian::plan::StepEntry| 1000 + (e.seq.0 as u32 * 31 + e.start) % 30_000;
    let sampled = plan.entries.iter().filter(|e| e.samples).map(|e| Sampled { seq: e.seq, token: token(e) });
    StepOutput { id: plan.id, outcome: StepOutcome::Done(sampled.collect()) }
}

fn bench(c: &mut Criterion) {
    let mut host = Host::new();
    c.bench_function("schedule_256_decodes", |b| {
        b.iter_custom(|n| (0..n).map(|_| host.step().0).sum());
    });
    c.bench_function("schedule_update_events_256_decodes", |b| {
        b.iter_custom(|n| (0..n).map(|_| host.step().1).sum());
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
