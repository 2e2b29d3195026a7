//! What a caller asks for, and why it may be refused.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;

use tokrun_engine::{Conversation, EngineError, Grammar, SamplingParams, SubmitError, TokenId};
use tokrun_ledger::{Admission, Credits, LedgerError, Price, StarterGrant};

/// One request for text.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Names the request for good, in the ledger too; the same name is never served twice. A fresh one if absent.
    pub request_id: Option<String>,
    /// What to continue or to answer.
    pub prompt: Prompt,
    /// Output tokens at most, at least 1; without it the context is the limit.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// The form that the answer must have; it then ends where that says.
    pub grammar: Option<Grammar>,
    /// Go on past the model's end tokens; not with a grammar.
    pub ignore_eos: bool,
    /// Tell the model's thoughts apart from its answer, where it has any: stop strings and the grammar are for the answer
    /// then. Else they are part of its text.
    pub splits_reasoning: bool,
    /// Report the log-probability of each token, and of this many alternatives.
    pub logprobs: Option<usize>,
    /// Among the requests of one wallet a higher one is served first; 0 is the usual.
    pub priority: i32,
    /// When it must have ended; what was paid until then is its answer.
    pub deadline: Option<Instant>,
    /// Who pays.
    pub payer: Payer,
    /// What a token costs; frozen into the request when it is admitted.
    pub price: Price,
}

/// What to continue or to answer.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Text as it stands, in the tokenizer's own default encoding.
    Text(String),
    /// A conversation, rendered by the model's template.
    Chat(Conversation),
    /// Tokens as they stand.
    Tokens(Vec<TokenId>),
}

/// Who pays for a request, and what it is booked under.
#[derive(Clone, Debug, Default)]
pub struct Payer {
    /// The wallet's name.
    pub wallet: String,
    /// What to open the wallet with if there is none of that name; only for a person's own account.
    pub starter: Option<Credits>,
    /// The name of the key that it came with.
    pub key: Option<String>,
    /// The project it is for.
    pub project: Option<String>,
    /// Free attribution.
    pub tags: BTreeMap<String, String>,
}

impl Payer {
    /// What the ledger is asked before a request of this name, or of a fresh one, is served.
    pub(crate) fn admission(
        self,
        request_id: Option<String>,
        model: &str,
        device: &str,
        price: Price,
        prompt_tokens: usize,
    ) -> Admission {
        Admission {
            request_id: request_id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
            wallet: self.wallet,
            starter: self.starter.map(|amount| StarterGrant { amount }),
            model: model.to_owned(),
            device: device.to_owned(),
            price,
            prompt_tokens: prompt_tokens as u64,
            key: self.key,
            project: self.project,
            tags: self.tags,
        }
    }
}

/// Refuses a request whose deadline has passed.
pub(crate) fn refuse_late(deadline: Option<Instant>) -> Result<(), RuntimeError> {
    match deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        true => Err(RuntimeError::TooLate),
        false => Ok(()),
    }
}

/// Why a request was not served, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The engine refuses what was asked for.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The model cannot hold a conversation, for this reason.
    #[error("{0}")]
    NoTemplate(String),
    /// The prompt cannot be rendered or encoded.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A text is longer than an embedding model takes.
    #[error("input {index} has {size}, the model's context only {context_tokens}; shorten it, or cut it into parts")]
    InputTooLong {
        /// Which of them, counted from 0.
        index: usize,
        /// How long it is.
        size: String,
        /// The longest that is taken.
        context_tokens: usize,
    },
    /// A text cannot be embedded.
    #[error("input {index} cannot be embedded: {reason}")]
    InvalidInput {
        /// Which of them, counted from 0.
        index: usize,
        /// Why not.
        reason: String,
    },
    /// The ledger refuses to pay, or cannot record.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger could not record a payment on the way: what it would have paid for is neither charged nor delivered.
    #[error("the allowance could not be debited")]
    Unpaid(#[source] LedgerError),
    /// The model failed on the way; what was delivered until then is paid and settled.
    #[error("the model failed: {0}")]
    Model(String),
    /// Its deadline passed before anything was done.
    #[error("the deadline has passed")]
    TooLate,
    /// The runtime was shut down.
    #[error("the runtime has stopped")]
    Stopped,
}

/// An error with its causes, once each: `cannot read x: No such file or directory`.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
