//! Failures that nobody made: calls that fail, memory that is out, tasks that go wrong on the device.

use super::{Case, NOTHING, Seen};
use crate::api::text;
use crate::world::{F32, World};
use std::ptr::null_mut;

fn third_call_fails(w: &World, planted: bool) -> Seen {
    if planted {
        w.d.fail("aclrtCreateStream", 3, 507_899);
    }
    let mut streams = [null_mut(); 4];
    let codes = streams.each_mut().map(|stream| w.d.aclrtCreateStream(stream));
    let told = text(w.d.aclGetRecentErrMsg());
    streams.iter().filter(|s| !s.is_null()).for_each(|s| assert_eq!(w.d.aclrtDestroyStream(*s), 0));
    match codes {
        [0, 0, 0, 0] => NOTHING,
        [0, 0, code, 0] if told.contains("planted failure of aclrtCreateStream") => ("aclrtCreateStream", code),
        _ => ("another call", 0),
    }
}

/// Half of a load fits.
fn no_memory_at_load(w: &World, planted: bool) -> Seen {
    if planted {
        w.d.yn_double_oom_after(5000);
    }
    let mut parts = [null_mut(); 4];
    let codes = parts.each_mut().map(|at| w.d.aclrtMalloc(at, 2000, 0));
    parts.iter().filter(|at| !at.is_null()).for_each(|at| assert_eq!(w.d.aclrtFree(*at), 0));
    match codes {
        [0, 0, 0, 0] => NOTHING,
        [0, 0, code, again] if code == again && w.d.leaks().lines().count() == 1 => ("aclrtMalloc", code),
        _ => ("another call", 0),
    }
}

fn more_than_a_device_has(w: &World, planted: bool) -> Seen {
    let (mut free, mut total, mut at) = (0, 0, null_mut());
    w.d.aclrtGetMemInfo(1, &mut free, &mut total);
    let code = w.d.aclrtMalloc(&mut at, if planted { free + 1 } else { 4096 }, 0);
    if code != 0 {
        return ("aclrtMalloc", code);
    }
    w.d.aclrtFree(at);
    let mut after = 0;
    w.d.aclrtGetMemInfo(1, &mut after, &mut total);
    if after == free { NOTHING } else { ("aclrtGetMemInfo", 0) }
}

/// The second of three tasks fails: the call that waits says so, the third is not run.
fn task_fails(w: &World, planted: bool) -> Seen {
    if planted {
        w.d.yn_double_async_error(2, 507_015);
    }
    let cells = [1, 2, 3].map(|n| (n, w.tensor(&[16], F32, &[0.0; 16])));
    for (n, cell) in cells {
        assert_eq!(w.d.aclrtMemsetAsync(cell.at, 64, n, 64, w.stream), 0);
    }
    let code = w.sync();
    let bytes = cells.map(|(_, cell)| {
        let mut byte = 0u8;
        w.d.aclrtMemcpy((&raw mut byte).cast(), 1, cell.at, 1, 2);
        byte
    });
    match (code, bytes) {
        (0, [1, 2, 3]) => NOTHING,
        (code, [1, 0, 0]) if w.sync() == code => ("aclrtSynchronizeStream", code),
        _ => ("the host's bytes", 0),
    }
}

/// Two devices work; an error of one leaves the other alone.
fn only_one_device_fails(w: &World, planted: bool) -> Seen {
    if planted {
        w.d.yn_double_async_error_on(1, 1, 507_899);
    }
    let at = w.malloc(64);
    w.d.aclrtMemsetAsync(at, 64, 1, 64, w.stream);
    w.d.aclrtSetDevice(1);
    let (mut second, other) = (null_mut(), w.malloc(64));
    w.d.aclrtCreateStream(&mut second);
    w.d.aclrtMemsetAsync(other, 64, 1, 64, second);
    let code = w.d.aclrtSynchronizeStream(second);
    w.d.aclrtDestroyStream(second);
    w.d.aclrtFree(other);
    w.d.aclrtSetDevice(0);
    let own = w.sync();
    w.d.aclrtFree(at);
    match (own, code) {
        (0, 0) => NOTHING,
        (0, code) => ("aclrtSynchronizeStream", code),
        _ => ("the other device", own),
    }
}

/// The same call fails in the threads of one device only, and the trace tells of both.
fn call_fails_on_one_device(w: &World, planted: bool) -> Seen {
    if planted {
        w.d.yn_double_fail_on(1, c"aclrtMalloc".as_ptr(), 1, 507_899);
    }
    let own = w.malloc(64);
    w.d.aclrtSetDevice(1);
    let mut other = null_mut();
    let code = w.d.aclrtMalloc(&mut other, 64, 0);
    if code == 0 {
        w.d.aclrtFree(other);
    }
    w.d.aclrtSetDevice(0);
    w.d.aclrtFree(own);
    let trace = text(w.d.yn_double_trace());
    assert!(trace.contains(
        "aclrtMalloc(64, policy 0) on device 0\naclrtSetDevice(1) on device 0\naclrtMalloc(64, policy 0) on device 1\n"
    ));
    if code == 0 { NOTHING } else { ("aclrtMalloc", code) }
}

fn old_attention(w: &World, planted: bool) -> Seen {
    use crate::cache::{Batch, Cached, Call};
    w.d.option("refuse_tnd_paged", planted);
    let batch = Batch::new(&[3], &[3]);
    let cached = Cached::new(w, &batch);
    cached.scatter(w, &batch.slots());
    match Call::paged(w, &batch, &cached).run(w) {
        0 if w.sync() == 0 => NOTHING,
        code => ("aclnnFusedInferAttentionScoreV3GetWorkspaceSize", code),
    }
}

pub(super) const CASES: &[Case] = &[
    Case { name: "third call fails", program: third_call_fails, caught: ("aclrtCreateStream", 507_899), kind: "" },
    Case { name: "no memory at load", program: no_memory_at_load, caught: ("aclrtMalloc", 207_001), kind: "" },
    Case {
        name: "more memory than the device has",
        program: more_than_a_device_has,
        caught: ("aclrtMalloc", 207_001),
        kind: "",
    },
    Case {
        name: "task fails on the device",
        program: task_fails,
        caught: ("aclrtSynchronizeStream", 507_015),
        kind: "",
    },
    Case {
        name: "only one of two devices fails",
        program: only_one_device_fails,
        caught: ("aclrtSynchronizeStream", 507_899),
        kind: "",
    },
    Case {
        name: "call fails on one device only",
        program: call_fails_on_one_device,
        caught: ("aclrtMalloc", 507_899),
        kind: "",
    },
    Case {
        name: "attention of an old version",
        program: old_attention,
        caught: ("aclnnFusedInferAttentionScoreV3GetWorkspaceSize", 161_002),
        kind: "",
    },
];
