//! How threads of the library are started.

use std::thread::Builder;

/// Given to every thread: the runtime's default would come from the host's environment.
const STACK_BYTES: usize = 2 << 20;

/// A thread to be: names begin with `yn-`.
pub fn named(name: impl Into<String>) -> Builder {
    Builder::new().name(name.into()).stack_size(STACK_BYTES)
}
