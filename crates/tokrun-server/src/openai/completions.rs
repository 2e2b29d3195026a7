//! `/v1/completions`: text goes on as it stands, without a template.

use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokrun_runtime::{Delta, Outcome, Prompt, TokenId};

use super::request::{Asks, Common, Manner, request};
use super::wire::{WireLogprob, WireUsage, finish_reason, logprobs};
use crate::begin::{Begun, Summary, Tokrun, Wanted};
use crate::error::ApiError;
use crate::models::Lease;
use crate::reply::ok;
use crate::sse::{self, Frames, Scribe};

/// What the reference service generates where a request does not say.
const MAX_TOKENS_USUAL: usize = 16;

/// Alternatives to a token, as the reference service bounds them.
const LOGPROBS_MAX: usize = 5;

request! {
    /// What is to be continued.
    CompletionRequest {
        /// The beginning: text or tokens, one or several.
        prompt: Beginning,
        /// Report log-probabilities, and those of so many alternatives.
        logprobs: Option<usize>,
        /// Begin the answer with the prompt.
        echo: Option<bool>,
        /// Choose among so many answers.
        best_of: Option<usize>,
        /// What comes after the answer.
        suffix: Option<String>,
    }
}

/// What a text begins with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string, a list of strings, a list of tokens, or a list of those")]
pub(crate) enum Beginning {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<TokenId>),
    SeveralTokens(Vec<Vec<TokenId>>),
}

impl Beginning {
    fn prompts(&self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text.clone())],
            Self::Texts(texts) => texts.iter().cloned().map(Prompt::Text).collect(),
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens.clone())],
            Self::SeveralTokens(several) => several.iter().cloned().map(Prompt::Tokens).collect(),
        }
    }
}

impl CompletionRequest {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        if self.echo == Some(true) {
            return Err(ApiError::unsupported("echo", "this server sends the answer alone"));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "the models of this server write forwards"));
        }
        if self.best_of.is_some_and(|best_of| best_of != self.n.unwrap_or(1)) {
            return Err(ApiError::unsupported("best_of", "every answer is paid, so every answer is sent: use 'n'"));
        }
        if self.logprobs.is_some_and(|count| count > LOGPROBS_MAX) {
            let message = format!("logprobs is more than {LOGPROBS_MAX}.");
            return Err(ApiError::invalid_param("logprobs", message));
        }
        let prompts = self.prompt.prompts();
        if prompts.is_empty() {
            return Err(ApiError::invalid_param("prompt", "The list of prompts is empty."));
        }
        Ok(Wanted {
            model: self.model.clone(),
            prompts,
            max_tokens: Some(self.max_tokens.unwrap_or(MAX_TOKENS_USUAL)),
            logprobs: self.logprobs,
            ..self.common().wanted()?
        })
    }
}

impl Asks for CompletionRequest {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        self.wanted()
    }

    fn common(&self) -> Common<'_> {
        self.common()
    }

    async fn whole(begun: Begun, manner: &Manner) -> Result<Response, ApiError> {
        whole(begun, manner).await
    }

    fn stream(begun: Begun, manner: &Manner) -> Response {
        stream(begun, manner)
    }
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: &'a [Choice],
    /// Null in every chunk of a stream but the last, where the usage is wanted; else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<WireUsage>>,
    system_fingerprint: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokrun: Option<Tokrun>,
}

#[derive(Serialize, JsonSchema)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

/// The older form of log-probabilities.
#[derive(Default, Serialize, JsonSchema)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    /// Of tokens whose text begins so many characters into the answer.
    fn new(tokens: Vec<WireLogprob>, offset: &mut usize) -> Self {
        let mut logprobs = Self::default();
        for WireLogprob { token, top_logprobs } in tokens {
            logprobs.text_offset.push(*offset);
            *offset += token.token.chars().count();
            logprobs.tokens.push(token.token);
            logprobs.token_logprobs.push(token.logprob);
            let top = top_logprobs.into_iter().map(|top| (top.token, top.logprob.into()));
            logprobs.top_logprobs.push(top.collect());
        }
        logprobs
    }
}

