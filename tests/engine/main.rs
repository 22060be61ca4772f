//! The engine with all its threads on the mock model: what becomes of requests when things go wrong around them.

mod ascend;
mod faults;
mod host;
mod logprobs;
mod lost;
mod modes;
mod ranks;

use host::{Answer, Host};
use std::sync::Arc;
use std::time::{Duration, Instant};
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::base::{ErrorKind, Token};
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, State, Submission};
use yinian::plan::FinishReason;

const PROMPTS: [&str; 4] =
    ["one", "the quick brown fox jumps over the lazy dog", "the quick brown fox walks home", "x"];

pub(crate) fn requests(host: &Host, n: usize, max_tokens: u32) -> Vec<Submission> {
    (0..n).map(|i| host.request(&format!("{} {}", PROMPTS[i % 4], i / 4), max_tokens)).collect()
}

fn without_cache_hits(mut answers: Vec<Answer>) -> Vec<Answer> {
    answers.iter_mut().for_each(|a| a.cached_tokens = 0);
    answers
}

pub(crate) fn answers_of(config: &str) -> Vec<Answer> {
    let mut host = Host::new(config);
    let requests = requests(&host, 40, 50);
    let answers = host.serve(requests);
    host.assert_idle();
    without_cache_hits(answers)
}

#[test]
fn answers_do_not_depend_on_depth_memory_chunks_or_failed_steps() {
    let truth = answers_of(r#"{"model": "mock:words", "pipeline_depth": 1, "enable_prefix_caching": false}"#);
    assert!(truth.iter().all(|a| a.completion_tokens == 50 && a.finish == Some(FinishReason::Length)));
    for config in [
        r#"{"model": "mock:words", "pipeline_depth": 2}"#,
        r#"{"model": "mock:words", "pipeline_depth": 3, "max_num_batched_tokens": 7}"#,
        r#"{"model": "mock:words", "pipeline_depth": 3, "kv_cache_bytes": 256, "block_size": 4}"#,
        r#"{"model": "mock:words,delay_us=100,fail_step=9", "pipeline_depth": 3}"#,
        r#"{"model": "mock:words,fail_step=0", "pipeline_depth": 2, "max_num_seqs": 3}"#,
    ] {
        assert_eq!(answers_of(config), truth, "{config}");
    }
}

/// Tokens and texts of the demo model.
fn demo_answers(ranks: usize, depth: usize) -> Vec<(Vec<Token>, String)> {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo_model");
    let config = format!(
        r#"{{"model": "{model}", "tensor_parallel_size": {ranks}, "pipeline_depth": {depth}, "max_num_seqs": 8,
            "kv_cache_bytes": 33554432, "threads": 2}}"#
    );
    let mut host = Host::new(&config);
    let requests = requests(&host, 6, 24);
    let answers = host.serve(requests);
    host.assert_idle();
    assert!(answers.iter().all(|a| a.finish == Some(FinishReason::Length)), "{answers:?}");
    answers.into_iter().map(|a| (a.tokens, a.text)).collect()
}

#[test]
fn a_model_on_two_ranks_answers_as_on_one() {
    let one = demo_answers(1, 2);
    assert_eq!(demo_answers(2, 2), one);
    assert_eq!(demo_answers(4, 1), one);
}

/// More tokens in a step than have room in front of a gate at a time.
#[test]
fn prompts_in_one_long_step_answer_as_in_short_ones() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo_model");
    let answers = |tokens: usize| {
        let mut host = Host::new(&format!(
            r#"{{"model": "{model}", "max_num_seqs": 16, "max_num_batched_tokens": {tokens}, "kv_cache_bytes": 67108864,
                "enable_prefix_caching": false, "threads": 2}}"#
        ));
        let of = |i: usize| host.request(&format!("{i}: {}", PROMPTS[1 + i % 2].repeat(20)), 8);
        let requests: Vec<_> = (0..10).map(of).collect();
        let answers = host.serve(requests);
        host.assert_idle();
        let steps = host.engine.stats().steps;
        let prompts = host.engine.stats().prompt_tokens;
        (answers.into_iter().map(|a| a.tokens).collect::<Vec<_>>(), steps, prompts)
    };
    let (long, short) = (answers(4096), answers(300));
    assert!(long.2 > 3000, "{} tokens of prompts", long.2);
    assert!(long.1 < short.1, "{} steps, and {} short ones", long.1, short.1);
    assert_eq!(long.0, short.0);
}

