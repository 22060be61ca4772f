//! What a thread allocates: a target that takes gigabytes for a few bytes of input, or keeps some of every input, is wrong.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// SAFETY: everything is handed on to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Bytes this thread has allocated more than it has freed.
pub(crate) struct Mark(isize);

pub(crate) struct Used {
    pub(crate) peak: isize,
    pub(crate) left: isize,
}

pub(crate) fn mark() -> Mark {
    PEAK.set(LIVE.get());
    Mark(LIVE.get())
}

pub(crate) fn since(mark: Mark) -> Used {
    Used { peak: PEAK.get() - mark.0, left: LIVE.get() - mark.0 }
}

/// What an answer itself keeps allocated.
pub(crate) fn held_by(answer: &Result<(), String>) -> isize {
    answer.as_ref().err().map_or(0, |message| message.capacity() as isize)
}
