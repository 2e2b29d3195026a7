//! The ledger from outside: its own API, other processes, and people who write to its file.

mod allowance;
mod common;
mod damage;
mod model;
mod processes;
