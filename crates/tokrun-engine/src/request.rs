//! What goes into the engine and what comes out of it.

use std::time::Instant;

use tokrun_model::TokenId;

use crate::sampler::{Constraint, SamplingParams, TokenLogprob};

/// Names a request for as long as it is live; the caller chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names whoever requests are served for: tenants that have work waiting are served alike, however much each asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u64);

/// A request for tokens.
#[derive(Debug)]
pub struct Submission {
    /// Its name in reports; no other live request may have it.
    pub request_id: RequestId,
    /// The tokens to continue, at least one, fewer than the context holds.
    pub prompt: Vec<TokenId>,
    /// Tokens to generate at most; cut to what the context has left.
    pub max_new_tokens: usize,
    /// Tokens that end the answer, each reported like any other; empty to ignore them.
    pub end_tokens: Vec<TokenId>,
    /// How to choose among the logits.
    pub sampling: SamplingParams,
    /// Report the log-probability of each token, and of that many most probable ones.
    pub logprobs: Option<usize>,
    /// Whom it is for.
    pub tenant: TenantId,
    /// Among the requests of one tenant a higher one is served first; 0 is the usual.
    pub priority: i32,
    /// Computed prefixes are shared among requests of one salt, and with no others: whoever could guess another's
    /// prompt would learn from the time to the first token whether it was right.
    pub cache_salt: u64,
    /// Narrows what may be generated.
    pub grammar: Option<Box<dyn Constraint>>,
}

/// What one engine step brought, over all its sequences.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// One entry for each token and each end; those of one request are in order.
    pub sequences: Vec<SequenceStep>,
    /// How busy the engine is.
    pub metrics: StepMetrics,
}

/// How busy an engine is, and what it has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepMetrics {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait, those included that were preempted.
    pub waiting: usize,
    /// Blocks of the KV cache; 0 where the executor manages it.
    pub blocks: usize,
    /// Blocks that running requests hold.
    pub blocks_used: usize,
    /// Blocks that nobody holds, kept for requests that begin alike.
    pub blocks_cached: usize,
    /// Tokens computed since the start, rejected guesses and what was computed twice included.
    pub computed_tokens: u64,
    /// Tokens since the start that were found in the prefix cache.
    pub cached_tokens: u64,
    /// Preemptions since the start.
    pub preemptions: u64,
    /// Tokens guessed by speculation since the start.
    pub drafted_tokens: u64,
    /// Those of them that came true; the others were rejected.
    pub accepted_tokens: u64,
}

/// What one engine step brought to one request.
#[derive(Clone, Debug)]
pub struct SequenceStep {
    /// Which.
    pub request_id: RequestId,
    /// With the request's first token: how it started.
    pub first: Option<FirstStep>,
    /// The token generated in this step.
    pub token: Option<SampledToken>,
    /// Guesses at what follows that came to nothing in this step; computed, never reported as tokens.
    pub rejected_draft_tokens: u32,
    /// Energy of the device that went into the request since its report before, µJ: its share by tokens of each step that
    /// computed for it. `None` where the machine does not tell, or has not yet.
    pub energy_uj: Option<u64>,
    /// With the request's end: tokens that were under way past it, computed and never reported.
    pub surplus_tokens: u32,
    /// Set in the last report of a request.
    pub finish: Option<Finish>,
    /// When the step ended.
    pub at: Instant,
}

/// How a request started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstStep {
    /// From submission to the first step that worked on it.
    pub queue_us: u64,
    /// From there to its first token.
    pub prefill_us: u64,
    /// Prompt tokens that did not have to be computed.
    pub cached_tokens: usize,
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Which.
    pub id: TokenId,
    /// Its log-probability, when asked for.
    pub logprob: Option<TokenLogprob>,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It generated one of its end tokens.
    Stop,
    /// It generated all it may, or the context is full.
    Length,
    /// It was cancelled, or the engine was shut down.
    Cancelled,
    /// The model or the engine failed, in these words.
    Failed(String),
}
