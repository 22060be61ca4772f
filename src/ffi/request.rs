//! Requests: defaults, checks, submit.

use super::args::{MAX_BYTES, bytes, json, nests_deep, out, slice, text};
use super::engine::{ENGINES, HostEngine};
use super::extra::Extra;
use super::guard::{call, on_own_thread};
use super::queue::QUEUES;
use super::types::*;
use crate::base::config::MAX_JSON_BYTES;
use crate::base::{Error, Result};
use crate::engine::{OutputMode, Prompt, SamplingDefaults, State, Submission};
use crate::plan::params::MAX_STOP_TOKENS;
use crate::plan::{Penalties, SamplingParams};
use std::cell::Cell;
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// Largest struct a caller of a later version may have.
const MAX_STRUCT: u32 = 4096;
/// Most tokens a request may ask for.
const MAX_TOKENS: u32 = 1 << 30;
/// Every token's text is compared with every stop text.
const MAX_STOP_TEXTS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
const MAX_SALT_BYTES: usize = 1024;

const OUT_KNOWN: u32 = YN_OUT_TEXT | YN_OUT_TOKENS | YN_OUT_LOGPROBS | YN_OUT_FINAL_ONLY | YN_OUT_PROMPT_LOGPROBS;
const FLAGS_KNOWN: u32 = YN_REQ_IGNORE_EOS | YN_REQ_SEEDED | YN_REQ_NO_SPECIAL_TOKENS;

fn defaults(d: SamplingDefaults) -> yn_request {
    let none = yn_bytes { data: null(), len: 0 };
    yn_request {
        struct_size: size_of::<yn_request>() as u32,
        output: YN_OUT_TEXT,
        user_data: 0,
        queue: yn_queue { id: 0 },
        prompt_tokens: null(),
        n_prompt_tokens: 0,
        prompt_text: none,
        chat_json: none,
        n: 1,
        flags: 0,
        max_tokens: YN_MAX_TOKENS_MODEL,
        min_tokens: 0,
        temperature: d.temperature,
        top_p: d.top_p,
        min_p: 0.0,
        top_k: d.top_k,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        n_logprobs: 0,
        n_prompt_logprobs: 0,
        reserved: 0,
        seed: 0,
        stop_tokens: null(),
        n_stop_tokens: 0,
        stop_texts: null(),
        n_stop_texts: 0,
        priority: 0,
        timeout_ms: 0,
        ttft_slo_ms: 0,
        tpot_slo_ms: 0,
        cache_salt: none,
        extra_json: none,
    }
}

fn check_size(struct_size: u32) -> Result<usize> {
    if struct_size < 8 || !struct_size.is_multiple_of(8) || struct_size > MAX_STRUCT {
        return Err(Error::invalid(format!("struct_size is {struct_size}; expected sizeof(yn_request)")));
    }
    Ok(struct_size as usize)
}

/// Copies a caller's struct of any version over the defaults.
///
/// # Safety
/// `r` is null or points to struct_size readable bytes.
unsafe fn read(r: *const yn_request, d: SamplingDefaults) -> Result<yn_request> {
    if r.is_null() || !r.is_aligned() {
        return Err(Error::invalid("the request is NULL or misaligned"));
    }
    // SAFETY: not null and aligned; the first field is always there.
    let size = check_size(unsafe { r.cast::<u32>().read() })?;
    let known = size.min(size_of::<yn_request>());
    let mut request = defaults(d);
    // SAFETY: the caller vouches for `size` bytes; `known` bytes fit the target; any bits are a valid yn_request.
    let tail = unsafe {
        std::ptr::copy_nonoverlapping(r.cast::<u8>(), (&raw mut request).cast::<u8>(), known);
        std::slice::from_raw_parts(r.cast::<u8>().add(known), size - known)
    };
    if let Some(at) = tail.iter().position(|b| *b != 0) {
        return Err(Error::unsupported(format!(
            "the request sets a field at byte {} that this version of the library does not know; leave it 0",
            known + at
        )));
    }
    Ok(request)
}