async fn whole(begun: Begun, manner: &Manner) -> Result<Response, ApiError> {
    let Begun { answers, model, limits, id, created, .. } = begun;
    let mut summary = Summary::default();
    let mut choices = Vec::new();
    for (index, outcome) in answers.collect().await? {
        summary.add(&outcome);
        let tokens = outcome.token_ids.iter().copied().zip(outcome.logprobs.iter().flatten());
        let logprobs = Logprobs::new(logprobs(model.runtime().tokenizer(), tokens), &mut 0);
        choices.push(Choice {
            index,
            text: outcome.text,
            logprobs: manner.wants_logprobs.then_some(logprobs),
            finish_reason: Some(finish_reason(outcome.finish_reason)),
        });
    }
    choices.sort_by_key(|choice| choice.index);
    let mut response = ok(&Completion {
        tokrun: Some(summary.tokrun(&id)),
        id: &format!("cmpl-{id}"),
        object: "text_completion",
        created: created.as_second(),
        model: model.name(),
        choices: &choices,
        usage: Some(Some(WireUsage::from(&summary.usage))),
        system_fingerprint: None,
    });
    summary.tell(response.headers_mut());
    limits.tell(response.headers_mut());
    Ok(response)
}

fn stream(begun: Begun, manner: &Manner) -> Response {
    let Begun { answers, model, limits, id, created, .. } = begun;
    let scribe = CompletionScribe {
        wire_id: format!("cmpl-{id}"),
        id,
        created: created.as_second(),
        model,
        includes_usage: manner.includes_usage,
        wants_logprobs: manner.wants_logprobs,
        summary: Summary::default(),
        offsets: vec![0; answers.count()],
        unfinished: answers.count(),
    };
    let mut response = sse::response(answers, scribe);
    limits.tell(response.headers_mut());
    response
}

struct CompletionScribe {
    id: String,
    wire_id: String,
    created: i64,
    model: Lease,
    includes_usage: bool,
    wants_logprobs: bool,
    summary: Summary,
    /// Characters of each answer so far.
    offsets: Vec<usize>,
    unfinished: usize,
}

impl CompletionScribe {
    fn send(&self, choices: &[Choice], usage: Option<WireUsage>, tokrun: Option<Tokrun>, out: &mut Frames) {
        out.data(&Completion {
            id: &self.wire_id,
            object: "text_completion",
            created: self.created,
            model: self.model.name(),
            choices,
            usage: self.includes_usage.then_some(usage),
            system_fingerprint: None,
            tokrun,
        });
    }
}

impl Scribe for CompletionScribe {
    fn open(&mut self, _out: &mut Frames) {}

    fn delta(&mut self, index: usize, delta: Delta, out: &mut Frames) {
        if delta.text.is_empty() && delta.logprobs.is_empty() {
            return;
        }
        let tokens = delta.logprobs.iter().map(|(id, logprob)| (*id, logprob));
        let tokens = logprobs(self.model.runtime().tokenizer(), tokens);
        let logprobs = self.wants_logprobs.then(|| Logprobs::new(tokens, &mut self.offsets[index]));
        self.send(&[Choice { index, text: delta.text, logprobs, finish_reason: None }], None, None, out);
    }

    fn finished(&mut self, index: usize, outcome: Outcome, out: &mut Frames) {
        self.summary.add(&outcome);
        self.unfinished -= 1;
        let finish_reason = Some(finish_reason(outcome.finish_reason));
        let is_last = self.unfinished == 0 && !self.includes_usage;
        let tokrun = is_last.then(|| self.summary.tokrun(&self.id));
        self.send(&[Choice { index, text: String::new(), logprobs: None, finish_reason }], None, tokrun, out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Frames) {
        out.data(&error.openai());
    }

    fn close(&mut self, out: &mut Frames) {
        if self.includes_usage {
            let usage = WireUsage::from(&self.summary.usage);
            self.send(&[], Some(usage), Some(self.summary.tokrun(&self.id)), out);
        }
        out.raw("data: [DONE]\n\n");
    }
}
