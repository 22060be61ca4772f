//! What an engine costs its host when nothing happens: wake-ups, resident memory, bytes of the library.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission};

const IDLE_SECONDS: u64 = 10;
const MAX_RESIDENT_BYTES: u64 = 30 << 20;
const MAX_LIBRARY_BYTES: u64 = 20 << 20;

fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo_model")
}

/// Voluntary and involuntary context switches of every library thread: each is a wake-up.
fn switches() -> u64 {
    let mut sum = 0;
    let mut threads = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        // A thread may end between the listing and the reading.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let field =
            |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        if field("Name:").starts_with("yn-") {
            threads += 1;
            sum += field("voluntary_ctxt_switches:").parse::<u64>().unwrap();
            sum += field("nonvoluntary_ctxt_switches:").parse::<u64>().unwrap();
        }
    }
    assert!(threads >= 4, "only {threads} library threads found");
    sum
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

fn generate(engine: &Engine, max_tokens: u32) {
    let submission = Submission {
        seed: Some(1),
        ..Submission::exactly(
            max_tokens,
            Prompt::Text("Once upon a time".to_owned()),
            OutputMode { text: true, tokens: false, logprobs: false, prompt_logprobs: false, final_only: false },
            Arc::clone(engine.queue()),
        )
    };
    let before = engine.stats().finished;
    engine.submit(submission).unwrap();
    while engine.stats().finished == before {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_idle_engine_sleeps_and_stays_small() {
    let config = format!(r#"{{"model": {:?}}}"#, demo_model().display().to_string());
    let config = EngineConfig::from_json(config.as_bytes()).unwrap();
    let start = resident_bytes();
    let engine = Engine::start(config, EventQueue::new(None), Arc::new(MonotonicClock::starting_at(0))).unwrap();
    generate(&engine, 64);
    std::thread::sleep(Duration::from_millis(500));

    let before = switches();
    std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
    let woken = switches() - before;
    let weights = engine.info()["memory"]["weights_bytes"].as_u64().unwrap();
    let resident = resident_bytes();
    let beyond = resident.saturating_sub(weights);
    println!("idle wake-ups in {IDLE_SECONDS} s: {woken}");
    println!("resident: {resident} bytes, {start} before, {weights} of weights, {beyond} beyond the weights");
    assert_eq!(woken, 0, "an idle engine woke up");
    assert!(beyond < MAX_RESIDENT_BYTES, "{beyond} bytes resident beyond the weights");
    engine.close();
}

#[test]
fn the_stripped_library_is_small() {
    // Integration tests run from target/<profile>/deps, where cargo leaves the cdylib as well.
    let library = std::env::current_exe().unwrap().with_file_name("libyinian.so");
    let stripped = tempfile::NamedTempFile::new().unwrap();
    let status = std::process::Command::new("strip").arg("-o").arg(stripped.path()).arg(&library).status().unwrap();
    assert!(status.success(), "strip {} failed", library.display());
    let bytes = stripped.as_file().metadata().unwrap().len();
    println!("libyinian.so, stripped: {bytes} bytes");
    assert!(bytes > 0 && bytes < MAX_LIBRARY_BYTES, "the stripped library has {bytes} bytes");
}
