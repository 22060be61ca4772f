//! Executor over arithmetic; see the scheduler simulator.
