//! Ranks on GPUs, as many as there are: one GPU as a group of its own, several against the host and against one.

use super::gpu::FAMILIES;
use super::ranks::{greedy, logits};
use super::world::{Alone, CHUNK_MOST, generate, ranks_on, runner_on, step, tiny_config};
use super::{Case, RELATIVE, assert_depth_does_not_change_tokens, cases, distance, dummy_on, folder, prompt};
use half::{bf16, f16};
use serde_json::json;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use yinian::base::config::{EngineConfig, LoadFormat};
use yinian::base::rng::SplitMix64;
use yinian::base::signal::Signal;
use yinian::base::{DType, Error, ErrorKind, Result, StepId, Token};
use yinian::engine::plan_memory;
use yinian::exec::Executor;
use yinian::exec::ranks::RankRunner;
use yinian::exec::worker::{Flight, StepRunner, WorkerExecutor};
use yinian::hal::registry::{DeviceOptions, open, open_ranks};
use yinian::hal::{Device, Tensor};
use yinian::model::{Shard, inspect};
use yinian::plan::{StepEntry, StepOutcome, StepPlan};
use yinian::runner::ModelRunner;

const MOST: usize = 4;
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
/// Elements that ranks add up: fewer than they are, odd ones, a decode step's, a prefill's.
const SIZES: [usize; 7] = [1, 3, 8, 1023, 4096, 32 * 4096 + 5, 1024 * 5120];

/// GPUs, and the promise that no other test here uses them.
type Gpus = (Vec<Arc<dyn Device>>, MutexGuard<'static, ()>);

/// Up to four GPUs, for one test at a time.
fn gpus(at_least: usize) -> Option<Gpus> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::new();
    while found.len() < MOST {
        match open(&format!("cuda:{}", found.len()), &DeviceOptions::default()) {
            Ok(device) => found.push(device),
            Err(e) if found.len() < at_least => {
                println!("left out, as {at_least} GPUs are needed: {e}");
                return None;
            }
            Err(_) => break,
        }
    }
    match found[0].group(found.len(), 1) {
        Ok(_) => Some((found, guard)),
        Err(e) => {
            println!("left out: {e}");
            None
        }
    }
}

fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect(),
        _ => values.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
    }
}

