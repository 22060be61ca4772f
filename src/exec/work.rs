//! What a worker drives: runners that launch steps, and flights that land.

use crate::base::{Error, Result, StepId};
use crate::hal::comm::LocalGroup;
use crate::plan::{StepOutput, StepPart, StepPlan, TokenMask};
use crate::runner::{self, ModelRunner};
use std::fmt::Debug;

/// A launched step on its way back.
pub trait Flight: Send + Debug {
    /// Sleeps until the step has ended on the device, and tells what came of it. Called in the order of launches, by a
    /// thread of its own.
    fn land(self: Box<Self>) -> StepOutput;
}

/// A step that had ended before its flight began.
#[derive(Debug)]
pub struct Landed(pub StepOutput);

impl Flight for Landed {
    fn land(self: Box<Self>) -> StepOutput {
        self.0
    }
}

/// What a worker drives.
pub trait StepRunner: Send + Debug {
    /// Enqueues a step behind those launched before it, which need not have landed: at most as many are under way as the
    /// pipeline is deep. It waits for no step. On an error nothing of the step counts and nothing of it runs any more. A
    /// step behind one that fails may have been launched before that was seen; it is landed and does not count.
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>>;
    /// The same for a late part of a launched step; see [`super::Executor::supply`].
    fn supply(&mut self, step: StepId, masks: &[TokenMask]) -> Result<Box<dyn Flight>> {
        let _ = masks;
        Err(Error::internal(format!("masks for step {}, but this runner takes none", step.0)))
    }
    /// Where its ranks meet, if it has several.
    fn group(&self) -> Option<LocalGroup> {
        None
    }
}

impl StepRunner for ModelRunner {
    fn launch(&mut self, plan: &StepPlan) -> Result<Box<dyn Flight>> {
        Ok(Box::new(self.launch_step(plan)?))
    }
    fn supply(&mut self, step: StepId, masks: &[TokenMask]) -> Result<Box<dyn Flight>> {
        Ok(Box::new(ModelRunner::supply(self, step, masks)?))
    }
}

impl Flight for runner::Flight {
    fn land(self: Box<Self>) -> StepOutput {
        runner::Flight::land(*self)
    }
}

/// What a runner is told to launch.
#[derive(Debug)]
pub enum Work {
    Step(StepPlan),
    Late(StepId, Vec<TokenMask>),
}

impl Work {
    pub(super) fn id(&self) -> StepId {
        match self {
            Self::Step(plan) => plan.id,
            Self::Late(step, _) => *step,
        }
    }

    pub(super) fn part(&self) -> StepPart {
        match self {
            Self::Step(_) => StepPart::First,
            Self::Late(..) => StepPart::Late,
        }
    }

    pub(super) fn launch_on(&self, runner: &mut dyn StepRunner) -> Result<Box<dyn Flight>> {
        match self {
            Self::Step(plan) => runner.launch(plan),
            Self::Late(step, masks) => runner.supply(*step, masks),
        }
    }
}
