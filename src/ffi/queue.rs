//! Event queues of hosts, and polling.

use super::args::out;
use super::guard::{call, own_process};
use super::handle::Table;
use super::record::Buffer;
use super::types::{YN_POLL_MIN_BYTES, yn_error, yn_queue, yn_status};
use crate::base::{Error, ErrorKind, Result};
use crate::engine::EventQueue;
use crate::engine::queue::Bell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A queue with its descriptor.
#[derive(Debug)]
pub(crate) struct HostQueue {
    pub(crate) events: Arc<EventQueue>,
    fd: Arc<EventFd>,
}

pub(crate) static QUEUES: Table<HostQueue> = Table::new(2, "queue");

/// Freed queues that may hold unread events, by the handle they were freed under, the oldest first.
static RETIRED: Mutex<VecDeque<(u64, Arc<EventQueue>)>> = Mutex::new(VecDeque::new());
/// Unread queues beyond this are let go, for hosts that never read to the end.
const MAX_RETIRED: usize = 256;

/// A counter the kernel shows as readable.
#[derive(Debug)]
struct EventFd(OwnedFd);

#[derive(Debug)]
struct FdBell(Arc<EventFd>);

impl EventFd {
    fn new() -> Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(os_error("creating an event descriptor"));
        }
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn duplicate(&self) -> Result<i32> {
        // SAFETY: no pointers; the descriptor is open as long as self.
        let fd = unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
        if fd < 0 { Err(os_error("duplicating the event descriptor")) } else { Ok(fd) }
    }
}

fn os_error(what: &str) -> Error {
    Error::io(format!("{what} failed: {}", std::io::Error::last_os_error()))
}

impl Bell for FdBell {
    fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes. The counter is 0 or 1, so the write cannot block or fail.
        unsafe { libc::write(self.0.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight writable bytes. The host may have read the counter already; then this reads nothing.
        unsafe { libc::read(self.0.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl HostQueue {
    pub(crate) fn new() -> Result<Self> {
        let fd = Arc::new(EventFd::new()?);
        Ok(Self { events: EventQueue::new(Some(Box::new(FdBell(Arc::clone(&fd))))), fd })
    }

    pub(crate) fn fd(&self) -> Result<i32> {
        self.fd.duplicate()
    }
}

fn retired() -> MutexGuard<'static, VecDeque<(u64, Arc<EventQueue>)>> {
    RETIRED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a freed queue readable under its old handle.
pub(crate) fn retire(id: u64, queue: &HostQueue) {
    let mut retired = retired();
    if retired.len() == MAX_RETIRED {
        retired.pop_front();
    }
    retired.push_back((id, Arc::clone(&queue.events)));
}

/// The queue to poll for a handle: live, or freed and not yet drained. `Shutdown` once it is drained.
pub(crate) fn pollable<T>(
    id: u64,
    table: &Table<T>,
    queue: impl Fn(&T) -> &Arc<EventQueue>,
) -> Result<Arc<EventQueue>> {
    table.get(id).map(|object| Arc::clone(queue(&object))).or_else(|bad| {
        let unread = retired().iter().find(|(freed, _)| *freed == id).map(|(_, queue)| Arc::clone(queue));
        match unread {
            Some(queue) => Ok(queue),
            None if table.is_stale(id) => Err(Error::new(ErrorKind::Shutdown, "freed, and everything in it was read")),
            None => Err(bad),
        }
    })
}

/// Polls into memory of the caller.
///
/// # Safety
/// `buf` points to `cap` writable bytes, `used` to a writable size; nobody else uses them during the call.
pub(crate) unsafe fn poll_into(
    id: u64,
    queue: impl FnOnce() -> Result<Arc<EventQueue>>,
    (buf, cap): (*mut c_void, usize),
    timeout_ms: i32,
    used: *mut usize,
) -> Result<()> {
    // SAFETY: the caller vouches for `used`.
    let used = unsafe { out("used", used) }?;
    *used = 0;
    let queue = queue()?;
    if buf.is_null() || !buf.cast::<u64>().is_aligned() || cap > isize::MAX as usize {
        return Err(Error::invalid("buf is NULL or not 8-byte aligned"));
    }
    if cap < YN_POLL_MIN_BYTES as usize {
        return Err(Error::new(ErrorKind::TooSmall, format!("cap is {cap}; expected at least {YN_POLL_MIN_BYTES}")));
    }
    // SAFETY: not null, and the caller vouches for `cap` bytes.
    let mut buffer = Buffer::new(unsafe { std::slice::from_raw_parts_mut(buf.cast::<u8>(), cap) });
    let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    let result = queue.poll(timeout, &mut buffer);
    *used = buffer.used();
    if matches!(&result, Err(e) if e.kind == ErrorKind::Shutdown) {
        retired().retain(|(freed, _)| *freed != id);
    }
    result
}

/// Makes an event queue, for hosts that want one per thread; requests name it in `queue`. Never blocks. Free it with
/// yn_queue_free. Errors: INVALID, IO (no descriptors left), NO_MEMORY.
///
/// # Safety
/// `out_queue` points to a writable yn_queue; `err` is null or points to a writable yn_error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_queue_create(out_queue: *mut yn_queue, err: *mut yn_error) -> yn_status {
    let body = || {
        // SAFETY: as documented.
        let to = unsafe { out("out_queue", out_queue) }?;
        own_process();
        to.id = QUEUES.insert(Arc::new(HostQueue::new()?))?;
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { call(err, body) }
}

/// As yn_engine_poll, for a queue of the host's own.
///
/// # Safety
/// As yn_engine_poll.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_queue_poll(
    queue: yn_queue,
    buf: *mut c_void,
    cap: usize,
    timeout_ms: i32,
    used: *mut usize,
) -> yn_status {
    let find = || pollable(queue.id, &QUEUES, |q| &q.events);
    // SAFETY: as documented.
    unsafe { call(std::ptr::null_mut(), || poll_into(queue.id, find, (buf, cap), timeout_ms, used)) }
}

/// As yn_engine_fd; from yn_queue_free on readable for ever. Errors: BAD_HANDLE, INVALID, IO.
///
/// # Safety
/// `out_fd` points to a writable int32_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_queue_fd(queue: yn_queue, out_fd: *mut i32) -> yn_status {
    let body = || {
        let queue = QUEUES.get(queue.id)?;
        // SAFETY: as documented.
        let to = unsafe { out("out_fd", out_fd) }?;
        *to = queue.fd()?;
        Ok(())
    };
    // SAFETY: no error is wanted.
    unsafe { call(std::ptr::null_mut(), body) }
}

/// Makes one current poll of the queue, or the next one, return TIMEOUT at once. Never blocks. Errors: BAD_HANDLE.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_queue_wake(queue: yn_queue) -> yn_status {
    // SAFETY: no error is wanted.
    unsafe { call(std::ptr::null_mut(), || QUEUES.get(queue.id).map(|q| q.events.wake())) }
}

/// Cancels the requests that stream into the queue and retires the handle. What is unread, and the DONE records of the
/// cancelled requests, can still be polled through it (of the last 256 freed); then polls answer SHUTDOWN. Never blocks.
/// Errors: BAD_HANDLE.
///
/// # Safety
/// Always safe to call, also while other threads poll.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_queue_free(queue: yn_queue) -> yn_status {
    let body = || {
        let freed = QUEUES.remove(queue.id, |q| retire(queue.id, q))?;
        freed.events.shut();
        Ok(())
    };
    // SAFETY: no error is wanted.
    unsafe { call(std::ptr::null_mut(), body) }
}