/// Fields whose feature is not built, with whether they are set.
fn refuse_unbuilt(r: &yn_request) -> Result<()> {
    let set = [
        ("output (an unknown bit)", r.output & !OUT_KNOWN != 0, "YN_OUT_* bits"),
        ("flags (an unknown bit)", r.flags & !FLAGS_KNOWN != 0, "YN_REQ_* bits"),
        ("ttft_slo_ms", r.ttft_slo_ms != 0, "0"),
        ("tpot_slo_ms", r.tpot_slo_ms != 0, "0"),
        ("reserved", r.reserved != 0, "0"),
    ];
    match set.iter().find(|(_, set, _)| *set) {
        None => Ok(()),
        Some((name, _, only)) => {
            Err(Error::unsupported(format!("the request sets {name}, which this build does not have; expected {only}")))
        }
    }
}

/// # Safety
/// What `r` points to is readable.
unsafe fn sampling(r: &yn_request) -> Result<SamplingParams> {
    let extra = match r.extra_json.len {
        0 => Extra::default(),
        // SAFETY: the caller vouches for what `r` points to.
        _ => Extra::parse(&unsafe { json("extra_json", r.extra_json, MAX_JSON_BYTES) }?)?,
    };
    let penalties =
        Penalties { repetition: r.repetition_penalty, presence: r.presence_penalty, frequency: r.frequency_penalty };
    SamplingParams::new(r.temperature, r.top_k, r.top_p, 0)?
        .with_min_p(r.min_p)?
        .with_penalties(penalties)?
        .with_logit_bias(extra.logit_bias)
}

fn max_tokens(r: &yn_request) -> Result<Option<u32>> {
    match r.max_tokens {
        YN_MAX_TOKENS_MODEL => Ok(None),
        n @ 1..=MAX_TOKENS => Ok(Some(n)),
        n => Err(Error::invalid(format!(
            "max_tokens is {n}; expected 1 to {MAX_TOKENS}, or YN_MAX_TOKENS_MODEL for as many as fit"
        ))),
    }
}

/// # Safety
/// What `r` points to is readable.
unsafe fn prompt(r: &yn_request) -> Result<Prompt> {
    let tokens = !r.prompt_tokens.is_null() || r.n_prompt_tokens != 0;
    let text_given = !r.prompt_text.data.is_null() || r.prompt_text.len != 0;
    let chat = !r.chat_json.data.is_null() || r.chat_json.len != 0;
    // SAFETY: the caller vouches for what `r` points to.
    unsafe {
        match (tokens, text_given, chat) {
            (true, false, false) => {
                Ok(Prompt::Tokens(slice("prompt_tokens", r.prompt_tokens, r.n_prompt_tokens)?.to_vec()))
            }
            (false, true, false) => Ok(Prompt::Text(text("prompt_text", r.prompt_text, MAX_BYTES)?.to_owned())),
            (false, false, true) => Ok(Prompt::Chat(json("chat_json", r.chat_json, MAX_BYTES)?)),
            _ => Err(Error::invalid("expected exactly one of prompt_tokens, prompt_text and chat_json")),
        }
    }
}

/// # Safety
/// What `r` points to is readable.
unsafe fn stop_texts(r: &yn_request) -> Result<Vec<String>> {
    if r.n_stop_texts > MAX_STOP_TEXTS {
        return Err(Error::invalid(format!("n_stop_texts is {}; at most {MAX_STOP_TEXTS} are taken", r.n_stop_texts)));
    }
    // SAFETY: the caller vouches for what `r` points to.
    let stops = unsafe { slice("stop_texts", r.stop_texts, r.n_stop_texts) }?;
    let one = |(i, b): (usize, &yn_bytes)| {
        // SAFETY: as above.
        match unsafe { text(&format!("stop_texts[{i}]"), *b, MAX_STOP_BYTES) }? {
            "" => Err(Error::invalid(format!("stop_texts[{i}] is empty; expected at least one character"))),
            s => Ok(s.to_owned()),
        }
    };
    stops.iter().enumerate().map(one).collect()
}

