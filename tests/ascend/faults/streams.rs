//! Mistakes with threads, streams and events.

use super::{Case, NOTHING, Seen};
use crate::world::{D2H, H2D, World};
use std::ptr::null_mut;

fn thread_without_a_device(w: &World, planted: bool) -> Seen {
    let d = w.d;
    let other = std::thread::spawn(move || {
        if !planted {
            d.aclrtSetDevice(0);
        }
        let mut at = null_mut();
        let code = d.aclrtMalloc(&mut at, 64, 0);
        if code == 0 {
            d.aclrtFree(at);
        }
        code
    });
    match other.join().unwrap() {
        0 => NOTHING,
        code => ("aclrtMalloc", code),
    }
}

/// A thread of device 1 uses a stream of device 0.
fn thread_of_another_context(w: &World, planted: bool) -> Seen {
    let d = w.d;
    let stream = w.stream as usize;
    let other = std::thread::spawn(move || {
        d.aclrtSetDevice(i32::from(planted));
        d.aclrtSynchronizeStream(stream as _)
    });
    match other.join().unwrap() {
        0 => NOTHING,
        code => ("aclrtSynchronizeStream", code),
    }
}

fn context_of_the_same_device(w: &World, planted: bool) -> Seen {
    let (mut own, mut context) = (null_mut(), null_mut());
    w.d.aclrtGetCurrentContext(&mut own);
    w.d.aclrtCreateContext(&mut context, 0);
    if !planted {
        w.d.aclrtSetCurrentContext(own);
    }
    let code = w.sync();
    w.d.aclrtSetCurrentContext(own);
    w.d.aclrtDestroyContext(context);
    if code == 0 { NOTHING } else { ("aclrtSynchronizeStream", code) }
}

fn device_out_of_range(w: &World, planted: bool) -> Seen {
    let mut count = 0;
    w.d.aclrtGetDeviceCount(&mut count);
    let code = w.d.aclrtSetDevice(count as i32 - i32::from(!planted));
    w.d.aclrtSetDevice(0);
    if code == 0 { NOTHING } else { ("aclrtSetDevice", code) }
}

fn stream_destroyed_early(w: &World, planted: bool) -> Seen {
    let (at, mut stream) = (w.malloc(64), null_mut());
    w.d.aclrtCreateStream(&mut stream);
    w.d.aclrtMemsetAsync(at, 64, 1, 64, stream);
    if !planted {
        w.d.aclrtSynchronizeStream(stream);
    }
    w.d.aclrtDestroyStream(stream);
    let mut byte = 0u8;
    w.d.aclrtMemcpy((&raw mut byte).cast(), 1, at, 1, D2H);
    w.d.aclrtFree(at);
    if byte == 1 { NOTHING } else { ("the host's bytes", 0) }
}

fn stream_used_after_its_end(w: &World, planted: bool) -> Seen {
    let mut stream = null_mut();
    w.d.aclrtCreateStream(&mut stream);
    if planted {
        w.d.aclrtDestroyStream(stream);
    }
    let code = w.d.aclrtSynchronizeStream(stream);
    if code != 0 {
        return ("aclrtSynchronizeStream", code);
    }
    w.d.aclrtDestroyStream(stream);
    NOTHING
}

/// An event that is not made to be recorded again.
fn event_recorded_twice(w: &World, planted: bool) -> Seen {
    let mut event = null_mut();
    match planted {
        true => w.d.aclrtCreateEvent(&mut event),
        false => w.d.aclrtCreateEventExWithFlag(&mut event, 1),
    };
    w.d.aclrtRecordEvent(event, w.stream);
    let code = w.d.aclrtRecordEvent(event, w.stream);
    if code != 0 {
        return ("aclrtRecordEvent", code);
    }
    w.d.aclrtSynchronizeEvent(event);
    w.d.aclrtDestroyEvent(event);
    NOTHING
}

fn plain_event_reset(w: &World, planted: bool) -> Seen {
    let mut event = null_mut();
    match planted {
        true => w.d.aclrtCreateEvent(&mut event),
        false => w.d.aclrtCreateEventWithFlag(&mut event, 1),
    };
    w.d.aclrtRecordEvent(event, w.stream);
    w.sync();
    let code = w.d.aclrtResetEvent(event, w.stream);
    w.d.aclrtDestroyEvent(event);
    if code == 0 { NOTHING } else { ("aclrtResetEvent", code) }
}

fn event_never_recorded(w: &World, planted: bool) -> Seen {
    let mut event = null_mut();
    w.d.aclrtCreateEventExWithFlag(&mut event, 1);
    if !planted {
        w.d.aclrtRecordEvent(event, w.stream);
    }
    let code = w.d.aclrtSynchronizeEvent(event);
    w.d.aclrtDestroyEvent(event);
    if code == 0 { NOTHING } else { ("aclrtSynchronizeEvent", code) }
}

