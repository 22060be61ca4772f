//! Engines: create, poll, drain, free, and what they tell about themselves.

use super::args::{buf, bytes, out};
use super::guard::{call, deep_call, own_process};
use super::handle::Table;
use super::queue::{HostQueue, poll_into, pollable, retire};
use super::record::state;
use super::types::*;
use crate::base::clock::MonotonicClock;
use crate::base::config::{EngineConfig, MAX_JSON_BYTES};
use crate::base::{Error, RequestId, Result};
use crate::engine::{self, Engine};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

/// An engine with the queue of its own.
#[derive(Debug)]
pub(crate) struct HostEngine {
    pub(crate) engine: Arc<Engine>,
    pub(crate) queue: Arc<HostQueue>,
}

pub(crate) static ENGINES: Table<HostEngine> = Table::new(1, "engine");

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is writable. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn create(config: EngineConfig) -> Result<u64> {
    own_process();
    let queue = Arc::new(HostQueue::new()?);
    let clock = Arc::new(MonotonicClock::starting_at(monotonic_ns()));
    let engine = Engine::start(config, Arc::clone(&queue.events), clock)?;
    ENGINES.insert(Arc::new(HostEngine { engine, queue }))
}

/// Loads a model. `config_json` is a JSON object; the README lists its keys. Blocks while loading; with {"async_load": true} it
/// returns at once and progress arrives as YN_EV_ENGINE records. Free the engine with yn_engine_free. Errors: INVALID,
/// UNSUPPORTED, NOT_FOUND, IO, NO_MEMORY, DEVICE.
///
/// # Safety
/// `config_json` is readable, `out_engine` writable, `err` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_create(
    config_json: yn_bytes,
    out_engine: *mut yn_engine,
    err: *mut yn_error,
) -> yn_status {
    let body = || {
        // SAFETY: as documented.
        let (config, to) =
            unsafe { (bytes("config_json", config_json, MAX_JSON_BYTES)?, out("out_engine", out_engine)?) };
        to.id = create(EngineConfig::from_json(config)?)?;
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { deep_call(err, body) }
}

/// Fills `buf` with as many whole records as fit: step by yn_event.size until *used. A long payload is split over several
/// OUTPUT records. Waits for at most `timeout_ms`; 0 does not wait, below 0 waits on. Several threads may poll one engine. After
/// yn_engine_free what is unread can still be polled. OK if and only if *used > 0. Errors: BAD_HANDLE, INVALID, TOO_SMALL,
/// TIMEOUT (also when woken), SHUTDOWN (freed, and everything was read).
///
/// # Safety
/// `buf` points to `cap` writable bytes, at least 4096, 8-byte aligned; `used` to a writable size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_poll(
    engine: yn_engine,
    buf: *mut c_void,
    cap: usize,
    timeout_ms: i32,
    used: *mut usize,
) -> yn_status {
    let find = || pollable(engine.id, &ENGINES, |e| &e.queue.events);
    // SAFETY: as documented.
    unsafe { call(null_mut(), || poll_into(engine.id, find, (buf, cap), timeout_ms, used)) }
}

/// Asks a request to end; its DONE still arrives. Idempotent; OK also for finished and unknown ids. Never blocks. Errors:
/// BAD_HANDLE.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_cancel(engine: yn_engine, id: yn_request_id) -> yn_status {
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), || ENGINES.get(engine.id).map(|e| e.engine.cancel(RequestId(id)))) }
}

/// A new non-blocking CLOEXEC descriptor that the caller owns and closes: readable while the engine's queue is not empty,
/// and for ever once the engine is freed.
/// Do not read it, polling clears it. Errors: BAD_HANDLE, INVALID, IO.
///
/// # Safety
/// `out_fd` points to a writable int32_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_fd(engine: yn_engine, out_fd: *mut i32) -> yn_status {
    let body = || {
        let engine = ENGINES.get(engine.id)?;
        // SAFETY: as documented.
        let to = unsafe { out("out_fd", out_fd) }?;
        *to = engine.queue.fd()?;
        Ok(())
    };
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), body) }
}

/// Makes one current poll of the engine's queue, or the next one, return TIMEOUT at once. Never blocks. Errors: BAD_HANDLE.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_wake(engine: yn_engine) -> yn_status {
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), || ENGINES.get(engine.id).map(|e| e.queue.events.wake())) }
}

