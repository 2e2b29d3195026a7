//! The ledger from outside: its own API, other processes, and people who write to its file.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod allowance;
mod anchors;
mod bank;
mod common;
mod damage;
mod forecast;
mod grants;
mod histories;
mod keys;
mod limited;
mod limits;
mod migration;
mod model;
mod people;
mod prices;
mod processes;
mod recurring;
mod reversals;
mod statements;
mod transfers;
mod tree;
