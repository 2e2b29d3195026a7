//! One metered request: admit, run, debit, deliver, settle.
//!
//! The only crate that knows both the engine and the ledger. A token's way through it: the engine samples it, its text is
//! decoded and searched for stop strings, its debit is queued, the ledger commits it, and only then does the caller see it.
//! The engine runs ahead of what the caller has taken by a bounded window; whatever it computed past the end of a request
//! is discarded and never charged.

mod active;
mod embeddings;
mod meter;
mod outcome;
mod request;
mod runtime;
mod transcript;

#[cfg(test)]
mod tests;

pub use embeddings::{EmbedInput, EmbedReply, EmbedRequest, Embedded, EmbeddingModel, Embeddings};
pub use meter::{LedgerMeter, Meter, Reply, Unmetered};
pub use outcome::{Allowance, Delta, Event, Latency, Outcome, Sink, Timing, Usage};
pub use request::{GenerateRequest, Payer, Prompt, RuntimeError, with_causes};
pub use runtime::{Canceller, Generation, Running, Runtime, TextModel};

// What a caller must name to ask for something, and to read what comes.
pub use tokrun_engine::{
    ChatMessage, Conversation, EmbedderInfo, EngineError, EngineOptions, ExecutorInfo, Grammar, InvalidParameter,
    SamplingParams, StepMetrics, SubmitError, TokenId, TokenLogprob, Tokenizer, Tool, ToolCall, ToolChoice, ToolPiece,
    ToolReader, ToolStyle, normalise,
};
