//! The one error type of the engine: a kind that maps to a C status, and a sentence for a person.

/// What a caller can do about an error. Each kind is one `yn_status` of the C API.
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
    /// A bug in the engine: a caught panic or a broken invariant.
    Internal,
    /// The process forked; the child has no engine threads.
    Forked,
}

/// An error with its kind and one sentence that says what was wrong, where, what was expected and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
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
        Self { kind: self.kind, message: format!("{context}: {}", self.message) }
    }
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