/// Refuses new requests from now on and waits until the accepted ones have ended; below 0 waits on. Their records must still be
/// polled. Errors: BAD_HANDLE, TIMEOUT (drain again or free).
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_drain(engine: yn_engine, timeout_ms: i32) -> yn_status {
    let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), || ENGINES.get(engine.id)?.engine.drain(timeout)) }
}

/// Cancels what is left, delivers every DONE, joins the threads, frees the device and retires the handle. Blocks for about a
/// step; where the device hangs for at most watchdog_ms and 10 seconds (1 when the watchdog had fired before), after which the
/// device's thread is left behind with what it holds, and the log says so. Safe while other threads are inside calls of this
/// engine. What is unread can still be polled (of the last 256 freed). Errors: BAD_HANDLE.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_free(engine: yn_engine) -> yn_status {
    let body = || {
        let freed = ENGINES.remove(engine.id, |e| retire(engine.id, &e.queue))?;
        freed.engine.close();
        Ok(())
    };
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), body) }
}

/// Fills a yn_stats whose struct_size the caller has set. Never blocks. Errors: BAD_HANDLE, INVALID.
///
/// # Safety
/// `inout` points to struct_size writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_stats(engine: yn_engine, inout: *mut yn_stats) -> yn_status {
    let body = || {
        let s = ENGINES.get(engine.id)?.engine.stats();
        if inout.is_null() || !inout.is_aligned() {
            return Err(Error::invalid("inout is NULL or misaligned"));
        }
        // SAFETY: not null and aligned; the first field is always there.
        let struct_size = unsafe { inout.cast::<u32>().read() };
        if struct_size < 8 {
            return Err(Error::invalid(format!("struct_size is {struct_size}; expected sizeof(yn_stats)")));
        }
        let filled = yn_stats {
            struct_size,
            state: state(s.state),
            waiting: s.waiting,
            running: s.running,
            finished: s.finished,
            rejected: s.rejected,
            preempted: s.preempted,
            blocks_total: s.blocks_total,
            blocks_free: s.blocks_free,
            prefix_hit_tokens: s.prefix_hit_tokens,
            prompt_tokens: s.prompt_tokens,
            completion_tokens: s.completion_tokens,
            steps: s.steps,
        };
        let len = size_of::<yn_stats>().min(struct_size as usize);
        // SAFETY: `len` bytes are readable in `filled` and, as documented, writable at `inout`.
        unsafe { std::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), inout.cast::<u8>(), len) };
        Ok(())
    };
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), body) }
}

/// Model, limits, memory and device as a JSON object. Free it with yn_buf_free. Never blocks. Errors: BAD_HANDLE, INVALID.
///
/// # Safety
/// `out_json` is writable, `err` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_info(engine: yn_engine, out_json: *mut yn_buf, err: *mut yn_error) -> yn_status {
    let body = || {
        let engine = ENGINES.get(engine.id)?;
        // SAFETY: as documented.
        let to = unsafe { out("out_json", out_json) }?;
        *to = buf(engine.engine.info().to_string().into_bytes());
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { call(err, body) }
}

/// Prometheus text exposition. Free it with yn_buf_free. Never blocks. Errors: BAD_HANDLE, INVALID.
///
/// # Safety
/// `out_text` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_metrics(engine: yn_engine, out_text: *mut yn_buf) -> yn_status {
    let body = || {
        let engine = ENGINES.get(engine.id)?;
        // SAFETY: as documented.
        let to = unsafe { out("out_text", out_text) }?;
        *to = buf(engine.engine.metrics().into_bytes());
        Ok(())
    };
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), body) }
}

/// What a config would load where, before loading, as a JSON object in bytes. Reads the model's headers. Free the result with
/// yn_buf_free. Errors: as yn_engine_create.
///
/// # Safety
/// `config_json` is readable, `out_json` writable, `err` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_plan_memory(config_json: yn_bytes, out_json: *mut yn_buf, err: *mut yn_error) -> yn_status {
    let body = || {
        // SAFETY: as documented.
        let (config, to) = unsafe { (bytes("config_json", config_json, MAX_JSON_BYTES)?, out("out_json", out_json)?) };
        *to = buf(engine::plan_memory(&EngineConfig::from_json(config)?)?.to_string().into_bytes());
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { deep_call(err, body) }
}