#[test]
fn a_full_cache_preempts_and_finishes_all() {
    let mut host = Host::new(r#"{"model": "mock:words", "kv_cache_bytes": 256, "block_size": 4}"#);
    let requests = requests(&host, 40, 50);
    let answers = host.serve(requests);
    assert!(answers.iter().all(|a| a.completion_tokens == 50), "{answers:?}");
    assert!(host.engine.stats().preempted > 0);
    host.assert_idle();
}

#[test]
fn stop_tokens_and_stop_texts_end_requests_and_are_not_text() {
    let mut host = Host::new(r#"{"model": "mock:words"}"#);
    let plain = host.request("tell me", 200);
    let whole = host.serve(vec![plain.clone()]).remove(0);
    let (cut, space) = (whole.text.find(' ').expect("the mock model makes spaces"), Token::from(b' '));
    let stopped = host.serve(vec![Submission { stop_tokens: vec![space], ..plain.clone() }]).remove(0);
    assert_eq!((stopped.finish, stopped.text.as_str()), (Some(FinishReason::Stop), &whole.text[..cut]));
    assert_eq!(stopped.tokens, whole.tokens[..=cut], "the stop token is reported");

    let at = whole.text.len() / 2;
    let stop = whole.text[at..at + 5].to_owned();
    let at = whole.text.find(&stop).unwrap();
    let stopped = host.serve(vec![Submission { stop_texts: vec!["\u{0}".into(), stop], ..plain.clone() }]).remove(0);
    assert_eq!((stopped.finish, stopped.text.as_str()), (Some(FinishReason::Stop), &whole.text[..at]));
    assert_eq!(stopped.tokens, whole.tokens[..at + 5], "tokens behind a stop text are dropped");

    // A stop text that never comes holds nothing back in the end.
    let near = format!("{}#", &whole.text[whole.text.len() - 3..]);
    let unstopped = host.serve(vec![Submission { stop_texts: vec![near], ..plain }]).remove(0);
    assert_eq!((unstopped.finish, &unstopped.text), (Some(FinishReason::Length), &whole.text));
    host.assert_idle();
}

#[test]
fn late_and_cancelled_requests_end_while_others_go_on() {
    let mut host =
        Host::new(r#"{"model": "mock:words,delay_us=2000", "max_num_seqs": 2, "default_timeout_ms": 60000}"#);
    let late = host.submit(Submission { timeout_ms: 30, ..host.request("late", 1 << 14) });
    let cancelled = host.submit(host.request("cancelled", 1 << 14));
    // Behind two that would run for half a minute.
    let late_waiting = host.submit(Submission { timeout_ms: 15, ..host.request("late too", 5) });
    let cancelled_waiting = host.submit(host.request("cancelled too", 5));
    let fine = host.submit(host.request("fine", 5));
    host.engine.cancel(cancelled_waiting);
    host.read(2);
    host.engine.cancel(cancelled);
    host.engine.cancel(cancelled);
    host.read(5);
    let finish = |id| host.reader.answers[&id].finish.unwrap();
    assert_eq!([finish(late), finish(late_waiting)], [FinishReason::Deadline; 2]);
    assert_eq!([finish(cancelled), finish(cancelled_waiting)], [FinishReason::Cancelled; 2]);
    assert_eq!(finish(fine), FinishReason::Length);
    host.assert_idle();
}

#[test]
fn more_than_may_wait_are_refused_and_counted() {
    let mut host = Host::new(r#"{"model": "mock:words,delay_us=3000", "max_num_seqs": 1, "max_waiting": 4}"#);
    let results: Vec<_> = (0..12).map(|_| host.engine.submit(host.request("hello", 20))).collect();
    let refused = results.iter().filter_map(|r| r.as_ref().err()).collect::<Vec<_>>();
    assert!(
        refused.len() >= 7 && refused.iter().all(|e| e.kind == ErrorKind::Busy && e.message.contains("max_waiting"))
    );
    assert_eq!(host.engine.stats().rejected, refused.len() as u64);
    host.read(12 - refused.len());
    host.submit(host.request("again", 1));
    host.read(13 - refused.len());
    host.assert_idle();
}

#[test]
fn an_unread_request_is_overrun_and_hurts_nobody() {
    let mut host = Host::new(r#"{"model": "mock:words", "max_unread_bytes": 4096}"#);
    let unread = host.submit(host.request("long", 8000));
    let end = Instant::now() + Duration::from_secs(20);
    while host.engine.stats().finished == 0 {
        assert!(Instant::now() < end, "not overrun: {:?}", host.engine.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    host.read(1);
    let answer = &host.reader.answers[&unread];
    assert_eq!(answer.finish, Some(FinishReason::Overrun));
    assert!(answer.text.len() * 5 <= 4096 + 5 && answer.text.len() * 5 > 2048, "{}", answer.text.len());
    let request = host.request("short", 10);
    assert_eq!(host.serve(vec![request])[0].finish, Some(FinishReason::Length));
    host.assert_idle();
}

/// A fault that no step can be run after: every request ends with its cause, the engine is freed at once, the host lives.
pub(crate) fn assert_fails(config: &str, kind: ErrorKind, says: &str) {
    let mut host = Host::new(config);
    let own = std::sync::Arc::clone(&host.queue);
    for request in requests(&host, 8, 1000) {
        // Some may come after the failure already.
        let _ = host.engine.submit(request);
    }
    let end = Instant::now() + Duration::from_secs(20);
    while host.engine.stats().state != State::Failed {
        assert!(Instant::now() < end, "{config} did not fail");
        std::thread::sleep(Duration::from_millis(1));
    }
    let refused = host.engine.submit(host.request("late", 1)).unwrap_err();
    assert!(refused.kind == kind && refused.message.contains(says), "{refused}");
    assert!(host.engine.info()["error"].as_str().unwrap().contains(says));
    let from = Instant::now();
    host.engine.close();
    assert!(from.elapsed() < Duration::from_secs(5), "{config}: close took {:?}", from.elapsed());
    while own.poll(Some(Duration::from_secs(20)), &mut host.reader).is_ok() {}
    assert!(host.reader.done > 0);
    for answer in host.reader.answers.values() {
        assert_eq!((answer.finish, answer.error), (Some(FinishReason::Error), Some(kind)), "{config}");
        assert!(answer.cause.contains(says), "{config}: {:?}", answer.cause);
    }
    let (state, _, error) = *host.reader.states.last().unwrap();
    assert_eq!((state, error), (State::Failed, Some(kind)));
    let s = host.engine.stats();
    assert_eq!((s.waiting, s.running, s.blocks_free), (0, 0, s.blocks_total), "{config}");
}

#[test]
fn a_panic_or_a_hang_of_the_device_fails_the_engine_not_the_host() {
    assert_fails(r#"{"model": "mock:words,panic_step=5"}"#, ErrorKind::Internal, "told to panic");
    assert_fails(r#"{"model": "mock:words,hang_step=5", "watchdog_ms": 50}"#, ErrorKind::Device, "watchdog_ms");
}

#[test]
fn a_panic_in_the_text_work_of_a_request_ends_it_alone() {
    let mut host = Host::new(r#"{"model": "mock:words,panic_byte=113"}"#);
    let prompts = ["q is in the prompt", "no such letter", "none here", "nor here"];
    let answers = host.serve(prompts.iter().map(|p| host.request(p, 100)).collect());
    assert_eq!((answers[0].completion_tokens, answers[0].error), (0, Some(ErrorKind::Internal)));
    for (answer, prompt) in answers.iter().zip(prompts).skip(1) {
        // One letter in 26 is a q.
        assert_eq!((answer.finish, answer.error), (Some(FinishReason::Error), Some(ErrorKind::Internal)), "{prompt}");
        assert!(!answer.text.contains('q') && answer.completion_tokens > 0, "{answer:?}");
    }
    let request = Submission {
        output: OutputMode { text: false, tokens: true, logprobs: false, prompt_logprobs: false, final_only: false },
        ..host.request("bytes", 100)
    };
    assert_eq!(host.serve(vec![request])[0].finish, Some(FinishReason::Length));
    host.assert_idle();
}

#[test]
fn loading_takes_requests_and_a_failed_load_ends_them() {
    let mut host = Host::new(r#"{"model": "mock:words", "async_load": true}"#);
    let request = host.request("early", 5);
    assert_eq!(host.serve(vec![request])[0].completion_tokens, 5);
    // The first answer may be there before the news.
    while host.reader.states.last().is_none_or(|s| s.0 == State::Loading) {
        host.queue.poll(Some(Duration::from_secs(20)), &mut host.reader).unwrap();
    }
    assert_eq!(host.reader.states.last().map(|s| (s.0, s.1)), Some((State::Ready, 1000)));

    let mut host = Host::new(r#"{"model": "/no/such/model", "async_load": true}"#);
    // Before the load has failed it is taken and ends with the cause, after that it is refused with it.
    match host.engine.submit(Submission { prompt: Prompt::Tokens(vec![1]), ..host.request("", 5) }) {
        Ok(id) => {
            host.read(1);
            assert_eq!(host.reader.answers[&id].error, Some(ErrorKind::NotFound));
        }
        Err(e) => assert_eq!(e.kind, ErrorKind::NotFound),
    }
    while host.reader.states.last().is_none_or(|s| s.0 != State::Failed) {
        host.queue.poll(Some(Duration::from_secs(20)), &mut host.reader).unwrap();
    }
    assert_eq!(host.reader.states.last().unwrap().2, Some(ErrorKind::NotFound));
}

#[test]
fn a_panic_while_loading_fails_the_engine() {
    let mut host = Host::new(r#"{"model": "mock:words,load_ms=50,panic_load=1", "async_load": true}"#);
    let early = host.submit(host.request("early", 5));
    host.read(1);
    let answer = &host.reader.answers[&early];
    assert_eq!((answer.finish, answer.error), (Some(FinishReason::Error), Some(ErrorKind::Internal)));
    assert!(answer.cause.contains("told to panic while it loads"), "{}", answer.cause);
    assert_eq!(host.engine.stats().state, State::Failed);
    assert_eq!(host.engine.submit(host.request("late", 5)).unwrap_err().kind, ErrorKind::Internal);
    let config = EngineConfig::from_json(br#"{"model": "mock:words,panic_load=1"}"#).unwrap();
    let e = Engine::start(config, EventQueue::new(None), Arc::new(MonotonicClock::starting_at(0))).unwrap_err();
    assert!(e.kind == ErrorKind::Internal && e.message.contains("loading panicked"), "{e}");
}

#[test]
fn requests_end_and_the_load_is_cancelled_while_the_model_loads() {
    let mut host = Host::new(r#"{"model": "mock:words,load_ms=60000", "async_load": true}"#);
    let cancelled = host.submit(host.request("cancelled", 5));
    let late = host.submit(Submission { timeout_ms: 20, ..host.request("late", 5) });
    let patient = host.submit(host.request("patient", 5));
    host.engine.cancel(cancelled);
    host.read(2);
    assert_eq!(host.reader.answers[&cancelled].finish, Some(FinishReason::Cancelled));
    assert_eq!(host.reader.answers[&late].finish, Some(FinishReason::Deadline));
    assert!(host.reader.states.iter().all(|s| s.0 == State::Loading && s.1 < 1000));
    let from = Instant::now();
    host.engine.close();
    assert!(from.elapsed() < Duration::from_secs(5), "close waited for the load");
    host.read(3);
    assert_eq!(host.reader.answers[&patient].finish, Some(FinishReason::Cancelled));
}

#[test]
fn choices_share_the_prompt_and_end_one_by_one() {
    let mut host = Host::new(r#"{"model": "mock:words", "block_size": 4}"#);
    let prompt = "a prompt that is long enough to fill some blocks";
    let one = host.request(prompt, 30);
    let alone = host.serve(vec![one.clone()]).remove(0);
    let planned = host.engine.stats();
    let many = Submission { n: 5, ..one.clone() };
    let answer = host.serve(vec![many]).remove(0);
    assert_eq!(answer.choices.len(), 5);
    assert_eq!((answer.choices[0].text.as_str(), answer.finish), (alone.text.as_str(), Some(FinishReason::Length)));
    assert!(answer.choices.iter().all(|c| c.tokens.len() == 30 && c.finish == Some(FinishReason::Length)));
    let texts: std::collections::HashSet<_> = answer.choices.iter().map(|c| &c.text).collect();
    assert_eq!((texts.len(), answer.completion_tokens), (5, 150));
    let stats = host.engine.stats();
    assert_eq!(stats.prompt_tokens - planned.prompt_tokens, prompt.len() as u64);
    assert!(stats.prefix_hit_tokens - planned.prefix_hit_tokens >= 5 * (prompt.len() as u64 / 4 - 1) * 4);

    // A stop text ends one choice; a cancel ends all.
    let stop = answer.choices[3].text[10..14].to_owned();
    let stopped = host.serve(vec![Submission { n: 5, stop_texts: vec![stop.clone()], ..one.clone() }]).remove(0);
    assert_eq!(stopped.choices[3].finish, Some(FinishReason::Stop));
    assert!(!stopped.choices[3].text.contains(&stop) && stopped.choices[3].text.len() <= 10);
    assert_eq!(stopped.choices.iter().filter(|c| c.finish == Some(FinishReason::Length)).count(), 4);
    let id = host.submit(Submission { n: 3, ..host.request("for ever", 1 << 14) });
    host.engine.cancel(id);
    host.read(4);
    assert_eq!(host.reader.answers[&id].finish, Some(FinishReason::Cancelled));
    assert_eq!(host.engine.submit(Submission { n: 0, ..one.clone() }).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(host.engine.submit(Submission { n: 129, ..one }).unwrap_err().kind, ErrorKind::Invalid);
    host.assert_idle();
}

/// The value of a metric's line that has `part` in it.
fn metric(text: &str, name: &str, part: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(&format!("{name}{{")) && l.contains(part));
    let line = line.unwrap_or_else(|| panic!("no {name} with {part} in:\n{text}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn metrics_count_what_happened() {
    let mut host =
        Host::new(r#"{"model": "mock:words,delay_us=1000", "served_model_name": "a \"b\"", "block_size": 4}"#);
    let requests = requests(&host, 12, 20);
    host.serve(requests);
    let bad = Submission { prompt: Prompt::Tokens(vec![9999]), ..host.request("", 5) };
    host.serve(vec![bad]);
    host.assert_idle();
    let text = host.engine.metrics();
    assert!(text.contains(r#"model_name="a \"b\"""#), "{text}");
    assert_eq!(metric(&text, "vllm:generation_tokens_total", ""), 240.0);
    assert_eq!(metric(&text, "vllm:request_success_total", "\"length\""), 12.0);
    assert_eq!(metric(&text, "vllm:request_success_total", "\"error\""), 1.0);
    assert_eq!(metric(&text, "vllm:cache_config_info", "block_size=\"4\""), 1.0);
    assert_eq!(metric(&text, "yinian:engine_info", "numeric_mode=\"invariant\""), 1.0);
    assert_eq!(metric(&text, "vllm:kv_cache_usage_perc", ""), 0.0);
    for (name, count) in [
        ("vllm:request_queue_time_seconds", 12.0),
        ("vllm:time_to_first_token_seconds", 12.0),
        ("vllm:inter_token_latency_seconds", 12.0 * 19.0),
        ("vllm:e2e_request_latency_seconds", 13.0),
    ] {
        assert_eq!(metric(&text, &format!("{name}_count"), ""), count, "{name}");
        assert_eq!(metric(&text, &format!("{name}_bucket"), "+Inf"), count, "{name}");
        assert_eq!(text.matches(&format!("# TYPE {name} histogram")).count(), 1);
    }
    // Every step takes a millisecond at least, and a request's twenty tokens come one by one.
    assert!(metric(&text, "vllm:e2e_request_latency_seconds_sum", "") >= 12.0 * 0.020);
    assert!(metric(&text, "vllm:inter_token_latency_seconds_sum", "") >= 12.0 * 0.018);
    let steps = metric(&text, "yinian:steps_total", "");
    assert_eq!(metric(&text, "vllm:iteration_tokens_total_count", ""), steps);
    for part in ["plan", "launch", "fold"] {
        assert_eq!(metric(&text, &format!("yinian:step_{part}_seconds_count"), ""), steps);
    }
    assert!(metric(&text, "vllm:prefix_cache_queries_total", "") >= metric(&text, "vllm:prefix_cache_hits_total", ""));
    let samples = text.lines().filter(|l| !l.starts_with('#'));
    for line in samples {
        let value = line.rsplit_once(' ').map(|(_, v)| v.parse::<f64>());
        assert!(line.contains("{model_name=") && matches!(value, Some(Ok(_))), "{line}");
    }
}

#[test]
fn a_request_is_counted_before_its_end_can_be_read() {
    let mut host = Host::new(r#"{"model": "mock:words"}"#);
    for n in 1..=20_000 {
        let request = host.request("one", 1);
        host.serve(vec![request]);
        let stats = host.engine.stats();
        assert_eq!((stats.finished, stats.waiting), (n, 0));
    }
}

#[test]
fn drain_refuses_new_requests_and_waits_for_old_ones() {
    let mut host = Host::new(r#"{"model": "mock:words,delay_us=1000"}"#);
    for request in requests(&host, 4, 100) {
        host.submit(request);
    }
    assert_eq!(host.engine.drain(Some(Duration::from_millis(1))).unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(host.engine.submit(host.request("new", 1)).unwrap_err().kind, ErrorKind::Shutdown);
    host.engine.drain(None).unwrap();
    assert_eq!(host.engine.stats().finished, 4);
    host.read(4);
    assert!(host.reader.answers.values().all(|a| a.completion_tokens == 100));
    assert_eq!(host.reader.states.last().map(|s| s.0), Some(State::Draining));
}

#[test]
fn closing_during_traffic_ends_every_accepted_request() {
    for round in 0..20 {
        let mut host = Host::new(r#"{"model": "mock:words,delay_us=200"}"#);
        let accepted = std::thread::scope(|scope| {
            let submitters: Vec<_> = (0..3)
                .map(|_| {
                    let host = &host;
                    scope.spawn(move || {
                        (0..200).take_while(|_| host.engine.submit(host.request("hello", 500)).is_ok()).count()
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_micros(300 * round));
            host.engine.close();
            submitters.into_iter().map(|s| s.join().unwrap()).sum::<usize>()
        });
        while host.queue.poll(Some(Duration::from_secs(20)), &mut host.reader).is_ok() {}
        assert_eq!(host.reader.done, accepted, "round {round}");
        assert!(host.reader.answers.values().all(|a| a.finish == Some(FinishReason::Cancelled)));
    }
}
