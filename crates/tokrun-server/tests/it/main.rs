//! The server over a tiny model and a real ledger, as clients see it.
#![expect(clippy::print_stderr, reason = "a test that does not run says so")]

mod admin;
mod clients;
mod completions;
mod dashboard;
mod deadlines;
mod demand;
mod dialects;
mod embeddings;
mod ends;
mod errors;
mod examples;
mod hostile;
mod keys;
mod openapi;
mod reasoning;
mod scripted;
mod streams;
mod support;
mod telemetry;
mod tools;
