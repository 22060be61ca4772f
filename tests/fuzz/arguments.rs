//! The C surface: requests and calls with arbitrary values in every field; pointers lead to as much memory as is said, or
//! nowhere.

use crate::{Corpus, fuzz};
use std::cell::Cell;
use std::mem::{size_of, zeroed};
use std::ptr::{null, null_mut};
use yinian::ffi::*;

/// Takes values off an input.
struct Bytes<'a>(Cell<&'a [u8]>);

impl<'a> Bytes<'a> {
    fn word(&self) -> u64 {
        let (mut word, input) = ([0; 8], self.0.get());
        let n = input.len().min(8);
        word[..n].copy_from_slice(&input[..n]);
        self.0.set(&input[n..]);
        u64::from_le_bytes(word)
    }

    /// Mostly small.
    fn int(&self) -> u32 {
        let word = self.word();
        if word & 3 == 0 { (word >> 8) as u32 } else { (word >> 8) as u32 % 40 }
    }

    fn float(&self) -> f32 {
        let word = self.word();
        if word & 3 == 0 { f32::from_bits((word >> 8) as u32) } else { (word >> 8) as u8 as f32 / 100.0 }
    }

    /// Some of the input as it stands, nothing, or NULL with a length.
    fn text(&self) -> yn_bytes {
        let (choice, input) = (self.word(), self.0.get());
        let n = (choice >> 8) as usize % 64;
        match choice % 5 {
            0 => yn_bytes { data: null(), len: 0 },
            1 => yn_bytes { data: null(), len: n },
            _ => {
                let (now, later) = input.split_at(n.min(input.len()));
                self.0.set(later);
                yn_bytes { data: now.as_ptr(), len: now.len() }
            }
        }
    }
}

fn request(b: &Bytes<'_>, engine: yn_engine, (ids, texts): (&[u32], &[yn_bytes])) -> yn_request {
    // SAFETY: all zeros is a value of every field; init gets a live struct of the size it is told.
    let mut r: yn_request = unsafe { zeroed() };
    // SAFETY: as above.
    unsafe { yn_request_init(engine, &mut r, size_of::<yn_request>() as u32) };
    r.prompt_text = b.text();
    for _ in 0..b.int() % 6 {
        match b.int() % 30 {
            0 => r.struct_size = (b.int() & !7).min(size_of::<yn_request>() as u32),
            1 => r.output = b.int(),
            2 => r.queue = yn_queue { id: b.word() },
            3 => (r.prompt_tokens, r.n_prompt_tokens) = (ids.as_ptr(), b.int() as usize % (ids.len() + 1)),
            4 => r.chat_json = b.text(),
            5 => r.n = b.int(),
            6 => r.flags = b.int(),
            7 => r.max_tokens = b.int(),
            8 => r.min_tokens = b.int(),
            9 => r.temperature = b.float(),
            10 => r.top_p = b.float(),
            11 => r.min_p = b.float(),
            12 => r.top_k = b.int() as i32,
            13 => r.repetition_penalty = b.float(),
            14 => r.presence_penalty = b.float(),
            15 => r.frequency_penalty = b.float(),
            16 => r.n_logprobs = b.int(),
            17 => r.n_prompt_logprobs = b.int(),
            18 => r.reserved = b.int(),
            19 => r.seed = b.word(),
            20 => (r.stop_tokens, r.n_stop_tokens) = (ids.as_ptr(), b.int() as usize % (ids.len() + 1)),
            21 => (r.stop_texts, r.n_stop_texts) = (texts.as_ptr(), b.int() as usize % (texts.len() + 1)),
            22 => r.priority = b.int() as i32,
            23 => r.timeout_ms = b.int(),
            24 => r.cache_salt = b.text(),
            25 => r.extra_json = b.text(),
            26 => (r.stop_texts, r.n_stop_texts) = (null(), b.int() as usize),
            27 => (r.prompt_tokens, r.n_prompt_tokens) = (null(), b.int() as usize),
            _ => r.ttft_slo_ms = b.int() & 1,
        }
    }
    r
}

/// Reads the queue; how many requests have ended.
fn read(engine: yn_engine, buffer: &mut [u64]) -> u64 {
    let (mut used, mut done, mut at) = (0, 0, 0);
    // SAFETY: the buffer is aligned and as long as said.
    let status = unsafe { yn_engine_poll(engine, buffer.as_mut_ptr().cast(), buffer.len() * 8, 0, &mut used) };
    assert!(status == YN_OK || status == YN_E_TIMEOUT, "poll answers {status}");
    while at < used {
        // SAFETY: the library wrote whole records up to `used`.
        let event = unsafe { &*buffer.as_ptr().cast::<u8>().add(at).cast::<yn_event>() };
        assert!(event.size as usize >= size_of::<yn_event>() && event.size % 8 == 0);
        done += u64::from(u32::from(event.kind) == YN_EV_DONE);
        at += event.size as usize;
    }
    done
}

