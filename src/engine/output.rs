//! Output threads: tokens to text, stop strings, events into the host's queues. A request is served by one of them.

use crate::base::error::panic_text;
use crate::base::{Error, ErrorKind, SeqId, Token};
use crate::engine::queue::{Done, OutputStream};
use crate::engine::shared::{Command, Live, Shared};
use crate::plan::FinishReason;
use crate::text::{Detokenizer, StopMatcher};
use crossbeam_channel::Receiver;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Generated tokens by which a sequence with stop strings may be ahead of its detokenizer.
pub(crate) const STOP_LEAD: u32 = 8;

/// What happened to a sequence in one step.
#[derive(Debug)]
pub(crate) enum Item {
    Started { cached_tokens: u32 },
    Token(Token),
    Finished { reason: FinishReason, error: Option<Error> },
}

/// What an output thread is told. The order per sequence is the order of events.
#[derive(Debug)]
pub(crate) enum OutputMsg {
    Open(SeqId, Box<Writer>),
    Step {
        t_ns: u64,
        items: Vec<(SeqId, Item)>,
    },
    /// The engine has failed: every request opened so far ends.
    Fail(Error),
}

/// The one owner of a request's place in its queue: whatever becomes of it, exactly one Done goes out.
#[derive(Debug)]
pub(crate) struct Place {
    stream: Option<OutputStream>,
    shared: Arc<Shared>,
    live: Arc<Live>,
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
    t_first_ns: u64,
}

impl Place {
    pub(crate) fn new(stream: OutputStream, shared: Arc<Shared>, live: Arc<Live>) -> Self {
        Self {
            stream: Some(stream),
            shared,
            live,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            t_first_ns: 0,
        }
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    pub(crate) fn set_prompt_tokens(&mut self, n: usize) {
        self.prompt_tokens = u32::try_from(n).unwrap_or(u32::MAX);
        self.shared.counters.prompt_tokens.add(n as u64);
    }

    pub(crate) fn end(mut self, finish: FinishReason, error: Option<Error>) {
        self.send_done(finish, error);
    }

    fn send_done(&mut self, finish: FinishReason, error: Option<Error>) {
        let Some(stream) = self.stream.take() else { return };
        let t_event_ns = self.shared.clock.now_ns();
        self.log(finish, error.as_ref());
        let Shared { histograms, counters, .. } = &*self.shared;
        histograms.end_to_end.observe(t_event_ns.saturating_sub(self.live.t_submit_ns));
        if let Some(i) = FinishReason::ALL.iter().position(|r| *r == finish) {
            counters.ends[i].add(1);
        }
        let (prompt_tokens, cached_tokens) = (self.prompt_tokens, self.cached_tokens);
        let (completion_tokens, t_first_ns) = (self.completion_tokens, self.t_first_ns);
        stream.done(Done { finish, error, prompt_tokens, cached_tokens, completion_tokens, t_first_ns, t_event_ns });
        self.shared.ended(&self.live);
    }
}

impl Place {
    fn log(&self, finish: FinishReason, error: Option<&Error>) {
        let (log, id) = (&self.shared.log, self.live.id.0);
        let (prompt, output) = (self.prompt_tokens, self.completion_tokens);
        match (finish, error) {
            (FinishReason::Overrun, _) => {
                log.warn(format_args!("request {id} ended: its output is not read (max_unread_bytes)"));
            }
            (_, Some(e)) if e.kind == ErrorKind::Internal => log.error(format_args!("request {id} failed: {e}")),
            (_, Some(e)) => log.debug(format_args!("request {id} refused or failed: {e}")),
            _ => log.debug(format_args!("request {id} ended ({finish:?}) after {prompt} + {output} tokens")),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.send_done(FinishReason::Error, Some(Error::internal("the request was lost by the engine; this is a bug")));
    }
}

/// One request on its way from tokens to events.
#[derive(Debug)]
pub(crate) struct Writer {
    place: Place,
    /// Absent when the host reads tokens only and gave no stop texts.
    text: Option<(Detokenizer, StopMatcher)>,
    has_stop_texts: bool,
    /// Ids that end the sequence: reported, but not part of the text.
    end_tokens: Vec<Token>,
    /// Decided here (stop text, overrun, broken text); what the scheduler still sends is dropped.
    ended: Option<(FinishReason, Option<Error>)>,
    delta: String,
    t_last_ns: u64,
}

impl Writer {
    pub(crate) fn new(place: Place, text: Option<(Detokenizer, StopMatcher)>, end_tokens: Vec<Token>) -> Self {
        let has_stop_texts = text.as_ref().is_some_and(|(_, stops)| !stops.is_empty());
        Self { place, text, has_stop_texts, end_tokens, ended: None, delta: String::new(), t_last_ns: 0 }
    }

