//! F4: who runs a plan. The engine sees [`Executor`]; a device worker or the simulator stands behind it.

pub mod mock;
pub mod ranks;
pub mod sim;
pub mod worker;

use crate::base::{Error, Result, StepId};
use crate::plan::{StepOutput, StepPlan, TokenMask};
use std::time::Duration;

/// Runs steps in order. One owner, one thread.
pub trait Executor: Send + std::fmt::Debug {
    /// Steps that may be outstanding at once: 1 is synchronous, 2 hides the host.
    fn depth(&self) -> usize;
    /// Enqueues a step and returns at once. The caller keeps at most `depth` outstanding.
    fn submit(&mut self, plan: StepPlan) -> Result<()>;
    /// Enqueues a late part of a submitted step: the draws of entries that wait for these masks. It returns at once, counts
    /// for nothing in `depth`, and the part lands by itself behind everything enqueued before it, with one token per mask.
    /// An entry that no mask comes for is forgotten once its row is set for another sequence.
    fn supply(&mut self, step: StepId, masks: Vec<TokenMask>) -> Result<()> {
        let _ = masks;
        Err(Error::internal(format!("masks for step {}, but this executor takes none", step.0)))
    }
    /// The next landed step or late part in the order of submission, or `None` when none has landed yet. After one that
    /// failed, everything submitted before that failure was polled lands as failed as well. `Err` means the executor
    /// itself is lost.
    fn poll(&mut self) -> Result<Option<StepOutput>>;
    /// Host time that launching the step polled last took, in ns; 0 where nobody counts it.
    fn launch_ns(&self) -> u64 {
        0
    }
    /// The ranks that keep the oldest step from ending while others wait for them, as far as can be told.
    fn late(&self) -> Vec<usize> {
        Vec::new()
    }
    /// Gives the device up without waiting for it: what runs there may never end.
    fn abandon(&mut self) {}
    /// Ends its threads, which let go of the device, and waits for at most `wait`. False when they are left behind with what
    /// they hold, as what they wait for has not ended.
    fn leave(&mut self, wait: Duration) -> bool {
        let _ = wait;
        true
    }
}
