//! Records in a caller's buffer.

use super::status::status_of;
use super::types::*;
use crate::base::Token;
use crate::engine::State;
use crate::engine::queue::{Output, PromptTokens, Record, RecordSink, StreamInfo, Taken};
use crate::plan::{FinishReason, Logprob};

const HEADER: usize = size_of::<yn_event>();
/// Longest message of a DONE, ENGINE or LOG record, so that one always fits into the smallest buffer.
const MAX_MESSAGE: usize = 2048;
/// Room under which no piece of a split output is worth a record.
const MIN_PIECE: usize = 64;

/// Writes whole records one after the other.
#[derive(Debug)]
pub(crate) struct Buffer<'a> {
    bytes: &'a mut [u8],
    used: usize,
}

impl<'a> Buffer<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        let whole = bytes.len() & !7;
        Self { bytes: &mut bytes[..whole], used: 0 }
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }

    fn room(&self) -> usize {
        (self.bytes.len() - self.used).saturating_sub(HEADER)
    }

    /// Appends a record; the payload fits.
    fn put(&mut self, mut event: yn_event, tokens: &[Token], logprobs: &[u8], text: &str) {
        let logprobs_off = HEADER + size_of_val(tokens);
        let text_off = logprobs_off + logprobs.len();
        let size = (text_off + text.len()).next_multiple_of(8);
        event.size = size as u32;
        event.tokens_off = HEADER as u32;
        event.text_off = text_off as u32;
        event.text_len = text.len() as u32;
        event.logprobs_off = logprobs_off as u32;
        event.n_logprobs = (logprobs.len() / size_of::<yn_logprob>()) as u32;
        let record = &mut self.bytes[self.used..self.used + size];
        // SAFETY: yn_event has no holes (asserted by its size in `types` tests) and is HEADER bytes long.
        let header = unsafe { std::slice::from_raw_parts((&raw const event).cast::<u8>(), HEADER) };
        record[..HEADER].copy_from_slice(header);
        for (to, token) in record[HEADER..logprobs_off].chunks_exact_mut(4).zip(tokens) {
            to.copy_from_slice(&token.to_ne_bytes());
        }
        record[logprobs_off..text_off].copy_from_slice(logprobs);
        record[text_off..text_off + text.len()].copy_from_slice(text.as_bytes());
        record[text_off + text.len()..].fill(0);
        self.used += size;
    }

    fn message(&mut self, event: yn_event, text: &str) -> Option<Taken> {
        let text = &text[..text.floor_char_boundary(MAX_MESSAGE)];
        if self.bytes.len() - self.used < (HEADER + text.len()).next_multiple_of(8) {
            return None;
        }
        self.put(event, &[], &[], text);
        Some(Taken { tokens: 0, text: 0 })
    }

    fn output(&mut self, o: &Output<'_>) -> Option<Taken> {
        // A choice's end alone has no payload, but needs its header.
        if self.bytes.len() - self.used < HEADER {
            return None;
        }
        let room = self.room();
        let per_token = o.logprobs.len() / o.tokens.len().max(1);
        let token_bytes = size_of::<Token>() + per_token * size_of::<yn_logprob>();
        let whole = o.tokens.len() * token_bytes + o.text.len() <= room;
        if !whole && room < MIN_PIECE.max(token_bytes) {
            return None;
        }
        let n = o.tokens.len().min(room / token_bytes);
        let cut = o.text.floor_char_boundary(room - n * token_bytes);
        if (n, cut) == (0, 0) && !whole {
            return None;
        }
        let event = yn_event {
            n_tokens: n as u32,
            choice: o.choice,
            completion_tokens: o.completion_tokens,
            finish: o.finish.filter(|_| whole).map_or(YN_FINISH_NONE, finish),
            t_first_ns: o.t_first_ns,
            t_event_ns: o.t_event_ns,
            ..of_stream(YN_EV_OUTPUT, o.info)
        };
        let text_end = |i: usize| {
            let end = o.text_ends.get(i / per_token).map_or(0, |end| end.saturating_sub(o.text_from));
            end.min(cut as u64) as u32
        };
        self.put(event, &o.tokens[..n], &packed(&o.logprobs[..n * per_token], text_end), &o.text[..cut]);
        Some(Taken { tokens: n, text: cut })
    }

    fn prompt(&mut self, p: &PromptTokens<'_>) -> Option<Taken> {
        let per_token = p.logprobs.len() / p.tokens.len().max(1);
        let n = p.tokens.len().min(self.room() / (size_of::<Token>() + per_token * size_of::<yn_logprob>()));
        if n == 0 {
            return None;
        }
        let event = yn_event {
            n_tokens: n as u32,
            prompt_tokens: p.before + n as u32,
            t_event_ns: p.t_event_ns,
            ..of_stream(YN_EV_PROMPT, p.info)
        };
        self.put(event, &p.tokens[..n], &packed(&p.logprobs[..n * per_token], |_| 0), "");
        Some(Taken { tokens: n, text: 0 })
    }
}

