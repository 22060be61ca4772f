//! F6: the C ABI: the only `extern "C"`.
