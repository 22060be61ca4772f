//! Streams and events in both modes.

use crate::api::{Double, P};
use crate::world::{D2D, D2H, F32, H2D, World};
use std::ptr::null_mut;

/// Whether the device has got so far, by asking again and again.
fn asked(d: &Double, event: P) -> usize {
    for times in 1..100_000 {
        let mut status = 0;
        assert_eq!(d.aclrtQueryEventStatus(event, &mut status), 0);
        if status == 1 {
            return times;
        }
        std::thread::yield_now();
    }
    panic!("an event never passes");
}

/// A lazy stream does nothing before somebody waits; the second question about an event lets it come so far.
#[test]
fn lazy_streams_wait_to_be_asked() {
    let w = World::lazy();
    let (at, host, mut event) = (w.malloc(64), w.malloc_host(64), null_mut());
    assert_eq!(w.d.aclrtCreateEventExWithFlag(&mut event, 1), 0);
    w.d.aclrtMemsetAsync(at, 64, 5, 64, w.stream);
    w.d.aclrtMemcpyAsync(host, 64, at, 64, D2H, w.stream);
    w.d.aclrtRecordEvent(event, w.stream);
    w.d.aclrtMemsetAsync(at, 64, 6, 64, w.stream);
    // SAFETY: page-locked memory of 64 bytes; in lazy mode the double touches it only while it is called.
    let byte = || unsafe { host.cast::<u8>().read_volatile() };
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(byte(), 0xFF);
    assert_eq!(asked(w.d, event), 2);
    assert_eq!(byte(), 5);
    // What stands behind the event has not run.
    let mut status = 0;
    assert_eq!(w.d.aclrtStreamQuery(w.stream, &mut status), 0);
    assert_eq!(status, 1);
    assert_eq!(w.d.aclrtStreamQuery(w.stream, &mut status), 0);
    assert_eq!(status, 0);
    w.d.aclrtDestroyEvent(event);
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(at);
    assert_eq!((w.end(), w.d.faults()), (String::new(), String::new()));
}

/// A wait keeps the record of its time: a later one of the same event is another.
#[test]
fn waits_mean_the_record_before_them() {
    let w = World::lazy();
    let (mut second, mut event) = (null_mut(), null_mut());
    let (at, host) = (w.malloc(64), w.malloc_host(64));
    w.d.aclrtCreateStream(&mut second);
    w.d.aclrtCreateEventExWithFlag(&mut event, 1);
    w.d.aclrtMemsetAsync(at, 64, 1, 64, w.stream);
    w.d.aclrtRecordEvent(event, w.stream);
    w.d.aclrtStreamWaitEvent(second, event);
    w.d.aclrtMemcpyAsync(host, 64, at, 64, D2H, second);
    let other = w.malloc(64);
    w.d.aclrtMemsetAsync(other, 64, 2, 64, w.stream);
    w.d.aclrtRecordEvent(event, w.stream);
    assert_eq!(w.d.aclrtSynchronizeStream(second), 0);
    // What was recorded later has not run: only a plain copy sees that, and it is told so.
    let mut byte = 0u8;
    w.d.aclrtMemcpy((&raw mut byte).cast(), 1, other, 1, D2H);
    assert_eq!(byte, 0xFF);
    assert_eq!(w.d.faults().lines().count(), 1, "{}", w.d.faults());
    // SAFETY: page-locked memory of 64 bytes that no task uses any more.
    assert_eq!(unsafe { host.cast::<u8>().read() }, 1);
    assert_eq!(w.d.aclrtSynchronizeEvent(event), 0);
    w.d.aclrtDestroyEvent(event);
    w.d.aclrtDestroyStream(second);
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(at);
    w.d.aclrtFree(other);
    assert_eq!(w.end(), "");
}

/// Two streams that pass a number to and fro, each step ordered by events alone: whatever the delays, it comes out right.
#[test]
fn threaded_streams_keep_the_order_of_events() {
    for seed in 0..8 {
        let w = World::threaded(seed);
        let (mut second, one) = (null_mut(), w.tensor(&[8], F32, &[1.0; 8]));
        let (sum, alpha) = (w.tensor(&[8], F32, &[0.0; 8]), w.scalar(1.0));
        w.d.aclrtCreateStream(&mut second);
        let mut events = Vec::new();
        for step in 0..40 {
            let (stream, other) = if step % 2 == 0 { (w.stream, second) } else { (second, w.stream) };
            let (mut bytes, mut executor, mut event) = (0, null_mut(), null_mut());
            assert_eq!(
                w.d.aclnnAddGetWorkspaceSize(sum.handle, one.handle, alpha, sum.handle, &mut bytes, &mut executor),
                0
            );
            assert_eq!(w.d.aclnnAdd(null_mut(), 0, executor, stream), 0);
            w.d.aclrtCreateEventExWithFlag(&mut event, 1);
            w.d.aclrtRecordEvent(event, stream);
            w.d.aclrtStreamWaitEvent(other, event);
            events.push(event);
        }
        asked(w.d, *events.last().unwrap());
        assert_eq!(w.d.aclrtSynchronizeDevice(), 0);
        assert_eq!(w.read(sum), [40.0; 8]);
        for event in events {
            w.d.aclrtDestroyEvent(event);
        }
        w.d.aclrtDestroyStream(second);
        assert_eq!((w.end(), w.d.faults()), (String::new(), String::new()), "seed {seed}");
    }
}

