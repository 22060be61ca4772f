//! The conformance double of the Ascend libraries: what it catches, and that what it computes and checks can be relied on.
#![cfg(target_os = "linux")]

mod api;
mod cache;
mod faults;
mod kernels;
mod world;
