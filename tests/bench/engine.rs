//! What the host adds to a step, all threads included: 256 sequences on the mock model, whose steps take no time, then ones
//! that take as long as a small model's, during which threads sleep and caches grow cold.
//!
//! `cargo bench --bench engine`

#[allow(dead_code)]
mod host;

use host::HostTimes;
use std::sync::Arc;
use std::time::Instant;
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::engine::queue::{Record, RecordSink, Taken};
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission};

const SEQS: usize = 256;
const TOKENS: u32 = 2000;
/// Of steps that take time.
const DELAY_US: u32 = 2000;
const TOKENS_DELAYED: u32 = 1000;
const PROMPT: usize = 100;

/// Reads everything and counts ends.
#[derive(Default)]
struct Reader {
    done: usize,
    bytes: usize,
}

impl RecordSink for Reader {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        match record {
            Record::Output(o) => {
                self.bytes += o.text.len();
                Some(Taken { tokens: o.tokens.len(), text: o.text.len() })
            }
            Record::Done { .. } => {
                self.done += 1;
                Some(Taken { tokens: 0, text: 0 })
            }
            _ => Some(Taken { tokens: 0, text: 0 }),
        }
    }
}

fn main() {
    for (depth, text) in [(1, true), (2, true), (2, false), (3, true)] {
        run(depth, text, 0, TOKENS);
    }
    for (depth, text) in [(2, false), (2, true)] {
        run(depth, text, DELAY_US, TOKENS_DELAYED);
    }
}

/// All sequences at once, `output` tokens each, on steps of `delay_us`.
fn run(depth: usize, text: bool, delay_us: u32, output: u32) {
    let model = format!("mock:words,delay_us={delay_us}");
    let config = format!(r#"{{"model": "{model}", "pipeline_depth": {depth}, "max_num_seqs": {SEQS}}}"#);
    let config = EngineConfig::from_json(config.as_bytes()).expect("a config");
    let queue = EventQueue::new(None);
    let clock = Arc::new(MonotonicClock::starting_at(0));
    let engine = Engine::start(config, Arc::clone(&queue), clock).expect("an engine");
    let before = HostTimes::of(&engine);
    let start = Instant::now();
    for i in 0..SEQS {
        let submission = Submission {
            user_data: i as u64,
            ..Submission::exactly(
                output,
                Prompt::Tokens((0..PROMPT).map(|j| 97 + ((i * 7 + j) % 26) as u32).collect()),
                OutputMode { text, tokens: !text, logprobs: false, prompt_logprobs: false, final_only: false },
                Arc::clone(&queue),
            )
        };
        engine.submit(submission).expect("a place");
    }
    let mut reader = Reader::default();
    while reader.done < SEQS {
        queue.poll(None, &mut reader).expect("events");
    }
    let seconds = start.elapsed().as_secs_f64();
    let steps = engine.stats().steps;
    println!(
        "depth {depth}, {}, {delay_us} us of device: {:.1} us a step of {SEQS} sequences, {:.2} M tokens/s",
        if text { "text" } else { "tokens" },
        seconds / steps as f64 * 1e6,
        f64::from(output) * SEQS as f64 / seconds / 1e6,
    );
    HostTimes::of(&engine).print_since(&before);
}