/// Work on the same memory that no event orders is told of, also where it comes out right; what only reads it is not.
#[test]
fn races_are_told_of() {
    let w = World::lazy();
    let (mut second, mut event) = (null_mut(), null_mut());
    let (a, b, c) = (w.malloc(64), w.malloc(64), w.malloc(64));
    w.d.aclrtCreateStream(&mut second);
    w.d.aclrtCreateEventExWithFlag(&mut event, 1);
    w.d.aclrtMemsetAsync(a, 64, 1, 64, w.stream);
    w.d.aclrtRecordEvent(event, w.stream);
    w.d.aclrtStreamWaitEvent(second, event);
    w.d.aclrtMemcpyAsync(b, 64, a, 64, D2D, second);
    w.d.aclrtMemcpyAsync(c, 64, a, 64, D2D, w.stream);
    assert_eq!(w.d.faults(), "");
    w.d.aclrtMemsetAsync(a, 64, 2, 64, w.stream);
    let expected = "race: fill of 64 bytes uses memory that copy of 64 bytes, kind 3 of another stream uses, and no event orders them\n";
    assert_eq!(w.d.faults(), expected);
    assert_eq!(w.d.aclrtSynchronizeDevice(), 0);
    // The host waited for all: nothing is pending that could collide.
    w.d.aclrtMemsetAsync(b, 64, 3, 64, w.stream);
    assert_eq!(w.d.faults(), expected);
    w.sync();
    w.d.aclrtDestroyEvent(event);
    w.d.aclrtDestroyStream(second);
    for at in [a, b, c] {
        w.d.aclrtFree(at);
    }
    assert_eq!(w.end(), "");
}

/// A threaded stream runs by itself, and its error reaches whoever waits.
#[test]
fn threaded_streams_run_and_fail_by_themselves() {
    let w = World::threaded(3);
    let (at, host) = (w.malloc(64), w.malloc_host(64));
    w.d.aclrtMemcpyAsync(at, 64, host, 64, H2D, w.stream);
    let mut status = 1;
    for _ in 0..10_000 {
        w.d.aclrtStreamQuery(w.stream, &mut status);
        if status == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    assert_eq!(status, 0);
    w.d.yn_double_async_error(1, 507_015);
    w.d.aclrtMemsetAsync(at, 64, 1, 64, w.stream);
    assert_eq!(w.d.aclrtSynchronizeStreamWithTimeout(w.stream, 10_000), 507_015);
    assert_eq!(w.d.aclrtSynchronizeDevice(), 507_015);
    assert_eq!(w.d.yn_double_planted(), 0);
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(at);
    assert_eq!((w.end(), w.d.faults()), (String::new(), String::new()));
}

/// Copies from memory that is not page-locked make the caller wait, so they are always right.
#[test]
fn copies_of_plain_memory_block() {
    let w = World::lazy();
    let (at, bytes, mut back) = (w.malloc(64), [7u8; 64], [0u8; 64]);
    assert_eq!(w.d.aclrtMemcpyAsync(at, 64, bytes.as_ptr().cast(), 64, H2D, w.stream), 0);
    assert_eq!(w.d.aclrtMemcpyAsync(back.as_mut_ptr().cast(), 64, at, 64, D2H, w.stream), 0);
    assert_eq!(back, bytes);
    w.d.aclrtFree(at);
    assert_eq!((w.end(), w.d.faults()), (String::new(), String::new()));
}

/// An upload and a download of one page-locked buffer, one behind the other: each sees what it should.
#[test]
fn a_buffer_goes_up_and_comes_back() {
    let w = World::lazy();
    let (at, host) = (w.malloc(64), w.malloc_host(64));
    // SAFETY: page-locked memory of 64 bytes that no task uses yet.
    unsafe { host.cast::<u8>().write_bytes(7, 64) };
    w.d.aclrtMemcpyAsync(at, 64, host, 64, H2D, w.stream);
    w.d.aclrtMemcpyAsync(host, 64, at, 64, D2H, w.stream);
    w.sync();
    // SAFETY: the same memory, after the wait.
    assert_eq!(unsafe { host.cast::<u8>().read() }, 7);
    w.d.aclrtFreeHost(host);
    w.d.aclrtFree(at);
    assert_eq!((w.end(), w.d.faults()), (String::new(), String::new()));
}

#[test]
fn elapsed_time_wants_events_that_take_it() {
    let w = World::lazy();
    let (mut a, mut b, mut ms) = (null_mut(), null_mut(), -1.0);
    w.d.aclrtCreateEventExWithFlag(&mut a, 8);
    w.d.aclrtCreateEventExWithFlag(&mut b, 1);
    w.d.aclrtRecordEvent(a, w.stream);
    w.d.aclrtRecordEvent(b, w.stream);
    w.sync();
    assert_eq!(w.d.aclrtEventElapsedTime(&mut ms, a, b), 107_000);
    w.d.aclrtDestroyEvent(b);
    w.d.aclrtCreateEventExWithFlag(&mut b, 8);
    w.d.aclrtRecordEvent(b, w.stream);
    w.sync();
    assert_eq!(w.d.aclrtEventElapsedTime(&mut ms, a, b), 0);
    assert!(ms >= 0.0);
    for event in [a, b] {
        w.d.aclrtDestroyEvent(event);
    }
    assert_eq!(w.end(), "");
}
