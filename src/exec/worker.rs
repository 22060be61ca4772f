//! One thread per device.
