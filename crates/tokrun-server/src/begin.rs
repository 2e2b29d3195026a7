//! From what a client wants, in whatever form it said so, to answers under way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::http::HeaderMap;
use jiff::Timestamp;
use schemars::JsonSchema;
use tokio::sync::OwnedSemaphorePermit;
use tokrun_ledger::{Action, Credits, FinishReason, LimitReached};
use tokrun_runtime::{
    Conversation, GenerateRequest, Grammar, Outcome, Payer, Prompt, SamplingParams, Tool, ToolChoice, Usage,
};

use crate::answers::Answers;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::limits::RateLimits;
use crate::models::{Lease, Model};
use crate::routes::RequestTag;
use crate::said::Hearing;

/// Answers to one HTTP request at most.
const ANSWERS_MAX: usize = 128;

/// What a client wants.
#[derive(Default)]
pub(crate) struct Wanted {
    pub(crate) model: String,
    pub(crate) prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) grammar: Option<Grammar>,
    /// Whether tools are called, where the conversation has any.
    pub(crate) tool_choice: ToolChoice,
    /// Call one tool at most.
    pub(crate) one_call: bool,
    /// Think before the answer, or do not; as the model does by itself, where nothing is said.
    pub(crate) thinks: Option<bool>,
    pub(crate) ignore_eos: bool,
    pub(crate) logprobs: Option<usize>,
    /// Among the requests of one wallet a lower one is served earlier, as vLLM has it; 0 is the usual.
    pub(crate) priority: i32,
    pub(crate) tags: BTreeMap<String, String>,
}

/// How to sample, as far as the client said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampling {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) min_p: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) repeat_penalty: Option<f32>,
    pub(crate) logit_bias: BTreeMap<u32, f32>,
    pub(crate) seed: Option<u64>,
}

