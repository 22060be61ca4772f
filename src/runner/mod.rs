//! F3: turns a plan into device work: rows, step inputs, KV tensors, sampling, warm-up. The only floor that touches
//! device memory between steps.
