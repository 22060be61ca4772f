//! Prometheus text exposition. Names that routers already read keep their conventional form; ours begin with `yinian:`.

use crate::engine::Stats;
use std::fmt::Write;

/// The metrics of one engine, labelled with its model's name.
pub(crate) fn prometheus(stats: &Stats, model_name: &str) -> String {
    let label = model_name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let used = stats.blocks_total - stats.blocks_free.min(stats.blocks_total);
    let usage = used as f64 / stats.blocks_total.max(1) as f64;
    let mut out = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a String cannot fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{model_name=\"{label}\"}} {value}\n");
    };
    metric("vllm:num_requests_running", "gauge", "Requests in the running batch.", stats.running as f64);
    metric("vllm:num_requests_waiting", "gauge", "Accepted requests that do not run yet.", stats.waiting as f64);
    metric("vllm:kv_cache_usage_perc", "gauge", "Share of KV blocks in use, 0 to 1.", usage);
    metric("vllm:num_preemptions_total", "counter", "Preemptions.", stats.preempted as f64);
    metric("vllm:prompt_tokens_total", "counter", "Prompt tokens accepted.", stats.prompt_tokens as f64);
    metric("vllm:generation_tokens_total", "counter", "Tokens generated.", stats.completion_tokens as f64);
    metric(
        "vllm:prefix_cache_hits_total",
        "counter",
        "Prompt tokens found in the prefix cache.",
        stats.prefix_hit_tokens as f64,
    );
    metric("yinian:requests_finished_total", "counter", "Requests that ended, however.", stats.finished as f64);
    metric("yinian:requests_rejected_total", "counter", "Submissions answered BUSY.", stats.rejected as f64);
    metric("yinian:kv_blocks", "gauge", "KV blocks in all.", stats.blocks_total as f64);
    metric("yinian:steps_total", "counter", "Steps run.", stats.steps as f64);
    out
}