impl Sampling {
    /// With what the model's makers recommend for the rest. Where there is no seed, any will do.
    fn params(&self, usual: &SamplingParams) -> Result<SamplingParams, ApiError> {
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_p: self.top_p.unwrap_or(usual.top_p),
            top_k: self.top_k.unwrap_or(usual.top_k),
            min_p: self.min_p.unwrap_or(usual.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(usual.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(usual.frequency_penalty),
            repeat_penalty: self.repeat_penalty.unwrap_or(usual.repeat_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0),
            ..usual.clone()
        };
        params.validate().map_err(|error| ApiError::from(&error))?;
        Ok(params)
    }
}

/// Answers that have begun, and what every form of response says of them.
pub(crate) struct Begun {
    pub(crate) answers: Answers,
    /// How to tell thoughts, words and calls apart in them.
    pub(crate) hearing: Hearing,
    pub(crate) model: Lease,
    pub(crate) limits: RateLimits,
    /// The request's name.
    pub(crate) id: String,
    pub(crate) created: Timestamp,
}

/// What is found out before the model must be in memory.
pub(crate) struct Placed {
    pub(crate) model: Arc<Model>,
    params: SamplingParams,
    places: OwnedSemaphorePermit,
}

/// Refuses what can be refused without the model, and takes places for the rest.
pub(crate) fn place(app: &App, caller: &Caller, wanted: &Wanted) -> Result<Placed, ApiError> {
    if app.is_draining() {
        return Err(ApiError::overloaded("The server is about to end; try again."));
    }
    caller.require(Action::Spend, true)?;
    let model = find_model(app, caller, &wanted.model)?;
    let count = wanted.prompts.len().saturating_mul(wanted.n);
    if !(1..=ANSWERS_MAX).contains(&count) {
        return Err(ApiError::invalid_param("n", format!("Between 1 and {ANSWERS_MAX} answers can be asked for.")));
    }
    let params = wanted.sampling.params(&model.served.sampling)?;
    let places = model.places.take(count)?;
    Ok(Placed { model, params, places })
}

/// Has what a client wants admitted. May block.
pub(crate) fn begin(
    app: &Arc<App>,
    caller: &Caller,
    tag: &RequestTag,
    mut wanted: Wanted,
    Placed { params, places, .. }: Placed,
    model: Lease,
    deadline: Option<Instant>,
) -> Result<Begun, ApiError> {
    wanted.prompts.iter().try_for_each(|prompt| model.could_fit(prompt))?;
    let hearing = wanted.converse(&model)?;
    let requests = requests(caller, tag, model.model(), wanted, &params, deadline);
    let answers = Answers::begin(app, &model, places, tag, requests)?;
    let limits = RateLimits::of(&app.ledger, caller, model.name()).unwrap_or_default();
    Ok(Begun { answers, hearing, model, limits, id: tag.0.clone(), created: Timestamp::now() })
}

impl Wanted {
    /// Settles with the model how it thinks and calls, where it converses.
    fn converse(&mut self, model: &Lease) -> Result<Hearing, ApiError> {
        let Some(Prompt::Chat(conversation)) = self.prompts.first_mut() else { return Ok(Hearing::default()) };
        let runtime = model.runtime();
        let is_forced = !conversation.tools.is_empty() && self.tool_choice != ToolChoice::Auto;
        if self.thinks == Some(true) && !runtime.reasons() {
            let why = "this model does not think before it answers; leave it out, or use a model that does";
            return Err(ApiError::unsupported("reasoning", why));
        }
        // A call that must come, comes at once.
        if let Some(thinks) = self.thinks.filter(|_| !is_forced).or(is_forced.then_some(false)) {
            conversation.settings.entry("enable_thinking").or_insert(thinks.into());
        }
        if conversation.tools.is_empty() {
            return Ok(Hearing::default());
        }
        if self.grammar.is_some() && !is_forced {
            let message = "A form for the answer does not go together with tools that may be called: set 'tool_choice' to \
                           'none', or leave 'response_format' out.";
            return Err(ApiError::invalid_param("response_format", message));
        }
        let style = runtime.tool_style().map_err(|error| ApiError::from(&error))?;
        let names = conversation.tools.iter().map(|tool| tool.name.clone()).collect();
        let grammar = |tools: &[Tool]| style.grammar(tools, &self.tool_choice, !self.one_call, runtime.tokenizer());
        self.grammar = usable_grammar(conversation, grammar, |grammar| {
            runtime.check_grammar(grammar).map_err(|error| ApiError::invalid_param("tools", error.to_string()))
        })?;
        Ok(Hearing::of_tools(style, names))
    }
}

/// The grammar for calls. What a schema asks for beyond what grammars can hold is left to the model, unless the tool is
/// strict: an object comes in any case.
fn usable_grammar(
    conversation: &Conversation,
    grammar: impl Fn(&[Tool]) -> Option<Grammar>,
    check: impl Fn(&Grammar) -> Result<(), ApiError>,
) -> Result<Option<Grammar>, ApiError> {
    let tools = &conversation.tools;
    let Some(exact) = grammar(tools) else { return Ok(None) };
    let Err(error) = check(&exact) else { return Ok(Some(exact)) };
    let loosened = |tool: &Tool| match tool.strict {
        true => tool.clone(),
        false => {
            Tool { parameters: serde_json::json!({ "type": "object", "additionalProperties": true }), ..tool.clone() }
        }
    };
    let loose = grammar(&tools.iter().map(loosened).collect::<Vec<_>>()).filter(|loose| check(loose).is_ok());
    loose.map(Some).ok_or(error)
}

/// The model of this name, if this caller may use it.
pub(crate) fn find_model(app: &App, caller: &Caller, name: &str) -> Result<Arc<Model>, ApiError> {
    app.embedders.refuse_to_speak(caller, name)?;
    let model = app.models.get(name)?;
    if caller.may_use(&model) { Ok(model) } else { Err(ApiError::unknown_model(name)) }
}

/// The same, in memory: it is waited for.
pub(crate) async fn find_loaded(app: &App, caller: &Caller, name: &str) -> Result<Lease, ApiError> {
    let model = find_model(app, caller, name)?;
    app.models.lease(&model, app.options.deadline(Instant::now())).await
}

fn requests(
    caller: &Caller,
    tag: &RequestTag,
    model: &Model,
    wanted: Wanted,
    params: &SamplingParams,
    deadline: Option<Instant>,
) -> Vec<GenerateRequest> {
    let price = (model.served.price)();
    let payer = Payer { tags: wanted.tags, ..caller.payer() };
    let each = wanted.prompts.into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, wanted.n));
    let request = |(index, prompt): (usize, Prompt)| GenerateRequest {
        request_id: Some(if index == 0 { tag.0.clone() } else { format!("{}-{index}", tag.0) }),
        prompt,
        max_tokens: wanted.max_tokens,
        // Answers to one prompt differ; those of a seed are the same each time.
        sampling: SamplingParams { seed: params.seed.wrapping_add(index as u64), ..params.clone() },
        stop: wanted.stop.clone(),
        grammar: wanted.grammar.clone(),
        ignore_eos: wanted.ignore_eos,
        splits_reasoning: true,
        logprobs: wanted.logprobs,
        // A higher one is served first there.
        priority: 0_i32.saturating_sub(wanted.priority),
        deadline,
        payer: payer.clone(),
        price,
    };
    each.enumerate().map(request).collect()
}

