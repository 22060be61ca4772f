//! How long decoding sequences wait while a long prompt is computed beside them: 64 sequences decode, then a prompt of 32 768
//! tokens comes; the gaps between their tokens before it, until its first token, and after. The bar: of all gaps while the
//! prompt is computed, the 99th percentile is at most twice the median before it.
//!
//! `cargo bench --bench latency -- [--device cuda] [--config JSON] [--seqs 64] [--prompt 32768] [--before-ms 2000] [tiny]`

mod host;

use host::{Arguments, Host, tokens};
use serde_json::json;
use std::time::{Duration, Instant};
use yinian::base::rng::SplitMix64;
use yinian::engine::Engine;
use yinian::engine::queue::{Record, RecordSink, Taken};

/// Tokens of a decoding sequence's prompt.
const SHORT: usize = 256;
/// Tokens one may generate; more than it can in the time.
const OUTPUT: usize = 8000;
/// Of the prompt's output: its first token is what counts.
const LONG_OUTPUT: usize = 4;

/// Times at which tokens reach the host.
struct Reader {
    /// Of each decoding sequence's last token.
    last: Vec<Option<Instant>>,
    gaps: Vec<Duration>,
    /// Tokens that came together with one before them.
    merged: usize,
    /// When the long prompt's first token came; its `user_data` is the number of sequences.
    first: Option<Instant>,
    done: usize,
}

impl RecordSink for Reader {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        let now = Instant::now();
        match record {
            Record::Output(o) => {
                match self.last.get_mut(o.info.user_data as usize) {
                    Some(last) => {
                        self.gaps.extend(last.replace(now).map(|last| now - last));
                        self.merged += o.tokens.len().saturating_sub(1);
                    }
                    None => drop(self.first.get_or_insert(now)),
                }
                return Some(Taken { tokens: o.tokens.len(), text: o.text.len() });
            }
            Record::Done { done, .. } => {
                assert!(done.error.is_none(), "{:?}", done.error);
                self.done += 1;
            }
            _ => {}
        }
        Some(Taken { tokens: 0, text: 0 })
    }
}

impl Reader {
    fn read(&mut self, host: &Host, until: impl Fn(&Self) -> bool) {
        while !until(self) {
            // A poll that finds nothing in time says so.
            let _ = host.queue.poll(Some(Duration::from_millis(50)), self);
        }
    }

    /// Sorted gaps since the last call, in ms.
    fn take_gaps(&mut self) -> Vec<f64> {
        let mut gaps: Vec<f64> = self.gaps.drain(..).map(|g| 1e3 * g.as_secs_f64()).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn print_gaps(what: &str, sorted: &[f64], (steps, merged): (u64, usize)) {
    println!(
        "{what:<7} {:>7} gaps: p50 {:>7.2} p90 {:>7.2} p99 {:>7.2} max {:>7.2} ms; {steps} steps, {merged} tokens not alone",
        sorted.len(),
        percentile(sorted, 50),
        percentile(sorted, 90),
        percentile(sorted, 99),
        percentile(sorted, 100),
    );
}

fn main() {
    let arguments = Arguments::read();
    let shape = arguments.names.first().map_or("s8", String::as_str);
    let (seqs, prompt) = (arguments.number("seqs", 64), arguments.number("prompt", 32_768));
    let before = Duration::from_millis(arguments.number("before-ms", 2000) as u64);
    let max_model_len = (prompt + LONG_OUTPUT).max(SHORT + OUTPUT);
    let keys = json!({"max_num_seqs": seqs + 1, "max_num_batched_tokens": 1024, "max_model_len": max_model_len,
                      "max_unread_bytes": 1 << 30, "enable_prefix_caching": false});
    let host = Host::start(shape, 131_072, keys, &arguments);
    println!("max_decode_slowdown {}", host.engine.info()["max_decode_slowdown"]);
    let mut rng = SplitMix64(3);
    let mut reader = Reader { last: vec![None; seqs], gaps: vec![], merged: 0, first: None, done: 0 };
    for i in 0..seqs {
        host.engine
            .submit(host.request(i as u64, tokens(&mut rng, SHORT, host.vocab), OUTPUT as u32))
            .expect("a place");
    }
    reader.read(&host, |r| r.last.iter().all(Option::is_some));
    // Some steps more, so that the prompts' chunks are behind.
    let settled = Instant::now() + before / 8;
    reader.read(&host, |_| Instant::now() >= settled);
    let times = host.times();
    let mut phase = Phase::begin(&mut reader, &host.engine);
    let until = Instant::now() + before;
    reader.read(&host, |_| Instant::now() >= until);
    let quiet = phase.end("before", &mut reader, &host.engine);
    let submitted = Instant::now();
    host.engine
        .submit(host.request(seqs as u64, tokens(&mut rng, prompt, host.vocab), LONG_OUTPUT as u32))
        .expect("a place");
    reader.read(&host, |r| r.first.is_some());
    let first = reader.first.expect("it has come");
    let during = phase.end("during", &mut reader, &host.engine);
    let until = Instant::now() + before / 4;
    reader.read(&host, |_| Instant::now() >= until);
    phase.end("after", &mut reader, &host.engine);
    assert!(reader.done <= 1, "sequences ended before the long prompt was computed: raise OUTPUT");
    let ratio = percentile(&during, 99) / percentile(&quiet, 50);
    println!(
        "{shape}: a prompt of {prompt} tokens among {seqs} decoding sequences: p99 during / p50 before {ratio:.2} ({} 2), \
         max {:.2}; time to first token {:.0} ms",
        if ratio <= 2.0 { "within" } else { "ABOVE" },
        percentile(&during, 100) / percentile(&quiet, 50),
        1e3 * (first - submitted).as_secs_f64(),
    );
    host.times().print_since(&times);
    host.engine.close();
}

/// A stretch of time whose gaps count together.
struct Phase {
    steps: u64,
}

impl Phase {
    fn begin(reader: &mut Reader, engine: &Engine) -> Self {
        reader.take_gaps();
        reader.merged = 0;
        Self { steps: engine.stats().steps }
    }

    /// Its sorted gaps; the next one begins.
    fn end(&mut self, what: &str, reader: &mut Reader, engine: &Engine) -> Vec<f64> {
        let (gaps, steps) = (reader.take_gaps(), engine.stats().steps);
        print_gaps(what, &gaps, (steps - self.steps, std::mem::take(&mut reader.merged)));
        self.steps = steps;
        gaps
    }
}
