//! One wait point for a thread that serves several sources.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A flag that sleeps: `notify` sets it, `wait` sleeps until it is set and clears it. Notifications do not count, so
/// the woken thread looks at all its sources. Any thread may notify.
#[derive(Debug, Default)]
pub struct Signal {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub fn notify(&self) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        if !*set {
            *set = true;
            self.changed.notify_one();
        }
    }

    /// Sleeps until notified or until `timeout` has passed; `None` waits without end.
    pub fn wait(&self, timeout: Option<Duration>) {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let mut set = match timeout {
            None => self.changed.wait_while(set, |set| !*set).unwrap_or_else(PoisonError::into_inner),
            Some(t) => self.changed.wait_timeout_while(set, t, |set| !*set).unwrap_or_else(PoisonError::into_inner).0,
        };
        *set = false;
    }
}