/// What the answers of one HTTP request came to, in the order in which they ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) usage: Usage,
    debited: Credits,
    balance: Option<Credits>,
    /// Of the first that did not end by itself, else of the first.
    finish_reason: Option<FinishReason>,
    limited: Option<LimitReached>,
}

impl Summary {
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        self.usage.prompt_tokens += outcome.usage.prompt_tokens;
        self.usage.cached_tokens += outcome.usage.cached_tokens;
        self.usage.completion_tokens += outcome.usage.completion_tokens;
        self.usage.reasoning_tokens += outcome.usage.reasoning_tokens;
        if let Some(allowance) = &outcome.allowance {
            let sum = self.debited.micro().saturating_add(allowance.debited.micro());
            self.debited = Credits::from_micro(sum);
            self.balance = Some(allowance.balance);
        }
        let ended_by_itself = |reason| matches!(reason, FinishReason::Stop | FinishReason::Length);
        if self.finish_reason.is_none_or(|known| ended_by_itself(known) && !ended_by_itself(outcome.finish_reason)) {
            self.finish_reason = Some(outcome.finish_reason);
        }
        if self.limited.is_none() {
            self.limited.clone_from(&outcome.limited);
        }
    }

    /// What a metered server knows beyond what clients expect.
    pub(crate) fn tokrun(&self, request_id: &str) -> Tokrun {
        Tokrun {
            request_id: request_id.to_owned(),
            finish_reason: self.finish_reason,
            debited: self.debited,
            balance: self.balance,
            unit: "credits",
            limit: self.limited.as_ref().map(|limit| Limit { what: limit.what.clone(), resets: limit.resets }),
        }
    }

    /// The same in the headers of a response that is sent as a whole.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let mut tell = |name: &'static str, credits: Credits| {
            let value = credits.to_string().parse().expect("digits are a header's value");
            headers.insert(name, value);
        };
        tell("x-tokrun-debited", self.debited);
        if let Some(balance) = self.balance {
            tell("x-tokrun-balance", balance);
        }
    }
}

/// `tokrun` in a response.
#[derive(Clone, Debug, serde::Serialize, JsonSchema)]
pub(crate) struct Tokrun {
    request_id: String,
    /// Why it ended in the ledger's words: `allowance` and `limit` among them.
    #[schemars(with = "Option<String>")]
    finish_reason: Option<FinishReason>,
    /// What was paid.
    #[schemars(with = "f64")]
    debited: Credits,
    /// What is left.
    #[schemars(with = "Option<f64>")]
    balance: Option<Credits>,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
}

#[derive(Clone, Debug, serde::Serialize, JsonSchema)]
struct Limit {
    what: String,
    #[schemars(with = "Option<String>")]
    resets: Option<Timestamp>,
}
