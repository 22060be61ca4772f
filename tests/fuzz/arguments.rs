//! The C surface. An input is a JSON script: fields of a request with any values in them, and calls around it. Pointers lead
//! to as much memory as is said, or nowhere.

mod events;
mod values;

use crate::corpus::Shape;
use crate::{Target, fuzz};
use events::Host;
use serde_json::Value;
use std::mem::{size_of, zeroed};
use std::ptr::{null, null_mut};
use values::{Values, float, word};
use yinian::ffi::*;

/// A yn_error as a caller might have left it.
fn used_error() -> yn_error {
    yn_error { status: 77, flags: 77, message: [0x55; 504] }
}

/// `Err`: the message of a refusal, which must be text; a success leaves the error alone.
fn outcome(status: yn_status, err: &yn_error) -> Result<(), String> {
    assert!((YN_E_FORKED..=YN_OK).contains(&status), "status {status}");
    if status == YN_OK {
        assert!(err.status == 77 && err.message[0] == 0x55, "a success wrote an error");
        return Ok(());
    }
    assert_eq!(err.status, status);
    let bytes: Vec<u8> = err.message.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    assert!(!bytes.is_empty() && bytes.len() < err.message.len());
    Err(String::from_utf8(bytes).unwrap())
}

/// A request in front of memory that is zero but for one byte, so that longer structs can be read.
#[repr(C)]
struct Longer {
    request: yn_request,
    tail: [u64; 520],
}

fn set(r: &mut yn_request, host: &Host, values: &mut Values, (field, value): (&str, &Value)) {
    let n = word(value);
    match field {
        "struct_size" => r.struct_size = n as u32,
        "output" => r.output = n as u32,
        "queue" if value.is_string() => r.queue = host.queue,
        "queue" => r.queue.id = n,
        "prompt_tokens" => (r.prompt_tokens, r.n_prompt_tokens) = values.ids(value),
        "prompt_text" => r.prompt_text = values.bytes(value),
        "chat_json" => r.chat_json = values.bytes(value),
        "n" => r.n = n as u32,
        "flags" => r.flags = n as u32,
        "max_tokens" => r.max_tokens = n as u32,
        "min_tokens" => r.min_tokens = n as u32,
        "temperature" => r.temperature = float(value),
        "top_p" => r.top_p = float(value),
        "min_p" => r.min_p = float(value),
        "top_k" => r.top_k = n as i32,
        "repetition_penalty" => r.repetition_penalty = float(value),
        "presence_penalty" => r.presence_penalty = float(value),
        "frequency_penalty" => r.frequency_penalty = float(value),
        "n_logprobs" => r.n_logprobs = n as u32,
        "n_prompt_logprobs" => r.n_prompt_logprobs = n as u32,
        "reserved" => r.reserved = n as u32,
        "seed" => r.seed = n,
        "stop_tokens" => (r.stop_tokens, r.n_stop_tokens) = values.ids(value),
        "stop_texts" => (r.stop_texts, r.n_stop_texts) = values.texts(value),
        "priority" => r.priority = n as i32,
        "timeout_ms" => r.timeout_ms = n as u32,
        "ttft_slo_ms" => r.ttft_slo_ms = n as u32,
        "tpot_slo_ms" => r.tpot_slo_ms = n as u32,
        "cache_salt" => r.cache_salt = values.bytes(value),
        "extra_json" => r.extra_json = values.bytes(value),
        _ => {}
    }
}

fn submit(host: &mut Host, fields: &serde_json::Map<String, Value>) -> Result<(), String> {
    let mut values = Values::default();
    // SAFETY: all zeros is a value of every field; init gets a live struct of the size it is told.
    let mut longer: Longer = unsafe { zeroed() };
    // SAFETY: as above.
    unsafe { assert_eq!(yn_request_init(host.engine, &mut longer.request, size_of::<yn_request>() as u32), YN_OK) };
    longer.request.max_tokens = 8;
    for (field, value) in fields {
        set(&mut longer.request, host, &mut values, (field, value));
    }
    longer.request.user_data = host.next_user();
    if let Some(at) = fields.get("tail") {
        longer.tail[word(at) as usize % 520] = 1 << 40;
    }
    let skew = fields.get("misaligned").map_or(0, |by| word(by) as usize % 8);
    let (mut id, mut err) = (0, used_error());
    // SAFETY: the request lies in memory longer than any size that is read, and what it points to lives in `values`.
    let status = unsafe {
        let r = (&raw const longer).cast::<u8>().add(skew).cast();
        yn_engine_submit(host.engine, if fields.contains_key("null") { null() } else { r }, &mut id, &mut err)
    };
    assert_eq!(status == YN_OK, id != 0);
    if status == YN_OK {
        host.accepted();
    }
    outcome(status, &err)
}