/// # Safety
/// What `r` points to is readable.
unsafe fn submission(r: &yn_request, engine: &HostEngine) -> Result<Submission> {
    refuse_unbuilt(r)?;
    for (name, n, bit, flag) in [
        ("n_logprobs", r.n_logprobs, YN_OUT_LOGPROBS, "YN_OUT_LOGPROBS"),
        ("n_prompt_logprobs", r.n_prompt_logprobs, YN_OUT_PROMPT_LOGPROBS, "YN_OUT_PROMPT_LOGPROBS"),
    ] {
        if n != 0 && r.output & bit == 0 {
            return Err(Error::invalid(format!("{name} is {n}, but output lacks {flag}")));
        }
    }
    let queue = match r.queue.id {
        0 => Arc::clone(&engine.queue.events),
        id => Arc::clone(&QUEUES.get(id)?.events),
    };
    // SAFETY: the caller vouches for what `r` points to.
    let (prompt, sampling, stop_tokens, stop_texts, salt) = unsafe {
        if r.n_stop_tokens > MAX_STOP_TOKENS {
            let n = r.n_stop_tokens;
            return Err(Error::invalid(format!("n_stop_tokens is {n}; at most {MAX_STOP_TOKENS} are taken")));
        }
        let stop_tokens = slice("stop_tokens", r.stop_tokens, r.n_stop_tokens)?;
        (prompt(r)?, sampling(r)?, stop_tokens, stop_texts(r)?, bytes("cache_salt", r.cache_salt, MAX_SALT_BYTES)?)
    };
    Ok(Submission {
        prompt,
        no_special_tokens: r.flags & YN_REQ_NO_SPECIAL_TOKENS != 0,
        output: OutputMode {
            text: r.output & YN_OUT_TEXT != 0,
            tokens: r.output & YN_OUT_TOKENS != 0,
            logprobs: r.output & YN_OUT_LOGPROBS != 0,
            prompt_logprobs: r.output & YN_OUT_PROMPT_LOGPROBS != 0,
            final_only: r.output & YN_OUT_FINAL_ONLY != 0,
        },
        user_data: r.user_data,
        queue,
        n: r.n,
        n_logprobs: r.n_logprobs,
        n_prompt_logprobs: r.n_prompt_logprobs,
        max_tokens: max_tokens(r)?,
        min_tokens: r.min_tokens,
        ignore_eos: r.flags & YN_REQ_IGNORE_EOS != 0,
        sampling,
        seed: (r.flags & YN_REQ_SEEDED != 0).then_some(r.seed),
        stop_tokens: stop_tokens.to_vec(),
        stop_texts,
        priority: r.priority,
        timeout_ms: r.timeout_ms,
        cache_salt: salt.to_vec(),
    })
}

/// Fills a request with the defaults of this engine's model, or with the library's for {0}. `struct_size` is
/// sizeof(yn_request) of the caller. Never blocks. Errors: BAD_HANDLE, INVALID.
///
/// # Safety
/// `r` points to `struct_size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_request_init(engine: yn_engine, r: *mut yn_request, struct_size: u32) -> yn_status {
    let body = || {
        let d = match engine.id {
            0 => SamplingDefaults { temperature: 1.0, top_k: 0, top_p: 1.0 },
            id => ENGINES.get(id)?.engine.defaults(),
        };
        let size = check_size(struct_size)?;
        if r.is_null() || !r.is_aligned() {
            return Err(Error::invalid("the request is NULL or misaligned"));
        }
        let filled = yn_request { struct_size, ..defaults(d) };
        let known = size.min(size_of::<yn_request>());
        // SAFETY: `size` bytes are writable as documented; `known` of them are readable in `filled`, which has no holes.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), r.cast::<u8>(), known);
            r.cast::<u8>().add(known).write_bytes(0, size - known);
        }
        Ok(())
    };
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), body) }
}

