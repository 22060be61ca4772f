//! A request's place in an event queue: what is unread of each choice, and how it ended.

use crate::base::{Error, RequestId, Token};
use crate::engine::OutputMode;
use crate::engine::queue::{Cancel, EventQueue, Record, RecordSink};
use crate::plan::{FinishReason, Logprob};
use std::sync::{Arc, Weak};

/// The fixed facts of a stream.
#[derive(Debug)]
pub struct StreamInfo {
    pub id: RequestId,
    pub user_data: u64,
    pub output: OutputMode,
    /// At least 1.
    pub choices: u32,
    /// Unread bytes of one choice before the stream is overrun; what is reported of the prompt does not count. With
    /// `final_only` half of them are held back, then they can be read.
    pub max_unread_bytes: usize,
    pub t_submit_ns: u64,
}

/// The end of a request.
#[derive(Debug)]
pub struct Done {
    pub finish: FinishReason,
    /// With [`FinishReason::Error`]: why.
    pub error: Option<Error>,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    /// 0 when no token was made.
    pub t_first_ns: u64,
    pub t_event_ns: u64,
}

/// A stream whose host does not read: its request ends with Overrun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

/// What one step adds to a choice.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    pub tokens: &'a [Token],
    /// Whole code points.
    pub text: &'a str,
    /// As many for each token.
    pub logprobs: &'a [Logprob],
    /// When the choice's first token landed.
    pub t_first_ns: u64,
    pub t_event_ns: u64,
}

/// Unread output of a choice as a poller sees it.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    pub info: &'a StreamInfo,
    pub choice: u32,
    pub tokens: &'a [Token],
    pub text: &'a str,
    /// As many for each of `tokens`.
    pub logprobs: &'a [Logprob],
    /// For each of `tokens`, where its text ends, in bytes of the choice's whole text.
    pub text_ends: &'a [u64],
    /// Bytes of the choice's text in front of `text`.
    pub text_from: u64,
    /// The choice's tokens so far, those that are not shown included.
    pub completion_tokens: u32,
    /// How the choice ended, when this is all that is left of it and it is not the request's only one.
    pub finish: Option<FinishReason>,
    pub t_first_ns: u64,
    pub t_event_ns: u64,
}

/// Unread tokens of the prompt as a poller sees them.
#[derive(Debug, Clone, Copy)]
pub struct PromptTokens<'a> {
    pub info: &'a StreamInfo,
    pub tokens: &'a [Token],
    /// As many for each of `tokens`.
    pub logprobs: &'a [Logprob],
    /// Tokens of the prompt in front of `tokens`.
    pub before: u32,
    pub t_event_ns: u64,
}

/// What is unread of the prompt.
#[derive(Debug, Default)]
pub(super) struct PromptPart {
    tokens: Vec<Token>,
    logprobs: Vec<Logprob>,
    /// Tokens that were read.
    read: u32,
    t_event_ns: u64,
}

impl PromptPart {
    /// Writes what is unread; false when the sink is full.
    pub(super) fn drain(&mut self, info: &StreamInfo, sink: &mut dyn RecordSink, wrote: &mut bool) -> bool {
        while !self.tokens.is_empty() {
            let per_token = self.logprobs.len() / self.tokens.len();
            let (tokens, logprobs) = (&self.tokens[..], &self.logprobs[..]);
            // The first token of a prompt has nothing to be probable after.
            let part = PromptTokens { info, tokens, logprobs, before: 1 + self.read, t_event_ns: self.t_event_ns };
            let Some(taken) = sink.write(&Record::Prompt(part)) else { return false };
            *wrote = true;
            self.tokens.drain(..taken.tokens);
            self.logprobs.drain(..taken.tokens * per_token);
            self.read += taken.tokens as u32;
        }
        true
    }
}

/// What is unread of one choice.
#[derive(Debug, Default)]
pub(super) struct Choice {
    tokens: Vec<Token>,
    text: String,
    logprobs: Vec<Logprob>,
    text_ends: Vec<u64>,
    text_from: u64,
    completion_tokens: u32,
    finish: Option<FinishReason>,
    t_first_ns: u64,
    t_event_ns: u64,
}

impl Choice {
    fn has_output(&self) -> bool {
        !self.tokens.is_empty() || !self.text.is_empty() || self.finish.is_some()
    }

    fn unread_bytes(&self) -> usize {
        size_of_val(&*self.tokens) + self.text.len() + size_of_val(&*self.logprobs) + size_of_val(&*self.text_ends)
    }

    /// Writes what is unread; false when the sink is full.
    pub(super) fn drain(
        &mut self,
        info: &StreamInfo,
        choice: u32,
        sink: &mut dyn RecordSink,
        wrote: &mut bool,
    ) -> bool {
        while self.has_output() {
            let per_token = self.logprobs.len() / self.tokens.len().max(1);
            let output = Output {
                info,
                choice,
                tokens: &self.tokens,
                text: &self.text,
                logprobs: &self.logprobs,
                text_ends: &self.text_ends,
                text_from: self.text_from,
                completion_tokens: self.completion_tokens,
                finish: self.finish,
                t_first_ns: self.t_first_ns,
                t_event_ns: self.t_event_ns,
            };
            let Some(taken) = sink.write(&Record::Output(output)) else { return false };
            *wrote = true;
            self.tokens.drain(..taken.tokens);
            self.logprobs.drain(..taken.tokens * per_token);
            self.text_ends.drain(..taken.tokens.min(self.text_ends.len()));
            self.text.drain(..taken.text);
            self.text_from += taken.text as u64;
            if self.tokens.is_empty() && self.text.is_empty() {
                self.finish = None;
            }
        }
        true
    }
}

