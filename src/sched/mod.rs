//! F2: the scheduler: pure host code over integers. No thread, clock, lock, float, tensor, device or I/O; the same calls
//! give the same plans.
