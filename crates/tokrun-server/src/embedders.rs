//! The embedding models that are served, by name.

use std::sync::Arc;

use jiff::Timestamp;
use tokrun_ledger::Price;
use tokrun_runtime::Embeddings;

use crate::auth::Caller;
use crate::error::ApiError;
use crate::places::Places;

/// An embedding model that runs, and what it is called and costs.
pub struct ServedEmbedder {
    /// What clients call it: its name in the request log.
    pub name: String,
    /// What else they may call it.
    pub aliases: Vec<String>,
    /// Who answers.
    pub embeddings: Embeddings,
    /// Requests that may run and wait at once; the next one is refused before anything is held for it.
    pub places: usize,
    /// What a token costs at this moment.
    pub price: Box<dyn Fn() -> Price + Send + Sync>,
    /// What it takes of the host's memory.
    pub memory_bytes: u64,
}

/// A served embedding model with the places that are left.
pub(crate) struct Embedder {
    pub(crate) served: ServedEmbedder,
    /// When it began to be served.
    pub(crate) since: Timestamp,
    pub(crate) places: Places,
}

impl Embedder {
    pub(crate) fn name(&self) -> &str {
        &self.served.name
    }

    fn is_called(&self, name: &str) -> bool {
        self.served.name == name || self.served.aliases.iter().any(|alias| alias == name)
    }
}

/// All of them, in the order in which they were named.
#[derive(Default)]
pub(crate) struct Embedders(Vec<Arc<Embedder>>);

impl Embedders {
    pub(crate) fn new(served: Vec<ServedEmbedder>) -> Self {
        let embedder = |served: ServedEmbedder| {
            Arc::new(Embedder { places: Places::new(served.places), since: Timestamp::now(), served })
        };
        Self(served.into_iter().map(embedder).collect())
    }

    /// The one of this name, if there is one that this caller may use.
    pub(crate) fn find(&self, caller: &Caller, name: &str) -> Option<Arc<Embedder>> {
        let found = self.0.iter().find(|embedder| embedder.is_called(name) && caller.may_use_named(embedder.name()));
        found.cloned()
    }

    /// Refuses to have a model of this name speak, if it is one that embeds.
    pub(crate) fn refuse_to_speak(&self, caller: &Caller, name: &str) -> Result<(), ApiError> {
        match self.find(caller, name) {
            Some(_) => Err(ApiError::wrong_kind(format!(
                "The model `{name}` gives embeddings and no text; ask /v1/embeddings, or another model."
            ))),
            None => Ok(()),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Embedder>> {
        self.0.iter()
    }
}
