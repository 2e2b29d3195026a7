//! `Cuda` against `Reference`: the cases of `tests/it`, on a device; and what a device has beyond that.
//!
//! `cargo xtask fake-driver` prints a directory with a driver that runs the kernels on the processor; with that on
//! LD_LIBRARY_PATH these tests run on any machine. Where there is no driver they say that they were skipped, unless
//! TOKRUN_REQUIRE_CUDA=1 asks them to fail.

#[path = "../it/attention.rs"]
mod attention;
#[path = "../it/common.rs"]
mod common;
mod decoding;
mod faults;
mod heads;
#[path = "../it/linear.rs"]
mod linear;
#[path = "../it/mixture.rs"]
mod mixture;
mod prompts;
#[path = "../it/rows.rs"]
mod rows;
mod sampling;
mod support;
mod tensor;
