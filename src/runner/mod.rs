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
mod rows;

pub use budget::num_blocks;
pub use cost::step_cost;
pub use flight::Flight;
pub use memory::{RunnerMemory, RunnerOptions, kv_spec, late_mask_bytes, memory_plan};
pub use model_runner::ModelRunner;
