//! A host in Rust: an engine on the mock model, its queue, and what came out of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use yinian::base::clock::MonotonicClock;
use yinian::base::config::EngineConfig;
use yinian::base::{ErrorKind, RequestId, Result, Token};
use yinian::engine::queue::{EngineEvent, Record, RecordSink, Taken};
use yinian::engine::{Engine, EventQueue, OutputMode, Prompt, State, Submission};
use yinian::plan::{FinishReason, Logprob};

/// One of several choices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<FinishReason>,
}

/// What one request came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    /// When there are several.
    pub(crate) choices: Vec<Choice>,
    /// Reported tokens of the prompt.
    pub(crate) prompt: Vec<Token>,
    pub(crate) prompt_logprobs: Vec<Logprob>,
    pub(crate) logprobs: Vec<Logprob>,
    pub(crate) text_ends: Vec<u64>,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<FinishReason>,
    pub(crate) error: Option<ErrorKind>,
    pub(crate) cause: String,
    pub(crate) cached_tokens: u32,
    pub(crate) completion_tokens: u32,
}

/// Everything read so far.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) answers: HashMap<RequestId, Answer>,
    /// State, permille, kind of error.
    pub(crate) states: Vec<(State, u32, Option<ErrorKind>)>,
    pub(crate) done: usize,
}

impl RecordSink for Reader {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        let mut taken = Taken { tokens: 0, text: 0 };
        match record {
            Record::Prompt(p) => {
                let answer = self.answers.entry(p.info.id).or_default();
                assert_eq!(answer.prompt.len() + 1, p.before as usize, "the prompt has a hole");
                assert!(answer.finish.is_none() && answer.tokens.is_empty() || p.info.choices > 1);
                answer.prompt.extend_from_slice(p.tokens);
                answer.prompt_logprobs.extend_from_slice(p.logprobs);
                taken.tokens = p.tokens.len();
            }
            Record::Output(o) => {
                let answer = self.answers.entry(o.info.id).or_default();
                assert_eq!(answer.finish, None, "output after Done");
                if o.info.choices > 1 {
                    answer.choices.resize(o.info.choices as usize, Choice::default());
                    let choice = &mut answer.choices[o.choice as usize];
                    assert_eq!(choice.finish, None, "output after a choice's finish");
                    choice.text.push_str(o.text);
                    choice.tokens.extend_from_slice(o.tokens);
                    choice.finish = o.finish;
                }
                answer.tokens.extend_from_slice(o.tokens);
                answer.text.push_str(o.text);
                answer.logprobs.extend_from_slice(o.logprobs);
                answer.text_ends.extend_from_slice(o.text_ends);
                taken = Taken { tokens: o.tokens.len(), text: o.text.len() };
            }
            Record::Done { info, done } => {
                let answer = self.answers.entry(info.id).or_default();
                assert_eq!(answer.finish, None, "a second Done");
                answer.finish = Some(done.finish);
                answer.error = done.error.as_ref().map(|e| e.kind);
                answer.cause = done.error.as_ref().map_or(String::new(), |e| e.message.clone());
                answer.cached_tokens = done.cached_tokens;
                answer.completion_tokens = done.completion_tokens;
                self.done += 1;
            }
            Record::Engine(EngineEvent { state, permille, error, .. }) => self.states.push((*state, *permille, *error)),
            Record::Log { .. } => {}
        }
        Some(taken)
    }
}

pub(crate) struct Host {
    pub(crate) engine: Arc<Engine>,
    pub(crate) queue: Arc<EventQueue>,
    pub(crate) reader: Reader,
}

impl Host {
    pub(crate) fn new(config: &str) -> Self {
        Self::start(EngineConfig::from_json(config.as_bytes()).unwrap()).unwrap()
    }

    pub(crate) fn start(config: EngineConfig) -> Result<Self> {
        let queue = EventQueue::new(None);
        let engine = Engine::start(config, Arc::clone(&queue), Arc::new(MonotonicClock::starting_at(0)))?;
        let stats = engine.stats();
        assert!(stats.state != State::Ready || stats.blocks_total > 0, "a ready engine has no blocks yet");
        Ok(Self { engine, queue, reader: Reader::default() })
    }

    /// A greedy request of text that runs to `max_tokens`.
    pub(crate) fn request(&self, prompt: &str, max_tokens: u32) -> Submission {
        Submission::exactly(
            max_tokens,
            Prompt::Text(prompt.to_owned()),
            OutputMode { text: true, tokens: true, logprobs: false, prompt_logprobs: false, final_only: false },
            Arc::clone(&self.queue),
        )
    }

    /// Reads until `n` requests have ended.
    pub(crate) fn read(&mut self, n: usize) {
        while self.reader.done < n {
            self.queue.poll(Some(Duration::from_secs(20)), &mut self.reader).expect("the engine answers");
        }
    }

    pub(crate) fn submit(&self, submission: Submission) -> RequestId {
        self.engine.submit(submission).unwrap()
    }

    /// Submits all, reads all; the answers in order.
    pub(crate) fn serve(&mut self, submissions: Vec<Submission>) -> Vec<Answer> {
        let n = self.reader.done + submissions.len();
        let ids: Vec<_> = submissions.into_iter().map(|s| self.submit(s)).collect();
        self.read(n);
        ids.iter().map(|id| self.reader.answers[id].clone()).collect()
    }

    /// All blocks are free and nothing is left.
    pub(crate) fn assert_idle(&self) {
        self.engine.drain(Some(Duration::from_secs(20))).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        loop {
            // The engine thread publishes its counters after the last Done may have been read.
            let s = self.engine.stats();
            if s.waiting + s.running == 0 && s.blocks_free == s.blocks_total {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "not idle: {s:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