fn decode(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_ne_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(2).map(|b| bf16::from_ne_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// What a rank brings, as its dtype holds it.
fn part(rank: usize, elements: usize, dtype: DType) -> Vec<f32> {
    let mut rng = SplitMix64((rank * 7919 + elements) as u64);
    let values: Vec<_> = (0..elements).map(|_| 4.0 * rng.unit() - 2.0).collect();
    decode(&encode(&values, dtype), dtype)
}

/// The sums that each of the devices ends with for every dtype and size: run twice, then recorded and replayed.
fn sums(devices: &[Arc<dyn Device>]) -> Vec<Vec<Vec<u8>>> {
    let group = devices[0].group(devices.len(), SIZES[6]).expect("a group");
    let free = |device: &Arc<dyn Device>| device.memory().expect("memory").free_bytes;
    std::thread::scope(|scope| {
        let group = &group;
        let work = |(rank, device): (usize, &Arc<dyn Device>)| {
            let device = Arc::clone(device);
            scope.spawn(move || {
                let most = SIZES[6] * DType::F32.size();
                let memory = device.alloc(most).expect("memory");
                let mut host = device.host_buffer(most).expect("host memory");
                let stream = device.stream().expect("a stream");
                let (before, from) = (free(&device), Instant::now());
                let place = group.join(rank, device.as_ref()).expect("a place");
                let (joined, took) = (before.saturating_sub(free(&device)), from.elapsed());
                let mut found = Vec::new();
                for (dtype, elements) in DTYPES.into_iter().flat_map(|d| SIZES.map(|n| (d, n))) {
                    let x = Tensor::new(Arc::clone(&memory), 0, 1, elements, dtype);
                    let bytes = encode(&part(rank, elements, dtype), dtype);
                    let mut graph = None;
                    let mut run = |recorded: bool| {
                        host.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
                        stream.upload(&x, host.as_ref()).expect("upload");
                        let mut add = || place.all_reduce(stream.as_ref(), &x);
                        match (recorded, &graph) {
                            (false, _) => add().expect("sums"),
                            (true, None) => graph = Some(stream.capture(&mut add).expect("a recording")),
                            (true, Some(_)) => {}
                        }
                        if recorded && let Some(graph) = &graph {
                            place.begin().expect("nobody failed");
                            stream.replay(graph.as_ref()).expect("replay");
                        }
                        stream.download(host.as_mut(), &x).expect("download");
                        stream.record().and_then(|event| event.wait()).expect("the sums");
                        group.leave(rank);
                        host.bytes()[..bytes.len()].to_vec()
                    };
                    let first = run(false);
                    for (recorded, way) in [(false, "again"), (true, "recorded"), (true, "replayed")] {
                        assert!(first == run(recorded), "{elements} {dtype} {way} give other sums");
                    }
                    found.push(first);
                }
                let all = before.saturating_sub(free(&device));
                println!(
                    "rank {rank}: connected in {took:.1?} with {joined} bytes of the device, {all} after all sums"
                );
                found
            })
        };
        let threads: Vec<_> = devices.iter().enumerate().map(work).collect();
        threads.into_iter().map(|t| t.join().expect("a rank")).collect()
    })
}

fn check_sums(devices: &[Arc<dyn Device>]) {
    let count = devices.len();
    let all = sums(devices);
    let shapes = DTYPES.into_iter().flat_map(|d| SIZES.map(|n| (d, n)));
    for (i, (dtype, elements)) in shapes.enumerate() {
        assert!(all.iter().all(|rank| rank[i] == all[0][i]), "{elements} {dtype} on {count} GPUs: ranks differ");
        let parts: Vec<_> = (0..count).map(|rank| part(rank, elements, dtype)).collect();
        // Each of `count - 1` additions rounds a sum that is below two times the number of ranks.
        let ulp = match dtype {
            DType::F32 => 2f64.powi(-24),
            DType::F16 => 2f64.powi(-11),
            _ => 2f64.powi(-8),
        };
        let most = (count - 1) as f64 * 2.0 * count as f64 * ulp;
        let found = decode(&all[0][i], dtype);
        let sum = |k: usize| parts.iter().map(|p| f64::from(p[k])).sum::<f64>();
        let worst = (0..elements).map(|k| (f64::from(found[k]) - sum(k)).abs()).fold(0.0, f64::max);
        println!("{count} GPUs, {elements} {dtype}: at most {worst:e} from the sum, {most:e} allowed");
        assert!(worst <= most, "{elements} {dtype} on {count} GPUs: {worst:e} from the sum");
    }
}

#[test]
fn one_gpu_is_a_group_of_its_own() {
    let Some((devices, _alone)) = gpus(1) else { return };
    check_sums(&devices[..1]);
    let name = "tiny-llama-gqa";
    let (dir, cases) = (folder(name), cases(&folder(name)));
    let (mut group, _) = ranks_on(&devices[..1], &dir, LoadFormat::Auto);
    let mut plain = runner_on(&devices[0], &dir, LoadFormat::Auto);
    let all: Vec<&Case> = cases.iter().collect();
    let expected: Vec<_> = cases.iter().map(|c| c.greedy.clone()).collect();
    assert_eq!(greedy(&mut group, &all, 16), expected, "through a group of one");
    for case in &cases {
        let found = group[0].logits(&case.prompt, CHUNK_MOST).expect("logits");
        assert_eq!(found, plain.logits(&case.prompt, CHUNK_MOST).expect("logits"), "logits through a group of one");
    }
    assert_depth_does_not_change_tokens(&mut group[0]);
    println!("{name} through a group of one GPU: the same tokens and logits");
}

#[test]
fn gpus_add_up_what_the_host_does() {
    let Some((devices, _alone)) = gpus(2) else { return };
    for count in [2, 4].into_iter().filter(|n| *n <= devices.len()) {
        check_sums(&devices[..count]);
    }
}

#[test]
fn families_on_gpus_agree_with_the_reference() {
    let Some((devices, _alone)) = gpus(2) else { return };
    for (count, name) in [2, 4].into_iter().flat_map(|n| FAMILIES.map(|name| (n, name))) {
        let (dir, cases) = (folder(name), cases(&folder(name)));
        if count > devices.len() || Shard::check(&inspect(&dir).expect("inspect").spec, count).is_err() {
            println!("{name} on {count} GPUs: left out");
            continue;
        }
        let (mut group, _) = ranks_on(&devices[..count], &dir, LoadFormat::Auto);
        let mut worst = 0.0_f32;
        for case in &cases {
            for chunk in [CHUNK_MOST, 7] {
                let found = logits(&mut group, &case.prompt, chunk);
                let vocab = found.len() / case.prompt.len();
                for (position, expected) in case.positions.iter().zip(&case.logits) {
                    let d = distance(&found[position * vocab..(position + 1) * vocab], expected);
                    worst = worst.max(d);
                    assert!(d <= RELATIVE, "{name} on {count} GPUs in chunks of {chunk}, {position}: {d:e}");
                }
            }
        }
        let all: Vec<&Case> = cases.iter().collect();
        let expected: Vec<_> = cases.iter().map(|c| c.greedy.clone()).collect();
        assert_eq!(greedy(&mut group, &all, 16), expected, "{name} on {count} GPUs, in a batch");
        println!("{name} on {count} GPUs: logits at most {worst:e} from the reference, its tokens");
    }
}

/// A rank that does as it is told, and at one step does not.
#[derive(Debug)]
struct Planted {
    inner: ModelRunner,
    at: Option<(u64, Fault)>,
    /// Steps that nobody lands, held until the device is done with them.
    kept: Vec<Box<dyn Flight>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Before it enqueues anything, when the others have.
    FailsEarly,
    /// Before it enqueues anything.
    Refuses,
    /// After it has enqueued everything.
    FailsLate,
    Panics,
}

impl StepRunner for Planted {
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
        let told = || Error::no_memory("told to fail");
        match self.at.filter(|at| at.0 == plan.id.0).map(|at| at.1) {
            None => StepRunner::launch(&mut self.inner, plan),
            Some(Fault::Panics) => panic!("told to panic"),
            Some(Fault::Refuses) => Err(told()),
            Some(Fault::FailsEarly) => {
                std::thread::sleep(Duration::from_millis(100));
                Err(told())
            }
            Some(Fault::FailsLate) => {
                self.kept.push(StepRunner::launch(&mut self.inner, plan)?);
                Err(told())
            }
        }
    }
}

/// A model of random weights on several GPUs as one runner; each rank may have a fault.
fn spread(devices: &[Arc<dyn Device>], faults: &dyn Fn(usize) -> Option<(u64, Fault)>) -> RankRunner {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = tiny_config();
    config["torch_dtype"] = "bfloat16".into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("config.json");
    let (ranks, group) = ranks_on(devices, dir.path(), LoadFormat::Dummy);
    let planted =
        |(rank, inner)| -> Box<dyn StepRunner> { Box::new(Planted { inner, at: faults(rank), kept: vec![] }) };
    let mut ranks: Vec<_> = ranks.into_iter().enumerate().map(planted).collect();
    let others = ranks.split_off(1);
    assert!(group.reset().is_none(), "the ranks start");
    RankRunner::spawn(ranks.swap_remove(0), others, group).expect("threads")
}

/// Tokens of a sequence that is decoded with one more step under way than has landed, or with none.
fn decoded(ranks: &mut RankRunner, ahead: bool) -> Vec<Token> {
    let mut seq = Alone::new(0, &prompt(20), 0.9);
    let (mut flights, mut tokens) = (VecDeque::new(), Vec::new());
    for i in 0..30 {
        let mut plan = step(&[&seq], if i == 0 { CHUNK_MOST } else { 1 });
        if i > 0 && ahead {
            plan.tokens.clear();
            plan.entries = plan.entries.into_iter().map(|e| StepEntry { tokens: 0..0, ..e }).collect();
        }
        flights.push_back(ranks.launch(&plan).expect("launch"));
        let mut land = || {
            let output = flights.pop_front().expect("a flight").land();
            let StepOutcome::Done(results) = output.outcome else { panic!("step {i}: {output:?}") };
            tokens.push(results.sampled[0].token);
        };
        seq.computed = seq.tokens.len();
        if i > 0 || !ahead {
            land();
        }
        if i == 29 && ahead {
            land();
        }
        seq.tokens.push(if ahead { 0 } else { tokens[tokens.len() - 1] });
    }
    tokens
}

#[test]
fn steps_of_gpus_are_launched_ahead() {
    let Some((devices, _alone)) = gpus(2) else { return };
    for count in [2, 4].into_iter().filter(|n| *n <= devices.len()) {
        let mut ranks = spread(&devices[..count], &|_| None);
        let expected = decoded(&mut ranks, false);
        assert_eq!(decoded(&mut ranks, true), expected, "launched ahead on {count} GPUs");
        // Roundings of half precision may part tokens of one GPU and several: how far they go together is told.
        let mut one = [Alone::new(0, &prompt(20), 0.9)];
        generate(&mut dummy_on(&devices[0], "bfloat16"), &mut one, (CHUNK_MOST, 30));
        let same = one[0].generated().iter().zip(&expected).take_while(|(a, b)| a == b).count();
        println!(
            "bfloat16 on {count} GPUs at depth 2: the tokens of depth 1; the first {same} of 30 are those of one GPU"
        );
    }
}

/// Runs steps of a decoding sequence until one ends the executor; how many were done, how many failed, and the end.
fn run_until_lost(ranks: RankRunner, steps: u64) -> (usize, usize, Option<Error>) {
    let signal = Arc::new(Signal::default());
    let mut worker = WorkerExecutor::spawn(Box::new(ranks), 2, Arc::clone(&signal)).expect("a worker");
    let (mut done, mut failed, mut seq) = (0, 0, Alone::new(0, &prompt(20), 0.0));
    let from = Instant::now();
    for id in 0..steps {
        let plan = StepPlan { id: StepId(id), ..step(&[&seq], CHUNK_MOST) };
        if let Err(e) = worker.submit(plan) {
            return (done, failed, Some(e));
        }
        let output = loop {
            match worker.poll() {
                Ok(Some(output)) => break output,
                Ok(None) => signal.wait(Some(Duration::from_millis(100))),
                Err(e) => return (done, failed, Some(e)),
            };
            assert!(from.elapsed() < Duration::from_secs(60), "step {id} hangs");
        };
        let StepOutcome::Done(results) = output.outcome else {
            failed += 1;
            continue;
        };
        done += 1;
        seq.computed = seq.tokens.len();
        seq.tokens.push(results.sampled[0].token);
    }
    (done, failed, None)
}

#[test]
fn a_rank_that_fails_ends_the_others_and_not_the_process() {
    let Some((devices, _alone)) = gpus(2) else { return };
    for (rank, fault) in [(1, Fault::FailsEarly), (0, Fault::FailsEarly), (1, Fault::FailsLate), (1, Fault::Panics)] {
        let from = Instant::now();
        let ranks = spread(&devices[..2], &|r| (r == rank).then_some((5, fault)));
        let started = from.elapsed();
        let (done, failed, end) = run_until_lost(ranks, 10);
        let e = end.expect("the executor ends");
        let took = from.elapsed() - started;
        println!("rank {rank} {fault:?}: {done} steps, then after {took:.1?}, all freed: {e}");
        assert_eq!((done, failed), (5, 0), "{e}");
        let kind = if fault == Fault::Panics { ErrorKind::Internal } else { ErrorKind::DeviceLost };
        assert!(e.kind == kind && e.message.contains(&format!("rank {rank}")) && e.message.contains("told to"), "{e}");
        assert!(took < Duration::from_secs(20), "it took {took:?}");
    }
    // Before anybody has begun, a failure is the step's alone.
    let (done, failed, end) = run_until_lost(spread(&devices[..2], &|_| Some((5, Fault::Refuses))), 10);
    assert_eq!((done, failed, end), (9, 1, None), "all ranks fail before the step");
    println!("all ranks fail before the step: 9 steps done, 1 failed");
    // The GPUs serve on.
    check_sums(&devices[..2]);
}

#[test]
fn the_memory_of_gpus_is_planned_and_modes_they_do_not_have_are_refused() {
    let Some((_, _alone)) = gpus(2) else { return };
    let plan = |mode: &str| {
        let config = json!({"model": folder("tiny-llama-gqa"), "device": "cuda", "tensor_parallel_size": 2,
                            "max_num_seqs": 8, "max_num_batched_tokens": 64, "numeric_mode": mode});
        plan_memory(&EngineConfig::from_json(config.to_string().as_bytes()).expect("a config"))
    };
    let found = plan("fast").expect("a plan");
    println!("two ranks: {}", found["memory"]);
    assert_eq!((found["memory"]["ranks"].as_u64(), found["numeric_mode"].as_str()), (Some(2), Some("fast")));
    for mode in ["invariant", "aligned"] {
        let e = plan(mode).unwrap_err();
        assert!(e.kind == ErrorKind::Unsupported && e.message.contains("size of the batch"), "{mode}: {e}");
    }
}

#[test]
fn too_few_gpus_are_told() {
    let Some((_, _alone)) = gpus(1) else { return };
    for name in ["cuda", "cuda:1", "auto"] {
        let e = open_ranks(name, 64, &DeviceOptions::default()).unwrap_err();
        println!("64 ranks on {name}: {e}");
        assert!(e.kind == ErrorKind::Invalid && e.message.contains("the driver shows"), "{e}");
    }
}
