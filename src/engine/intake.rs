//! Intake threads: a submission becomes a request: template, tokens, lengths, stop criteria.

use crate::base::error::panic_text;
use crate::base::rng::mix;
use crate::base::{Error, ErrorKind, Result, Token};
use crate::engine::output::{OutputMsg, STOP_LEAD, Writer};
use crate::engine::place::Seat;
use crate::engine::shared::{Command, Live, Shared};
use crate::engine::submission::{OutputMode, Prompt, Submission};
use crate::plan::{FinishReason, Request, StopCriteria};
use crate::text::{Detokenizer, SpecialTokens, StopMatcher, TextModel};
use crossbeam_channel::{Receiver, Sender};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A submission with its place in the host's queue.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) submission: Submission,
    /// One per choice, at least one.
    pub(crate) seats: Vec<Seat>,
}

impl Job {
    pub(crate) fn live(&self) -> &Arc<Live> {
        self.seats[0].live()
    }

    pub(crate) fn end(self, reason: FinishReason, error: Option<&Error>) {
        self.seats.into_iter().for_each(|seat| seat.end(reason, error.cloned()));
    }
}

/// What requests are checked against.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) text: Arc<TextModel>,
    pub(crate) max_model_len: usize,
    pub(crate) vocab_size: usize,
    pub(crate) eos_tokens: Vec<Token>,
    /// Mixed with the sequence number for requests without a seed.
    pub(crate) seed: u64,
}

/// The body of an intake thread; returns when all senders of jobs are gone.
pub(crate) fn run(jobs: &Receiver<Job>, limits: &Limits, outputs: &[Sender<OutputMsg>], shared: &Shared) {
    while let Ok(job) = jobs.recv() {
        let live = Arc::clone(job.live());
        if let Some(reason) = live.over(shared.clock.now_ns()) {
            job.end(reason, None);
            continue;
        }
        let prepared = catch_unwind(AssertUnwindSafe(|| prepare(&job.submission, limits, &live)));
        let request = prepared.unwrap_or_else(|payload| {
            Err(Error::internal(format!("preparing the prompt panicked: {}", panic_text(&*payload))))
        });
        match request {
            Ok(request) => hand_on(job, &request, (limits, outputs, shared)),
            Err(e) => job.end(FinishReason::Error, Some(&e)),
        }
    }
}

/// Every choice is a sequence of its own; the prompt's blocks are computed once, by whichever starts first.
fn hand_on(job: Job, request: &Request, (limits, outputs, shared): (&Limits, &[Sender<OutputMsg>], &Shared)) {
    let Job { submission, seats } = job;
    seats[0].set_prompt_tokens(request.prompt().len());
    let OutputMode { text, .. } = submission.output;
    let wants_text = text || !submission.stop_texts.is_empty();
    for seat in seats {
        let (seq, live) = (seat.seq(), Arc::clone(seat.live()));
        let request = request.for_choice(seq, seat.choice());
        let text = wants_text.then(|| {
            let detokenizer = Detokenizer::new(Arc::clone(&limits.text.tokenizer), request.prompt());
            (detokenizer, StopMatcher::new(submission.stop_texts.clone()))
        });
        let writer = Box::new(Writer::new(seat, text, request.stop.end_tokens().collect()));
        let shard = &outputs[seq.0 as usize % outputs.len()];
        // The output threads outlive the intake threads; were it otherwise, the writer's seat would still end.
        if shard.send(OutputMsg::Open(seq, writer)).is_ok() {
            shared.send(Command::Add(Box::new(request), live));
        }
    }
}

fn prepare(submission: &Submission, limits: &Limits, live: &Live) -> Result<Request> {
    let prompt = tokenize(submission, limits)?;
    if prompt.len() >= limits.max_model_len {
        return Err(Error::invalid(format!(
            "the prompt has {} tokens; at most {} fit, because max_model_len {} includes at least one output token",
            prompt.len(),
            limits.max_model_len - 1,
            limits.max_model_len
        )));
    }
    let room = limits.max_model_len - prompt.len();
    let max_tokens = submission.max_tokens.unwrap_or(room as u32);
    let eos = if submission.ignore_eos { vec![] } else { limits.eos_tokens.clone() };
    check_ids("stop_tokens", &submission.stop_tokens, limits.vocab_size)?;
    let stop = StopCriteria::new(max_tokens, submission.min_tokens, eos, submission.stop_tokens.clone())?;
    let seed = submission.seed.unwrap_or_else(|| mix(limits.seed, live.first_seq.0));
    let biased: Vec<_> = submission.sampling.logit_bias().iter().map(|(id, _)| *id).collect();
    check_ids("logit_bias", &biased, limits.vocab_size)?;
    let sampling = submission.sampling.clone().with_seed(seed);
    let mut request = Request::new(live.first_seq, prompt, sampling, stop)?;
    request.priority = submission.priority;
    request.logprobs = submission.output.logprobs.then_some(submission.n_logprobs);
    request.prompt_logprobs = submission.output.prompt_logprobs.then_some(submission.n_prompt_logprobs);
    request.cache_salt = salt(&submission.cache_salt);
    if !submission.stop_texts.is_empty() {
        request.lead = STOP_LEAD;
    }
    Ok(request)
}

fn tokenize(submission: &Submission, limits: &Limits) -> Result<Vec<Token>> {
    let special = if submission.no_special_tokens { SpecialTokens::Omit } else { SpecialTokens::Add };
    let prompt = match &submission.prompt {
        Prompt::Tokens(tokens) => {
            check_ids("prompt_tokens", tokens, limits.vocab_size)?;
            tokens.clone()
        }
        Prompt::Text(text) => limits.text.tokenizer.encode(text, special)?,
        Prompt::Chat(chat) => limits.text.encode_chat(chat)?,
    };
    check_ids("the tokenized prompt", &prompt, limits.vocab_size)?;
    Ok(prompt)
}

fn check_ids(what: &str, ids: &[Token], vocab_size: usize) -> Result<()> {
    match ids.iter().position(|&t| t as usize >= vocab_size) {
        None => Ok(()),
        Some(i) => Err(Error::new(
            ErrorKind::Invalid,
            format!("{what}[{i}] is {}; the model's vocabulary has {vocab_size} ids", ids[i]),
        )),
    }
}

/// 0 is the common salt, so a given salt never hashes to it.
fn salt(bytes: &[u8]) -> u64 {
    if bytes.is_empty() {
        return 0;
    }
    bytes.iter().fold(mix(0x5A17, bytes.len() as u64), |h, &b| mix(h, u64::from(b))).max(1)
}
