//! Output threads: tokens to text, stop strings, events into the host's queues. A request is served by one of them.

use crate::base::error::panic_text;
use crate::base::hash::NumberMap;
use crate::base::{Error, SeqId, Token};
use crate::engine::place::Seat;
use crate::engine::queue::Piece;
use crate::engine::shared::Shared;
use crate::plan::{FinishReason, Logprob};
use crate::sched::Event;
use crate::text::{Detokenizer, StopMatcher};
use crossbeam_channel::Receiver;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Generated tokens by which a sequence with stop strings may be ahead of its detokenizer.
pub(crate) const STOP_LEAD: u32 = 8;

/// What an output thread is told. The order per sequence is the order of events.
#[derive(Debug)]
pub(crate) enum OutputMsg {
    Open(SeqId, Box<Writer>),
    Step {
        t_ns: u64,
        events: Vec<Event>,
    },
    /// The engine has failed: every request opened so far ends.
    Fail(Error),
}

/// One choice on its way from tokens to events.
#[derive(Debug)]
pub(crate) struct Writer {
    seat: Seat,
    /// Absent when the host reads tokens only and gave no stop texts.
    text: Option<(Detokenizer, StopMatcher)>,
    has_stop_texts: bool,
    /// Ids that end the sequence: reported, but not part of the text.
    end_tokens: Vec<Token>,
    /// Decided here (stop text, overrun, broken text); what the scheduler still sends is dropped.
    ended: Option<(FinishReason, Option<Error>)>,
    delta: String,
    t_first_ns: u64,
    t_last_ns: u64,
}

impl Writer {
    pub(crate) fn new(seat: Seat, text: Option<(Detokenizer, StopMatcher)>, end_tokens: Vec<Token>) -> Self {
        let has_stop_texts = text.as_ref().is_some_and(|(_, stops)| !stops.is_empty());
        let (ended, delta) = (None, String::new());
        Self { seat, text, has_stop_texts, end_tokens, ended, delta, t_first_ns: 0, t_last_ns: 0 }
    }

    fn token(&mut self, token: Token, logprobs: &[Logprob], t_ns: u64) {
        if self.ended.is_some() {
            return;
        }
        self.seat.count_token(t_ns, self.t_last_ns);
        if self.t_first_ns == 0 {
            self.t_first_ns = t_ns;
        }
        self.t_last_ns = t_ns;
        let mut hit = false;
        self.delta.clear();
        if let Some((detokenizer, stops)) = &mut self.text
            && !self.end_tokens.contains(&token)
        {
            let mut fresh = String::new();
            if let Err(e) = detokenizer.push(token, &mut fresh) {
                return self.end(FinishReason::Error, Some(e));
            }
            hit = stops.push(&fresh, &mut self.delta).is_some();
        }
        self.flush(&[token], logprobs, t_ns);
        if hit {
            self.end(FinishReason::Stop, None);
        }
    }

    fn flush(&mut self, tokens: &[Token], logprobs: &[Logprob], t_event_ns: u64) {
        let piece = Piece { tokens, text: &self.delta, logprobs, t_first_ns: self.t_first_ns, t_event_ns };
        if self.seat.push(&piece).is_err() {
            self.end(FinishReason::Overrun, None);
        }
    }

    /// Ends the choice from this side: the scheduler is told, and the end waits for its answer.
    fn end(&mut self, reason: FinishReason, error: Option<Error>) {
        if self.ended.is_none() {
            self.ended = Some((reason, error));
            self.seat.tell_scheduler(reason);
        }
    }

    fn finish(mut self, reason: FinishReason, error: Option<Error>, t_ns: u64) {
        if self.ended.is_none() {
            self.delta.clear();
            if let Some((detokenizer, stops)) = &mut self.text {
                let mut fresh = String::new();
                detokenizer.finish(&mut fresh);
                if stops.push(&fresh, &mut self.delta).is_none() {
                    stops.finish(&mut self.delta);
                }
            }
            if !self.delta.is_empty() {
                self.flush(&[], &[], t_ns);
            }
        }
        let (reason, error) = self.ended.take().unwrap_or((reason, error));
        self.seat.end(reason, error);
    }
}

/// The body of an output thread; returns when all senders are gone.
pub(crate) fn run(inbox: &Receiver<OutputMsg>, shared: &Shared) {
    let mut writers = NumberMap::default();
    while let Ok(message) = inbox.recv() {
        match message {
            OutputMsg::Open(seq, writer) => {
                writers.insert(seq, writer);
            }
            OutputMsg::Fail(error) => {
                for (_, writer) in writers.drain() {
                    writer.seat.end(FinishReason::Error, Some(error.clone()));
                }
            }
            OutputMsg::Step { t_ns, events } => {
                let mut gated = false;
                for event in events {
                    gated |= serve(&mut writers, event, t_ns);
                }
                if gated {
                    shared.signal.notify();
                }
            }
        }
    }
}

/// Hands one event to its writer; true when the engine thread may be holding the sequence back. A panic ends this
/// request alone.
fn serve(writers: &mut NumberMap<SeqId, Box<Writer>>, event: Event, t_ns: u64) -> bool {
    let seq = event.seq();
    let Some(writer) = writers.get_mut(&seq) else { return false };
    match event {
        Event::Started { cached_tokens, .. } => writer.seat.started(cached_tokens, t_ns),
        Event::Prompt { tokens, logprobs, .. } => {
            if writer.ended.is_none() {
                writer.seat.push_prompt(&tokens, &logprobs, t_ns);
            }
        }
        Event::Token { token, logprobs, .. } => {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| writer.token(token, &logprobs, t_ns))) {
                let e = Error::internal(format!("detokenizing token {token} panicked: {}", panic_text(&*payload)));
                writer.text = None;
                writer.end(FinishReason::Error, Some(e));
            }
            writer.seat.detokenized();
        }
        Event::Finished { reason, error, .. } => {
            if let Some(writer) = writers.remove(&seq) {
                // The writer's seat ends even when this panics.
                let _ = catch_unwind(AssertUnwindSafe(|| writer.finish(reason, error, t_ns)));
            }
            return false;
        }
    }
    writer.has_stop_texts
}
