//! What a process of its own shows: a crash, and calls before the first one.

use crate::api::{Double, text};
use crate::world::World;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::ptr::null_mut;

/// Runs one ignored test of this file alone.
fn alone(name: &str) -> ExitStatus {
    let exe = std::env::current_exe().unwrap();
    let name = format!("process::{name}");
    Command::new(exe).args(["--exact", &name, "--ignored", "--test-threads=1"]).output().unwrap().status
}

#[test]
fn device_memory_is_not_the_hosts() {
    for name in ["host_reads_device_memory", "host_writes_device_memory", "host_follows_a_handle"] {
        let signal = alone(name).signal();
        assert!(matches!(signal, Some(libc::SIGSEGV | libc::SIGBUS)), "{name}: {signal:?}");
    }
    assert!(alone("host_touches_page_locked_memory").success());
}

#[test]
#[ignore = "faults, in a process of its own"]
fn host_reads_device_memory() {
    let w = World::lazy();
    // SAFETY: this is no memory of the host's, and the process is to end here.
    println!("{}", unsafe { w.malloc(64).cast::<u8>().read_volatile() });
}

#[test]
#[ignore = "faults, in a process of its own"]
fn host_writes_device_memory() {
    let w = World::lazy();
    // SAFETY: this is no memory of the host's, and the process is to end here.
    unsafe { w.malloc(64).cast::<u8>().write_volatile(1) };
}

#[test]
#[ignore = "faults, in a process of its own"]
fn host_follows_a_handle() {
    let w = World::lazy();
    // SAFETY: this is no memory at all, and the process is to end here.
    println!("{}", unsafe { w.stream.cast::<u8>().read_volatile() });
}

#[test]
#[ignore = "in a process of its own"]
fn host_touches_page_locked_memory() {
    let w = World::lazy();
    // SAFETY: page-locked memory of 64 bytes.
    unsafe { w.malloc_host(64).cast::<u8>().write_volatile(1) };
}

#[test]
fn calls_before_the_first_one() {
    assert!(alone("nothing_works_before_aclinit").success());
}

#[test]
#[ignore = "in a process of its own"]
fn nothing_works_before_aclinit() {
    let d = Double::get();
    assert_eq!(text(d.aclGetRecentErrMsg()), "");
    let (mut count, mut at) = (0, null_mut());
    assert_eq!(d.aclrtGetDeviceCount(&mut count), 100_001);
    assert_eq!(d.aclrtSetDevice(0), 100_001);
    assert_eq!(d.aclrtMalloc(&mut at, 64, 0), 100_001);
    assert!(text(d.aclGetRecentErrMsg()).contains("aclrtMalloc before aclInit"));
    assert_eq!(d.faults().lines().filter(|line| line.starts_with("uninitialized: ")).count(), 3);
    assert_eq!(d.aclInit(std::ptr::null()), 0);
    assert_eq!(d.aclInit(std::ptr::null()), 100_002);
    assert_eq!(d.aclrtGetDeviceCount(&mut count), 0);
    assert_eq!((count, text(d.aclrtGetSocName()).as_str()), (8, "AscendDouble"));
    assert_eq!(d.aclrtSetDevice(7), 0);
    assert_eq!(d.aclrtResetDevice(7), 0);
    assert_eq!(d.aclrtMalloc(&mut at, 64, 0), 107_002);
    assert_eq!(d.aclrtResetDevice(7), 107_000);
    // What a task's thread leaves running does not hold a process that ends.
    d.yn_double_mode(1, 1);
    d.aclrtSetDevice(0);
    let mut stream = null_mut();
    assert_eq!(d.aclrtCreateStream(&mut stream), 0);
}
