//! Steps launched while others run: through the worker at depth 2, with a trace of what was launched and landed when, and of
//! the calls that could have made the host wait.

use super::gpu::gpu;
use super::prompt;
use super::world::{Alone, CHUNK_MOST, cpu, generate, runner_on, step};
use serde_json::json;
use std::sync::{Arc, Mutex};
use yinian::base::config::LoadFormat;
use yinian::base::signal::Signal;
use yinian::base::{Result, StepId, Token};
use yinian::exec::Executor;
use yinian::exec::worker::{Flight, StepRunner, WorkerExecutor};
use yinian::hal::{Device, DriverCalls};
use yinian::plan::{StepEntry, StepOutcome, StepOutput, StepPlan};
use yinian::runner::ModelRunner;

const SEQS: u32 = 8;
const WARM: u64 = 8;
const STEPS: u64 = 64;

/// A model whose steps take a GPU some hundred microseconds.
fn model(device: &Arc<dyn Device>, (hidden, layers): (u32, u32)) -> ModelRunner {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 32_000, "hidden_size": hidden,
        "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "num_attention_heads": hidden / 64,
        "num_key_value_heads": hidden / 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
        "torch_dtype": "bfloat16", "tie_word_embeddings": false});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    runner_on(device, dir.path(), LoadFormat::Dummy)
}

fn sequences() -> Vec<Alone> {
    (0..SEQS).map(|i| Alone::new(i, &prompt(10 + i % 7), if i % 2 == 0 { 0.0 } else { 0.9 })).collect()
}

/// The step after `seqs`' last one, whose inputs are tokens that the device has drawn.
fn ahead(seqs: &mut [Alone], id: u64) -> StepPlan {
    for s in seqs.iter_mut() {
        s.computed = s.tokens.len();
        s.tokens.push(0);
    }
    let mut plan = step(&seqs.iter().collect::<Vec<_>>(), 1);
    plan.id = StepId(id);
    plan.tokens.clear();
    plan.entries = plan.entries.into_iter().map(|e| StepEntry { tokens: 0..0, ..e }).collect();
    plan
}

fn prefill(seqs: &[Alone]) -> StepPlan {
    StepPlan { id: StepId(0), ..step(&seqs.iter().collect::<Vec<_>>(), CHUNK_MOST) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Launched(u64),
    Landed(u64),
}

type Trace = Arc<Mutex<Vec<Seen>>>;

#[derive(Debug)]
struct Traced(ModelRunner, Trace);

#[derive(Debug)]
struct TracedFlight(Box<dyn Flight>, Trace);

impl StepRunner for Traced {
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
        let flight = StepRunner::launch(&mut self.0, plan)?;
        self.1.lock().unwrap().push(Seen::Launched(plan.id.0));
        Ok(Box::new(TracedFlight(flight, Arc::clone(&self.1))))
    }
}

impl Flight for TracedFlight {
    fn land(self: Box<Self>) -> StepOutput {
        let output = self.0.land();
        self.1.lock().unwrap().push(Seen::Landed(output.id.0));
        output
    }
}

/// What a run through the worker was seen to do.
struct Run {
    tokens: Vec<Vec<Token>>,
    trace: Vec<Seen>,
    /// Of the steps behind [`WARM`].
    calls: Option<[DriverCalls; 2]>,
    launch_ns: Vec<u64>,
}

/// A prompt and steps of one token each, two on their way at any time. In the middle all land.
fn run(device: &Arc<dyn Device>, runner: ModelRunner) -> Run {
    let (signal, trace) = (Arc::new(Signal::default()), Trace::default());
    let traced = Traced(runner, Arc::clone(&trace));
    let mut worker = WorkerExecutor::spawn(Box::new(traced), 2, Arc::clone(&signal)).unwrap();
    let mut seqs = sequences();
    let mut run = Run { tokens: vec![Vec::new(); SEQS as usize], trace: vec![], calls: None, launch_ns: vec![] };
    let land = |worker: &mut WorkerExecutor, run: &mut Run| {
        let output = loop {
            match worker.poll().unwrap() {
                Some(output) => break output,
                None => signal.wait(None),
            }
        };
        let StepOutcome::Done(results) = output.outcome else { panic!("{output:?}") };
        results.sampled.iter().for_each(|s| run.tokens[s.seq.0 as usize].push(s.token));
        run.launch_ns.push(worker.launch_ns());
    };
    let mut part = |steps: std::ops::Range<u64>, run: &mut Run| {
        let last = steps.end - 1;
        for id in steps.clone() {
            let plan = if id == 0 { prefill(&seqs) } else { ahead(&mut seqs, id) };
            worker.submit(plan).unwrap();
            if id > steps.start {
                land(&mut worker, run);
            }
            if id == last {
                land(&mut worker, run);
            }
        }
    };
    part(0..WARM, &mut run);
    let before = device.driver_calls();
    run.launch_ns.clear();
    part(WARM..WARM + STEPS, &mut run);
    run.calls = before.zip(device.driver_calls()).map(|(a, b)| [a, b]);
    run.trace = trace.lock().unwrap().clone();
    run
}

