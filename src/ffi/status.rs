//! From [`Error`] to `yn_status` and `yn_error`.

use super::types::*;
use crate::base::error::clipped;
use crate::base::{Error, ErrorKind};
use std::ffi::{CStr, c_char};

pub(crate) fn status_of(kind: ErrorKind) -> yn_status {
    match kind {
        ErrorKind::Invalid => YN_E_INVALID,
        ErrorKind::BadHandle => YN_E_BAD_HANDLE,
        ErrorKind::Unsupported => YN_E_UNSUPPORTED,
        ErrorKind::Busy => YN_E_BUSY,
        ErrorKind::Timeout => YN_E_TIMEOUT,
        ErrorKind::TooSmall => YN_E_TOO_SMALL,
        ErrorKind::Shutdown => YN_E_SHUTDOWN,
        ErrorKind::NotFound => YN_E_NOT_FOUND,
        ErrorKind::Io => YN_E_IO,
        ErrorKind::NoMemory => YN_E_NO_MEMORY,
        ErrorKind::Device | ErrorKind::DeviceLost => YN_E_DEVICE,
        ErrorKind::Internal => YN_E_INTERNAL,
        ErrorKind::Forked => YN_E_FORKED,
    }
}

fn name(status: yn_status) -> &'static CStr {
    match status {
        YN_OK => c"YN_OK",
        YN_E_INVALID => c"YN_E_INVALID",
        YN_E_BAD_HANDLE => c"YN_E_BAD_HANDLE",
        YN_E_UNSUPPORTED => c"YN_E_UNSUPPORTED",
        YN_E_BUSY => c"YN_E_BUSY",
        YN_E_TIMEOUT => c"YN_E_TIMEOUT",
        YN_E_TOO_SMALL => c"YN_E_TOO_SMALL",
        YN_E_SHUTDOWN => c"YN_E_SHUTDOWN",
        YN_E_NOT_FOUND => c"YN_E_NOT_FOUND",
        YN_E_IO => c"YN_E_IO",
        YN_E_NO_MEMORY => c"YN_E_NO_MEMORY",
        YN_E_DEVICE => c"YN_E_DEVICE",
        YN_E_INTERNAL => c"YN_E_INTERNAL",
        YN_E_FORKED => c"YN_E_FORKED",
        _ => c"YN_E_UNKNOWN",
    }
}

/// Writes `error` where the caller wants it.
///
/// # Safety
/// `to` is null or points to a writable `yn_error`.
pub(crate) unsafe fn report(error: &Error, to: *mut yn_error) -> yn_status {
    let status = status_of(error.kind);
    if !to.is_null() && to.is_aligned() {
        let flags = match error.kind {
            ErrorKind::Busy | ErrorKind::Timeout => YN_ERROR_RETRY,
            ErrorKind::Device | ErrorKind::DeviceLost | ErrorKind::Forked => YN_ERROR_UNUSABLE,
            _ => 0,
        };
        let mut filled = yn_error { status, flags, message: [0; 504] };
        let text = clipped(&error.message, filled.message.len() - 1);
        for (to, from) in filled.message.iter_mut().zip(text.as_bytes()) {
            // A NUL inside would end the text for C.
            *to = if *from == 0 { b' ' as c_char } else { *from as c_char };
        }
        // SAFETY: the caller vouches for `to`; it is not null and aligned.
        unsafe { to.write(filled) };
    }
    status
}

/// The name of a status, "YN_E_BUSY"; "YN_E_UNKNOWN" for a number this library does not know. Static; never blocks.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_status_name(status: i32) -> *const c_char {
    name(status).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_at_code_points_and_terminated() {
        let mut to = yn_error { status: 0, flags: 0, message: [1; 504] };
        // SAFETY: `to` is a live value.
        let status = unsafe { report(&Error::new(ErrorKind::Busy, "一".repeat(300) + "end"), &mut to) };
        assert_eq!((status, to.status, to.flags), (YN_E_BUSY, YN_E_BUSY, YN_ERROR_RETRY));
        let text: Vec<u8> = to.message.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
        assert!((495..504).contains(&text.len()));
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("一一") && text.ends_with("一end"), "{text}");
        // SAFETY: as above.
        let status = unsafe { report(&Error::new(ErrorKind::DeviceLost, "gone"), &mut to) };
        assert_eq!((status, to.flags), (YN_E_DEVICE, YN_ERROR_UNUSABLE));
    }
}
