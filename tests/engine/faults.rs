//! Too little memory, when a model is loaded and in steps. `tests/device/faults.rs` runs the same on a GPU.

use super::host::{Answer, Host};
use std::sync::Arc;
use yinian::base::ErrorKind;
use yinian::base::config::EngineConfig;
use yinian::base::planted::Planted;
use yinian::engine::State;
use yinian::plan::FinishReason;

const PROMPTS: [&str; 3] = ["A fox", "The lantern was old and its light", "Once"];

/// The demo model on `device`, with `more` keys. Hits would change the shapes of later steps, and a GPU's last bits with them.
pub(crate) fn demo(device: &str, more: &str) -> EngineConfig {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let json = format!(
        r#"{{"model": "{root}/examples/demo_model", "device": "{device}", "max_num_seqs": 4, "kv_cache_bytes": 16777216,
            "threads": 2, "enable_prefix_caching": false{more}}}"#
    );
    EngineConfig::from_json(json.as_bytes()).unwrap()
}

/// What became of [`PROMPTS`], one after the other.
pub(crate) fn answers(host: &mut Host) -> Vec<Answer> {
    PROMPTS.iter().flat_map(|prompt| host.serve(vec![host.request(prompt, 40)])).collect()
}

/// Fails every allocation of a load in turn. Each is named and typed, and the load that follows is not the worse for it.
pub(crate) fn every_allocation_of_a_load_may_fail(device: &str) {
    let truth = answers(&mut Host::start(demo(device, "")).unwrap());
    let planted = Arc::new(Planted::default());
    let config = EngineConfig { planted: Some(Arc::clone(&planted)), ..demo(device, "") };
    let mut names = Vec::new();
    for nth in 1.. {
        planted.fail_allocation(nth);
        match Host::start(config.clone()) {
            Err(e) => {
                let name = e.message.split(": ").next().unwrap_or_default().to_owned();
                assert_eq!(e.kind, ErrorKind::NoMemory, "allocation {nth}: {e}");
                let bare = ["allocating ", "loading a", "making a", "opening a"];
                assert!(!bare.iter().any(|b| name.starts_with(b)), "allocation {nth} has no name: {e}");
                names.push(name);
            }
            Ok(mut host) => {
                planted.fail_allocation(0);
                assert!(answers(&mut host) == truth, "after {} failed loads", names.len());
                break;
            }
        }
    }
    let named = |what: &str| names.iter().filter(|name| name.contains(what)).count();
    for what in ["embed_tokens", "down_proj", "norm", "rope table", "KV blocks", "temporary tensors", "sampler rows"] {
        assert!(named(what) > 0, "no allocation is named {what:?}: {names:?}");
    }
    println!("{} allocations of a load failed one by one", names.len());
}

/// Steps that find no memory run again; when they never find any, their requests end with that, and the next one is served.
pub(crate) fn a_step_that_finds_no_memory_costs_at_most_its_requests(device: &str) {
    let truth = answers(&mut Host::start(demo(device, "")).unwrap());
    let planted = Arc::new(Planted::default());
    let mut host = Host::start(EngineConfig { planted: Some(Arc::clone(&planted)), ..demo(device, "") }).unwrap();
    for (prompt, truth) in PROMPTS.iter().zip(&truth) {
        let from = host.engine.stats().steps;
        planted.fail_work(1);
        let id = host.submit(host.request(prompt, 40));
        // In the prompt's step, and in the middle of what follows.
        for step in [10, 20] {
            while host.engine.stats().steps < from + step {
                std::thread::yield_now();
            }
            planted.fail_work(1);
        }
        let n = host.reader.done + 1;
        host.read(n);
        assert!(host.reader.answers[&id] == *truth, "{prompt:?} after failed steps: {:?}", host.reader.answers[&id]);
    }
    let failed = failed_steps(&host);
    assert!(failed >= PROMPTS.len() as f64, "{failed} steps failed");
    planted.fail_work(usize::MAX);
    for answer in answers(&mut host) {
        assert_eq!((answer.finish, answer.error), (Some(FinishReason::Error), Some(ErrorKind::NoMemory)));
        assert!(answer.cause.contains("out of memory"), "{}", answer.cause);
    }
    planted.fail_work(0);
    assert!(host.engine.stats().state == State::Ready && answers(&mut host) == truth);
    host.assert_idle();
    println!("{failed} steps without memory ran again");
}

fn failed_steps(host: &Host) -> f64 {
    let text = host.engine.metrics();
    let line = text.lines().find(|l| l.starts_with("yinian:failed_steps_total")).expect("the metric");
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn every_allocation_of_a_load_may_fail_on_the_cpu() {
    every_allocation_of_a_load_may_fail("cpu");
}

#[test]
fn a_step_that_finds_no_memory_costs_at_most_its_requests_on_the_cpu() {
    a_step_that_finds_no_memory_costs_at_most_its_requests("cpu");
}