/// The tokens of the same sequences when every step is waited for.
fn expected(runner: &mut ModelRunner) -> Vec<Vec<Token>> {
    let mut seqs = sequences();
    generate(runner, &mut seqs, (CHUNK_MOST, (WARM + STEPS) as usize));
    seqs.iter().map(|s| s.generated().to_vec()).collect()
}

#[test]
fn the_worker_draws_the_tokens_of_single_steps() {
    let device = cpu();
    let expected = expected(&mut model(&device, (64, 2)));
    let run = run(&device, model(&device, (64, 2)));
    assert_eq!(run.tokens, expected);
    let landed = run.trace.iter().filter_map(|seen| if let Seen::Landed(id) = seen { Some(*id) } else { None });
    assert!(landed.eq(0..WARM + STEPS), "steps land in order");
}

/// Steady decoding: the worker waits for each step's event once and for nothing else, allocates nothing, and has launched
/// a step before the one in front of it has landed.
#[test]
fn a_gpu_is_never_waited_for_between_steps() {
    let Some(device) = gpu() else { return };
    let expected = expected(&mut model(&device, (1024, 12)));
    let run = run(&device, model(&device, (1024, 12)));
    let Some([before, after]) = run.calls else { panic!("the device counts no calls") };
    let at = |seen: Seen| run.trace.iter().position(|s| *s == seen).unwrap();
    let ids = WARM..WARM + STEPS - 1;
    let launched_early = ids.filter(|&id| at(Seen::Launched(id + 1)) < at(Seen::Landed(id))).count();
    let mut launch_ns = run.launch_ns;
    launch_ns.sort_unstable();
    println!(
        "{STEPS} steps at depth 2: {} event waits, {} other waits, {} allocations, {} events made; launched before the one \
         in front had landed: {launched_early} of {}; host work of a launch: mean {:.1} us, median {:.1}, most {:.1}",
        after.event_waits - before.event_waits,
        after.other_waits - before.other_waits,
        after.allocations - before.allocations,
        after.events_made - before.events_made,
        STEPS - 1,
        launch_ns.iter().sum::<u64>() as f64 / launch_ns.len() as f64 / 1e3,
        launch_ns[launch_ns.len() / 2] as f64 / 1e3,
        launch_ns[launch_ns.len() - 1] as f64 / 1e3,
    );
    println!("first steps: {:?}", &run.trace[..24]);
    assert_eq!(run.tokens, expected);
    let waits = DriverCalls { event_waits: before.event_waits + STEPS, ..before };
    assert_eq!(after, waits, "exactly one wait for an event per step, and nothing else");
    // The machine may be busy with something else now and then.
    assert!(launched_early as u64 >= (STEPS - 1) * 9 / 10, "{launched_early} steps were launched early");
}

/// The same seen from the device: when a step has been launched, the one in front of it still runs.
#[test]
fn a_gpu_runs_while_the_next_step_is_launched() {
    let Some(device) = gpu() else { return };
    let mut runner = model(&device, (1024, 12));
    let mut seqs = sequences();
    let mut flight = runner.launch_step(&prefill(&seqs)).unwrap();
    let mut running = 0;
    for id in 1..=WARM + STEPS {
        let next = runner.launch_step(&ahead(&mut seqs, id)).unwrap();
        running += u64::from(id > WARM && !flight.has_ended().unwrap());
        let output = std::mem::replace(&mut flight, next).land();
        assert!(matches!(output.outcome, StepOutcome::Done(_)), "{output:?}");
    }
    assert!(matches!(flight.land().outcome, StepOutcome::Done(_)));
    println!("step N + 1 was enqueued while N ran: {running} of {STEPS}");
    assert!(running >= STEPS * 9 / 10, "{running} of {STEPS}");
}
