//! Faults of a GPU, each in a process of its own, as some of them take the GPU from their process for good.
//!
//! `cargo bench --bench faults`, or `bin/faults` of the device kit: one line a scenario, and a status of 1 when one failed.
//! `faults NAME` runs one scenario in this process and shows its output.

#[path = "../engine/faults.rs"]
mod faults;
#[allow(dead_code, reason = "made for the tests of the engine, of which these are a few")]
#[path = "../engine/host.rs"]
mod host;

use faults::{answers, demo};
use host::{Answer, Host};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use yinian::base::ErrorKind;
use yinian::base::config::EngineConfig;
use yinian::engine::{State, plan_memory};
use yinian::hal::cuda::planted::BadNeighbour;
use yinian::hal::registry::{DeviceOptions, open};
use yinian::plan::FinishReason;

/// Memory that the driver may keep of what an engine had.
const KEPT_BYTES: usize = 64 << 20;

const SCENARIOS: [(&str, fn()); 6] = [
    ("load-without-memory", load_without_memory),
    ("load-too-large", load_too_large),
    ("step-without-memory", step_without_memory),
    ("context-lost", context_lost),
    ("another-process-after-that", another_process),
    ("step-hangs", step_hangs),
];

fn main() -> ExitCode {
    let name = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    if let Some(name) = name {
        let Some((_, scenario)) = SCENARIOS.iter().find(|s| s.0 == name) else {
            eprintln!("no scenario {name:?}; expected one of {:?}", SCENARIOS.map(|s| s.0));
            return ExitCode::FAILURE;
        };
        scenario();
        return ExitCode::SUCCESS;
    }
    if let Err(e) = open("cuda", &DeviceOptions::default()) {
        println!("left out: {e}");
        return ExitCode::SUCCESS;
    }
    let me = std::env::current_exe().expect("the path of this program");
    let failed = SCENARIOS.iter().filter(|(name, _)| {
        let from = Instant::now();
        let out = Command::new(&me).arg(name).output().expect("a child process");
        let seconds = from.elapsed().as_secs_f64();
        println!("{name:28} {} {seconds:6.1} s", if out.status.success() { "ok    " } else { "FAILED" });
        for text in [&out.stdout, &out.stderr] {
            String::from_utf8_lossy(text).lines().for_each(|line| println!("    {line}"));
        }
        !out.status.success()
    });
    if failed.count() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn free_bytes() -> usize {
    let device = open("cuda", &DeviceOptions::default()).expect("the GPU");
    device.memory().expect("its memory").free_bytes
}

fn load_without_memory() {
    // Holds the context, which would have to be made anew for every load.
    let _held = open("cuda", &DeviceOptions::default()).expect("the GPU");
    drop(Host::start(demo("cuda", "")).expect("an engine"));
    let before = free_bytes();
    faults::every_allocation_of_a_load_may_fail("cuda");
    let after = free_bytes();
    assert!(after + KEPT_BYTES >= before, "{} bytes did not come back", before - after);
}

fn load_too_large() {
    let held = open("cuda", &DeviceOptions::default()).expect("the GPU");
    let truth = answers(&mut Host::start(demo("cuda", "")).expect("an engine"));
    let before = free_bytes();
    let refuse = |config: EngineConfig, says: &str| {
        let e = Host::start(config).map(drop).expect_err(says);
        println!("{e}");
        assert!(e.kind == ErrorKind::NoMemory && e.message.contains(says), "{e}");
    };
    refuse(EngineConfig { kv_cache_bytes: Some(9_999_999_999_999), ..demo("cuda", "") }, "kv_cache_bytes");
    // A real one: somebody takes the memory.
    let hog = held.alloc(before.saturating_sub(48 << 20)).expect("most of the memory");
    refuse(demo("cuda", ""), "");
    drop(hog);
    assert!(answers(&mut Host::start(demo("cuda", "")).expect("an engine")) == truth);
    let after = free_bytes();
    assert!(after + KEPT_BYTES >= before, "{} bytes did not come back", before - after);
}

fn step_without_memory() {
    faults::a_step_that_finds_no_memory_costs_at_most_its_requests("cuda");
}

fn assert_lost(e: &yinian::base::Error) {
    let says = e.message.contains("is lost") && e.message.contains("restart the process");
    assert!(e.kind == ErrorKind::DeviceLost && says, "{e}");
}

fn assert_ended(answer: &Answer, kind: ErrorKind) {
    assert_eq!((answer.finish, answer.error), (Some(FinishReason::Error), Some(kind)), "{}", answer.cause);
}

fn close_within(host: &Host, most: Duration) {
    let from = Instant::now();
    host.engine.close();
    assert!(from.elapsed() < most, "close took {:?}", from.elapsed());
}

fn context_lost() {
    let start = |device: &str| Host::start(demo(device, "")).expect(device);
    let (mut busy, mut idle, mut host) = (start("cuda"), start("cuda"), start("cpu"));
    let truth = answers(&mut host);
    answers(&mut idle);
    let ids: Vec<_> = (0..4).map(|i| busy.submit(busy.request(&format!("Fox {i}"), 900))).collect();
    while busy.engine.stats().steps < 20 {
        std::thread::yield_now();
    }
    let neighbour = BadNeighbour::open(0).expect("a neighbour");
    let from = Instant::now();
    let told = neighbour.lose_context().expect_err("the context is lost");
    println!("planted: {told}");
    assert_lost(&told);
    busy.read(ids.len());
    println!("requests under way ended after {:?}", from.elapsed());
    assert!(from.elapsed() < Duration::from_secs(5));
    ids.iter().for_each(|id| assert_ended(&busy.reader.answers[id], ErrorKind::DeviceLost));
    assert_lost(&busy.engine.submit(busy.request("late", 1)).expect_err("the engine has failed"));
    // The idle one finds out with its next request.
    let request = idle.request("next", 5);
    assert_ended(&idle.serve(vec![request])[0], ErrorKind::DeviceLost);
    assert_eq!(idle.engine.stats().state, State::Failed);
    let no_device = || {
        for device in ["cuda", "auto"] {
            assert_lost(&Host::start(demo(device, "")).map(drop).expect_err("create on a lost GPU"));
            assert_lost(&plan_memory(&demo(device, "")).expect_err("a plan for a lost GPU"));
        }
    };
    no_device();
    assert!(answers(&mut host) == truth, "the engine on the CPU answers otherwise");
    [&busy, &idle].iter().for_each(|host| close_within(host, Duration::from_secs(3)));
    drop(neighbour);
    no_device();
    println!("create: {}", Host::start(demo("cuda", "")).map(drop).expect_err("create on a lost GPU"));
    assert!(answers(&mut start("cpu")) == truth && answers(&mut host) == truth);
}

fn another_process() {
    answers(&mut Host::start(demo("cuda", "")).expect("an engine"));
}

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        println!("log: {}", record.args());
        LINES.lock().expect("the lines").push(record.args().to_string());
    }
    fn flush(&self) {}
}

