//! Yinian: an LLM inference engine that lives inside other people's servers.
//!
//! The product is the C API in [`ffi`] (`include/yinian.h`); the Rust modules below it are the floors of the house,
//! from the lowest up: [`base`] < [`plan`], [`hal`], [`text`] < [`sched`], [`model`] < [`runner`] < [`exec`] <
//! [`engine`] < [`ffi`]. Imports point down only; `tests/tidy.rs` enforces it. `ARCHITECTURE.md` is the map.

#[forbid(unsafe_code)]
pub mod base;
#[forbid(unsafe_code)]
pub mod engine;
#[forbid(unsafe_code)]
pub mod exec;
pub mod ffi;
pub mod hal;
pub mod model;
#[forbid(unsafe_code)]
pub mod plan;
#[forbid(unsafe_code)]
pub mod runner;
#[forbid(unsafe_code)]
pub mod sched;
#[forbid(unsafe_code)]
pub mod text;
