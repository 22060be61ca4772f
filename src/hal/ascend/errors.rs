//! Status codes of CANN as errors of ours.

use super::abi::{Abi, Status};
use crate::base::{Error, ErrorKind, Result};
use std::ffi::CStr;

pub(super) const SUCCESS: Status = 0;
/// Somebody in the process has done it before us.
pub(super) const REPEATED_INIT: Status = 100_002;
const BAD_ALLOC: Status = 200_000;
const DEVICE_MEMORY: Status = 207_001;

/// What the codes that people are likely to meet mean.
const NAMES: &[(Status, &str)] = &[
    (100_000, "invalid parameter"),
    (100_001, "not initialised"),
    (107_000, "invalid parameter"),
    (107_001, "no such device"),
    (107_002, "no context on this thread"),
    (107_003, "a stream of another context"),
    (161_001, "a null pointer"),
    (161_002, "invalid parameter"),
    (200_000, "out of host memory"),
    (207_000, "not supported"),
    (207_001, "out of device memory"),
    (361_001, "error of the runtime"),
    (507_015, "exception of an AI core"),
    (507_046, "timeout"),
    (507_899, "error of the driver"),
    (561_003, "no such kernel"),
    (561_103, "a null pointer inside"),
];

/// Codes of the driver and of what ran on the device: the context, which everything in the process shares, answers nothing else
/// from then on until the device is reset, which is not ours to do.
fn loses_context(status: Status) -> bool {
    (507_000..508_000).contains(&status)
}

/// `what` as an error, unless it went well.
pub(super) fn check(abi: &Abi, status: Status, what: &str) -> Result<()> {
    if status == SUCCESS {
        return Ok(());
    }
    // SAFETY: no arguments; the library's string, valid until this thread's next call.
    let said = unsafe { (abi.aclGetRecentErrMsg)() };
    let said = if said.is_null() {
        String::new()
    } else {
        // SAFETY: not null, so NUL-terminated.
        unsafe { CStr::from_ptr(said) }.to_string_lossy().trim().to_owned()
    };
    Err(error(status, what, &said))
}

/// The same for waits: what ran on the device failed, and its stream runs nothing else from then on.
pub(super) fn check_wait(abi: &Abi, status: Status, what: &str) -> Result<()> {
    check(abi, status, what).map_err(|e| match e.kind {
        ErrorKind::DeviceLost => e,
        _ => Error::new(ErrorKind::DeviceLost, format!("{}; the stream it ran on is lost with that", e.message)),
    })
}

fn error(status: Status, what: &str, said: &str) -> Error {
    let name = NAMES.iter().find(|(code, _)| *code == status).map_or("error", |(_, name)| name);
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let text = format!("Ascend: {what}: {name} ({status}){said}");
    match status {
        BAD_ALLOC | DEVICE_MEMORY => Error::no_memory(text),
        status if loses_context(status) => Error::new(
            ErrorKind::DeviceLost,
            format!(
                "{text}; the device's context is lost to this process with that: restart it to use the device again"
            ),
        ),
        _ => Error::new(ErrorKind::Device, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_kinds_and_keep_what_the_library_said() {
        let e = error(207_001, "allocating 5 bytes", "EL0004: it is full");
        assert_eq!(e.kind, ErrorKind::NoMemory);
        assert_eq!(e.message, "Ascend: allocating 5 bytes: out of device memory (207001): EL0004: it is full");
        assert_eq!(error(507_015, "a step", "").kind, ErrorKind::DeviceLost);
        assert_eq!(error(161_002, "aclnnAdd", "").kind, ErrorKind::Device);
        assert!(error(424_242, "x", "").message.contains("error (424242)"));
    }
}
