//! Engines on the double of Ascend's libraries: answers, and what becomes of requests when the device fails under them.

#[path = "../ascend/library.rs"]
mod library;

use super::faults::{answers, demo};
use super::host::{Answer, Host};
use library::Double;
use std::sync::{Mutex, MutexGuard, PoisonError};
use yinian::base::ErrorKind;
use yinian::base::config::{EngineConfig, NumericMode};
use yinian::engine::State;
use yinian::plan::FinishReason;

const OUT_OF_MEMORY: i32 = 207_001;
const CORE_EXCEPTION: i32 = 507_015;
const INVALID: i32 = 107_000;

/// Tests of this file, one at a time: the double counts for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The demo model on a device of the double, or on the CPU.
fn config(device: &str, change: impl FnOnce(&mut EngineConfig)) -> EngineConfig {
    let mut config = demo(device, "");
    config.device_library_dir = Some(library::folder().display().to_string());
    config.max_num_batched_tokens = Some(64);
    change(&mut config);
    config
}

fn plain(device: &str) -> Host {
    Host::start(config(device, |_| ())).unwrap()
}

fn assert_clean() {
    let double = Double::get();
    assert_eq!((double.faults(), double.leaks(), double.planted()), (String::new(), String::new(), 0));
}

/// The same beginning for all, of so many sentences; then each its own.
fn prompts(sentences: usize) -> Vec<String> {
    let tale = "The lantern was old and its light was thin, so the fox went down to the river to ask the heron. ";
    let tale = tale.repeat(sentences);
    ["Once", "The heron said", "Then the fox"].iter().map(|end| format!("{tale}{end}")).collect()
}

fn tokens(answers: &[Answer]) -> Vec<Vec<u32>> {
    answers.iter().map(|a| a.tokens.clone()).collect()
}

#[test]
fn the_demo_model_answers_on_ascend_as_on_the_cpu() {
    let _alone = alone();
    let expected = answers(&mut plain("cpu"));
    let mut host = plain("ascend");
    let info = host.engine.info();
    assert_eq!((info["device"]["name"].as_str(), info["numeric_mode"].as_str()), (Some("ascend"), Some("fast")));
    assert!(info["device"]["description"].as_str().unwrap().starts_with("AscendDouble"), "{info}");
    let found = answers(&mut host);
    // Roundings turn the first near-tie; the golden tests look at how near those are.
    let equal = |(f, e): (&Answer, &Answer)| f.tokens.iter().zip(&e.tokens).take_while(|(a, b)| a == b).count();
    let equal: Vec<_> = found.iter().zip(&expected).map(equal).collect();
    println!("equal tokens of 40: {equal:?}");
    assert!(found.iter().all(|a| a.finish == Some(FinishReason::Length) && a.tokens.len() == 40), "{found:?}");
    assert!(equal.iter().all(|n| *n > 0) && equal.iter().sum::<usize>() > 40, "{found:?}");
    host.assert_idle();
    drop(host);
    assert_clean();
}

