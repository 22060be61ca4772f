//! What `yn_plan_memory` says before loading against what an engine then holds on the heap, on one rank and on several.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use yinian::base::clock::MonotonicClock;
use yinian::base::config::{EngineConfig, Placement};
use yinian::engine::{Engine, EventQueue, plan_memory};

/// The system's allocator, counting what is live.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// Every allocation is smaller than those that are aligned to huge pages, and all rows fill the CPU's panels on eight ranks.
const MODEL: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 992, "hidden_size": 1024,
    "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 32, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "torch_dtype": "float32", "attention_bias": true,
    "mlp_bias": true, "tie_word_embeddings": false}"#;
/// Bytes of names, tables and threads of a rank that are no part of the plan.
const SLACK_BYTES: usize = 40 << 10;

/// Live bytes once no thread that starts or ends changes them any more.
fn settled() -> usize {
    let mut last = LIVE.load(Relaxed);
    let mut same = 0;
    for _ in 0..500 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let now = LIVE.load(Relaxed);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        if same == 10 {
            break;
        }
    }
    last
}

/// Bytes planned, and bytes found on the heap once the engine is ready.
fn planned_and_found(dir: &Path, ranks: usize) -> (usize, usize) {
    let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo_model");
    let config = format!(
        r#"{{"model": "{}", "tokenizer": "{tokenizer}", "load_format": "dummy", "tensor_parallel_size": {ranks},
            "device": "cpu", "threads": 1, "max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_cache_bytes": 1048576, "log_level": "off"}}"#,
        dir.display()
    );
    let config = EngineConfig::from_json(config.as_bytes()).unwrap();
    let plan = plan_memory(&config).unwrap();
    // Host and device are the same memory here, so a table on the host frees nothing.
    let host = EngineConfig { embedding_placement: Placement::Host, ..config.clone() };
    assert_eq!(plan_memory(&host).unwrap()["memory"], plan["memory"]);
    assert_eq!(plan["memory"]["host_embedding_bytes"], 0);
    println!("{ranks} ranks: {}", plan["memory"]);
    let before = settled();
    let engine = Engine::start(config, EventQueue::new(None), Arc::new(MonotonicClock::starting_at(0))).unwrap();
    let found = settled() - before;
    assert_eq!(engine.info()["memory"], plan["memory"]);
    (plan["memory"]["total_bytes"].as_u64().unwrap() as usize, found)
}

#[test]
fn the_plan_of_ranks_is_what_they_take() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), MODEL).unwrap();
    // What the first engine of a process leaves behind, whoever it is.
    planned_and_found(dir.path(), 1);
    // What does not depend on ranks: tokenizer, scheduler, queues.
    let (planned, found) = planned_and_found(dir.path(), 1);
    let rest = found - planned;
    println!("1 rank: {planned} planned, {found} found");
    for ranks in [2, 4, 8] {
        let (planned, found) = planned_and_found(dir.path(), ranks);
        println!("{ranks} ranks: {planned} planned, {found} found");
        let off = found.abs_diff(planned + rest);
        assert!(off <= (ranks - 1) * SLACK_BYTES, "{ranks} ranks: {found} found, {planned} planned and {rest} beside");
    }
}
