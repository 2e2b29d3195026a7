//! The HTTP service: what OpenAI's and Anthropic's clients speak, with every token paid before it is sent.
//!
//! Wire types (HTTP, server-sent events, their JSON) stop here. The runtime below is threads and channels; a request's
//! events come from its thread into a queue that a connection's task reads (`answers`). What a task has written it
//! acknowledges when it asks for more, so that a client that reads slowly holds its own sequence back, and the queue never
//! has more than the run-ahead window.
//!
//! Whatever may block (the ledger, templates, tokenizers) runs on threads for that, never on those that serve connections.

mod admin;
mod answers;
mod anthropic;
mod app;
mod asked;
mod auth;
mod balances;
mod begin;
mod body;
mod content;
mod dashboard;
mod descriptors;
mod embedders;
mod error;
mod health;
mod limits;
mod links;
mod listen;
mod live;
mod metrics;
mod models;
mod openai;
mod openapi;
mod pace;
mod places;
mod reply;
mod responses;
mod routes;
mod said;
mod sessions;
mod signals;
mod sse;
mod telemetry;
mod tls;
mod tokens;
mod tools;
mod usage;

pub use app::{Moment, Server, ServerOptions};
pub use axum::http::StatusCode;
pub use embedders::ServedEmbedder;
pub use links::Links;
pub use models::{LoadError, Loaded, Memory, ServedModel};
pub use telemetry::Telemetry;
pub use tls::Tls;