/// Hands in a request. Never waits for the device. On OK exactly one DONE follows on the request's queue, possibly polled by
/// another thread before this call returns: route records by user_data. Struct, handles and JSON syntax are checked here;
/// lengths, templates and token ids come back as DONE with a status. Errors: BAD_HANDLE, INVALID, UNSUPPORTED, BUSY,
/// SHUTDOWN, NO_MEMORY, and of a failed engine its own error.
///
/// # Safety
/// `r` points to struct_size readable bytes and what they point to is readable; `out_id` is null or writable; `err` too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_submit(
    engine: yn_engine,
    r: *const yn_request,
    out_id: *mut yn_request_id,
    err: *mut yn_error,
) -> yn_status {
    let unusable = Cell::new(false);
    let body = || {
        let engine = ENGINES.get(engine.id)?;
        let rest = |request: &yn_request| {
            // SAFETY: as documented.
            let submission = unsafe { submission(request, &engine) }?;
            // SAFETY: as documented.
            let to = if out_id.is_null() { None } else { Some(unsafe { out("out_id", out_id) }?) };
            let id = engine.engine.submit(submission)?;
            if let Some(to) = to {
                *to = id.0;
            }
            Ok(())
        };
        // SAFETY: as documented.
        let result = unsafe { read(r, engine.engine.defaults()) }.and_then(|request| {
            // SAFETY: as documented.
            let deep =
                unsafe { nests_deep(request.chat_json, MAX_BYTES) || nests_deep(request.extra_json, MAX_JSON_BYTES) };
            match deep {
                true => on_own_thread(|| rest(&request)),
                false => rest(&request),
            }
        });
        unusable.set(result.is_err() && engine.engine.stats().state == State::Failed);
        result
    };
    // SAFETY: as documented.
    let status = unsafe { call(err, body) };
    if unusable.get() && !err.is_null() && err.is_aligned() {
        // SAFETY: not null and aligned, and `call` has filled it.
        unsafe { (*err).flags = YN_ERROR_UNUSABLE };
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;

    const PLAIN: SamplingDefaults = SamplingDefaults { temperature: 1.0, top_k: 0, top_p: 1.0 };

    #[test]
    fn unbuilt_fields_are_named() {
        type Set = fn(&mut yn_request);
        let cases: [(&str, Set); 3] = [
            ("ttft_slo_ms", |r| r.ttft_slo_ms = 1),
            ("tpot_slo_ms", |r| r.tpot_slo_ms = 1),
            ("flags", |r| r.flags = 1 << 30),
        ];
        refuse_unbuilt(&defaults(PLAIN)).unwrap();
        for (name, set) in cases {
            let mut r = defaults(PLAIN);
            set(&mut r);
            let e = refuse_unbuilt(&r).unwrap_err();
            assert!(e.kind == ErrorKind::Unsupported && e.message.contains(name), "{e}");
        }
    }

    #[test]
    fn shorter_and_longer_structs_are_read() {
        let mut long = [0u64; 64];
        let source = yn_request { struct_size: 512, min_tokens: 3, ..defaults(PLAIN) };
        // SAFETY: 64 words hold a yn_request and are aligned for it; `read` gets the sizes they have.
        unsafe {
            long.as_mut_ptr().cast::<yn_request>().write(source);
            assert_eq!(read(long.as_ptr().cast(), PLAIN).unwrap().min_tokens, 3);
            long[63] = 1;
            assert_eq!(read(long.as_ptr().cast(), PLAIN).unwrap_err().kind, ErrorKind::Unsupported);
            long.as_mut_ptr().cast::<u32>().write(24);
            assert_eq!(read(long.as_ptr().cast(), PLAIN).unwrap().min_tokens, 0);
            long.as_mut_ptr().cast::<u32>().write(4);
            assert_eq!(read(long.as_ptr().cast(), PLAIN).unwrap_err().kind, ErrorKind::Invalid);
        }
    }

    #[test]
    fn max_tokens_has_a_range() {
        for (n, ok) in [(0, false), (1, true), (MAX_TOKENS, true), (MAX_TOKENS + 1, false), (YN_MAX_TOKENS_MODEL, true)]
        {
            assert_eq!(max_tokens(&yn_request { max_tokens: n, ..defaults(PLAIN) }).is_ok(), ok, "{n}");
        }
    }
}