fn calls(b: &Bytes<'_>, engine: yn_engine, tokenizer: yn_tokenizer, ids: &[u32]) {
    // SAFETY: every pointer is NULL or leads to live memory of the size that is said.
    unsafe {
        let mut err: yn_error = zeroed();
        let mut buf: yn_buf = zeroed();
        let mut room = [0_u32; 64];
        let mut n = b.int() as usize % 65;
        match b.int() % 9 {
            0 => drop(yn_engine_cancel(yn_engine { id: b.word() }, b.word())),
            1 => drop(yn_engine_cancel(engine, b.word())),
            2 => drop(yn_tokenize(tokenizer, b.text(), b.int() & 3, room.as_mut_ptr(), &mut n, &mut err)),
            3 => drop(yn_detokenize(tokenizer, ids.as_ptr(), n.min(ids.len()), b.int() & 3, &mut buf, &mut err)),
            4 => drop(yn_chat_render(tokenizer, b.text(), &mut buf, &mut err)),
            5 => drop(yn_queue_free(yn_queue { id: b.word() })),
            6 => drop(yn_engine_free(yn_engine { id: engine.id ^ (1 << (b.int() % 64)) })),
            7 => drop(yn_plan_memory(b.text(), &mut buf, &mut err)),
            _ => drop(yn_tokenizer_free(yn_tokenizer { id: b.word() })),
        }
        yn_buf_free(&mut buf);
    }
}

#[test]
fn c_arguments() {
    let config =
        br#"{"model": "mock:words", "scheduling_policy": "priority", "kv_cache_bytes": 4096, "max_model_len": 200}"#;
    let (mut engine, mut tokenizer) = (yn_engine { id: 0 }, yn_tokenizer { id: 0 });
    // SAFETY: all pointers are to live values.
    unsafe {
        let config = yn_bytes { data: config.as_ptr(), len: config.len() };
        assert_eq!(yn_engine_create(config, &mut engine, null_mut()), YN_OK);
        assert_eq!(yn_engine_tokenizer(engine, &mut tokenizer), YN_OK);
    }
    let (accepted, ended) = (Cell::new(0), Cell::new(0));
    let mut noise = yinian::base::rng::SplitMix64(1);
    let seeds = (0..20).map(|_| (0..60).flat_map(|_| noise.next_u64().to_le_bytes()).collect()).collect();
    let words = &[
        "hello",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
        "{\"logit_bias\": {\"5\": 1}}",
        "\u{0}",
        "\u{7f}\u{7f}",
        "é🦊",
    ];
    let buffer = std::cell::RefCell::new(vec![0_u64; 2048]);
    fuzz("C arguments", &Corpus { seeds, words }, |input| {
        let b = Bytes(Cell::new(input));
        let ids: Vec<u32> = (0..12).map(|i| (b.word() >> (i % 3 * 20)) as u32 % 300).collect();
        let texts: Vec<yn_bytes> = (0..4).map(|_| b.text()).collect();
        let r = request(&b, engine, (&ids, &texts));
        // SAFETY: the request and what it points to live through the call.
        let status = unsafe { yn_engine_submit(engine, &r, null_mut(), null_mut()) };
        assert!((YN_E_FORKED..=YN_OK).contains(&status));
        accepted.set(accepted.get() + u64::from(status == YN_OK));
        calls(&b, engine, tokenizer, &ids);
        ended.set(ended.get() + read(engine, &mut buffer.borrow_mut()));
    });
    // SAFETY: plain handles.
    unsafe {
        assert_eq!(yn_engine_drain(engine, 30_000), YN_OK);
        let mut stats: yn_stats = zeroed();
        stats.struct_size = size_of::<yn_stats>() as u32;
        assert_eq!(yn_engine_stats(engine, &mut stats), YN_OK);
        assert_eq!((stats.state, stats.running, stats.finished), (YN_STATE_DRAINING, 0, accepted.get()));
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while ended.get() < accepted.get() {
            assert!(std::time::Instant::now() < end, "{} of {} have ended", ended.get(), accepted.get());
            ended.set(ended.get() + read(engine, &mut buffer.borrow_mut()));
        }
        assert_eq!((ended.get(), yn_engine_free(engine)), (accepted.get(), YN_OK));
    }
    assert!(accepted.get() > 10, "{} requests were taken", accepted.get());
}
