//! Mistakes with memory and copies.

use super::{Case, NOTHING, Seen};
use crate::world::{D2D, D2H, F32, H2D, World};
use std::ffi::c_void;
use std::ptr::null_mut;

/// A page-locked buffer of the byte 7, in its whole length.
fn host_buffer(w: &World, bytes: usize) -> *mut c_void {
    let at = w.malloc_host(bytes);
    fill(at, bytes, 7);
    at
}

fn fill(at: *mut c_void, bytes: usize, value: u8) {
    // SAFETY: page-locked memory of at least so many bytes.
    unsafe { at.cast::<u8>().write_bytes(value, bytes) };
}

/// Whether it holds what `host_buffer` put there.
fn holds_sevens(at: *const c_void, bytes: usize) -> bool {
    // SAFETY: page-locked memory of at least so many bytes; nothing writes it meanwhile.
    unsafe { std::slice::from_raw_parts(at.cast::<u8>(), bytes) }.iter().all(|b| *b == 7)
}

fn wrong_copy_kind(w: &World, planted: bool) -> Seen {
    let (host, device) = (host_buffer(w, 64), w.malloc(64));
    let kind = if planted { D2H } else { H2D };
    let code = w.d.aclrtMemcpyAsync(device, 64, host, 64, kind, w.stream);
    if code != 0 {
        return ("aclrtMemcpyAsync", code);
    }
    w.sync();
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(device);
    NOTHING
}

fn host_to_host(w: &World, planted: bool) -> Seen {
    let (a, b, device) = (host_buffer(w, 64), host_buffer(w, 64), w.malloc(64));
    let (to, kind) = if planted { (b, 0) } else { (device, H2D) };
    let code = w.d.aclrtMemcpyAsync(to, 64, a, 64, kind, w.stream);
    if code != 0 {
        return ("aclrtMemcpyAsync", code);
    }
    w.sync();
    for at in [a, b] {
        w.d.aclrtFreeHost(at);
    }
    w.d.aclrtFree(device);
    NOTHING
}

fn larger_than_its_target(w: &World, planted: bool) -> Seen {
    let (host, device) = (host_buffer(w, 64), w.malloc(32));
    let code = w.d.aclrtMemcpy(device, 32, host, if planted { 64 } else { 32 }, H2D);
    if code != 0 {
        return ("aclrtMemcpy", code);
    }
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(device);
    NOTHING
}

fn past_the_allocation(w: &World, planted: bool) -> Seen {
    let (a, b) = (w.malloc(64), w.malloc(64));
    let from = if planted { a.cast::<u8>().wrapping_add(8).cast() } else { a };
    let code = w.d.aclrtMemcpyAsync(b, 64, from, 64, D2D, w.stream);
    if code != 0 {
        return ("aclrtMemcpyAsync", code);
    }
    w.sync();
    for at in [a, b] {
        w.d.aclrtFree(at);
    }
    NOTHING
}

fn use_after_free(w: &World, planted: bool) -> Seen {
    let at = w.malloc(256);
    w.d.aclrtMemsetAsync(at, 256, 0, 256, w.stream);
    if planted {
        w.d.aclrtFree(at);
    }
    let code = w.sync();
    if code != 0 {
        return ("aclrtSynchronizeStream", code);
    }
    w.d.aclrtFree(at);
    NOTHING
}

fn freed_twice(w: &World, planted: bool) -> Seen {
    let at = w.malloc(256);
    w.d.aclrtFree(at);
    match if planted { w.d.aclrtFree(at) } else { 0 } {
        0 => NOTHING,
        code => ("aclrtFree", code),
    }
}

fn free_of_null(w: &World, planted: bool) -> Seen {
    let at = w.malloc(256);
    let code = if planted { w.d.aclrtFree(null_mut()) } else { 0 };
    w.d.aclrtFree(at);
    if code == 0 { NOTHING } else { ("aclrtFree", code) }
}

/// A copy that asks no stream reads what a pending task is still to write.
fn sync_copy_without_a_wait(w: &World, planted: bool) -> Seen {
    let (host, device) = (host_buffer(w, 64), w.malloc(64));
    let mut back = [0u8; 64];
    w.d.aclrtMemcpyAsync(device, 64, host, 64, H2D, w.stream);
    if !planted {
        w.sync();
    }
    w.d.aclrtMemcpy(back.as_mut_ptr().cast(), 64, device, 64, D2H);
    w.sync();
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(device);
    if back == [7; 64] { NOTHING } else { ("the host's bytes", 0) }
}

/// The host looks at a download before it has waited.
fn missing_sync(w: &World, planted: bool) -> Seen {
    let (host, device) = (host_buffer(w, 64), w.malloc(64));
    w.d.aclrtMemcpy(device, 64, host, 64, H2D);
    w.d.aclrtMemcpyAsync(host, 64, device, 64, D2H, w.stream);
    if !planted {
        w.sync();
    }
    let same = holds_sevens(host, 64);
    w.sync();
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(device);
    if same { NOTHING } else { ("the host's bytes", 0) }
}