/// A request in a queue.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) info: StreamInfo,
    pub(super) cancel: Weak<dyn Cancel>,
    pub(super) prompt: PromptPart,
    pub(super) choices: Vec<Choice>,
    pub(super) done: Option<Done>,
    /// In line to be read.
    pub(super) listed: bool,
}

impl Stream {
    pub(super) fn new(info: StreamInfo, cancel: Weak<dyn Cancel>) -> Self {
        let choices = (0..info.choices).map(|_| Choice::default()).collect();
        Self { info, cancel, prompt: PromptPart::default(), choices, done: None, listed: false }
    }

    /// Whether a poll shall see what is unread, `unread_bytes` of it in one part.
    fn shows(&self, unread_bytes: usize) -> bool {
        !self.info.output.final_only || unread_bytes > self.info.max_unread_bytes / 2
    }
}

/// What a request streams into: its place in a queue. Any thread may push; `done` comes once.
#[derive(Debug)]
pub struct OutputStream {
    queue: Arc<EventQueue>,
    key: u64,
    ended: bool,
}

impl OutputStream {
    pub(super) fn new(queue: Arc<EventQueue>, key: u64) -> Self {
        Self { queue, key, ended: false }
    }

    /// Appends to what is unread of the prompt.
    pub fn push_prompt(&self, tokens: &[Token], logprobs: &[Logprob], t_event_ns: u64) {
        let mut inner = self.queue.lock();
        let Some(stream) = inner.stream(self.key) else { return };
        stream.prompt.tokens.extend_from_slice(tokens);
        stream.prompt.logprobs.extend_from_slice(logprobs);
        stream.prompt.t_event_ns = t_event_ns;
        let unread_bytes = size_of_val(&*stream.prompt.tokens) + size_of_val(&*stream.prompt.logprobs);
        if stream.shows(unread_bytes) && inner.list(self.key) {
            self.queue.announce(&mut inner);
        }
    }

    /// Appends to a choice, merged with what is still unread of it.
    pub fn push(&self, choice: u32, piece: &Piece<'_>) -> Result<(), Overrun> {
        let mut inner = self.queue.lock();
        let Some(stream) = inner.stream(self.key) else { return Ok(()) };
        let (mode, most) = (stream.info.output, stream.info.max_unread_bytes);
        let Some(c) = stream.choices.get_mut(choice as usize) else { return Ok(()) };
        c.completion_tokens = c.completion_tokens.saturating_add(piece.tokens.len() as u32);
        let tokens = if mode.tokens || mode.logprobs { piece.tokens } else { &[] };
        let text = if mode.text { piece.text } else { "" };
        let logprobs = if mode.logprobs { piece.logprobs } else { &[] };
        let more = size_of_val(tokens) + text.len() + size_of_val(logprobs);
        if c.unread_bytes() + more > most {
            return Err(Overrun);
        }
        c.tokens.extend_from_slice(tokens);
        c.text.push_str(text);
        c.logprobs.extend_from_slice(logprobs);
        if mode.logprobs {
            let end = c.text_from + c.text.len() as u64;
            c.text_ends.extend(tokens.iter().map(|_| end));
        }
        (c.t_first_ns, c.t_event_ns) = (piece.t_first_ns, piece.t_event_ns);
        let (has_output, unread_bytes) = (c.has_output(), c.unread_bytes());
        if has_output && stream.shows(unread_bytes) && inner.list(self.key) {
            self.queue.announce(&mut inner);
        }
        Ok(())
    }

    /// One of several choices has ended: its last record says how.
    pub fn finish(&self, choice: u32, reason: FinishReason, t_event_ns: u64) {
        let mut inner = self.queue.lock();
        let Some(stream) = inner.stream(self.key) else { return };
        let Some(c) = stream.choices.get_mut(choice as usize) else { return };
        c.finish = Some(reason);
        c.t_event_ns = t_event_ns;
        if stream.shows(0) && inner.list(self.key) {
            self.queue.announce(&mut inner);
        }
    }

    /// The last event of the request.
    pub fn done(mut self, done: Done) {
        self.end(done);
    }

    fn end(&mut self, done: Done) {
        self.ended = true;
        let mut inner = self.queue.lock();
        inner.end(self.key, done);
        if inner.list(self.key) {
            self.queue.announce(&mut inner);
        }
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Done {
                finish: FinishReason::Error,
                error: Some(Error::internal("the request was lost by the engine; this is a bug")),
                prompt_tokens: 0,
                cached_tokens: 0,
                completion_tokens: 0,
                t_first_ns: 0,
                t_event_ns: 0,
            });
        }
    }
}
