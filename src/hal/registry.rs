//! The one list of backends.

use crate::base::{Error, Result};
use crate::hal::{Device, cpu};
use std::sync::Arc;

/// How a device is opened.
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// Compute threads of a host backend; `None` takes what the process may use.
    pub threads: Option<usize>,
    /// Instruction sets a host backend may use, strongest first found; `None` allows all that the machine has.
    pub cpu_features: Option<String>,
}

/// Whether this build has a device of this name; the error says why not.
pub fn check(name: &str) -> Result<()> {
    match (name, name.split(':').next()) {
        ("auto" | "cpu", _) => Ok(()),
        (_, Some("cuda" | "ascend")) => {
            Err(Error::unsupported(format!("device {name:?} is not in this build; use \"cpu\" or \"auto\"")))
        }
        _ => Err(Error::invalid(format!("device {name:?} is unknown; expected auto or cpu"))),
    }
}

/// Opens `name`: `auto` takes the best device there is.
pub fn open(name: &str, options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    check(name)?;
    cpu::open(options)
}
