//! F1: plain data that crosses floors: what a request wants, what a step does, what came of it, how KV is laid out.
//! Values are valid by construction and immutable once handed on.

pub mod cost;
pub mod kv;
pub mod params;
pub mod request;
pub mod step;
pub mod tables;

pub use cost::StepCost;
pub use kv::{KvGroup, KvSpec};
pub use params::{Penalties, SamplingParams, StopCriteria};
pub use request::{FinishReason, Request};
pub use step::{
    Logprob, RowInit, Sampled, Scored, Scores, StepEntry, StepOutcome, StepOutput, StepPart, StepPlan, StepResults,
    TokenMask,
};
pub use tables::RowTables;
