//! Where log lines go: nowhere, to a callback, or into a queue.

use super::engine::monotonic_ns;
use super::guard::{call, own_process};
use super::queue::{HostQueue, QUEUES};
use super::types::{yn_bytes, yn_log_fn, yn_queue, yn_status};
use crate::base::{Error, Result};
use log::{LevelFilter, Log, Metadata, Record};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, PoisonError, RwLock, Weak};

type Callback = unsafe extern "C" fn(*mut c_void, u32, yn_bytes, yn_bytes);

#[derive(Debug)]
enum Target {
    Nowhere,
    Callback(Callback, usize),
    Queue(Weak<HostQueue>),
}

#[derive(Debug)]
struct Router {
    target: RwLock<Target>,
}

static ROUTER: Router = Router { target: RwLock::new(Target::Nowhere) };

impl Log for Router {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level() as usize as u32;
        // Read-locked while a callback runs: who changes the target waits for it.
        match &*self.target.read().unwrap_or_else(PoisonError::into_inner) {
            Target::Nowhere => {}
            Target::Callback(f, user) => {
                let message = record.args().to_string();
                let borrowed = |s: &str| yn_bytes { data: s.as_ptr(), len: s.len() };
                // SAFETY: the host vouched for the function and its argument; the texts outlive the call.
                unsafe { f(*user as *mut c_void, level, borrowed(record.target()), borrowed(&message)) }
            }
            Target::Queue(queue) => {
                if let Some(queue) = queue.upgrade() {
                    queue.events.log(level as u16, record.args().to_string(), monotonic_ns());
                }
            }
        }
    }

    fn flush(&self) {}
}

fn direct(target: Target, level: u32) -> Result<()> {
    let filter = match level {
        0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        5 => LevelFilter::Trace,
        n => return Err(Error::invalid(format!("level is {n}; expected 0 (off) to 5 (trace)"))),
    };
    own_process();
    // Fails when it is set already, which is as good.
    let _ = log::set_logger(&ROUTER);
    let quiet = matches!(target, Target::Nowhere);
    *ROUTER.target.write().unwrap_or_else(PoisonError::into_inner) = target;
    log::set_max_level(if quiet { LevelFilter::Off } else { filter });
    Ok(())
}

/// Sends the log lines of all engines of the process to `log`, from any thread; NULL sends them nowhere, as at the start.
/// `level`: 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace. On return the previous callback is not running any more; do not
/// call this from a callback. Errors: INVALID.
///
/// # Safety
/// `log` is null or may be called with `user` from any thread until it is replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_log_to_callback(log: yn_log_fn, user: *mut c_void, level: u32) -> yn_status {
    let target = log.map_or(Target::Nowhere, |f| Target::Callback(f, user as usize));
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), || direct(target, level)) }
}

/// Delivers log lines as YN_EV_LOG records of a queue instead; {0} stops it. Errors: BAD_HANDLE, INVALID.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_log_to_queue(queue: yn_queue, level: u32) -> yn_status {
    let body = || {
        let target = match queue.id {
            0 => Target::Nowhere,
            id => Target::Queue(Arc::downgrade(&QUEUES.get(id)?)),
        };
        direct(target, level)
    };
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), body) }
}
