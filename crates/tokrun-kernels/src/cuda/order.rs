//! What of a stream is known to be done: each use of the host's memory gets a number, and waiting tells up to which number
//! all is over. So memory that the device may still read is never written to.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

#[derive(Debug, Default)]
pub(super) struct Order {
    issued: AtomicU64,
    completed: AtomicU64,
}

impl Order {
    /// The number of one more piece of work, given out before it is put on the stream.
    pub(super) fn issue(&self) -> u64 {
        self.issued.fetch_add(1, SeqCst) + 1
    }

    /// The latest number that was given out.
    pub(super) fn issued(&self) -> u64 {
        self.issued.load(SeqCst)
    }

    /// All up to this number is done.
    pub(super) fn complete(&self, number: u64) {
        self.completed.fetch_max(number, SeqCst);
    }

    pub(super) fn is_complete(&self, number: u64) -> bool {
        self.completed.load(SeqCst) >= number
    }
}
