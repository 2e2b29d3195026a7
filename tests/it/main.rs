//! End to end: the built program, as a user or a script sees it.
#![expect(clippy::print_stderr, reason = "a test that does not run says so, and one that draws lots prints its seed")]

mod architecture;
mod audit;
mod bad_input;
mod bench;
mod bench_serve;
mod cli;
mod concurrency;
mod crash;
mod cuda;
mod default_model;
#[cfg(target_os = "linux")]
mod durability;
mod exactness;
mod export;
mod import;
mod latency;
mod limits;
mod load;
mod month;
mod people;
mod prices;
mod serve;
mod service;
mod statements;
mod structured;
mod support;
mod transcript;
mod wallets;
