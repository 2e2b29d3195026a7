//! The models that are served, by name.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokrun_ledger::Price;
use tokrun_runtime::{Conversation, Prompt, Runtime, SamplingParams, StepMetrics};

use crate::error::ApiError;

/// A model that runs, and what it is called and costs.
pub struct ServedModel {
    /// What clients call it: its name in the request log.
    pub name: String,
    /// What else they may call it.
    pub aliases: Vec<String>,
    /// Who answers: an engine on each device, alike but for that; at least one.
    pub engines: Vec<Runtime>,
    /// Requests that may run and wait at once; the next one is refused before anything is held for it.
    pub places: usize,
    /// What a token costs at this moment.
    pub price: Box<dyn Fn() -> Price + Send + Sync>,
    /// How to sample where a request does not say.
    pub sampling: SamplingParams,
    /// When it was loaded.
    pub loaded: Timestamp,
}

/// A served model with the places that are left.
pub(crate) struct Model {
    pub(crate) served: ServedModel,
    /// Requests that each engine has.
    taken: Vec<Arc<AtomicUsize>>,
    places: Arc<Semaphore>,
    /// Of the longest token.
    token_bytes_max: usize,
}

impl Model {
    pub(crate) fn name(&self) -> &str {
        &self.served.name
    }

    /// For what is the same with all engines.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.served.engines[0]
    }

    /// The engine that has fewest requests, and a mark that it has one more.
    pub(crate) fn idlest(&self) -> (&Runtime, Mark) {
        let engines = self.served.engines.iter().zip(&self.taken);
        let (engine, taken) =
            engines.min_by_key(|(_, taken)| taken.load(Relaxed)).expect("there is at least one engine");
        taken.fetch_add(1, Relaxed);
        (engine, Mark(Arc::clone(taken)))
    }

    /// How busy the engines are, together.
    pub(crate) fn metrics(&self) -> StepMetrics {
        let mut all = StepMetrics::default();
        for engine in &self.served.engines {
            let StepMetrics { running, waiting, blocks, blocks_used, preemptions, .. } = engine.metrics();
            all.running += running;
            all.waiting += waiting;
            all.blocks += blocks;
            all.blocks_used += blocks_used;
            all.preemptions += preemptions;
        }
        all
    }

    /// Refuses a prompt that cannot fit whatever its tokens are, before its tokens are found: that takes a while for those
    /// who send megabytes.
    pub(crate) fn could_fit(&self, prompt: &Prompt) -> Result<(), ApiError> {
        let bytes = match prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Chat(conversation) => text_bytes(conversation),
            // That is seen at once.
            Prompt::Tokens(_) => 0,
        };
        let context_tokens = self.runtime().info().context_tokens;
        if bytes <= context_tokens.saturating_mul(self.token_bytes_max) {
            return Ok(());
        }
        Err(ApiError::too_long(format!(
            "The prompt has {bytes} bytes, far more than {context_tokens} tokens of context."
        )))
    }

    /// Places for so many requests at once, given back when the permit is dropped.
    pub(crate) fn places(&self, requests: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let wanted = u32::try_from(requests).unwrap_or(u32::MAX);
        Arc::clone(&self.places).try_acquire_many_owned(wanted).map_err(|_| {
            ApiError::overloaded(format!("All {} places are taken; try again shortly.", self.served.places))
        })
    }

    /// Requests that have a place.
    pub(crate) fn places_taken(&self) -> usize {
        self.served.places - self.places.available_permits()
    }
}

/// A request of an engine, until it is dropped.
pub(crate) struct Mark(Arc<AtomicUsize>);

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// About what a conversation comes to as text.
fn text_bytes(conversation: &Conversation) -> usize {
    let json_bytes = |value: &serde_json::Value| value.to_string().len();
    let said = conversation.messages.iter().map(|message| {
        let calls: usize = message.tool_calls.iter().map(|call| json_bytes(&call.arguments)).sum();
        message.content.len() + calls
    });
    let told = conversation
        .tools
        .iter()
        .map(|tool| tool.description.as_ref().map_or(0, String::len) + json_bytes(&tool.parameters));
    said.chain(told).sum()
}

/// All of them, in the order in which they were named.
pub(crate) struct Models(Vec<Arc<Model>>);

impl Models {
    pub(crate) fn new(served: Vec<ServedModel>) -> Self {
        let model = |served: ServedModel| {
            let tokenizer = served.engines[0].tokenizer();
            let tokens = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
            let token_bytes_max = tokens.filter_map(|token| Some(tokenizer.token_bytes(token).ok()?.len())).max();
            let places = Arc::new(Semaphore::new(served.places));
            let taken = served.engines.iter().map(|_| Arc::default()).collect();
            Arc::new(Model { token_bytes_max: token_bytes_max.unwrap_or(1), taken, places, served })
        };
        Self(served.into_iter().map(model).collect())
    }

    /// The model of this name.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let is_called =
            |model: &&Arc<Model>| model.name() == name || model.served.aliases.iter().any(|alias| alias == name);
        self.0.iter().find(is_called).cloned().ok_or_else(|| ApiError::unknown_model(name))
    }

    /// The one that is meant where a request names none.
    pub(crate) fn first(&self) -> &Arc<Model> {
        // `Server::new` takes at least one.
        &self.0[0]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.0.iter()
    }
}
