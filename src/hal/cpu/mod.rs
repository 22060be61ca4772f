//! The CPU backend.
use crate::base::{Error, Result};
use crate::hal::{Device, registry::DeviceOptions};
use std::sync::Arc;

/// Opens the host processor as a device.
pub fn open(_: &DeviceOptions) -> Result<Arc<dyn Device>> {
    Err(Error::unsupported("the CPU backend is under construction"))
}
