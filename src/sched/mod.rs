//! F2: the scheduler: pure host code over integers. No thread, clock, lock, float, tensor, device or I/O; the same calls
//! give the same plans.
//!
//! The engine thread owns one [`Scheduler`]: `add` and `abort` as requests come and go, `schedule` to get the next
//! step, `update` when a step has landed. Everything a user must hear comes out as [`Event`]s.

mod admit;
pub mod block_pool;
mod bound;
mod draft;
mod growth;
mod index;
pub mod invariants;
mod land;
mod late;
mod pace;
pub mod policy;
mod preempt;
pub mod prefix;
mod publish;
mod refuse;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;
mod tokens;

pub use bound::StepBound;
pub use policy::Policy;
pub use scheduler::Scheduler;

use crate::base::{Error, SeqId, Token};
use crate::plan::{FinishReason, Logprob};

/// Bounds of a scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedConfig {
    /// Sequences that may hold rows and blocks at once.
    pub max_seqs: usize,
    /// Tokens a step may run.
    pub max_tokens: usize,
    /// What a step that decodes may cost; with `None` its tokens alone are bounded.
    pub bound: Option<StepBound>,
    /// Longest sequence, prompt and output together.
    pub max_model_len: usize,
    /// KV blocks of the device.
    pub num_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    pub prefix_cache: bool,
    /// Bits kept of the prefix cache's hashes, 64. Tests cut it so that hashes collide.
    pub hash_bits: u32,
}

/// Bugs a scheduler of this kind has had or could have; `tests/sim` shows that each is caught.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// Blocks go back while a step in flight still mentions them.
    EarlyFree,
    /// A prefix hit on the hash alone.
    HitUnverified,
    /// A prefix hit takes no reference.
    HitUncounted,
    /// Prefixes cross salts.
    SaltIgnored,
    /// Blocks are published when planned, before the step landed.
    PublishEarly,
    /// A preempted sequence reports the tokens that were in flight and forgets them.
    PendingLost,
    /// A resumed sequence runs on the sampler state of whoever had the row.
    RowStale,
    /// A resumed sequence's row forgets the output so far.
    HistoryLost,
    /// A failed step counts as computed.
    NoRollback,
    /// A cached prompt's last token is not computed again.
    LastTokenSkipped,
    /// A sequence that leaves does not withdraw the blocks it announced, so sharers wait for ever.
    AnnouncedForEver,
    /// After a failed step a row's table is taken for known.
    TableHalfTold,
    /// Chunks ignore the step's budget.
    BudgetIgnored,
    /// Chunks ignore what the step may cost.
    CostIgnored,
    /// Tokens that land after the end reach the user.
    TokenAfterEnd,
    /// Evicted blocks stay in the index.
    EvictedStillIndexed,
    /// Blocks on their way back are not counted before a victim is chosen.
    ReturningIgnored,
    /// A prompt whose logprobs are asked for skips what the prefix cache holds.
    ScoresFromCache,
    /// A resumed sequence reports its prompt from the start.
    ScoredAgain,
    /// Positions count as reported when planned, so a failed step's are never reported.
    ScoredEarly,
    /// Priorities do not reach the policy.
    PriorityIgnored,
    /// Nobody gives way to a more urgent one that waits.
    YieldForgotten,
    /// All choices of a request draw alike.
    ChoiceLost,
    /// A sequence that waits for its mask goes on without the token.
    LateForgotten,
    /// A mask is taken for whatever step its sequence waits in now.
    LateStepIgnored,
    /// A failed late part leaves its sequence waiting.
    LateNotRolledBack,
}

/// What the engine must tell a user. Order is the order in which things happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// First admission (not a resume). `cached_tokens` of the prompt came from the prefix cache.
    Started { seq: SeqId, cached_tokens: u32 },
    /// Tokens of the prompt from its second on, in order and each once, before the first generated one; the same number
    /// of logprobs for each. Only of sequences that asked.
    Prompt { seq: SeqId, tokens: Vec<Token>, logprobs: Vec<Logprob> },
    /// One generated token, with its logprobs if they were asked for. End-of-sequence and stop tokens are reported like any other, right before `Finished`; the
    /// engine decides who sees them.
    Token { seq: SeqId, token: Token, logprobs: Vec<Logprob> },
    /// Exactly once per added sequence, and its last event. `error` is there when `reason` is `Error`.
    Finished { seq: SeqId, reason: FinishReason, error: Option<Error> },
}

impl Event {
    /// Whose it is.
    pub fn seq(&self) -> SeqId {
        let (Self::Started { seq, .. }
        | Self::Prompt { seq, .. }
        | Self::Token { seq, .. }
        | Self::Finished { seq, .. }) = self;
        *seq
    }
}

/// Gauges and counters of a scheduler. Counters grow from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedStats {
    /// Sequences that hold nothing now: new, preempted, or held by their lead.
    pub waiting: usize,
    /// Sequences that hold a row and blocks.
    pub running: usize,
    pub blocks_total: u32,
    /// Free blocks, cached content included.
    pub blocks_free: u32,
    /// Free blocks or blocks in use whose content can be hit.
    pub blocks_cached: u32,
    /// Preemptions so far.
    pub preempted: u64,
    /// Steps planned so far.
    pub steps: u64,
    /// Steps that failed so far.
    pub failed_steps: u64,
    /// Tokens whose computation was spared by the prefix cache.
    pub hit_tokens: u64,
    /// Tokens that were looked up in the prefix cache.
    pub lookup_tokens: u64,
    /// Tokens planned so far.
    pub planned_tokens: u64,
    /// Tokens whose KV was given up by preemption or failure and had to be won again.
    pub lost_tokens: u64,
    /// Times a waiting sequence began to wait for blocks that another was computing.
    pub shared_waits: u64,
}
