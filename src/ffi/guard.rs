//! What every export passes through: the fork check, the panic guard, errors as statuses, and threads of the host as
//! they are: cancelled, about to end, or with little stack.

use super::status::report;
use super::types::{YN_OK, yn_error, yn_status};
use crate::base::error::panic_text;
use crate::base::{Error, ErrorKind, Result, threads};
use std::cell::Cell;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// The process that made the first object; its threads do not exist in a forked child.
static OWNER: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static STORAGE: Storage = const { Storage };
    static IN_CALL: Cell<bool> = const { Cell::new(false) };
}

/// Dropped when a thread's storage is. Destructors of the host may call the library after that.
#[derive(Debug)]
struct Storage;

impl Drop for Storage {
    fn drop(&mut self) {}
}

/// Panics of the library go to the log instead of the host's standard error; all of them are caught further up.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IN_CALL.get() {
                log::error!(target: "yinian::panic", "in a call: {info}");
                return;
            }
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
    let _kept = Uncancelled::new();
    let ends = || STORAGE.try_with(|_| ()).is_err();
    let result = check_fork().and_then(|()| if ends() { on_own_thread(body) } else { caught(body) });
    // SAFETY: the caller vouches for `err`.
    unsafe { status(result, err) }
}

/// As [`call`], for a body whose need of stack grows with its input: it gets a thread of its own.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn deep_call(err: *mut yn_error, body: impl FnOnce() -> Result<()>) -> yn_status {
    let _kept = Uncancelled::new();
    let result = check_fork().and_then(|()| on_own_thread(body));
    // SAFETY: the caller vouches for `err`.
    unsafe { status(result, err) }
}

/// # Safety
/// As [`call`].
unsafe fn status(result: Result<()>, err: *mut yn_error) -> yn_status {
    match result {
        Ok(()) => YN_OK,
        // SAFETY: the caller vouches for `err`.
        Err(e) => unsafe { report(&e, err) },
    }
}

fn caught(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let outer = IN_CALL.replace(true);
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = panic_text(&*payload);
        // A payload's own drop may panic as well; forgetting it cannot.
        std::mem::forget(payload);
        Err(Error::internal(format!("the call panicked: {text}; this is a bug, please report it")))
    });
    IN_CALL.set(outer);
    result
}

/// What another thread works on while its owner waits.
struct Lent<F>(F);

// SAFETY: the owner waits in `on_own_thread` until the other thread has ended, so never do two threads use it.
unsafe impl<F> Send for Lent<F> {}

/// Runs `body` on a thread of the library while this one waits.
pub(crate) fn on_own_thread(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let lent = Lent(body);
    let work = move || {
        let whole = lent;
        caught(whole.0)
    };
    let started = {
        let _blocked = SignalsBlocked::new();
        // SAFETY: joined below, so `work` outlives nothing that it borrows.
        unsafe { threads::named("yn-call").spawn_unchecked(work) }
    };
    let thread = started.map_err(|e| Error::no_memory(format!("the call's thread does not start: {e}")))?;
    thread.join().unwrap_or_else(|_| Err(Error::internal("the call's thread has ended before the call")))
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

const PTHREAD_CANCEL_DISABLE: c_int = 1;

/// Keeps pthread_cancel from ending this thread inside a call, where it may hold locks: it ends at the next cancellation
/// point of the host.
#[derive(Debug)]
struct Uncancelled(c_int);

impl Uncancelled {
    fn new() -> Self {
        let mut old = 0;
        // SAFETY: `old` is writable. The call fails for unknown states only.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut old) };
        Self(old)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        let mut disabled = 0;
        // SAFETY: as above; the state is the one that `new` found.
        unsafe { pthread_setcancelstate(self.0, &mut disabled) };
    }
}

/// Marks this process as the one whose threads serve the library; called before the first object is made.
pub(crate) fn own_process() {
    log_panics();
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

const FAULTS: [c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS];

/// Blocks signals in this thread while it lives, so that threads started meanwhile never run a host's handlers. Those that
/// a thread's own fault raises stay: blocked, they would end the process without the host's crash handler.
#[derive(Debug)]
struct SignalsBlocked(Option<libc::sigset_t>);

impl SignalsBlocked {
    fn new() -> Self {
        // SAFETY: sigset_t is plain data; sigfillset fills it, sigdelset takes from it, pthread_sigmask reads one set and
        // writes the other.
        unsafe {
            let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            for fault in FAULTS {
                libc::sigdelset(&mut all, fault);
            }
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
