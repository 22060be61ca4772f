//! A device that is lost or hangs, and steps that are too large for it, on the mock model.

use super::host::Host;
use super::{assert_fails, requests};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use yinian::base::ErrorKind;
use yinian::engine::State;
use yinian::plan::FinishReason;

#[test]
fn a_lost_device_fails_the_engine_at_once() {
    assert_fails(r#"{"model": "mock:words,lost_step=5"}"#, ErrorKind::DeviceLost, "told to lose its device");
    let ranks = r#"{"model": "mock:words,lost_step=5,fault_rank=1", "tensor_parallel_size": 2}"#;
    assert_fails(ranks, ErrorKind::DeviceLost, "rank 1: the mock model was told to lose its device");
    // An idle engine learns of it with its next request.
    let mut host = Host::new(r#"{"model": "mock:words,lost_step=1"}"#);
    let request = host.request("the first step runs", 1);
    assert_eq!(host.serve(vec![request])[0].finish, Some(FinishReason::Length));
    assert_eq!(host.engine.stats().state, State::Ready);
    let request = host.request("the second does not", 1);
    let answer = host.serve(vec![request]).remove(0);
    assert_eq!((answer.finish, answer.error), (Some(FinishReason::Error), Some(ErrorKind::DeviceLost)));
    assert_eq!(host.engine.stats().steps, 1, "a step on a lost device runs once");
}

#[test]
fn steps_too_large_for_the_memory_are_made_smaller() {
    let truth = super::answers_of(r#"{"model": "mock:words"}"#);
    // The longest prompt has 46 tokens.
    assert_eq!(super::answers_of(r#"{"model": "mock:words,memory_tokens=50"}"#), truth);
    let mut host = Host::new(r#"{"model": "mock:words,memory_tokens=40", "enable_prefix_caching": false}"#);
    let requests = requests(&host, 8, 20);
    let long = |i: usize| i % 4 == 1;
    for (i, answer) in host.serve(requests).into_iter().enumerate() {
        let expected =
            if long(i) { (FinishReason::Error, Some(ErrorKind::NoMemory)) } else { (FinishReason::Length, None) };
        assert_eq!((answer.finish, answer.error), (Some(expected.0), expected.1), "request {i}: {}", answer.cause);
    }
    assert_eq!(host.engine.stats().state, State::Ready);
    host.assert_idle();
}

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps the log of engines that are called "hung".
struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        if line.starts_with("hung: ") {
            LINES.lock().unwrap().push(line);
        }
    }
    fn flush(&self) {}
}

#[test]
fn an_engine_whose_step_hangs_is_freed_and_says_what_it_leaves_behind() {
    log::set_logger(&Lines).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let config = r#"{"model": "mock:words,hang_step=2", "watchdog_ms": 100, "served_model_name": "hung"}"#;
    let mut host = Host::new(config);
    let requests = requests(&host, 4, 50);
    for answer in host.serve(requests) {
        assert_eq!((answer.finish, answer.error), (Some(FinishReason::Error), Some(ErrorKind::Device)));
        assert!(answer.cause.contains("step 2 has not ended"), "{}", answer.cause);
    }
    let from = Instant::now();
    host.engine.close();
    let took = from.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&took), "close took {took:?}");
    let lines = LINES.lock().unwrap();
    let said = lines.iter().filter(|line| line.contains("left behind with the device memory")).count();
    assert_eq!(said, 1, "{lines:?}");
}
