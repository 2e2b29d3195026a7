//! The places that a model has for requests: who finds none is refused before anything is held for it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// Of one model.
pub(crate) struct Places {
    all: usize,
    left: Arc<Semaphore>,
}

impl Places {
    pub(crate) fn new(all: usize) -> Self {
        Self { all, left: Arc::new(Semaphore::new(all)) }
    }

    /// Places for so many requests at once, given back when the permit is dropped.
    pub(crate) fn take(&self, requests: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let wanted = u32::try_from(requests).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.left).try_acquire_many_owned(wanted);
        taken.map_err(|_| ApiError::overloaded(format!("All {} places are taken; try again shortly.", self.all)))
    }

    /// Requests that have a place.
    pub(crate) fn taken(&self) -> usize {
        self.all - self.left.available_permits()
    }
}
