//! The numeric mode a config asks for, and the one the device computes in.

use super::host::Host;
use std::sync::Arc;
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::base::{Error, ErrorKind, Token};
use yinian::engine::{Engine, EventQueue, plan_memory};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo_model");

fn config(model: &str, mode: &str) -> String {
    format!(
        r#"{{"model": "{model}", "numeric_mode": "{mode}", "max_num_seqs": 4, "kv_cache_bytes": 8388608, "threads": 2}}"#
    )
}

fn refused(config: &str) -> Error {
    let config = EngineConfig::from_json(config.as_bytes()).unwrap();
    Engine::start(config, EventQueue::new(None), Arc::new(MonotonicClock::starting_at(0))).unwrap_err()
}

#[test]
fn the_mode_computed_in_is_reported_wherever_one_looks() {
    let mut tokens: Vec<Vec<Token>> = Vec::new();
    for mode in ["fast", "invariant"] {
        let config = config(DEMO, mode);
        let plan = plan_memory(&EngineConfig::from_json(config.as_bytes()).unwrap()).unwrap();
        assert_eq!(plan["numeric_mode"], "invariant", "{mode}: {plan}");
        let mut host = Host::new(&config);
        let info = host.engine.info();
        assert_eq!(info["numeric_mode"], "invariant", "{mode}: {info}");
        assert_eq!(info["device"]["invariant"], true, "{info}");
        let metrics = host.engine.metrics();
        assert!(metrics.contains("yinian:engine_info{") && metrics.contains("numeric_mode=\"invariant\""), "{metrics}");
        let request = host.request("one and one is", 12);
        tokens.push(host.serve(vec![request]).remove(0).tokens);
    }
    assert!(tokens[0].len() == 12 && tokens[0] == tokens[1], "{tokens:?}");
}

#[test]
fn a_mode_that_the_device_does_not_keep_is_refused() {
    for model in [DEMO, "mock:words"] {
        let e = refused(&config(model, "aligned"));
        assert_eq!(e.kind, ErrorKind::Unsupported, "{e}");
        assert!(e.message.contains("numeric_mode") && e.message.contains("aligned"), "{e}");
    }
    let e = plan_memory(&EngineConfig::from_json(config(DEMO, "aligned").as_bytes()).unwrap()).unwrap_err();
    assert!(e.kind == ErrorKind::Unsupported && e.message.contains("use \"invariant\""), "{e}");
    let e = EngineConfig::from_json(config(DEMO, "exact").as_bytes()).unwrap_err();
    assert!(e.kind == ErrorKind::Invalid && e.message.contains("fast | invariant | aligned"), "{e}");
}
