//! Engines whose model is spread over ranks, when one of them goes wrong. The mock model's ranks run behind the same
//! fan-out as a real model's and meet in every step.

use super::host::Host;
use super::{answers_of, assert_fails, requests};
use std::time::{Duration, Instant};
use yinian::base::ErrorKind;
use yinian::engine::State;
use yinian::plan::FinishReason;

fn config(ranks: usize, options: &str, rest: &str) -> String {
    format!(r#"{{"model": "mock:words{options}", "tensor_parallel_size": {ranks}{rest}}}"#)
}

#[test]
fn ranks_answer_as_one_and_a_failed_step_of_one_changes_nothing() {
    let truth = answers_of(&config(1, "", ""));
    for config in [
        config(2, "", ""),
        config(4, "", r#", "pipeline_depth": 3, "max_num_batched_tokens": 7"#),
        config(2, ",fail_step=9,fault_rank=0", ""),
        config(2, ",fail_step=9,fault_rank=1", r#", "pipeline_depth": 3"#),
        config(4, ",fail_step=4,fault_rank=2", r#", "kv_cache_bytes": 256, "block_size": 4"#),
    ] {
        assert_eq!(answers_of(&config), truth, "{config}");
    }
}

#[test]
fn a_rank_that_keeps_failing_ends_requests_and_not_the_engine() {
    for rank in 0..2 {
        let mut host = Host::new(&config(2, &format!(",fail_from=6,fault_rank={rank}"), ""));
        let requests = requests(&host, 8, 1000);
        let answers = host.serve(requests);
        let says = format!("rank {rank}: the mock model was told to fail step");
        for answer in answers {
            assert_eq!((answer.finish, answer.error), (Some(FinishReason::Error), Some(ErrorKind::Device)));
            assert!(answer.cause.contains(&says), "{}", answer.cause);
        }
        assert_eq!(host.engine.stats().state, State::Ready);
        host.assert_idle();
    }
}

#[test]
fn a_panic_or_a_hang_of_one_rank_fails_the_engine_not_the_host() {
    for (ranks, rank) in [(2, 0), (2, 1), (4, 3)] {
        let told = format!("rank {rank}: the mock model was told to panic");
        assert_fails(&config(ranks, &format!(",panic_step=5,fault_rank={rank}"), ""), ErrorKind::Internal, &told);
        let late = format!("the others wait for rank {rank}");
        let hang = format!(",hang_step=5,fault_rank={rank}");
        assert_fails(&config(ranks, &hang, r#", "watchdog_ms": 500"#), ErrorKind::Device, &late);
    }
    // The process serves on.
    let mut host = Host::new(&config(2, "", ""));
    let request = host.request("still here", 10);
    assert_eq!(host.serve(vec![request])[0].completion_tokens, 10);
}

#[test]
fn an_engine_is_freed_within_its_watchdog_while_a_rank_hangs() {
    let mut host = Host::new(&config(2, ",hang_step=3,fault_rank=1", r#", "watchdog_ms": 300"#));
    let submitted: Vec<_> = requests(&host, 4, 100).into_iter().map(|request| host.submit(request)).collect();
    while host.engine.stats().steps < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let from = Instant::now();
    host.engine.close();
    assert!(from.elapsed() < Duration::from_secs(3), "close took {:?}", from.elapsed());
    while host.queue.poll(Some(Duration::from_secs(20)), &mut host.reader).is_ok() {}
    assert_eq!(host.reader.done, submitted.len());
    // Cancelled before the watchdog, or ended by it.
    let ends = host.reader.answers.values().map(|a| a.finish.unwrap());
    assert!(ends.into_iter().all(|f| f == FinishReason::Cancelled || f == FinishReason::Error));
}