    fn token(&mut self, token: Token, t_ns: u64) {
        if self.ended.is_some() {
            return;
        }
        let place = &mut self.place;
        let histograms = &place.shared.histograms;
        if place.t_first_ns == 0 {
            place.t_first_ns = t_ns;
            histograms.first_token.observe(t_ns.saturating_sub(place.live.t_submit_ns));
        } else {
            histograms.inter_token.observe(t_ns.saturating_sub(self.t_last_ns));
        }
        self.t_last_ns = t_ns;
        place.completion_tokens += 1;
        place.shared.counters.completion_tokens.add(1);
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
        self.flush(&[token], t_ns);
        if hit {
            self.end(FinishReason::Stop, None);
        }
    }

    fn flush(&mut self, tokens: &[Token], t_ns: u64) {
        let Some(stream) = &self.place.stream else { return };
        if stream.push(tokens, &self.delta, self.place.t_first_ns, t_ns).is_err() {
            self.end(FinishReason::Overrun, None);
        }
    }

    /// Ends the request from this side: the scheduler is told, and Done waits for its answer.
    fn end(&mut self, reason: FinishReason, error: Option<Error>) {
        if self.ended.is_none() {
            self.ended = Some((reason, error));
            self.place.shared.send(Command::End(self.place.live.seq, reason));
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
                self.flush(&[], t_ns);
            }
        }
        let (reason, error) = self.ended.take().unwrap_or((reason, error));
        self.place.end(reason, error);
    }
}

/// The body of an output thread; returns when all senders are gone.
pub(crate) fn run(inbox: &Receiver<OutputMsg>, shared: &Shared) {
    let mut writers: HashMap<SeqId, Box<Writer>> = HashMap::new();
    while let Ok(message) = inbox.recv() {
        match message {
            OutputMsg::Open(seq, writer) => {
                writers.insert(seq, writer);
            }
            OutputMsg::Fail(error) => {
                for (_, writer) in writers.drain() {
                    writer.place.end(FinishReason::Error, Some(error.clone()));
                }
            }
            OutputMsg::Step { t_ns, items } => {
                let mut gated = false;
                for (seq, item) in items {
                    gated |= serve(&mut writers, seq, item, t_ns);
                }
                if gated {
                    shared.signal.notify();
                }
            }
        }
    }
}

/// Hands one item to its writer; true when the engine thread may be holding the sequence back. A panic ends this
/// request alone.
fn serve(writers: &mut HashMap<SeqId, Box<Writer>>, seq: SeqId, item: Item, t_ns: u64) -> bool {
    let Some(writer) = writers.get_mut(&seq) else { return false };
    match item {
        Item::Started { cached_tokens } => {
            let place = &mut writer.place;
            place.cached_tokens = cached_tokens;
            place.shared.histograms.queue.observe(t_ns.saturating_sub(place.live.t_submit_ns));
        }
        Item::Token(token) => {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| writer.token(token, t_ns))) {
                let e = Error::internal(format!("detokenizing token {token} panicked: {}", panic_text(&*payload)));
                writer.text = None;
                writer.end(FinishReason::Error, Some(e));
            }
            writer.place.live.detokenized.fetch_add(1, Ordering::Release);
        }
        Item::Finished { reason, error } => {
            if let Some(writer) = writers.remove(&seq) {
                // The writer's Place sends Done even when this panics.
                let _ = catch_unwind(AssertUnwindSafe(|| writer.finish(reason, error, t_ns)));
            }
            return false;
        }
    }
    writer.has_stop_texts
}
