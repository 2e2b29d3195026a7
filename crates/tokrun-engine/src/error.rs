//! What can go wrong between a request and its tokens.

use std::path::PathBuf;

use tokrun_model::TokenId;
use tokrun_model::sampling::BadLogit;

/// A tokenizer, template or engine that cannot be made or used. Each message names the remedy where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The operating system refused to read a file.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tokenizer's data contradicts itself or is incomplete.
    #[error("the tokenizer of this model is broken: {reason}; fetch the model again, or convert it anew")]
    BrokenTokenizer {
        /// What is wrong, and where.
        reason: String,
    },
    /// A kind of tokenizer that would have to be guessed at.
    #[error("unsupported tokenizer: {reason}; use the same model as safetensors with its tokenizer.json")]
    UnsupportedTokenizer {
        /// Which kind or setting.
        reason: String,
    },
    /// The tokenizer refused a text.
    #[error("this text cannot be tokenized: {reason}")]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
    /// A token that the tokenizer does not have.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// The model has no chat template.
    #[error("this model has no chat template; give it plain text with --raw, or use an instruction-tuned model")]
    NoChatTemplate,
    /// The chat template is no valid Jinja.
    #[error("the chat template of this model is broken: {reason}; give the model plain text with --raw")]
    BrokenTemplate {
        /// What is wrong, and in which line.
        reason: String,
    },
    /// The chat template refuses this conversation, in its own words.
    #[error("the chat template refuses this conversation: {reason}")]
    TemplateRefused {
        /// What the template said.
        reason: String,
    },
    /// A grammar that cannot be understood or honoured, contradicts itself, or costs too much.
    #[error("the {kind} cannot be used: {reason}")]
    InvalidGrammar {
        /// What it is: a JSON schema, a regular expression, a grammar.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// This model's answers cannot be held to any grammar.
    #[error("this model cannot be held to a grammar: {reason}; use another model, or ask for free text")]
    NoGrammars {
        /// Why not.
        reason: String,
    },
    /// The answer fits its grammar so far, and cannot go on.
    #[error("the answer cannot go on under its grammar: {reason}; simplify the grammar")]
    GrammarStuck {
        /// Why not.
        reason: String,
    },
    /// A parameter outside its range.
    #[error(transparent)]
    InvalidParameter(#[from] InvalidParameter),
    /// The model computed something that is no number.
    #[error(
        "the model gave {value} as the logit of token {token}; its file may be damaged: verify it with `model verify`"
    )]
    BadLogits {
        /// The first such token.
        token: TokenId,
        /// Not a number, or infinite.
        value: f32,
    },
    /// The engine's thread could not be started.
    #[error("cannot start the engine's thread")]
    Spawn(#[source] std::io::Error),
}

impl From<BadLogit> for EngineError {
    fn from(BadLogit { token, value }: BadLogit) -> Self {
        Self::BadLogits { token, value }
    }
}

/// A parameter outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, but must be {range}")]
pub struct InvalidParameter {
    /// The parameter, by the name of its field.
    pub name: &'static str,
    /// What was given.
    pub value: String,
    /// What is allowed.
    pub range: &'static str,
}

/// Why a request was not taken. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many requests run and wait as may.
    #[error("{live} requests run or wait already; try again later")]
    QueueFull {
        /// How many there are.
        live: usize,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens, the context only {context_tokens}; shorten it to leave room for an answer"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Longest sequence, prompt and output together.
        context_tokens: usize,
    },
    /// The prompt leaves no room for an answer in the KV cache.
    #[error(
        "the prompt has {tokens} tokens, the KV cache room for only {cache_tokens}; shorten it, or give the cache more \
         memory with --kv-cache-bytes"
    )]
    CacheTooSmall {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that the cache can hold, over all sequences.
        cache_tokens: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt has no tokens; give it some text")]
    EmptyPrompt,
    /// `max_new_tokens` is 0.
    #[error("no tokens are asked for; ask for at least one")]
    NothingToGenerate,
    /// The prompt has a token that the model does not have.
    #[error(
        "token {token} of the prompt is outside the model's vocabulary of {vocab_size}; use the model's own tokenizer"
    )]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// A request of this id is still live.
    #[error("a request of this id is still running; give each request an id of its own")]
    DuplicateRequest,
    /// A sampling parameter outside its range.
    #[error(transparent)]
    InvalidSampling(#[from] InvalidParameter),
    /// The engine was shut down, or its thread failed.
    #[error("the engine has stopped; load the model again")]
    Stopped,
}
