//! F0: what every floor may use. Depends on nothing above the standard library and a few small crates.

pub mod clock;
pub mod config;
pub mod dtype;
pub mod error;
pub mod hash;
pub mod ids;
pub mod json;
pub mod metrics;
#[doc(hidden)]
pub mod planted;
pub mod rng;
pub mod signal;
pub mod threads;

pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
pub use ids::{BlockId, RequestId, Row, SeqId, StepId, Token};