/// The bytes of as many `yn_logprob`.
fn packed(logprobs: &[Logprob], text_end: impl Fn(usize) -> u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<yn_logprob>() * logprobs.len());
    for (i, p) in logprobs.iter().enumerate() {
        bytes.extend(p.token.to_ne_bytes());
        bytes.extend(p.rank.to_ne_bytes());
        bytes.extend(p.logprob.to_ne_bytes());
        bytes.extend(text_end(i).to_ne_bytes());
    }
    bytes
}

impl RecordSink for Buffer<'_> {
    fn write(&mut self, record: &Record<'_>) -> Option<Taken> {
        match *record {
            Record::Prompt(ref prompt) => self.prompt(prompt),
            Record::Output(ref output) => self.output(output),
            Record::Done { info, done } => {
                let mut event = of_stream(YN_EV_DONE, info);
                event.finish = finish(done.finish);
                event.status = done.error.as_ref().map_or(YN_OK, |e| status_of(e.kind));
                event.prompt_tokens = done.prompt_tokens;
                event.cached_tokens = done.cached_tokens;
                event.completion_tokens = done.completion_tokens;
                event.t_first_ns = done.t_first_ns;
                event.t_event_ns = done.t_event_ns;
                self.message(event, done.error.as_ref().map_or("", |e| &e.message))
            }
            Record::Engine(e) => {
                let event = yn_event {
                    finish: state(e.state),
                    status: e.error.map_or(YN_OK, status_of),
                    n_tokens: e.permille,
                    t_event_ns: e.t_event_ns,
                    ..blank(YN_EV_ENGINE)
                };
                self.message(event, &e.message)
            }
            Record::Log { level, message, t_event_ns } => {
                self.message(yn_event { flags: level, t_event_ns, ..blank(YN_EV_LOG) }, message)
            }
        }
    }
}

fn blank(kind: u32) -> yn_event {
    yn_event {
        size: 0,
        kind: kind as u16,
        flags: 0,
        request_id: 0,
        user_data: 0,
        status: YN_OK,
        finish: YN_FINISH_NONE,
        n_tokens: 0,
        tokens_off: 0,
        text_len: 0,
        text_off: 0,
        n_logprobs: 0,
        logprobs_off: 0,
        prompt_tokens: 0,
        cached_tokens: 0,
        completion_tokens: 0,
        choice: 0,
        t_submit_ns: 0,
        t_first_ns: 0,
        t_event_ns: 0,
    }
}

fn of_stream(kind: u32, info: &StreamInfo) -> yn_event {
    yn_event { request_id: info.id.0, user_data: info.user_data, t_submit_ns: info.t_submit_ns, ..blank(kind) }
}

