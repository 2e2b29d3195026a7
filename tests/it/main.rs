//! End to end: the built program, as a user or a script sees it.

mod architecture;
mod bad_input;
mod cli;
mod concurrency;
mod crash;
mod default_model;
mod exactness;
mod latency;
mod support;
mod transcript;
#[cfg(target_os = "linux")]
mod durability;
