//! The models that are served, by name.
//!
//! Some are in memory, the others are loaded when a request wants them: the request waits for that, all others go on. What a
//! model takes is known before, so that all together stay within a budget: where it is short, the idle model that was used
//! least lately goes. Who uses a model has a [`Lease`] of it, and it stays for as long. [`shelf`] decides, [`keeper`] does.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokrun_ledger::Price;
use tokrun_runtime::{Runtime, SamplingParams};

use crate::error::ApiError;
use crate::places::Places;

mod engines;
mod keeper;
mod shelf;

use engines::Engines;
pub(crate) use engines::Lease;
use shelf::{Asked, Shelf};
pub(crate) use shelf::{Rules, Seen};

/// A model that can be asked: what it is called, what it costs and takes, and how it is loaded.
pub struct ServedModel {
    /// What clients call it: its name in the request log.
    pub name: String,
    /// What else they may call it.
    pub aliases: Vec<String>,
    /// Loads it: an engine on each device, alike but for that; at least one. It is called, on a thread that may block, each
    /// time that the model is wanted and not in memory.
    pub load: Box<dyn Fn() -> Result<Vec<Runtime>, LoadError> + Send + Sync>,
    /// What that gave, where it was loaded already.
    pub loaded: Option<Loaded>,
    /// What it takes when it is loaded, as far as that is known.
    pub memory: Vec<Memory>,
    /// The longest sequence, in tokens, as far as that is known before it is loaded.
    pub context_tokens: usize,
    /// Requests that may run and wait at once; the next one is refused before anything is held for it.
    pub places: usize,
    /// What a token costs at this moment.
    pub price: Box<dyn Fn() -> Price + Send + Sync>,
    /// How to sample where a request does not say.
    pub sampling: SamplingParams,
}

/// A model that is in memory.
pub struct Loaded {
    /// Who answers: an engine on each device; at least one.
    pub engines: Vec<Runtime>,
    /// How long it took to load them.
    pub took: Duration,
}

/// Memory of a device that a model takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// So much of it.
    pub bytes: u64,
}

/// Why a model could not be loaded.
#[derive(Clone, Debug)]
pub enum LoadError {
    /// There is no memory for it now; clients are told so.
    NoRoom(String),
    /// Something else. It may name files, so it is for the log and for administrators.
    Failed(String),
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::NoRoom(reason) | Self::Failed(reason)) = self;
        f.write_str(reason)
    }
}

impl std::error::Error for LoadError {}

/// A served model with the places that are left.
pub(crate) struct Model {
    pub(crate) served: ServedModel,
    /// Its number among all.
    index: usize,
    /// When it began to be served.
    pub(crate) since: Timestamp,
    pub(crate) places: Places,
}

impl Model {
    pub(crate) fn name(&self) -> &str {
        &self.served.name
    }

    /// What it takes when it is in memory, all devices together.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.served.memory.iter().map(|memory| memory.bytes).sum()
    }

    /// What it takes of a device.
    fn bytes_on(&self, device: &str) -> u64 {
        self.served.memory.iter().filter(|memory| memory.device == device).map(|memory| memory.bytes).sum()
    }
}

/// All of them, in the order in which they were named.
pub(crate) struct Models {
    shelf: Arc<Shelf>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Models {
    pub(crate) fn new(served: Vec<ServedModel>, rules: Rules) -> Self {
        let model = |(index, mut served): (usize, ServedModel)| {
            let places = Places::new(served.places);
            let loaded = served.loaded.take().map(|loaded| (Engines::new(loaded.engines), loaded.took));
            (Arc::new(Model { served, index, since: Timestamp::now(), places }), loaded)
        };
        let models = served.into_iter().enumerate().map(model).collect();
        Self { shelf: Arc::new(Shelf::new(models, rules)), keeper: Mutex::new(None) }
    }

    /// From now on models are loaded, and unloaded.
    ///
    /// # Errors
    /// When there can be no thread for it.
    pub(crate) fn start(&self) -> std::io::Result<()> {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.is_none() {
            *keeper = Some(keeper::start(&self.shelf)?);
        }
        Ok(())
    }

    /// No model is loaded any more, and who waits for one is told so. What is in memory serves on.
    pub(crate) fn end(&self) {
        // Whoever waits sees that its sender is gone.
        drop(self.shelf.end());
    }

    /// The model of this name.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let is_called =
            |model: &&Arc<Model>| model.name() == name || model.served.aliases.iter().any(|alias| alias == name);
        self.iter().find(is_called).cloned().ok_or_else(|| ApiError::unknown_model(name))
    }

    /// The one that is meant where a request names none.
    pub(crate) fn first(&self) -> Option<&Arc<Model>> {
        self.shelf.models.first()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.shelf.models.iter()
    }

    /// The use of a model. Where it is not in memory, that waits until it is, with all others who want it: until a deadline,
    /// and for no longer than somebody waits.
    pub(crate) async fn lease(&self, model: &Arc<Model>, deadline: Option<Instant>) -> Result<Lease, ApiError> {
        let ending = || ApiError::overloaded("The server is about to end; try again.");
        let mut waiting = match self.shelf.ask(model) {
            Asked::Here(lease) => return Ok(lease),
            Asked::Waits(waiting) => waiting,
            Asked::Ending => return Err(ending()),
        };
        let answer = async { waiting.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone()) };
        let answer = match deadline {
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| ApiError::too_late())?
            }
            None => answer.await,
        };
        answer.ok_or_else(ending)?.map_err(|error| ApiError::not_loaded(model.name(), &error))
    }

    /// How a model is doing.
    pub(crate) fn see(&self, model: &Model) -> Seen {
        self.shelf.see(model)
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        self.end();
        drop(self.shelf.clear());
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper.filter(|_| !self.shelf.is_loading()) {
            // A panic there was already reported by its own message.
            let _ = keeper.join();
        }
    }
}
