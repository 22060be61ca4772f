//! A stack of known size, whatever the caller's is: templates are compiled and rendered by code that recurses.

use crate::base::error::panic_text;
use crate::base::{Error, Result};

/// The deepest templates that are accepted (`tests/badinput/templates.rs`) need 4 MiB of it.
const STACK_BYTES: usize = 32 << 20;

/// Runs `body` on a thread of its own and waits for it. A panic in it is an error.
pub(super) fn on_deep_stack<T: Send>(body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("yn-template".to_owned()).stack_size(STACK_BYTES);
        let started = thread.spawn_scoped(scope, body);
        let thread = started.map_err(|e| {
            Error::no_memory(format!("the thread yn-template with a stack of {STACK_BYTES} bytes does not start: {e}"))
        })?;
        thread.join().unwrap_or_else(|payload| {
            Err(Error::invalid(format!("the interpreter of templates failed: {}", panic_text(&*payload))))
        })
    })
}
