//! The conformance double of the Ascend libraries: what it catches, and that what it computes and checks can be relied on.
#![cfg(target_os = "linux")]

mod api;
mod cache;
mod computed;
mod emulation;
mod faults;
mod headers;
mod kernel_build;
mod kernels;
mod process;
mod ranks;
mod selftest;
mod streams;
mod world;
