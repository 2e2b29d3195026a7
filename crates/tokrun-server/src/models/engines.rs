//! A model in memory: its engines, and who uses them.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use tokrun_runtime::{Conversation, Prompt, Runtime, StepMetrics};

use super::Model;
use super::shelf::Shelf;
use crate::error::ApiError;

/// The engines of a loaded model, alike but for their devices; at least one.
pub(crate) struct Engines {
    engines: Vec<Runtime>,
    /// Requests that each engine has.
    taken: Vec<Arc<AtomicUsize>>,
    /// Leases there are.
    uses: AtomicUsize,
    /// Of the longest token.
    token_bytes_max: usize,
}

impl Engines {
    pub(super) fn new(engines: Vec<Runtime>) -> Self {
        let tokenizer = engines[0].tokenizer();
        let tokens = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let token_bytes_max = tokens.filter_map(|token| Some(tokenizer.token_bytes(token).ok()?.len())).max();
        let taken = engines.iter().map(|_| Arc::default()).collect();
        Self { token_bytes_max: token_bytes_max.unwrap_or(1), taken, uses: AtomicUsize::new(0), engines }
    }

    /// For what is the same with all engines.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.engines[0]
    }

    /// The engine that has fewest requests, and a mark that it has one more.
    pub(crate) fn idlest(&self) -> (&Runtime, Mark) {
        let engines = self.engines.iter().zip(&self.taken);
        let (engine, taken) =
            engines.min_by_key(|(_, taken)| taken.load(Relaxed)).expect("there is at least one engine");
        taken.fetch_add(1, Relaxed);
        (engine, Mark(Arc::clone(taken)))
    }

    /// How busy the engines are, together.
    pub(crate) fn metrics(&self) -> StepMetrics {
        let mut all = StepMetrics::default();
        for engine in &self.engines {
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

    /// Whether nobody has a lease. Asked under the shelf's lock, which every first lease is made under, it stays so.
    pub(super) fn is_idle(&self) -> bool {
        self.uses.load(Acquire) == 0
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

/// A request of an engine, until it is dropped.
pub(crate) struct Mark(Arc<AtomicUsize>);

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The use of a model that is in memory: there it stays, until all of them are dropped.
pub(crate) struct Lease {
    model: Arc<Model>,
    engines: Arc<Engines>,
    shelf: Arc<Shelf>,
}

impl Lease {
    pub(super) fn new(model: &Arc<Model>, engines: &Arc<Engines>, shelf: &Arc<Shelf>) -> Self {
        engines.uses.fetch_add(1, AcqRel);
        Self { model: Arc::clone(model), engines: Arc::clone(engines), shelf: Arc::clone(shelf) }
    }

    /// Whose use it is.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    pub(crate) fn name(&self) -> &str {
        self.model.name()
    }
}

impl std::ops::Deref for Lease {
    type Target = Engines;

    fn deref(&self) -> &Engines {
        &self.engines
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        Self::new(&self.model, &self.engines, &self.shelf)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.engines.uses.fetch_sub(1, AcqRel) == 1 {
            self.shelf.fell_idle(&self.model);
        }
    }
}
