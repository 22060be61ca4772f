//! Prometheus text exposition. Names that routers and dashboards already read keep their conventional form; ours begin
//! with `yinian:`.

use crate::base::metrics::Histogram;
use crate::engine::Stats;
use crate::engine::shared::Counters;
use crate::plan::FinishReason;
use std::fmt::{Display, Write};

const MS: u64 = 1_000_000;
/// Nanoseconds.
const LATENCIES: &[u64] = &[
    MS / 2,
    MS,
    2 * MS,
    5 * MS,
    10 * MS,
    25 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    1000 * MS,
    2500 * MS,
    5000 * MS,
    10_000 * MS,
    30_000 * MS,
    60_000 * MS,
    120_000 * MS,
];
const US: u64 = 1000;
/// Nanoseconds.
const HOST_TIMES: &[u64] = &[
    US,
    2 * US,
    5 * US,
    10 * US,
    15 * US,
    20 * US,
    25 * US,
    30 * US,
    40 * US,
    50 * US,
    75 * US,
    100 * US,
    150 * US,
    200 * US,
    300 * US,
    500 * US,
    1000 * US,
    2000 * US,
    5000 * US,
    10_000 * US,
];
const STEP_TOKENS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384];

/// Distributions since creation.
#[derive(Debug)]
pub(crate) struct Histograms {
    /// From submit to the first admission, in ns.
    pub(crate) queue: Histogram,
    /// From submit to the first token, in ns.
    pub(crate) first_token: Histogram,
    /// Between two tokens of a request, in ns.
    pub(crate) inter_token: Histogram,
    /// From submit to the end, in ns.
    pub(crate) end_to_end: Histogram,
    /// Tokens run by a step.
    pub(crate) step_tokens: Histogram,
    /// The engine thread's work to plan and submit a step, in ns.
    pub(crate) step_plan: Histogram,
    /// The worker's work to launch it, in ns.
    pub(crate) step_launch: Histogram,
    /// The engine thread's work to fold back what it came to, in ns.
    pub(crate) step_fold: Histogram,
}

impl Histograms {
    pub(crate) fn new() -> Self {
        let latency = || Histogram::new(LATENCIES);
        Self {
            queue: latency(),
            first_token: latency(),
            inter_token: latency(),
            end_to_end: latency(),
            step_tokens: Histogram::new(STEP_TOKENS),
            step_plan: Histogram::new(HOST_TIMES),
            step_launch: Histogram::new(HOST_TIMES),
            step_fold: Histogram::new(HOST_TIMES),
        }
    }
}

/// What is not counted but known.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) stats: Stats,
    /// Tokens per block and whether prefixes are cached; while loading unknown.
    pub(crate) kv: Option<(u32, bool)>,
    /// The mode the device computes in; while loading unknown.
    pub(crate) numeric_mode: Option<String>,
    pub(crate) model_name: String,
}

/// Text in the making. Writing to a String cannot fail.
struct Page {
    out: String,
    /// The model's name, escaped.
    model: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.out, "{name}{{model_name=\"{}\"{labels}}} {value}", self.model);
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    /// `unit` units of the histogram make one of the metric.
    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram, unit: f64) {
        self.head(name, "histogram", help);
        let (counts, sum) = histogram.read();
        let mut total = 0;
        for (bound, count) in counts {
            let bound = bound.map_or("+Inf".to_owned(), |b| (b as f64 / unit).to_string());
            self.line(&format!("{name}_bucket"), &format!(",le=\"{bound}\""), count);
            total = count;
        }
        self.line(&format!("{name}_sum"), "", sum as f64 / unit);
        self.line(&format!("{name}_count"), "", total);
    }
}