/// Long prompts at once: in chunks, with a cache too small for all, with prefixes that are found again.
#[test]
fn chunks_preemption_and_prefix_hits_on_ascend() {
    let _alone = alone();
    let run = |(sentences, tokens): (usize, u32), change: &dyn Fn(&mut EngineConfig), rounds: usize| {
        let mut host = Host::start(config("ascend", change)).unwrap();
        let mut all = Vec::new();
        for _ in 0..rounds {
            let requests = prompts(sentences).iter().map(|p| host.request(p, tokens)).collect();
            all = host.serve(requests);
        }
        host.assert_idle();
        assert!(all.iter().all(|a| a.finish == Some(FinishReason::Length)), "{all:?}");
        let metrics = host.engine.metrics();
        let line = metrics.lines().find(|l| l.starts_with("vllm:num_preemptions_total")).expect("the metric");
        (all, line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a number"))
    };
    let (long, growing) = ((7, 30), (4, 80));
    let (truth, _) = run(long, &|_| (), 1);
    // What was not waited for before shows now.
    Double::get().mode(true, 11);
    let (chunked, _) = run(long, &|c| (c.max_num_batched_tokens, c.pipeline_depth) = (Some(23), 1), 1);
    let (again, _) = run(long, &|c| c.enable_prefix_caching = true, 2);
    assert!(again.iter().all(|a| a.cached_tokens >= 128), "{again:?}");
    // Sequences of one block each that become two, in five blocks of 128 tokens of 6 layers. As long as no output has ended, each is
    // taken to be as long as leaves room for 64, so all three start.
    let (roomy, _) = run(growing, &|_| (), 1);
    let (tight, preempted) = run(growing, &|c| (c.kv_cache_bytes, c.max_num_seqs) = (Some(5 * 393_216), 64), 1);
    assert!(preempted > 0.0, "nothing was preempted");
    for (what, found, truth) in
        [("chunks", &chunked, &truth), ("prefix hits", &again, &truth), ("preemption", &tight, &roomy)]
    {
        assert_eq!(tokens(found), tokens(truth), "{what} change tokens");
    }
    Double::get().mode(false, 0);
    assert_clean();
}

/// A device that fails ends its own requests, each with a reason, and nothing of another engine.
#[test]
fn a_device_that_fails_ends_its_engines_requests_and_no_others() {
    let _alone = alone();
    let double = Double::get();
    let mut other = plain("ascend:1");
    let truth = answers(&mut other);
    // On the same device, with streams of its own; it has nothing to do while the device fails.
    let mut near = plain("ascend");
    let serve = |host: &mut Host| {
        let requests =
            ["A fox", "The lantern", "Once", "A heron", "The river"].iter().map(|p| host.request(p, 30)).collect();
        host.serve(requests)
    };
    let plants: [(&str, &dyn Fn(), ErrorKind, State); 4] = [
        (
            "an exception on the device",
            &|| double.fail_task(0, 40, CORE_EXCEPTION),
            ErrorKind::DeviceLost,
            State::Failed,
        ),
        (
            "a wait that fails",
            &|| double.fail(0, "aclrtSynchronizeStream", 3, INVALID),
            ErrorKind::DeviceLost,
            State::Failed,
        ),
        ("copies that fail", &|| repeat(double, "aclrtMemcpyAsync", INVALID), ErrorKind::Device, State::Ready),
        (
            "no memory in steps",
            &|| repeat(double, "aclnnMatmulGetWorkspaceSize", OUT_OF_MEMORY),
            ErrorKind::NoMemory,
            State::Ready,
        ),
    ];
    for (what, plant, kind, state) in plants {
        let mut host = plain("ascend");
        assert_eq!(serve(&mut host).len(), 5);
        let busy = other.submit(other.request("A fox", 40));
        plant();
        for answer in serve(&mut host) {
            assert_eq!(
                (answer.finish, answer.error),
                (Some(FinishReason::Error), Some(kind)),
                "{what}: {}",
                answer.cause
            );
            assert!(answer.cause.contains("Ascend"), "{what}: {}", answer.cause);
        }
        assert_eq!(host.engine.stats().state, state, "{what}");
        let n = other.reader.done + 1;
        other.read(n);
        assert_eq!(other.reader.answers[&busy].finish, Some(FinishReason::Length), "{what}");
        host.engine.close();
        drop(host);
        double.forget_plants();
        for (host, whose) in [(&mut other, "another device"), (&mut near, "the same device")] {
            assert!(answers(host) == truth, "{what}: the engine on {whose} answers otherwise");
        }
    }
    [other, near].iter_mut().for_each(|host| host.engine.close());
    assert_clean();
}

/// Fails every call of that name for a while.
fn repeat(double: Double, call: &str, code: i32) {
    (0..400).for_each(|_| double.fail(0, call, 1, code));
}

/// Two NPUs answer as one but for near-ties, and one that fails ends what both run.
#[test]
fn two_ranks_serve_and_fail_together() {
    let _alone = alone();
    let double = Double::get();
    let one = answers(&mut plain("ascend:6"));
    let mut host = Host::start(config("ascend:4", |c| c.tensor_parallel_size = 2)).unwrap();
    let two = answers(&mut host);
    let equal = |(a, b): (&Answer, &Answer)| a.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b).count();
    let equal: Vec<_> = two.iter().zip(&one).map(equal).collect();
    println!("equal tokens of 40 on two ranks: {equal:?}");
    assert!(two.iter().all(|a| a.finish == Some(FinishReason::Length)), "{two:?}");
    assert!(equal.iter().all(|n| *n > 0) && equal.iter().sum::<usize>() > 30, "{equal:?}");
    double.fail_task(5, 60, CORE_EXCEPTION);
    let requests = ["A fox", "Once", "A heron"].iter().map(|p| host.request(p, 30)).collect();
    for answer in host.serve(requests) {
        let end = (answer.finish, answer.error);
        assert_eq!(end, (Some(FinishReason::Error), Some(ErrorKind::DeviceLost)), "{}", answer.cause);
    }
    assert_eq!(host.engine.stats().state, State::Failed);
    host.engine.close();
    drop(host);
    assert_clean();
}

