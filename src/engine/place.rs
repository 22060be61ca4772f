//! The place of an accepted request: whatever becomes of its choices, exactly one Done goes out.

use crate::base::{Error, ErrorKind, SeqId, Token};
use crate::engine::queue::{Done, OutputStream, Overrun, Piece};
use crate::engine::shared::{Command, Live, Shared};
use crate::plan::{FinishReason, Logprob};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the choices have come to so far.
#[derive(Debug)]
struct Sums {
    /// Taken by the last choice.
    stream: Option<OutputStream>,
    /// Choices that have not ended.
    open: u32,
    finish: Option<FinishReason>,
    error: Option<Error>,
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
    t_first_ns: u64,
}

#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    live: Arc<Live>,
    /// Never held while another lock but the queue's is taken.
    sums: Mutex<Sums>,
}

/// One choice's share of its request's place. Dropping it ends the choice.
#[derive(Debug)]
pub(crate) struct Seat {
    place: Arc<Place>,
    choice: u32,
    ended: bool,
}

/// The seats of a request: one per choice.
pub(crate) fn seats(stream: OutputStream, shared: &Arc<Shared>, live: &Arc<Live>) -> Vec<Seat> {
    let sums = Sums {
        stream: Some(stream),
        open: live.choices(),
        finish: None,
        error: None,
        prompt_tokens: 0,
        cached_tokens: 0,
        completion_tokens: 0,
        t_first_ns: 0,
    };
    let place = Arc::new(Place { shared: Arc::clone(shared), live: Arc::clone(live), sums: Mutex::new(sums) });
    (0..live.choices()).map(|choice| Seat { place: Arc::clone(&place), choice, ended: false }).collect()
}

impl Place {
    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_choice(&self, choice: u32, reason: FinishReason, error: Option<Error>) {
        let t_event_ns = self.shared.clock.now_ns();
        let mut sums = self.sums();
        sums.open -= 1;
        // What ends a request from outside, or breaks it, says more than how another choice came to its end.
        if sums.finish.is_none_or(|finish| weight(reason) > weight(finish)) {
            sums.finish = Some(reason);
            sums.error = error;
        }
        if sums.open > 0 {
            if let Some(stream) = &sums.stream {
                stream.finish(choice, reason, t_event_ns);
            }
            return;
        }
        let Some(stream) = sums.stream.take() else { return };
        if self.live.choices() > 1 {
            stream.finish(choice, reason, t_event_ns);
        }
        let (finish, error) = (sums.finish.unwrap_or(reason), sums.error.take());
        let (prompt_tokens, cached_tokens) = (sums.prompt_tokens, sums.cached_tokens);
        let (completion_tokens, t_first_ns) = (sums.completion_tokens, sums.t_first_ns);
        drop(sums);
        self.record(finish, error.as_ref(), (prompt_tokens, completion_tokens), t_event_ns);
        self.shared.ends(&self.live);
        stream.done(Done { finish, error, prompt_tokens, cached_tokens, completion_tokens, t_first_ns, t_event_ns });
        self.shared.ended(&self.live);
    }

    /// Log line and metrics of a request's end.
    fn record(&self, finish: FinishReason, error: Option<&Error>, (prompt, output): (u32, u32), t_ns: u64) {
        let Shared { histograms, counters, log, .. } = &*self.shared;
        histograms.end_to_end.observe(t_ns.saturating_sub(self.live.t_submit_ns));
        if let Some(i) = FinishReason::ALL.iter().position(|r| *r == finish) {
            counters.ends[i].add(1);
        }
        let id = self.live.id.0;
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

/// Of several choices' ends the heaviest is the request's; of equal ones the first.
fn weight(reason: FinishReason) -> u32 {
    match reason {
        FinishReason::Eos | FinishReason::Stop | FinishReason::Length => 0,
        FinishReason::Cancelled => 1,
        FinishReason::Deadline => 2,
        FinishReason::Overrun => 3,
        FinishReason::Error => 4,
    }
}

impl Seat {
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.place.live
    }

    pub(crate) fn choice(&self) -> u32 {
        self.choice
    }

    pub(crate) fn seq(&self) -> SeqId {
        self.place.live.seq(self.choice)
    }

    /// Said once per request.
    pub(crate) fn set_prompt_tokens(&self, n: usize) {
        self.place.sums().prompt_tokens = u32::try_from(n).unwrap_or(u32::MAX);
        self.place.shared.counters.prompt_tokens.add(n as u64);
    }

    /// The request's cached tokens are those of its first choice: the others find what that one has computed.
    pub(crate) fn started(&self, cached_tokens: u32, t_ns: u64) {
        if self.choice == 0 {
            self.place.sums().cached_tokens = cached_tokens;
            self.place.shared.histograms.queue.observe(t_ns.saturating_sub(self.live().t_submit_ns));
        }
    }

    /// `t_last_ns` is when the choice's token before this one landed, 0 for its first.
    pub(crate) fn count_token(&self, t_ns: u64, t_last_ns: u64) {
        let Shared { histograms, counters, .. } = &*self.place.shared;
        counters.completion_tokens.add(1);
        let mut sums = self.place.sums();
        sums.completion_tokens += 1;
        if sums.t_first_ns == 0 {
            sums.t_first_ns = t_ns;
            histograms.first_token.observe(t_ns.saturating_sub(self.live().t_submit_ns));
        }
        if t_last_ns != 0 {
            histograms.inter_token.observe(t_ns.saturating_sub(t_last_ns));
        }
    }

    pub(crate) fn push(&self, piece: &Piece<'_>) -> Result<(), Overrun> {
        match &self.place.sums().stream {
            Some(stream) => stream.push(self.choice, piece),
            None => Ok(()),
        }
    }

    /// Reports the next tokens of the prompt.
    pub(crate) fn push_prompt(&self, tokens: &[Token], logprobs: &[Logprob], t_event_ns: u64) {
        if let Some(stream) = &self.place.sums().stream {
            stream.push_prompt(tokens, logprobs, t_event_ns);
        }
    }

    /// The sequence shall end; for reasons that end the whole request all of its choices shall.
    pub(crate) fn tell_scheduler(&self, reason: FinishReason) {
        let whole = weight(reason) > 0;
        for choice in if whole { 0..self.live().choices() } else { self.choice..self.choice + 1 } {
            self.place.shared.send(Command::End(self.live().seq(choice), reason));
        }
    }

    /// One more of its tokens has become text.
    pub(crate) fn detokenized(&self) {
        self.live().detokenized[self.choice as usize].fetch_add(1, Ordering::Release);
    }

    pub(crate) fn end(mut self, reason: FinishReason, error: Option<Error>) {
        self.ended = true;
        self.place.end_choice(self.choice, reason, error);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.ended {
            let lost = Error::internal("the request was lost by the engine; this is a bug");
            self.place.end_choice(self.choice, FinishReason::Error, Some(lost));
        }
    }
}
