//! What a step takes from the heap, all threads together, where no text is made: a few buffers, however many sequences decode. Beside
//! them a count holds what grows now and then with each sequence's length.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::engine::queue::{Record, RecordSink, Taken};
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, Submission};

/// The system's allocator, counting calls.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

const SEQS: usize = 256;
const TOKENS: u32 = 1000;
/// Calls a step, an eighth of one for each sequence.
const MOST: f64 = 32.0;

/// Reads everything and counts ends.
#[derive(Default)]
struct Reader {
    done: usize,
}

impl RecordSink for Reader {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        match record {
            Record::Output(o) => return Some(Taken { tokens: o.tokens.len(), text: o.text.len() }),
            Record::Done { .. } => self.done += 1,
            _ => {}
        }
        Some(Taken { tokens: 0, text: 0 })
    }
}

/// Calls a step between the steps 100 and 900.
fn calls() -> f64 {
    let config = format!(r#"{{"model": "mock:words,delay_us=100", "max_num_seqs": {SEQS}}}"#);
    let config = EngineConfig::from_json(config.as_bytes()).unwrap();
    let queue = EventQueue::new(None);
    let engine = Engine::start(config, Arc::clone(&queue), Arc::new(MonotonicClock::starting_at(0))).unwrap();
    for i in 0..SEQS as u32 {
        let prompt = Prompt::Tokens((0..20 + i % 16).map(|j| 97 + (i * 7 + j) % 26).collect());
        let output =
            OutputMode { text: false, tokens: true, logprobs: false, prompt_logprobs: false, final_only: false };
        engine.submit(Submission::exactly(TOKENS, prompt, output, Arc::clone(&queue))).unwrap();
    }
    let (mut reader, mut seen) = (Reader::default(), Vec::new());
    while reader.done < SEQS {
        queue.poll(None, &mut reader).unwrap();
        let steps = engine.stats().steps;
        if (100..900).contains(&steps) {
            seen.push((steps, CALLS.load(Relaxed)));
        }
    }
    let (first, last) = (seen[0], seen[seen.len() - 1]);
    assert!(last.0 - first.0 > 400, "from step {} to {}", first.0, last.0);
    (last.1 - first.1) as f64 / (last.0 - first.0) as f64
}

#[test]
fn a_step_takes_few_buffers_however_many_decode() {
    let calls = calls();
    println!("{calls:.1} calls of the allocator a step");
    assert!(calls < MOST, "{calls} calls of the allocator a step of {SEQS} sequences");
}
