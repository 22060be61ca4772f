//! What bounding steps by their cost does to whole workloads: the scheduler against a clock that adds up each step's time as
//! measured on one H200 (products by rows, rates of memory and attention), with every bound that is asked for.
//!
//! `cargo bench --bench chunks -- [--tokens 1024] [WORKLOAD ...]`; needs no device. Read it for differences between bounds: it
//! knows nothing of what kernels really reach.

#[expect(dead_code, reason = "the engine itself is not run here")]
mod host;
mod shapes;

use host::Arguments;
use shapes::{WORKLOADS, Workload};
use yinian::base::SeqId;
use yinian::hal::Rates;
use yinian::model::{ModelInfo, inspect};
use yinian::plan::{
    Request, Sampled, SamplingParams, StepCost, StepEntry, StepOutcome, StepOutput, StepPart, StepPlan, StopCriteria,
};
use yinian::runner::{kv_spec, step_cost};
use yinian::sched::{Event, SchedConfig, Scheduler, StepBound, policy};

/// What `hal/cuda` finds for an H200.
const RATES: Rates =
    Rates { products_per_us: 738_000_000, attention_per_us: 396_000_000, bytes_per_us: 4_229_000, layer_ns: 25_000 };
/// Bytes for weights and KV.
const MEMORY: f64 = 0.9 * 150e9 - 3e9;
/// Rows, and milliseconds of all products of a step of so many without the head's, and the head's.
const ROWS: [f64; 7] = [1.0, 32.0, 128.0, 256.0, 512.0, 1024.0, 8192.0];
const PRODUCTS: [(&str, [f64; 7]); 4] = [
    ("s8", [3.87, 3.96, 4.37, 5.69, 9.72, 20.9, 172.0]),
    ("s7", [3.66, 3.68, 4.01, 5.10, 8.91, 19.4, 154.0]),
    ("s13", [7.21, 6.91, 7.63, 9.95, 17.8, 37.5, 306.0]),
    ("s05", [0.66, 0.69, 0.76, 0.77, 0.98, 1.46, 8.4]),
];
const HEADS: [(&str, [f64; 5]); 4] = [
    ("s8", [0.27, 0.28, 0.30, 0.40, 0.85]),
    ("s7", [0.08, 0.08, 0.09, 0.11, 0.20]),
    ("s13", [0.11, 0.11, 0.12, 0.15, 0.27]),
    ("s05", [0.08, 0.09, 0.10, 0.12, 0.23]),
];
/// Percent; 0 is no bound.
const BOUNDS: [u32; 4] = [0, 200, 170, 140];

/// A shape and how long its steps take.
struct Clock {
    products: [f64; 7],
    head: [f64; 5],
    cost: StepCost,
}

impl Clock {
    fn of(shape: &str, info: &ModelInfo) -> Self {
        let products = PRODUCTS.iter().find(|p| p.0 == shape).expect("a shape").1;
        let head = HEADS.iter().find(|h| h.0 == shape).expect("a shape").1;
        Self { products, head, cost: step_cost(info, &RATES) }
    }

    /// Milliseconds.
    fn of_step(&self, plan: &StepPlan) -> f64 {
        let samples = plan.entries.iter().filter(|e| e.samples).count() as f64;
        let attention = |e: &StepEntry| {
            let (start, len) = (f64::from(e.start), f64::from(e.len));
            let arithmetic = self.cost.row_context as f64 * len * (start + len / 2.0);
            arithmetic.max(self.cost.context as f64 * (start + len)) / 1024.0
        };
        let attention: f64 = plan.entries.iter().map(attention).sum();
        let head = if samples > 0.0 { at(&self.head, samples) } else { 0.0 };
        at(&self.products, plan.num_tokens() as f64) + head + (attention + self.cost.step as f64) / 1e9
    }
}

/// Between measured points on a line, behind them in proportion.
fn at(values: &[f64], rows: f64) -> f64 {
    let last = values.len() - 1;
    if rows >= ROWS[last] {
        return values[last] * rows / ROWS[last];
    }
    let i = (1..last).find(|&i| rows < ROWS[i]).unwrap_or(last);
    values[i - 1] + (values[i] - values[i - 1]) * (rows - ROWS[i - 1]) / (ROWS[i] - ROWS[i - 1])
}

struct Run {
    sched: Scheduler,
    clock: Clock,
    ms: f64,
    events: Vec<Event>,
}

impl Run {
    fn new(shape: &str, (info, clock): (&ModelInfo, Clock), (tokens, percent): (usize, u32)) -> Self {
        let block_bytes = kv_spec(info, 16).block_bytes(0) as f64;
        let num_blocks = ((MEMORY - info.weight_bytes as f64) / block_bytes) as u32;
        let cost = clock.cost;
        let cfg = SchedConfig {
            max_seqs: 512,
            max_tokens: tokens,
            bound: (percent > 0).then_some(StepBound { cost, percent, min_chunk: 16 }),
            max_model_len: 1 << 17,
            num_blocks,
            block_size: 16,
            prefix_cache: true,
            hash_bits: 64,
        };
        assert!(num_blocks > 1000, "{shape} does not fit");
        let sched = Scheduler::new(cfg, policy::by_name("fcfs").expect("fcfs is registered"));
        Self { sched, clock, ms: 0.0, events: vec![] }
    }

