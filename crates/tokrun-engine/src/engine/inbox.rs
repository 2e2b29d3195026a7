//! What callers have said since the engine's thread last looked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::SubmitError;
use crate::request::{RequestId, Submission};

/// Shared between callers and the thread.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
    live_max: usize,
}

/// A request, and when it came.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) submission: Submission,
    pub(super) at: Instant,
}

/// All that came in since the last time, at most one entry a kind for each live request.
#[derive(Debug, Default)]
pub(super) struct Mail {
    pub(super) arrivals: Vec<Arrival>,
    pub(super) acknowledged: BTreeMap<RequestId, u64>,
    pub(super) cancelled: BTreeSet<RequestId>,
    /// No more will come; what is live is to be cancelled.
    pub(super) stop: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Taken, and not reported finished.
    live: BTreeSet<RequestId>,
    mail: Mail,
    /// Nothing is taken any more.
    closed: bool,
}

impl Inbox {
    pub(super) fn new(live_max: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), live_max }
    }

    pub(super) fn submit(&self, arrival: Arrival) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if state.closed {
            return Err(SubmitError::Stopped);
        }
        if state.live.contains(&arrival.submission.request_id) {
            return Err(SubmitError::DuplicateRequest);
        }
        if state.live.len() >= self.live_max {
            return Err(SubmitError::QueueFull { live: state.live.len() });
        }
        state.live.insert(arrival.submission.request_id);
        state.mail.arrivals.push(arrival);
        self.changed.notify_one();
        Ok(())
    }

    pub(super) fn acknowledge(&self, request_id: RequestId, total_tokens: u64) {
        let mut state = self.lock();
        if state.live.contains(&request_id) {
            let acknowledged = state.mail.acknowledged.entry(request_id).or_default();
            *acknowledged = (*acknowledged).max(total_tokens);
            self.changed.notify_one();
        }
    }

    pub(super) fn cancel(&self, request_id: RequestId) {
        let mut state = self.lock();
        if state.live.contains(&request_id) {
            state.mail.cancelled.insert(request_id);
            self.changed.notify_one();
        }
    }

    /// Takes no more requests and tells the thread to end.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.mail.stop = true;
        self.changed.notify_one();
    }

    /// All that came in; waits for something, but not longer than `patience`.
    pub(super) fn take(&self, patience: Duration) -> Mail {
        let mut state = self.lock();
        // Not even a glance at the clock, where the next step is waiting.
        if !patience.is_zero() {
            let waited = self.changed.wait_timeout_while(state, patience, |state| state.mail.is_empty());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::take(&mut state.mail)
    }

    /// A request is about to be reported finished: its id is free again, and what was said of it is void.
    pub(super) fn finished(&self, request_id: RequestId) {
        let mut state = self.lock();
        state.live.remove(&request_id);
        state.mail.acknowledged.remove(&request_id);
        state.mail.cancelled.remove(&request_id);
    }

    /// Takes nothing more, and gives up all that is live.
    pub(super) fn close(&self) -> BTreeSet<RequestId> {
        let mut state = self.lock();
        state.closed = true;
        state.mail = Mail::default();
        std::mem::take(&mut state.live)
    }

    /// No caller's code runs under the lock, so a poisoned one still holds a consistent state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.arrivals.is_empty() && self.acknowledged.is_empty() && self.cancelled.is_empty() && !self.stop
    }
}
