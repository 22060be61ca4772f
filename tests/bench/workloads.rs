//! Whole workloads on the engine with random weights of published shapes: all requests handed in at once, greedy, exact
//! output lengths, wall time from the first submit to the last DONE.
//!
//! `cargo bench --bench workloads -- [--device cuda] [--seqs 512] [--tokens 8192] [--runs 1] [--config JSON]
//! [WORKLOAD ...]` names workloads by their beginning (`s8`, `s8-b32`); without names all run. Of several runs, each with prompts
//! of its own, the one with the median rate is told, and the rates of all. `limit` and `vllm` are output tokens per
//! second (of `s8-prefill` input tokens) on one NVIDIA H200: perfect kernels one after another at 4.3 TB/s and 790 TFLOP/s,
//! and vLLM 0.26.0 measured on the same kind of machine.

mod host;
mod shapes;

use host::{Arguments, Host};
use serde_json::json;
use shapes::{WORKLOADS, Workload, fixed};
use std::time::{Duration, Instant};
use yinian::engine::queue::{Record, RecordSink, Taken};
use yinian::plan::FinishReason;

/// Counts what comes.
#[derive(Default)]
struct Reader {
    done: usize,
    tokens: usize,
    first_ns: Vec<u64>,
}

impl RecordSink for Reader {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        match record {
            Record::Output(o) => {
                self.tokens += o.tokens.len();
                Some(Taken { tokens: o.tokens.len(), text: o.text.len() })
            }
            Record::Done { info, done } => {
                assert_eq!(done.finish, FinishReason::Length, "{:?}", done.error);
                self.first_ns.push(done.t_first_ns - info.t_submit_ns);
                self.done += 1;
                Some(Taken { tokens: 0, text: 0 })
            }
            _ => Some(Taken { tokens: 0, text: 0 }),
        }
    }
}

/// Seconds, output tokens, and times to first token.
fn run(host: &Host, prompts: Vec<(Vec<u32>, u32)>) -> (f64, usize, Vec<u64>) {
    let requests: Vec<_> = prompts.into_iter().map(|(prompt, output)| host.request(0, prompt, output)).collect();
    let (n, from) = (requests.len(), Instant::now());
    for request in requests {
        host.engine.submit(request).expect("a place");
    }
    let mut reader = Reader::default();
    while reader.done < n {
        host.queue.poll(Some(Duration::from_secs(60)), &mut reader).expect("events");
    }
    reader.first_ns.sort_unstable();
    (from.elapsed().as_secs_f64(), reader.tokens, reader.first_ns)
}

/// One run of a workload.
struct Outcome {
    rate: f64,
    seconds: f64,
    ms_of_step: f64,
    first_ms: f64,
}

fn once(host: &Host, w: &Workload, seed: u64) -> Outcome {
    let prompts = w.prompts(seed, host.vocab);
    let inputs: usize = prompts.iter().map(|p| p.0.len()).sum();
    let steps = host.engine.stats().steps;
    let (seconds, outputs, first) = run(host, prompts);
    let steps = host.engine.stats().steps - steps;
    Outcome {
        rate: if w.counts_prompts() { inputs } else { outputs } as f64 / seconds,
        seconds,
        ms_of_step: 1e3 * seconds / steps.max(1) as f64,
        first_ms: first[first.len() / 2] as f64 / 1e6,
    }
}

fn measure(host: &Host, w: &Workload, runs: usize) {
    // Warms up; other tokens, so that nothing of the measured prompts is cached.
    let few = Workload { requests: w.requests.min(4), ..fixed(w.name, 4, (100, 8, 0), (0.0, 0.0)) };
    run(host, few.prompts(1, host.vocab));
    let times = host.times();
    let mut all: Vec<Outcome> = (0..runs).map(|i| once(host, w, 2 + i as u64)).collect();
    all.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let Outcome { rate, seconds, ms_of_step, first_ms } = all[all.len() / 2];
    print!(
        "{:<11} {:>10.0} {:>10.0} {rate:>10.0} {:>6.1}% {:>7.2}x {seconds:>7.2} s {ms_of_step:>8.3} ms/step, first token {first_ms:.0} ms",
        w.name,
        w.limit,
        w.vllm,
        100.0 * rate / w.limit,
        rate / w.vllm,
    );
    let rates: Vec<String> = all.iter().map(|outcome| format!("{:.0}", outcome.rate)).collect();
    println!("{}", if runs > 1 { format!(", of {}", rates.join(" ")) } else { String::new() });
    host.times().print_since(&times);
}

fn start(shape: &str, arguments: &Arguments) -> Host {
    let (seqs, tokens) = (arguments.number("seqs", 512), arguments.number("tokens", 8192));
    let keys = json!({"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "max_waiting": 8192,
                      "max_unread_bytes": 1 << 30});
    Host::start(shape, 16_384, keys, arguments)
}

fn main() {
    let arguments = Arguments::read();
    let names = &arguments.names;
    if names.iter().any(|n| n == "tiny") {
        let tiny = Workload { shape: "tiny", ..fixed("s8-tiny", 64, (40, 20, 0), (1.0, 1.0)) };
        let host = start("tiny", &arguments);
        return measure(&host, &tiny, arguments.number("runs", 1));
    }
    println!("{:<11} {:>10} {:>10} {:>10} {:>7} {:>8}", "workload", "limit", "vllm", "ours", "limit", "vllm");
    for shape in ["s8", "s7", "s13", "s05", "s13v300k"] {
        let chosen: Vec<_> = WORKLOADS.iter().filter(|w| w.shape == shape && w.is_one_of(names)).collect();
        if !chosen.is_empty() {
            let host = start(shape, &arguments);
            chosen.into_iter().for_each(|w| measure(&host, w, arguments.number("runs", 1).max(1)));
        }
    }
}
