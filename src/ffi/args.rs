//! Pointers of the caller, checked as far as they can be.

use super::types::{yn_buf, yn_bytes};
use crate::base::json::parse;
use crate::base::{Error, Result};
use std::ffi::c_void;

/// Longest text, chat or list of tokens.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// Borrowed elements; null is fine when there are none.
///
/// # Safety
/// `data` is null or points to `len` readable elements that outlive `'a`.
pub(crate) unsafe fn slice<'a, T>(name: &str, data: *const T, len: usize) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() || !data.is_aligned() {
        return Err(Error::invalid(format!("{name} is NULL or misaligned, but its length is {len}")));
    }
    if len > MAX_BYTES {
        return Err(Error::invalid(format!("the length of {name} is {len}; at most {MAX_BYTES} are taken")));
    }
    // SAFETY: not null, aligned, a possible length; the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// At most `most` bytes: a longer text is refused before it is looked at, let alone copied.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn bytes<'a>(name: &str, b: yn_bytes, most: usize) -> Result<&'a [u8]> {
    if b.len > most {
        return Err(Error::invalid(format!("{name} has {} bytes; at most {most} are taken", b.len)));
    }
    // SAFETY: the caller vouches for `b`.
    unsafe { slice(name, b.data, b.len) }
}

/// # Safety
/// As [`slice`].
pub(crate) unsafe fn text<'a>(name: &str, b: yn_bytes, most: usize) -> Result<&'a str> {
    // SAFETY: the caller vouches for `b`.
    let raw = unsafe { bytes(name, b, most) }?;
    std::str::from_utf8(raw)
        .map_err(|e| Error::invalid(format!("{name} is not UTF-8: the byte at {} is wrong", e.valid_up_to())))
}

/// # Safety
/// As [`slice`].
pub(crate) unsafe fn json(name: &str, b: yn_bytes, most: usize) -> Result<serde_json::Value> {
    // SAFETY: the caller vouches for `b`.
    let raw = unsafe { bytes(name, b, most) }?;
    parse(raw).map_err(|e| Error::invalid(format!("{name} is not JSON: {e}")))
}

/// Whether parsing this JSON of at most `most` bytes may need more stack than a thread of the host has to have.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn nests_deep(b: yn_bytes, most: usize) -> bool {
    // SAFETY: the caller vouches for `b`.
    unsafe { bytes("", b, most) }.is_ok_and(|raw| nesting(raw) > SHALLOW)
}

/// Levels that are parsed on the stack of the host: at about 420 bytes each.
const SHALLOW: usize = 24;

/// How deep the arrays and objects of a JSON text nest at most; of a text that is no JSON, some number.
fn nesting(json: &[u8]) -> usize {
    let (mut depth, mut most) = (0usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for b in json {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                most = most.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// A place to write a result to.
///
/// # Safety
/// `p` is null or points to a writable `T` that nobody else uses during `'a`.
pub(crate) unsafe fn out<'a, T>(name: &str, p: *mut T) -> Result<&'a mut T> {
    if p.is_null() || !p.is_aligned() {
        return Err(Error::invalid(format!("{name} is NULL or misaligned")));
    }
    // SAFETY: not null and aligned; the caller vouches for the rest. All types of the API are valid for any bits.
    Ok(unsafe { &mut *p })
}

/// Hands bytes to the caller. A NUL follows them, not counted.
pub(crate) fn buf(mut content: Vec<u8>) -> yn_buf {
    let len = content.len();
    content.push(0);
    let mut owner = Box::new(content);
    yn_buf { data: owner.as_mut_ptr(), len, opaque: Box::into_raw(owner).cast::<c_void>() }
}

/// Frees what a function of this library put into `buf` and empties it. NULL and empty buffers are fine. Any thread, any
/// time, also after the engine is gone. Never blocks.
///
/// # Safety
/// `buf` is null or points to a yn_buf that is empty or was filled by this library and not copied since.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_buf_free(buf: *mut yn_buf) {
    // SAFETY: the caller vouches for `buf`.
    let Ok(buf) = (unsafe { out("buf", buf) }) else { return };
    if !buf.opaque.is_null() {
        // SAFETY: `opaque` came from Box::into_raw in `buf` above, and is cleared below so that it is freed once.
        drop(unsafe { Box::from_raw(buf.opaque.cast::<Vec<u8>>()) });
    }
    *buf = yn_buf { data: std::ptr::null_mut(), len: 0, opaque: std::ptr::null_mut() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_counted_outside_of_strings() {
        for (json, depth) in [
            ("7", 0),
            ("[]", 1),
            ("[[], {\"a\": [1, 2]}]", 3),
            (r#"["[[[", "\"[[", "\\", [0]]"#, 2),
            ("]]]][", 1),
            ("\"[", 0),
        ] {
            assert_eq!(nesting(json.as_bytes()), depth, "{json}");
        }
    }
}
