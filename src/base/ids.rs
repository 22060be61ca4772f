//! Identifiers. Newtypes, so that a block is never passed where a row is meant.

/// A token id of the model's vocabulary.
pub type Token = u32;

/// One accepted request of a host. Unique in the process, never reused, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One generation in the scheduler (a request with `n` choices is `n` sequences). Unique per engine, in arrival order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// One forward pass. Consecutive per engine; steps land in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u64);

/// A physical KV block: an index into the device's block pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A persistent per-sequence slot of device state: last sampled token, sampling parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row(pub u32);
