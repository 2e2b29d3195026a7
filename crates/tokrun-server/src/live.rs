//! Requests under way: what can be ended when the server must end, or when their clients read no more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokrun_runtime::Canceller;

/// All of them.
#[derive(Default)]
pub(crate) struct Live {
    next_id: AtomicU64,
    requests: Mutex<HashMap<u64, Arc<Request>>>,
}

struct Request {
    cancellers: Vec<Canceller>,
    /// Since when a client has had something to read, and has not come for more.
    unread_since: Mutex<Option<Instant>>,
}

impl Live {
    /// Enters a request; it leaves when what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>, cancellers: Vec<Canceller>) -> Entry {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Arc::new(Request { cancellers, unread_since: Mutex::new(None) });
        self.requests().insert(id, Arc::clone(&request));
        Entry { live: Arc::clone(self), id, request }
    }

    pub(crate) fn count(&self) -> usize {
        self.requests().len()
    }

    /// Ends all: what is being paid for is still delivered.
    pub(crate) fn cancel_all(&self) {
        self.requests().values().for_each(|request| request.cancel());
    }

    /// Ends those whose clients have had something to read for so long, and read nothing: they hold places and memory.
    pub(crate) fn cancel_stalled(&self, patience: Duration) {
        for request in self.requests().values() {
            if lock(&request.unread_since).is_some_and(|since| since.elapsed() > patience) {
                request.cancel();
            }
        }
    }

    fn requests(&self) -> MutexGuard<'_, HashMap<u64, Arc<Request>>> {
        lock(&self.requests)
    }
}

impl Request {
    fn cancel(&self) {
        self.cancellers.iter().for_each(Canceller::cancel);
    }
}

/// A request's place in the list.
pub(crate) struct Entry {
    live: Arc<Live>,
    id: u64,
    request: Arc<Request>,
}

impl Entry {
    /// Something was handed to the connection.
    pub(crate) fn handed_over(&self) {
        lock(&self.request.unread_since).get_or_insert_with(Instant::now);
    }

    /// The connection came for more.
    pub(crate) fn asked_for_more(&self) {
        *lock(&self.request.unread_since) = None;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.live.requests().remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