fn source_changed_early(w: &World, planted: bool) -> Seen {
    let (host, device) = (host_buffer(w, 64), w.malloc(64));
    w.d.aclrtMemcpyAsync(device, 64, host, 64, H2D, w.stream);
    if !planted {
        w.sync();
    }
    fill(host, 64, 9);
    w.d.aclrtMemcpyAsync(host, 64, device, 64, D2H, w.stream);
    w.sync();
    let same = holds_sevens(host, 64);
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(device);
    if same { NOTHING } else { ("the host's bytes", 0) }
}

fn host_buffer_freed_early(w: &World, planted: bool) -> Seen {
    let (host, device) = (host_buffer(w, 64), w.malloc(64));
    w.d.aclrtMemcpyAsync(device, 64, host, 64, H2D, w.stream);
    if !planted {
        w.sync();
    }
    let code = w.d.aclrtFreeHost(host);
    if code != 0 {
        return ("aclrtFreeHost", code);
    }
    w.d.aclrtFree(device);
    NOTHING
}

fn add_at(w: &World, at: *mut c_void, other: *mut c_void) -> Seen {
    let dims = [8];
    let (a, b) = (w.view(at, &dims, None, 0, &dims, F32), w.view(other, &dims, None, 0, &dims, F32));
    let one = w.scalar(1.0);
    let code = w.run(|n, e| w.d.aclnnAddGetWorkspaceSize(a, b, one, b, n, e), |p, n, e, s| w.d.aclnnAdd(p, n, e, s));
    for t in [a, b] {
        w.d.aclDestroyTensor(t);
    }
    if code != 0 {
        return ("aclnnAddGetWorkspaceSize", code);
    }
    w.sync();
    NOTHING
}

fn unaligned_address(w: &World, planted: bool) -> Seen {
    let (a, b) = (w.malloc(256), w.malloc(256));
    let seen = add_at(w, a.cast::<u8>().wrapping_add(if planted { 48 } else { 64 }).cast(), b);
    for at in [a, b] {
        w.d.aclrtFree(at);
    }
    seen
}

/// Two tensors carved from one allocation without the 32 bytes that have to lie between.
fn pieces_too_close(w: &World, planted: bool) -> Seen {
    let a = w.malloc(256);
    let seen = add_at(w, a, a.cast::<u8>().wrapping_add(if planted { 32 } else { 64 }).cast());
    w.d.aclrtFree(a);
    seen
}

fn memory_of_another_device(w: &World, planted: bool) -> Seen {
    let a = w.malloc(64);
    w.d.aclrtSetDevice(i32::from(planted));
    let b = w.malloc(64);
    w.d.aclrtSetDevice(0);
    let seen = add_at(w, a, b);
    if seen == NOTHING {
        for at in [a, b] {
            w.d.aclrtFree(at);
        }
    }
    seen
}

pub(super) const CASES: &[Case] = &[
    Case {
        name: "wrong copy kind",
        program: wrong_copy_kind,
        caught: ("aclrtMemcpyAsync", 107_000),
        kind: "copy-kind",
    },
    Case {
        name: "asynchronous copy from host to host",
        program: host_to_host,
        caught: ("aclrtMemcpyAsync", 207_000),
        kind: "copy-kind",
    },
    Case {
        name: "copy larger than its target",
        program: larger_than_its_target,
        caught: ("aclrtMemcpy", 100_000),
        kind: "copy-size",
    },
    Case {
        name: "copy past the end of an allocation",
        program: past_the_allocation,
        caught: ("aclrtMemcpyAsync", 107_000),
        kind: "out-of-bounds",
    },
    Case {
        name: "use after free",
        program: use_after_free,
        caught: ("aclrtSynchronizeStream", 507_015),
        kind: "use-after-free",
    },
    Case { name: "memory freed twice", program: freed_twice, caught: ("aclrtFree", 107_000), kind: "free" },
    Case { name: "free of NULL", program: free_of_null, caught: ("aclrtFree", 107_000), kind: "free" },
    Case {
        name: "missing sync before a download is read",
        program: missing_sync,
        caught: ("the host's bytes", 0),
        kind: "",
    },
    Case {
        name: "missing sync before a plain copy",
        program: sync_copy_without_a_wait,
        caught: ("the host's bytes", 0),
        kind: "missing-sync",
    },
    Case {
        name: "upload's source changed early",
        program: source_changed_early,
        caught: ("the host's bytes", 0),
        kind: "host-buffer-changed",
    },
    Case {
        name: "upload's source freed early",
        program: host_buffer_freed_early,
        caught: ("aclrtFreeHost", 107_000),
        kind: "host-free-pending",
    },
    Case {
        name: "unaligned address",
        program: unaligned_address,
        caught: ("aclnnAddGetWorkspaceSize", 161_002),
        kind: "alignment",
    },
    Case {
        name: "pieces of a slab too close",
        program: pieces_too_close,
        caught: ("aclnnAddGetWorkspaceSize", 161_002),
        kind: "slab",
    },
    Case {
        name: "memory of another device",
        program: memory_of_another_device,
        caught: ("aclnnAddGetWorkspaceSize", 161_002),
        kind: "wrong-device",
    },
];
