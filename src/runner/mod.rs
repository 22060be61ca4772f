//! F3: turns a plan into device work: rows, step inputs, KV tensors, sampling, warm-up. The only floor that touches
//! device memory between steps.

mod budget;
mod cost;
mod flight;
mod graphs;
mod inputs;
mod late;
mod memory;
mod model_runner;
mod pool;
mod rows;
mod tables;
mod warm;

pub use budget::{Demand, num_blocks, rooms, settle};
pub use cost::step_cost;
pub use flight::Flight;
pub use memory::{RunnerMemory, RunnerOptions, kv_spec, late_mask_bytes, memory_plan, overhead};
pub use model_runner::ModelRunner;
pub use pool::KvRoom;
