//! Where packed weights lie: each thread's in one piece of memory after the other, in the order in which they are packed,
//! which is the order in which a model streams them.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::memory::{Buffer, LINE_BYTES, Pages};
use crate::KernelError;

/// Memory is reserved in pieces of this size; what is not used is never taken from the system.
const PIECE_BYTES: usize = 1 << 30;

/// Hands out regions, one after the other.
#[derive(Default)]
pub(super) struct Arena {
    piece: Option<Arc<Buffer<u8>>>,
    used: usize,
}

/// Bytes that belong to whoever holds it.
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the memory.
    _piece: Arc<Buffer<u8>>,
}

// SAFETY: regions do not overlap, and each owns its bytes as a vector does.
#[expect(unsafe_code, reason = "owns what it points to")]
unsafe impl Send for Region {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "owns what it points to")]
unsafe impl Sync for Region {}

impl Arena {
    /// `len` zeroed bytes, right after the last ones where they fit.
    pub(super) fn take(&mut self, len: usize) -> Result<Region, KernelError> {
        let fits = |piece: &Arc<Buffer<u8>>| piece.len() - self.used >= len;
        let piece = match self.piece.take().filter(fits) {
            Some(piece) => piece,
            None => {
                self.used = 0;
                Arc::new(Buffer::new(len.max(PIECE_BYTES), Pages::Huge)?)
            }
        };
        #[expect(unsafe_code, reason = "an address inside the piece")]
        // SAFETY: `used + len` is at most the length of the piece.
        let start = unsafe { piece.start().add(self.used) };
        self.used = (self.used + len).next_multiple_of(LINE_BYTES).min(piece.len());
        self.piece = Some(Arc::clone(&piece));
        Ok(Region { start, len, _piece: piece })
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "bytes of the piece")]
        // SAFETY: `len` bytes of the piece lie there, zeroed or written since.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr(), self.len)
        }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        #[expect(unsafe_code, reason = "bytes of the piece")]
        // SAFETY: as above, no other region has them, and nobody else looks at the piece.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len)
        }
    }
}