fn call(host: &Host, name: &str, args: &[Value]) -> Result<(), String> {
    let mut values = Values::default();
    let arg = |i: usize| args.get(i).unwrap_or(&Value::Null);
    let (mut err, mut room, mut n) = (used_error(), [0_u32; 64], word(arg(2)) as usize % 65);
    // SAFETY: every pointer is NULL or leads to live memory of the size that is said.
    let result = unsafe {
        let mut buf: yn_buf = zeroed();
        let e = &mut err;
        let to = if arg(3).is_null() { &raw mut buf } else { null_mut() };
        let tokenizer = if arg(0).is_boolean() { host.words } else { host.tokenizer };
        let status = match name {
            "tokenize" => {
                yn_tokenize(tokenizer, values.bytes(arg(1)), word(arg(3)) as u32, room.as_mut_ptr(), &mut n, e)
            }
            "detokenize" => {
                let (ids, n) = values.ids(arg(1));
                yn_detokenize(tokenizer, ids, n, word(arg(2)) as u32, to, e)
            }
            "render" => yn_chat_render(tokenizer, values.bytes(arg(1)), to, e),
            "plan_memory" => yn_plan_memory(values.bytes(arg(0)), to, e),
            "tokenizer_open" => yn_tokenizer_open(values.bytes(arg(0)), null_mut(), e),
            "info" => yn_engine_info(host.engine, to, e),
            _ => return plain(host, name, args),
        };
        assert!(status == YN_OK || buf.data.is_null());
        yn_buf_free(&mut buf);
        outcome(status, e)
    };
    assert!(n <= 1 << 24);
    result
}

/// Calls that tell no more than a status.
fn plain(host: &Host, name: &str, args: &[Value]) -> Result<(), String> {
    let n = args.first().map_or(0, word);
    // A handle that is none: another slot or generation of the same kind.
    let stale = |live: u64| live ^ (2 << (n % 55));
    // SAFETY: every pointer is NULL or leads to live memory of the size that is said.
    let status = unsafe {
        let mut stats: yn_stats = zeroed();
        stats.struct_size = (n as u32).min(size_of::<yn_stats>() as u32);
        let mut longer: Longer = zeroed();
        let mut buffer = [0_u64; 600];
        let (mut used, cap) = (7, n as usize % 4104);
        match name {
            "cancel" => yn_engine_cancel(host.engine, n),
            "cancel_stale" => yn_engine_cancel(yn_engine { id: stale(host.engine.id) }, n),
            "free" => yn_engine_free(yn_engine { id: stale(host.engine.id) }),
            "free_queue" => yn_queue_free(yn_queue { id: stale(host.queue.id) }),
            "free_tokenizer" => yn_tokenizer_free(yn_tokenizer { id: stale(host.words.id) }),
            "stats" => yn_engine_stats(host.engine, &mut stats),
            "init" => yn_request_init(host.engine, &mut longer.request, n as u32),
            "poll" if cap < 4096 => yn_engine_poll(host.engine, buffer.as_mut_ptr().cast(), cap, 0, &mut used),
            "poll" => {
                yn_engine_poll(host.engine, buffer.as_mut_ptr().cast::<u8>().add(cap % 7 + 1).cast(), cap, 0, &mut used)
            }
            "log" => yn_log_to_queue(host.queue, n as u32),
            "log_callback" => yn_log_to_callback(None, null_mut(), n as u32),
            "wake" => yn_queue_wake(host.queue),
            _ => return Err("no such call".to_owned()),
        }
    };
    assert!((YN_E_FORKED..=YN_OK).contains(&status), "{name} answers {status}");
    if status == YN_OK { Ok(()) } else { Err(format!("{name} answers status {status}")) }
}

#[test]
fn c_arguments() {
    let host = std::cell::RefCell::new(Host::new());
    let first = host.borrow_mut().answer();
    let run = |bytes: &[u8]| {
        let script: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let mut host = host.borrow_mut();
        let calls = script["calls"].as_array().into_iter().flatten().take(20);
        let mut result = Ok(());
        for one in calls.filter_map(Value::as_array) {
            let name = one.first().and_then(Value::as_str).unwrap_or_default();
            result = result.and(call(&host, name, one.get(1..).unwrap_or_default()));
        }
        if let Some(fields) = script["request"].as_object() {
            result = submit(&mut host, fields);
        }
        host.read();
        result
    };
    let words = &["NaN", "inf", "-inf", "hello", "own", "{\"messages\": []}", "\u{7f}\u{0}", "<|end|>"];
    // Other threads free what is submitted here.
    let most_left = isize::MAX;
    fuzz(&Target { name: "request", shape: Shape::WholeJson, words, run: &run, least_taken: 20, most_left });
    assert_eq!(host.borrow_mut().answer(), first, "the engine does not serve as before");
    host.into_inner().close();
}
