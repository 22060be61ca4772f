//! What every export passes through: the fork check, the panic guard, errors as statuses.

use super::status::report;
use super::types::{YN_OK, yn_error, yn_status};
use crate::base::error::panic_text;
use crate::base::{Error, ErrorKind, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// The process that made the first object; its threads do not exist in a forked child.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Panics of library threads go to the log instead of the host's standard error; all of them are caught further up.
pub(crate) fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            match thread.name().filter(|name| name.starts_with("yn-")) {
                Some(name) => log::error!(target: "yinian::panic", "{name}: {info}"),
                None => others(info),
            }
        }));
    });
}

/// Runs an export's body. In a forked child no lock is touched, because its holder may not exist there.
///
/// # Safety
/// `err` is null or points to a writable `yn_error`.
pub(crate) unsafe fn call(err: *mut yn_error, body: impl FnOnce() -> Result<()>) -> yn_status {
    let result = check_fork().and_then(|()| {
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
            let text = panic_text(&*payload);
            // A payload's own drop may panic as well; forgetting it cannot.
            std::mem::forget(payload);
            Err(Error::internal(format!("the call panicked: {text}; this is a bug, please report it")))
        })
    });
    match result {
        Ok(()) => YN_OK,
        // SAFETY: the caller vouches for `err`.
        Err(e) => unsafe { report(&e, err) },
    }
}

/// Marks this process as the one whose threads serve the library; called before the first object is made.
pub(crate) fn own_process() {
    // Whoever was first stays.
    let _ = OWNER.compare_exchange(0, std::process::id(), Ordering::AcqRel, Ordering::Acquire);
}

fn check_fork() -> Result<()> {
    match OWNER.load(Ordering::Acquire) {
        0 => Ok(()),
        owner if owner == std::process::id() => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Forked,
            "this process was forked from the one that uses the library; exec, or create engines after the fork only",
        )),
    }
}

/// Blocks all signals in this thread while it lives, so that threads started meanwhile never run a host's handler.
#[derive(Debug)]
pub(crate) struct SignalsBlocked(Option<libc::sigset_t>);

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        // SAFETY: sigset_t is plain data; sigfillset fills it, pthread_sigmask reads one set and writes the other.
        unsafe {
            let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            let rc = libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
            Self((rc == 0).then_some(old))
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            // SAFETY: `old` is the mask pthread_sigmask gave; the third argument may be null.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old, std::ptr::null_mut()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::types::YN_E_INTERNAL;

    #[test]
    fn a_panic_becomes_a_status() {
        let mut e = yn_error { status: 0, flags: 0, message: [0; 504] };
        // SAFETY: `e` is a live value.
        assert_eq!(unsafe { call(&mut e, || panic!("boom")) }, YN_E_INTERNAL);
        let text: Vec<u8> = e.message.iter().map(|c| *c as u8).collect();
        assert!(String::from_utf8_lossy(&text).contains("boom"));
    }
}
