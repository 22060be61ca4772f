//! F3: turns a plan into device work: rows, step inputs, KV tensors, sampling, warm-up. The only floor that touches
//! device memory between steps.

mod budget;
mod graphs;
mod inputs;
mod memory;
mod model_runner;
mod pool;
mod rows;
mod warm;

pub use budget::{Demand, num_blocks, rooms, settle};
pub use memory::{RunnerMemory, RunnerOptions, kv_spec, memory_plan, overhead};
pub use model_runner::ModelRunner;
pub use pool::KvRoom;
