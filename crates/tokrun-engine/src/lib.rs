//! From requests to tokens: the scheduler, the sampler, the tokenizer, chat templates, and the thread that drives a model.
//!
//! It knows nothing of money, HTTP or terminals. Text becomes tokens with [`ChatTemplate`] and [`Tokenizer`]; tokens
//! become more tokens with [`Engine`]; those become text again with [`DetokenizeStream`] and [`StopMatcher`].

mod blocks;
mod engine;
mod error;
mod grammar;
mod panics;
mod request;
mod sampler;
mod scheduler;
mod stop;
mod template;
mod tokenizer;
mod tools;

pub use engine::{Engine, EngineOptions};
pub use error::{EngineError, InvalidParameter, SubmitError};
pub use grammar::{AfterReasoning, Grammar, GrammarCompiler, ReasoningTags};
pub use request::{
    Finish, FirstStep, RequestId, SampledToken, SequenceStep, StepMetrics, StepReport, Submission, TenantId,
};
pub use sampler::{Constraint, SamplingParams, TokenLogprob};
pub use scheduler::Fairness;
pub use stop::{StopMatcher, StopStep};
pub use template::{ChatMessage, ChatTemplate, Conversation, RenderOptions};
pub use tokenizer::{DetokenizeStream, TextEncoder, Tokenizer};
pub use tools::{Tool, ToolCall, ToolChoice, ToolPiece, ToolReader, ToolStyle};

// The seam's own types that this crate's interface speaks of.
pub use tokrun_model::{Embedder, EmbedderInfo, Executor, ExecutorInfo, ModelError, TokenId, normalise};