    fn add(&mut self, id: u64, prompt: Vec<u32>, output: u32) {
        let stop = StopCriteria::new(output, 0, vec![], vec![]).expect("a criterion");
        self.sched.add(Request::new(SeqId(id), prompt, SamplingParams::greedy(), stop).expect("a request"));
    }

    /// The next step and its milliseconds; `None` when all is done.
    fn step(&mut self) -> Option<(StepPlan, f64)> {
        self.events.clear();
        let plan = self.sched.schedule(&mut self.events)?;
        let ms = self.clock.of_step(&plan);
        self.ms += ms;
        let sampled = plan.entries.iter().filter(|e| e.samples).map(|e| Sampled::new(e.seq, 7 + e.start % 5));
        let outcome = StepOutcome::Done(sampled.collect::<Vec<_>>().into());
        self.sched.update(&StepOutput { id: plan.id, part: StepPart::First, outcome }, &mut self.events);
        Some((plan, ms))
    }
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn info(shape: &str) -> ModelInfo {
    let dir = tempfile::tempdir().expect("a temporary directory");
    host::write_model(dir.path(), &host::model(shape, 131_072));
    inspect(dir.path()).expect("a model")
}

/// Tokens per second, and the 99th percentile of the steps in which somebody decodes.
fn workload(w: &Workload, tokens: usize) {
    let info = info(w.shape);
    print!("{:<11} {:>7.0} {:>7.0}", w.name, w.limit, w.vllm);
    let mut unbound = 0.0;
    for percent in BOUNDS {
        let mut run = Run::new(w.shape, (&info, Clock::of(w.shape, &info)), (tokens, percent));
        let prompts = w.prompts(2, info.vocab_size as u64);
        let counted: usize = prompts.iter().map(|(p, n)| if w.counts_prompts() { p.len() } else { *n as usize }).sum();
        for (i, (prompt, output)) in prompts.into_iter().enumerate() {
            run.add(i as u64 + 1, prompt, output);
        }
        let mut steps = vec![];
        while let Some((plan, ms)) = run.step() {
            if plan.entries[0].len == 1 {
                steps.push(ms);
            }
        }
        let rate = 1e3 * counted as f64 / run.ms;
        unbound = if percent == 0 { rate } else { unbound };
        let preempted = run.sched.stats().preempted;
        print!(" | {rate:>7.0} {:>5.1}% {:>6.1} {preempted:>5}", 100.0 * rate / unbound, percentile(&mut steps, 99));
    }
    println!();
}

/// A prompt of 32 768 tokens among 64 decoding sequences.
fn stall(tokens: usize) {
    let info = info("s8");
    println!(
        "32768 tokens among 64 decoding: bound, p50 before, p99 and max during, over p50, time to first token (ms)"
    );
    for percent in BOUNDS {
        let mut run = Run::new("s8", (&info, Clock::of("s8", &info)), (tokens, percent));
        (1..=64).for_each(|i| run.add(i, host::tokens(&mut yinian::base::rng::SplitMix64(i), 256, 100_000), 20_000));
        let mut before = vec![];
        for _ in 0..400 {
            before.extend(run.step().map(|s| s.1));
        }
        let median = percentile(&mut before, 50);
        let from = run.ms;
        run.add(100, host::tokens(&mut yinian::base::rng::SplitMix64(100), 32_768, 100_000), 1);
        let mut during = vec![];
        while let Some((plan, ms)) = run.step() {
            during.push(ms);
            if plan.entries.iter().any(|e| e.seq == SeqId(100) && e.samples) {
                break;
            }
        }
        let (p99, max) = (percentile(&mut during, 99), percentile(&mut during, 100));
        println!("{percent:>4} {median:>7.2} {p99:>7.2} {max:>7.2} {:>6.2} {:>8.0}", p99 / median, run.ms - from);
    }
}

fn main() {
    let arguments = Arguments::read();
    let tokens = arguments.number("tokens", 1024);
    println!(
        "{:<11} {:>7} {:>7}{}",
        "workload",
        "limit",
        "vllm",
        BOUNDS.map(|b| format!(" | {b:>3} tok/s, share, p99, cut")).concat()
    );
    // Those that the table of a device has.
    for w in WORKLOADS.iter().filter(|w| PRODUCTS.iter().any(|p| p.0 == w.shape) && w.is_one_of(&arguments.names)) {
        workload(w, tokens);
    }
    stall(tokens);
}