fn event_destroyed_twice(w: &World, planted: bool) -> Seen {
    let mut event = null_mut();
    w.d.aclrtCreateEventExWithFlag(&mut event, 1);
    w.d.aclrtDestroyEvent(event);
    match if planted { w.d.aclrtDestroyEvent(event) } else { 0 } {
        0 => NOTHING,
        code => ("aclrtDestroyEvent", code),
    }
}

fn event_of_another_device(w: &World, planted: bool) -> Seen {
    let mut event = null_mut();
    w.d.aclrtSetDevice(i32::from(planted));
    w.d.aclrtCreateEventExWithFlag(&mut event, 1);
    w.d.aclrtSetDevice(0);
    let code = w.d.aclrtRecordEvent(event, w.stream);
    if code != 0 {
        return ("aclrtRecordEvent", code);
    }
    w.sync();
    w.d.aclrtDestroyEvent(event);
    NOTHING
}

/// One stream reads what another writes.
fn streams_without_an_event(w: &World, planted: bool) -> Seen {
    let (host, at) = (w.malloc_host(64), w.malloc(64));
    let (mut second, mut event) = (null_mut(), null_mut());
    w.d.aclrtCreateStream(&mut second);
    w.d.aclrtCreateEventExWithFlag(&mut event, 1);
    w.d.aclrtMemsetAsync(at, 64, 3, 64, w.stream);
    w.d.aclrtRecordEvent(event, w.stream);
    if !planted {
        w.d.aclrtStreamWaitEvent(second, event);
    }
    w.d.aclrtMemcpyAsync(host, 64, at, 64, D2H, second);
    w.d.aclrtSynchronizeStream(second);
    // SAFETY: page-locked memory of 64 bytes that no task uses any more.
    let byte = unsafe { host.cast::<u8>().read() };
    w.sync();
    w.d.aclrtDestroyEvent(event);
    w.d.aclrtDestroyStream(second);
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(at);
    if byte == 3 { NOTHING } else { ("the host's bytes", 0) }
}

/// An answer of 1 from a stream means "not yet", from an event "done".
fn statuses_mixed_up(w: &World, planted: bool) -> Seen {
    let (host, at, mut event) = (w.malloc_host(64), w.malloc(64), null_mut());
    w.d.aclrtCreateEventExWithFlag(&mut event, 1);
    w.d.aclrtMemcpyAsync(at, 64, host, 64, H2D, w.stream);
    w.d.aclrtRecordEvent(event, w.stream);
    let (mut done, mut status) = (false, 0);
    for _ in 0..3 {
        w.d.aclrtQueryEventStatus(event, &mut status);
        done = status == i32::from(!planted);
        if done {
            break;
        }
    }
    let code = if done { w.d.aclrtFreeHost(host) } else { -1 };
    if code != 0 {
        return ("aclrtFreeHost", code);
    }
    w.d.aclrtDestroyEvent(event);
    w.d.aclrtFree(at);
    NOTHING
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "thread that set no device",
        program: thread_without_a_device,
        caught: ("aclrtMalloc", 107_002),
        kind: "no-context",
    },
    Case {
        name: "thread of another device's context",
        program: thread_of_another_context,
        caught: ("aclrtSynchronizeStream", 107_003),
        kind: "stream-context",
    },
    Case {
        name: "another context of the same device",
        program: context_of_the_same_device,
        caught: ("aclrtSynchronizeStream", 107_003),
        kind: "stream-context",
    },
    Case {
        name: "device out of range",
        program: device_out_of_range,
        caught: ("aclrtSetDevice", 107_001),
        kind: "device",
    },
    Case {
        name: "stream destroyed with work pending",
        program: stream_destroyed_early,
        caught: ("the host's bytes", 0),
        kind: "stream-destroyed-pending",
    },
    Case {
        name: "stream used after its end",
        program: stream_used_after_its_end,
        caught: ("aclrtSynchronizeStream", 107_000),
        kind: "stream",
    },
    Case {
        name: "event reused",
        program: event_recorded_twice,
        caught: ("aclrtRecordEvent", 107_000),
        kind: "event-reuse",
    },
    Case {
        name: "plain event reset",
        program: plain_event_reset,
        caught: ("aclrtResetEvent", 207_000),
        kind: "event-reset",
    },
    Case {
        name: "event never recorded",
        program: event_never_recorded,
        caught: ("aclrtSynchronizeEvent", 107_000),
        kind: "event-unrecorded",
    },
    Case {
        name: "event destroyed twice",
        program: event_destroyed_twice,
        caught: ("aclrtDestroyEvent", 107_000),
        kind: "event",
    },
    Case {
        name: "event of another device",
        program: event_of_another_device,
        caught: ("aclrtRecordEvent", 107_000),
        kind: "wrong-device",
    },
    Case {
        name: "streams without an event between",
        program: streams_without_an_event,
        caught: ("the host's bytes", 0),
        kind: "race",
    },
    Case {
        name: "status of stream and event mixed up",
        program: statuses_mixed_up,
        caught: ("aclrtFreeHost", 107_000),
        kind: "host-free-pending",
    },
];