/// What `auto` is, and what an NPU does not do.
#[test]
fn auto_takes_an_npu_and_modes_it_has_not_are_refused() {
    let _alone = alone();
    let host = plain("auto");
    let name = host.engine.info()["device"]["name"].as_str().map(str::to_owned).unwrap();
    // A GPU goes first.
    assert!(["ascend", "cuda"].contains(&name.as_str()), "{name}");
    drop(host);
    for (mode, says) in [(NumericMode::Invariant, "no invariant kernels"), (NumericMode::Aligned, "use \"fast\"")] {
        let e = Host::start(config("ascend", |c| c.numeric_mode = mode)).map(|_| ()).unwrap_err();
        assert!(e.kind == ErrorKind::Unsupported && e.message.contains(says), "{e}");
    }
    let e = Host::start(config("ascend:8", |_| ())).map(|_| ()).unwrap_err();
    assert!(e.kind == ErrorKind::Invalid && e.message.contains("the runtime shows 8"), "{e}");
    assert_clean();
}

/// Any call may fail while an engine starts: that is an error of a kind, and all is given back.
#[test]
fn every_call_of_a_start_may_fail() {
    const CALLS: [&str; 27] = [
        "aclInit",
        "aclrtGetDeviceCount",
        "aclrtSetDevice",
        "aclrtGetMemInfo",
        "aclrtMalloc",
        "aclrtMallocHost",
        "aclrtMemset",
        "aclrtMemcpy",
        "aclrtMemcpyAsync",
        "aclrtCreateStream",
        "aclrtSynchronizeStream",
        "aclrtSynchronizeDevice",
        "aclrtCreateEventExWithFlag",
        "aclrtRecordEvent",
        "aclrtSynchronizeEvent",
        "aclCreateTensor",
        "aclCreateTensorList",
        "aclCreateIntArray",
        "aclCreateScalar",
        "aclnnMatmulGetWorkspaceSize",
        "aclnnMatmul",
        "aclnnCast",
        "aclnnEmbedding",
        "aclnnRmsNorm",
        "aclnnRotaryPositionEmbedding",
        "aclnnScatterPaKvCache",
        "aclnnFusedInferAttentionScoreV3",
    ];
    let _alone = alone();
    let (double, mut failed) = (Double::get(), Vec::new());
    for (i, call) in CALLS.into_iter().enumerate() {
        // The first, and one in the middle of a load or of a warm-up.
        for nth in [1, 2 + i as i32 % 5] {
            double.fail_any(call, nth, INVALID);
            match Host::start(config("ascend:2", |_| ())) {
                Ok(host) => drop(host),
                Err(e) => {
                    let kind = matches!(e.kind, ErrorKind::Device | ErrorKind::DeviceLost);
                    assert!(kind && e.message.contains("Ascend"), "{call} {nth}: {e}");
                    failed.push(call);
                }
            }
            double.forget_plants();
            assert_eq!((double.faults(), double.leaks()), (String::new(), String::new()), "{call} {nth}");
        }
    }
    failed.dedup();
    println!("calls whose failure fails a start: {failed:?}");
    assert!(failed.len() >= 20, "{failed:?}");
}

/// One step that fails runs again, and nobody notices.
#[test]
fn a_call_that_fails_once_costs_no_request() {
    let _alone = alone();
    let double = Double::get();
    let mut host = plain("ascend");
    let truth = answers(&mut host);
    for call in [
        "aclnnMatmul",
        "aclnnIndexSelectGetWorkspaceSize",
        "aclrtRecordEvent",
        "aclCreateTensor",
        "aclnnFusedInferAttentionScoreV3",
    ] {
        double.fail(0, call, 5, OUT_OF_MEMORY);
        assert!(answers(&mut host) == truth, "after {call} failed: {:?}", answers(&mut host));
    }
    host.assert_idle();
    drop(host);
    assert_clean();
}

#[test]
fn too_little_memory_for_a_model_is_told_and_all_is_given_back() {
    let _alone = alone();
    let double = Double::get();
    let mut names = Vec::new();
    for bytes in [1 << 20, 30 << 20, 45 << 20, 52 << 20, 60 << 20] {
        double.memory_after(bytes);
        match Host::start(config("ascend", |_| ())) {
            Err(e) => {
                assert_eq!(e.kind, ErrorKind::NoMemory, "{bytes} bytes: {e}");
                names.push(e.message);
            }
            Ok(host) => drop(host),
        }
        assert_eq!(double.leaks(), "", "{bytes} bytes");
    }
    double.memory_after(usize::MAX);
    println!("{names:#?}");
    assert!(names.len() >= 3 && names.iter().any(|n| n.contains("out of device memory")), "{names:?}");
    drop(plain("ascend"));
    assert_clean();
}
