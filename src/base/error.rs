//! The one error type of the engine: a kind that maps to a C status, and a sentence for a person.

use std::borrow::Cow;

/// Longest message of an error, in bytes: values of files and requests are shown in them, and can be of any length.
pub const MAX_MESSAGE: usize = 2000;

/// What a caller can do about an error. Each kind is one `yn_status` of the C API, but for the two of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// An argument, config value, model file or template is wrong. Retrying the same call cannot help.
    Invalid,
    /// A handle that was never made, or is already freed.
    BadHandle,
    /// Well-formed, but this build does not have the feature.
    Unsupported,
    /// A bounded queue is full. Retrying later may help.
    Busy,
    /// The time the caller gave has passed.
    Timeout,
    /// The caller's buffer is too small.
    TooSmall,
    /// The engine or queue is draining or freed.
    Shutdown,
    /// A named thing does not exist.
    NotFound,
    /// The operating system refused to read, map or open something.
    Io,
    /// Host or device memory did not suffice.
    NoMemory,
    /// The device or its driver failed.
    Device,
    /// The same, and whatever this process asks of the device from now on fails too: it must be restarted to use it again.
    DeviceLost,
    /// A bug in the engine: a caught panic or a broken invariant.
    Internal,
    /// The process forked; the child has no engine threads.
    Forked,
}

/// An error with its kind and one sentence that says what was wrong, where, what was expected and what to do. The sentence has
/// at most [`MAX_MESSAGE`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Cow::Owned(shorter) = clipped(&message, MAX_MESSAGE) {
            message = shorter;
        }
        Self { kind, message }
    }
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }
    pub fn io(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Io, message)
    }
    pub fn no_memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NoMemory, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The same error with where it happened in front: `context: message`.
    #[must_use]
    pub fn within(self, context: impl std::fmt::Display) -> Self {
        Self::new(self.kind, format!("{context}: {}", self.message))
    }
}

/// `text` in at most `max` bytes: what is too much goes from the middle, as sentences say what was expected at their end.
pub fn clipped(text: &str, max: usize) -> Cow<'_, str> {
    const GAP: &str = " [...] ";
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let tail = max.saturating_sub(GAP.len()) / 3;
    let head = max.saturating_sub(GAP.len() + tail);
    let (head, tail) = (text.floor_char_boundary(head), text.ceil_char_boundary(text.len() - tail));
    Cow::Owned(format!("{}{GAP}{}", &text[..head], &text[tail..]))
}

/// The text of a caught panic's payload.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(s) = payload.downcast_ref::<&str>() {
        (*s).to_owned()
    } else if let Some(s) = payload.downcast_ref::<String>() {
        s.clone()
    } else {
        "panic without a message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_keep_both_ends() {
        let e = Error::invalid(format!("key \"a\" is {}; expected 7", "一".repeat(5000)));
        assert!(e.message.starts_with("key \"a\" is 一") && e.message.ends_with("; expected 7"), "{e}");
        assert!((MAX_MESSAGE - 10..=MAX_MESSAGE).contains(&e.message.len()));
        assert!(e.within("x".repeat(5000)).message.len() <= MAX_MESSAGE);
        assert_eq!(clipped("short", 5), "short");
    }
}