fn left_behind() -> usize {
    LINES.lock().expect("the lines").iter().filter(|line| line.contains("left behind")).count()
}

fn step_hangs() {
    log::set_logger(&Lines).expect("no logger yet");
    log::set_max_level(log::LevelFilter::Warn);
    let mut host = Host::start(demo("cuda", r#", "watchdog_ms": 1000"#)).expect("an engine");
    let (mut idle, mut cpu) =
        (Host::start(demo("cuda", "")).expect("an engine"), Host::start(demo("cpu", "")).expect("cpu"));
    let (truth, of_cpu) = (answers(&mut idle), answers(&mut cpu));
    let neighbour = BadNeighbour::open(0).expect("a neighbour");
    neighbour.occupy(Duration::from_secs(60)).expect("a kernel that spins");
    let from = Instant::now();
    let requests = (0..4).map(|i| host.request(&format!("Fox {i}"), 50)).collect();
    for answer in host.serve(requests) {
        assert_ended(&answer, ErrorKind::Device);
        assert!(
            answer.cause.contains("has not ended after") && answer.cause.contains("watchdog_ms"),
            "{}",
            answer.cause
        );
    }
    println!("requests ended after {:?}", from.elapsed());
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&from.elapsed()));
    close_within(&host, Duration::from_millis(1500));
    assert_eq!(left_behind(), 1);
    assert!(answers(&mut cpu) == of_cpu, "the engine on the CPU answers otherwise");
    // Its memory cannot be freed while the GPU hangs.
    close_within(&idle, Duration::from_secs(12));
    println!("{} engines left something behind", left_behind());
    neighbour.release();
    // What was left behind ends by itself now.
    let mut again = Host::start(demo("cuda", "")).expect("an engine after the hang");
    assert!(answers(&mut again) == truth, "after the hang");
    close_within(&again, Duration::from_secs(5));
}