/// The metrics of one engine, labelled with its model's name.
pub(crate) fn prometheus(facts: &Facts, counters: &Counters, histograms: &Histograms) -> String {
    let model = facts.model_name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut page = Page { out: String::new(), model };
    if let Some(mode) = &facts.numeric_mode {
        let name = "yinian:engine_info";
        page.head(name, "gauge", "What the engine is.");
        let version = env!("CARGO_PKG_VERSION");
        page.line(name, &format!(",version=\"{version}\",numeric_mode=\"{mode}\""), 1);
    }
    requests(&mut page, &facts.stats, counters);
    cache(&mut page, facts, counters);
    let seconds = 1e9;
    let h = histograms;
    page.histogram("vllm:request_queue_time_seconds", "From submit to the start.", &h.queue, seconds);
    page.histogram("vllm:time_to_first_token_seconds", "From submit to the first token.", &h.first_token, seconds);
    page.histogram("vllm:inter_token_latency_seconds", "Between two tokens of a request.", &h.inter_token, seconds);
    page.histogram("vllm:e2e_request_latency_seconds", "From submit to the end.", &h.end_to_end, seconds);
    page.histogram("vllm:iteration_tokens_total", "Tokens run by a step.", &h.step_tokens, 1.0);
    page.histogram("yinian:step_plan_seconds", "Host work to plan a step.", &h.step_plan, seconds);
    page.histogram(
        "yinian:step_launch_seconds",
        "Host work to launch a step; on the CPU the step itself.",
        &h.step_launch,
        seconds,
    );
    page.histogram("yinian:step_fold_seconds", "Host work to take in what a step came to.", &h.step_fold, seconds);
    page.out
}

fn requests(page: &mut Page, s: &Stats, counters: &Counters) {
    page.one("vllm:num_requests_running", "gauge", "Requests in the running batch.", s.running);
    page.one("vllm:num_requests_waiting", "gauge", "Accepted requests that do not run yet.", s.waiting);
    page.one("vllm:num_preemptions_total", "counter", "Preemptions.", s.preempted);
    page.one("vllm:prompt_tokens_total", "counter", "Prompt tokens accepted.", s.prompt_tokens);
    page.one("vllm:generation_tokens_total", "counter", "Tokens generated.", s.completion_tokens);
    let name = "vllm:request_success_total";
    page.head(name, "counter", "Requests that ended, by how.");
    for (reason, count) in FinishReason::ALL.into_iter().zip(&counters.ends) {
        page.line(name, &format!(",finished_reason=\"{}\"", reason.name()), count.get());
    }
    page.one("yinian:requests_finished_total", "counter", "Requests that ended, however.", s.finished);
    page.one("yinian:requests_rejected_total", "counter", "Submissions answered BUSY.", s.rejected);
    page.one("yinian:steps_total", "counter", "Steps run.", s.steps);
    page.one(
        "yinian:failed_steps_total",
        "counter",
        "Steps that failed and were run again.",
        counters.failed_steps.get(),
    );
}

fn cache(page: &mut Page, facts: &Facts, counters: &Counters) {
    let s = &facts.stats;
    let used = s.blocks_total - s.blocks_free.min(s.blocks_total);
    let usage = used as f64 / s.blocks_total.max(1) as f64;
    page.one("vllm:kv_cache_usage_perc", "gauge", "Share of KV blocks in use, 0 to 1.", usage);
    let lookups = counters.prefix_lookup_tokens.get();
    page.one("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", lookups);
    page.one("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found there.", s.prefix_hit_tokens);
    if let Some((block_size, prefix_caching)) = facts.kv {
        let name = "vllm:cache_config_info";
        page.head(name, "gauge", "How the KV cache is cut.");
        let labels = format!(
            ",block_size=\"{block_size}\",num_gpu_blocks=\"{}\",enable_prefix_caching=\"{prefix_caching}\"",
            s.blocks_total
        );
        page.line(name, &labels, 1);
    }
    page.one("yinian:kv_blocks", "gauge", "KV blocks in all.", s.blocks_total);
    page.one(
        "yinian:kv_blocks_cached",
        "gauge",
        "Blocks the prefix cache could hand out.",
        counters.blocks_cached.get(),
    );
    page.one(
        "yinian:recomputed_tokens_total",
        "counter",
        "Tokens run again after preemptions and failures.",
        counters.lost_tokens.get(),
    );
}
