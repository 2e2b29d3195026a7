//! What a caller gets back.

use std::time::Instant;

use tokrun_engine::{TokenId, TokenLogprob};
use tokrun_ledger::{Credits, FinishReason, LimitReached};

use crate::RuntimeError;

/// What a request tells its caller, in order; `Finished` comes once and last.
#[derive(Debug)]
pub enum Event {
    /// Paid text.
    Delta(Delta),
    /// The end.
    Finished(Box<Outcome>),
}

/// Text whose tokens are paid. It can be empty: a token may hold half a character, or what could become a stop string.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// What to append to the answer.
    pub text: String,
    /// What to append to the thoughts before it, where those are told apart.
    pub reasoning: String,
    /// How many tokens were paid with it.
    pub tokens: u32,
    /// Those tokens with their log-probabilities, if asked for.
    pub logprobs: Vec<(TokenId, TokenLogprob)>,
    /// When the commit that paid for them was heard of: the same of all that it paid for.
    pub paid: Instant,
}

/// Takes a request's events as they come, on the runtime's own thread: it must return at once. It answers whether anybody
/// still listens; if not, the request is cancelled.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// How a request ended and what it came to. Everything in it is paid.
#[derive(Debug)]
pub struct Outcome {
    /// The request's name, also in the ledger.
    pub request_id: String,
    /// The whole answer.
    pub text: String,
    /// The thoughts before it, where those are told apart.
    pub reasoning: String,
    /// The stop string that ended it, if one did.
    pub stopped_by: Option<String>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Set when it ended by a failure.
    pub error: Option<RuntimeError>,
    /// The prompt as the model saw it.
    pub prompt_token_ids: Vec<TokenId>,
    /// Every debited output token, the end token and those of a stop string included.
    pub token_ids: Vec<TokenId>,
    /// One for each of `token_ids`, if asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// What was counted.
    pub usage: Usage,
    /// Energy of the device that went into it until it was settled, µJ: its share by tokens of each step that computed for
    /// it. `None` where the machine does not tell, or the request was too short for its counters.
    pub energy_uj: Option<u64>,
    /// How long it took.
    pub timing: Timing,
    /// The limit that ended it, if one did.
    pub limited: Option<LimitReached>,
    /// What was paid; absent when settling failed (the ledger's next start settles it).
    pub allowance: Option<Allowance>,
}

impl Outcome {
    /// That of a request without text, of which nothing was counted.
    pub fn nothing(request_id: String) -> Self {
        Self {
            request_id,
            text: String::new(),
            reasoning: String::new(),
            stopped_by: None,
            finish_reason: FinishReason::Stop,
            error: None,
            prompt_token_ids: Vec::new(),
            token_ids: Vec::new(),
            logprobs: None,
            usage: Usage::default(),
            energy_uj: None,
            timing: Timing::default(),
            limited: None,
            allowance: None,
        }
    }
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included; 0 when the request ended before its first token.
    pub prompt_tokens: u64,
    /// Tokens of the prompt that were not computed again.
    pub cached_tokens: u64,
    /// Output tokens paid.
    pub completion_tokens: u64,
    /// Those of them that were thoughts, with the tags around them.
    pub reasoning_tokens: u64,
    /// Tokens the engine computed past the end: discarded, not charged.
    pub discarded_tokens: u64,
    /// Guesses of speculation that came to nothing: never part of the answer, not charged.
    pub rejected_draft_tokens: u64,
}

/// Durations of one request, counted from the moment it was handed to the runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timing {
    /// Until it was encoded, admitted and handed to the engine, µs.
    pub admit_us: u64,
    /// From there until the engine took it up, µs.
    pub queue_us: u64,
    /// Until the first token was paid and handed over, µs.
    pub ttft_us: Option<u64>,
    /// Computing the prompt, µs.
    pub prefill_us: u64,
    /// From the first token to the last, as they were delivered, or as they were computed if that took longer, µs.
    pub decode_us: u64,
    /// Until it was settled, µs.
    pub total_us: u64,
    /// The longest that a debit waited until it was durable, µs.
    pub commit_wait_max_us: u64,
    /// Time between a token and the one before it, one for each token but the first, µs. Tokens that one commit paid
    /// came together: each counts an equal share of the time since the commit before.
    pub itl_us: Vec<u64>,
}

/// Percentiles of a list of durations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Half are no longer than this, ms.
    pub p50_ms: f64,
    /// 95 of 100, ms.
    pub p95_ms: f64,
    /// 99 of 100, ms.
    pub p99_ms: f64,
}

/// What a request cost, and what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// What was paid.
    pub debited: Credits,
    /// What the wallet has now, net of what other requests of it have in flight.
    pub balance: Credits,
}

impl Latency {
    /// Percentiles of durations in µs (nearest rank); `None` of none.
    pub fn of(mut durations_us: Vec<u64>) -> Option<Self> {
        durations_us.sort_unstable();
        let last = durations_us.len().checked_sub(1)?;
        let at = |share: f64| {
            let rank = (share * durations_us.len() as f64).ceil() as usize;
            durations_us[rank.saturating_sub(1).min(last)] as f64 / 1e3
        };
        Some(Self { p50_ms: at(0.50), p95_ms: at(0.95), p99_ms: at(0.99) })
    }
}

impl Timing {
    /// Percentiles of the time between tokens; `None` below two tokens.
    pub fn itl(&self) -> Option<Latency> {
        Latency::of(self.itl_us.clone())
    }

    /// Output tokens a second between the first and the last; `None` below two tokens.
    pub fn decode_tokens_per_s(&self) -> Option<f64> {
        per_second(self.itl_us.len() as u64, self.decode_us)
    }

    /// Prompt tokens a second that were computed.
    pub fn prefill_tokens_per_s(&self, computed_tokens: u64) -> Option<f64> {
        per_second(computed_tokens, self.prefill_us)
    }
}

fn per_second(count: u64, duration_us: u64) -> Option<f64> {
    (count > 0 && duration_us > 0).then(|| count as f64 * 1e6 / duration_us as f64)
}
