//! What chat and text completions have in common as responses.

use schemars::JsonSchema;
use serde::Serialize;
use tokrun_ledger::FinishReason;
use tokrun_runtime::{TokenId, TokenLogprob, Tokenizer, Usage};

/// `usage`: what was paid, and nothing else.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct WireUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
struct PromptDetails {
    cached_tokens: u64,
    audio_tokens: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
struct CompletionDetails {
    reasoning_tokens: u64,
    audio_tokens: u64,
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

impl From<&Usage> for WireUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens, audio_tokens: 0 },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: usage.reasoning_tokens,
                ..CompletionDetails::default()
            },
        }
    }
}

/// OpenAI knows no end by allowance: it is an end by length, and the `tokrun` object says which.
pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        _ => "length",
    }
}

/// A token as log-probabilities name it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct WireToken {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    bytes: Vec<u8>,
}

/// A token of an answer, with what else it could have been.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct WireLogprob {
    #[serde(flatten)]
    pub(crate) token: WireToken,
    pub(crate) top_logprobs: Vec<WireToken>,
}

/// Log-probabilities of an answer's tokens; those that are no text, as the one that ends it, are left out.
pub(crate) fn logprobs<'a>(
    tokenizer: &Tokenizer,
    tokens: impl IntoIterator<Item = (TokenId, &'a TokenLogprob)>,
) -> Vec<WireLogprob> {
    let of_text = tokens.into_iter().filter(|(id, _)| !tokenizer.is_special(*id));
    of_text
        .map(|(id, logprob)| WireLogprob {
            token: wire_token(tokenizer, id, logprob.logprob),
            top_logprobs: logprob.top.iter().map(|(id, logprob)| wire_token(tokenizer, *id, *logprob)).collect(),
        })
        .collect()
}

fn wire_token(tokenizer: &Tokenizer, id: TokenId, logprob: f32) -> WireToken {
    // The model's tokens are in its vocabulary.
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    // JSON has no minus infinity; the reference service says this instead.
    WireToken { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: logprob.max(-9999.0), bytes }
}
