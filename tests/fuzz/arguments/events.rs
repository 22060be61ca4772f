//! A host with one engine: reads every record and checks it.

use std::mem::{size_of, zeroed};
use std::ptr::null_mut;
use std::time::{Duration, Instant};
use yinian::ffi::*;

/// Requests that may run while the next input is tried.
const MOST_RUNNING: u64 = 32;

pub(super) struct Host {
    pub(super) engine: yn_engine,
    /// A queue beside the engine's own.
    pub(super) queue: yn_queue,
    pub(super) tokenizer: yn_tokenizer,
    /// That of the mock model.
    pub(super) words: yn_tokenizer,
    /// By `user_data`: whether a request's DONE is yet to come.
    open: Vec<bool>,
    accepted: u64,
    ended: u64,
    buffer: Vec<u64>,
}

fn bytes(text: &str) -> yn_bytes {
    yn_bytes { data: text.as_ptr(), len: text.len() }
}

impl Host {
    pub(super) fn new() -> Self {
        let config =
            r#"{"model": "mock:words", "scheduling_policy": "priority", "kv_cache_bytes": 4096, "max_model_len": 100}"#;
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo_model");
        let (mut engine, mut queue) = (yn_engine { id: 0 }, yn_queue { id: 0 });
        let (mut tokenizer, mut words) = (yn_tokenizer { id: 0 }, yn_tokenizer { id: 0 });
        // SAFETY: all pointers are to live values.
        unsafe {
            assert_eq!(yn_engine_create(bytes(config), &mut engine, null_mut()), YN_OK);
            assert_eq!(yn_queue_create(&mut queue, null_mut()), YN_OK);
            assert_eq!(yn_tokenizer_open(bytes(demo), &mut tokenizer, null_mut()), YN_OK);
            assert_eq!(yn_engine_tokenizer(engine, &mut words), YN_OK);
        }
        let (open, buffer) = (Vec::with_capacity(1 << 24), vec![0; 2048]);
        Self { engine, queue, tokenizer, words, open, accepted: 0, ended: 0, buffer }
    }

    /// The `user_data` of the next request.
    pub(super) fn next_user(&self) -> u64 {
        self.open.len() as u64
    }

    pub(super) fn accepted(&mut self) {
        self.open.push(true);
        self.accepted += 1;
    }

    /// Reads what there is, and waits while too many requests run.
    pub(super) fn read(&mut self) {
        self.read_until(MOST_RUNNING);
    }

    fn read_until(&mut self, running: u64) {
        let end = Instant::now() + Duration::from_secs(50);
        loop {
            let others = self.poll_queue();
            let own = self.poll_engine(i32::from(!others && self.accepted - self.ended > running));
            if !others && !own && self.accepted - self.ended <= running {
                return;
            }
            assert!(Instant::now() < end, "{} of {} requests have ended", self.ended, self.accepted);
        }
    }

    fn poll_queue(&mut self) -> bool {
        let mut used = 0;
        // SAFETY: the buffer is aligned and as long as said.
        let status = unsafe { yn_queue_poll(self.queue, self.buffer.as_mut_ptr().cast(), 4096, 0, &mut used) };
        self.records(status, used)
    }

    fn poll_engine(&mut self, timeout_ms: i32) -> bool {
        let (mut used, cap) = (0, self.buffer.len() * 8);
        // SAFETY: the buffer is aligned and as long as said.
        let status =
            unsafe { yn_engine_poll(self.engine, self.buffer.as_mut_ptr().cast(), cap, timeout_ms, &mut used) };
        self.records(status, used)
    }

    fn records(&mut self, status: yn_status, used: usize) -> bool {
        assert!(status == YN_OK || status == YN_E_TIMEOUT, "poll answers {status}");
        assert_eq!(status == YN_OK, used > 0);
        let mut at = 0;
        while at < used {
            // SAFETY: the library wrote whole records up to `used`.
            let event = unsafe { *self.buffer.as_ptr().cast::<u8>().add(at).cast::<yn_event>() };
            let size = event.size as usize;
            assert!(size >= size_of::<yn_event>() && size.is_multiple_of(8) && at + size <= used);
            // SAFETY: as above.
            let record = unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast::<u8>().add(at), size) };
            let text = &record[event.text_off as usize..][..event.text_len as usize];
            assert!(std::str::from_utf8(text).is_ok(), "text is not UTF-8");
            let payload = size_of::<yn_event>() as u32 + 4 * event.n_tokens;
            match u32::from(event.kind) {
                YN_EV_OUTPUT | YN_EV_PROMPT => {
                    assert!(payload + 16 * event.n_logprobs + event.text_len <= event.size);
                    assert!(self.open[event.user_data as usize], "output behind a DONE");
                }
                YN_EV_DONE => {
                    assert!(std::mem::take(&mut self.open[event.user_data as usize]), "a second DONE");
                    assert_eq!(event.finish == YN_FINISH_ERROR, event.status != YN_OK);
                    assert_eq!(event.status != YN_OK, event.text_len > 0);
                    assert_ne!(event.status, YN_E_INTERNAL, "{}", String::from_utf8_lossy(text));
                    self.ended += 1;
                }
                kind => assert!(kind == YN_EV_ENGINE || kind == YN_EV_LOG, "a record of kind {kind}"),
            }
            at += size;
        }
        used > 0
    }

    /// What a plain request brings, with nothing else running: number of tokens and bytes of text.
    pub(super) fn answer(&mut self) -> (u64, u64) {
        self.read_until(0);
        let before = self.stats();
        // SAFETY: all zeros is a value of every field, and all pointers are to live values.
        unsafe {
            let mut r: yn_request = zeroed();
            assert_eq!(yn_request_init(self.engine, &mut r, size_of::<yn_request>() as u32), YN_OK);
            r.prompt_text = bytes("still there?");
            (r.max_tokens, r.user_data) = (20, self.next_user());
            assert_eq!(yn_engine_submit(self.engine, &r, null_mut(), null_mut()), YN_OK);
        }
        self.accepted();
        self.read_until(0);
        let after = self.stats();
        (after.prompt_tokens - before.prompt_tokens, after.completion_tokens - before.completion_tokens)
    }

    fn stats(&self) -> yn_stats {
        // SAFETY: all zeros is a value, and the struct is as long as it says.
        unsafe {
            let mut stats: yn_stats = zeroed();
            stats.struct_size = size_of::<yn_stats>() as u32;
            assert_eq!(yn_engine_stats(self.engine, &mut stats), YN_OK);
            stats
        }
    }

    /// Everything has ended, nothing is held.
    pub(super) fn close(mut self) {
        self.read_until(0);
        // SAFETY: plain handles.
        unsafe { assert_eq!(yn_engine_drain(self.engine, 30_000), YN_OK) };
        let s = self.stats();
        assert_eq!((s.state, s.running, s.waiting, s.finished), (YN_STATE_DRAINING, 0, 0, self.accepted));
        assert_eq!((s.blocks_free, self.ended), (s.blocks_total, self.accepted));
        // SAFETY: plain handles.
        unsafe {
            assert_eq!(yn_log_to_queue(yn_queue { id: 0 }, 0), YN_OK);
            assert_eq!((yn_engine_free(self.engine), yn_queue_free(self.queue)), (YN_OK, YN_OK));
            assert_eq!((yn_tokenizer_free(self.tokenizer), yn_tokenizer_free(self.words)), (YN_OK, YN_OK));
        }
    }
}
