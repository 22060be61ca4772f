//! F2: models as data over one shared decoder, and the weights they are read from.
//!
//! [`inspect`] reads what a model directory says about itself, [`load`] puts its weights on a device. A family is one file
//! in `arch` and a line in `registry`; a weight format is one [`weights::WeightSource`].

#[forbid(unsafe_code)]
pub mod arch;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod decoder;
#[forbid(unsafe_code)]
mod dense;
#[forbid(unsafe_code)]
mod fields;
#[forbid(unsafe_code)]
mod load;
#[forbid(unsafe_code)]
mod load_ranks;
#[forbid(unsafe_code)]
mod placement;
#[forbid(unsafe_code)]
pub mod registry;
#[forbid(unsafe_code)]
pub mod rope;
#[forbid(unsafe_code)]
mod shard;
#[forbid(unsafe_code)]
pub mod spec;
#[forbid(unsafe_code)]
mod watch;
pub mod weights;

pub use config::{ModelInfo, SamplingDefaults, inspect};
pub use load::{LoadOptions, LoadProgress, Model, load, load_shard};
pub use load_ranks::load_ranks;
pub use placement::{device_matrices, host_embedding_bytes};
pub use shard::Shard;
pub use spec::DecoderSpec;