fn finish(reason: FinishReason) -> u32 {
    match reason {
        FinishReason::Eos => YN_FINISH_EOS,
        FinishReason::Stop => YN_FINISH_STOP,
        FinishReason::Length => YN_FINISH_LENGTH,
        FinishReason::Cancelled => YN_FINISH_CANCELLED,
        FinishReason::Deadline => YN_FINISH_DEADLINE,
        FinishReason::Overrun => YN_FINISH_OVERRUN,
        FinishReason::Error => YN_FINISH_ERROR,
    }
}

pub(crate) fn state(state: State) -> u32 {
    match state {
        State::Loading => YN_STATE_LOADING,
        State::Ready => YN_STATE_READY,
        State::Draining => YN_STATE_DRAINING,
        State::Failed => YN_STATE_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::RequestId;
    use crate::engine::OutputMode;

    #[test]
    fn a_long_output_is_split_and_adds_up() {
        let output = OutputMode { text: true, tokens: true, logprobs: true, prompt_logprobs: false, final_only: false };
        let info =
            StreamInfo { id: RequestId(3), user_data: 4, output, choices: 2, max_unread_bytes: 0, t_submit_ns: 5 };
        let (mut tokens, mut text) = ((0..2000).collect::<Vec<u32>>(), "一é🦊x".repeat(900));
        let of = |token: u32, rank: u32| Logprob { token: token + rank - 1, rank, logprob: -(token as f32) };
        let mut logprobs: Vec<Logprob> = tokens.iter().flat_map(|t| [of(*t, 1), of(*t, 2)]).collect();
        let (all_tokens, all_text, mut text_from) = (tokens.clone(), text.clone(), 0);
        let (mut seen_tokens, mut seen_text, mut finishes) = (vec![], String::new(), vec![]);
        while !tokens.is_empty() || !text.is_empty() {
            let mut memory = vec![0u64; 512];
            // SAFETY: plain bytes of a live vector.
            let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), 4096) };
            let mut buffer = Buffer::new(bytes);
            let taken = buffer.write(&Record::Output(Output {
                info: &info,
                choice: 1,
                tokens: &tokens,
                text: &text,
                logprobs: &logprobs,
                text_ends: &vec![10_000; tokens.len()],
                text_from,
                completion_tokens: 9,
                finish: Some(FinishReason::Stop),
                t_first_ns: 6,
                t_event_ns: 7,
            }));
            let taken = taken.unwrap();
            tokens.drain(..taken.tokens);
            logprobs.drain(..2 * taken.tokens);
            text.drain(..taken.text);
            text_from += taken.text as u64;
            let used = buffer.used();
            // SAFETY: the buffer starts with a record and is aligned.
            let event = unsafe { *memory.as_ptr().cast::<yn_event>() };
            assert_eq!((event.size as usize, event.user_data, event.request_id, event.choice), (used, 4, 3, 1));
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr().cast::<u8>(), used) };
            let words = |at: u32, n: usize| {
                let raw = bytes[at as usize..at as usize + 4 * n].chunks(4);
                raw.map(|c| u32::from_ne_bytes(c.try_into().unwrap())).collect::<Vec<u32>>()
            };
            let these = words(event.tokens_off, event.n_tokens as usize);
            assert_eq!(event.n_logprobs, 2 * event.n_tokens);
            for (i, p) in words(event.logprobs_off, 4 * event.n_logprobs as usize).chunks(4).enumerate() {
                assert_eq!((p[0], p[1]), (these[i / 2] + i as u32 % 2, 1 + i as u32 % 2));
                assert_eq!((f32::from_bits(p[2]), p[3]), (-(these[i / 2] as f32), event.text_len));
            }
            seen_tokens.extend(these);
            let at = event.text_off as usize;
            seen_text.push_str(std::str::from_utf8(&bytes[at..at + event.text_len as usize]).unwrap());
            finishes.push(event.finish);
        }
        assert_eq!((seen_tokens, seen_text), (all_tokens, all_text));
        assert_eq!(finishes.pop(), Some(YN_FINISH_STOP));
        assert!(finishes.len() > 5 && finishes.iter().all(|f| *f == YN_FINISH_NONE));
    }
}
