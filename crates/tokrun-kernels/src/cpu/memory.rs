//! Memory for weights, caches and activations: zeroed, aligned, and taken from the system only when it is touched.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use crate::KernelError;

/// Bytes of a line of the caches.
pub(super) const LINE_BYTES: usize = 64;

/// Alignment of every buffer: the size of a huge page on x86-64 and on most of aarch64.
const ALIGN_BYTES: usize = 2 << 20;

/// Types for which every bit pattern is a value, zero among them.
///
/// # Safety
/// That must be so.
#[expect(unsafe_code, reason = "what the memory holds cannot be checked")]
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($type:ty)*) => {$(
        // SAFETY: a number without invalid bit patterns.
        #[expect(unsafe_code, reason = "what the memory holds cannot be checked")]
        unsafe impl Plain for $type {}
    )*};
}
plain!(u8 i8 u16 i16 u32 i32 u64 f32);

// SAFETY: an array holds its elements and nothing else.
#[expect(unsafe_code, reason = "what the memory holds cannot be checked")]
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Which pages a buffer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// What the system gives: memory comes in small steps as it is touched.
    Normal,
    /// 2 MiB pages where the system has them: for what is read in full at every step.
    Huge,
}

/// A zeroed array in a mapping of its own, aligned to 2 MiB.
pub(crate) struct Buffer<T> {
    start: NonNull<T>,
    len: usize,
    /// What was mapped, alignment included.
    mapping: NonNull<u8>,
    mapped_bytes: usize,
}

// SAFETY: a buffer owns its memory, as a vector does.
#[expect(unsafe_code, reason = "owns what it points to")]
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "owns what it points to")]
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// `len` zeros.
    pub(crate) fn new(len: usize, pages: Pages) -> Result<Self, KernelError> {
        let too_large = KernelError::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()) };
        let Some(bytes) = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_next_multiple_of(ALIGN_BYTES))
        else {
            return Err(too_large);
        };
        if bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), len: 0, mapping: NonNull::dangling(), mapped_bytes: 0 });
        }
        let Some((mapping, mapped_bytes)) = bytes.checked_add(ALIGN_BYTES).and_then(|size| Some((map(size)?, size)))
        else {
            return Err(too_large);
        };
        let offset = mapping.as_ptr().align_offset(ALIGN_BYTES);
        #[expect(unsafe_code, reason = "an address inside the mapping")]
        // SAFETY: `offset` is below the alignment, which the mapping is larger by.
        let start = unsafe { mapping.add(offset) };
        advise(start, bytes, pages);
        Ok(Self { start: start.cast(), len, mapping, mapped_bytes })
    }

    /// Where it begins: for those who hand out parts of it themselves.
    pub(crate) fn start(&self) -> NonNull<T> {
        self.start
    }
}

/// Maps zeroed memory that is not reserved before it is touched.
#[expect(unsafe_code, reason = "the system call")]
fn map(bytes: usize) -> Option<NonNull<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the system's choice touches nothing that exists.
    let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags) };
    NonNull::new(mapped.ok()?.cast())
}

/// Says which pages are wanted; a system that cannot do it goes on as it does.
#[cfg_attr(target_os = "linux", expect(unsafe_code, reason = "the system call"))]
fn advise(start: NonNull<u8>, bytes: usize, pages: Pages) {
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};
        let advice = match pages {
            Pages::Normal => Advice::LinuxNoHugepage,
            Pages::Huge => Advice::LinuxHugepage,
        };
        // SAFETY: the range lies in a mapping of ours, and this advice does not change what it holds.
        let _ = unsafe { madvise(start.as_ptr().cast(), bytes, advice) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes, pages);
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.mapped_bytes > 0 {
            #[expect(unsafe_code, reason = "the system call")]
            // SAFETY: the mapping is ours, and nothing borrows a buffer that is dropped.
            let _ = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.mapped_bytes) };
        }
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        #[expect(unsafe_code, reason = "a slice of the mapping")]
        // SAFETY: `len` values lie in the mapping, zeroed by the system, and every bit pattern is a value.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr(), self.len)
        }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        #[expect(unsafe_code, reason = "a slice of the mapping")]
        // SAFETY: as above, and the borrow is exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len)
        }
    }
}

/// A slice that several threads write to, each its own part.
pub(crate) struct Disjoint<'a, T> {
    start: NonNull<T>,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out what an exclusive borrow would, and `part` asks for parts that do not overlap.
#[expect(unsafe_code, reason = "shares an exclusive borrow")]
unsafe impl<T: Send + Sync> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Shares `slice` for as long as it is borrowed.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: NonNull::from(&mut *slice).cast(), len: slice.len(), slice: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// While the part is in use, nobody has another part that overlaps it.
    ///
    /// # Panics
    /// When the part is not inside the slice.
    #[inline]
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "the caller says who writes where")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} values", self.len);
        // SAFETY: in bounds.
        let start = unsafe { self.start.add(range.start) };
        // SAFETY: in bounds, and exclusive as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), range.len()) }
    }

    /// A part of the slice, to read.
    ///
    /// # Safety
    /// While it is in use, nobody has a [`part`](Self::part) that overlaps it.
    ///
    /// # Panics
    /// When the part is not inside the slice.
    #[inline]
    #[expect(unsafe_code, reason = "the caller says who writes where")]
    pub(crate) unsafe fn shared(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} values", self.len);
        // SAFETY: in bounds.
        let start = unsafe { self.start.add(range.start) };
        // SAFETY: in bounds, and not written to as the caller promises.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIGN_BYTES, Buffer, Disjoint, Pages};
    use crate::KernelError;

    #[test]
    fn buffers_are_zeroed_and_aligned() {
        for pages in [Pages::Normal, Pages::Huge] {
            for len in [1, 1000, 3 << 20] {
                let mut buffer = Buffer::<f32>::new(len, pages).expect("little enough");
                assert_eq!(buffer.len(), len);
                assert_eq!(buffer.as_ptr().align_offset(ALIGN_BYTES), 0);
                assert!(buffer.iter().all(|value| value.to_bits() == 0));
                buffer[len - 1] = 1.0;
                assert!(buffer[len - 1] > 0.5);
            }
        }
    }

    #[test]
    fn nothing_is_a_buffer_too() {
        assert!(Buffer::<u8>::new(0, Pages::Normal).expect("nothing").is_empty());
    }

    #[test]
    fn too_much_is_refused_with_its_size() {
        for len in [usize::MAX / 4, usize::MAX / 2, usize::MAX] {
            let Err(error) = Buffer::<u8>::new(len, Pages::Normal) else { panic!("{len} bytes were had") };
            assert!(matches!(error, KernelError::OutOfMemory { bytes } if bytes == len));
        }
        assert!(matches!(Buffer::<u64>::new(usize::MAX / 2, Pages::Huge), Err(KernelError::OutOfMemory { .. })));
    }

    /// Far more than the machine has can be reserved: a cache that is not used costs nothing.
    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_taken_when_it_is_touched() {
        let mut buffer = Buffer::<u8>::new(1 << 40, Pages::Normal).expect("reserved, not taken");
        buffer[1 << 39] = 1;
        assert_eq!(buffer[(1 << 39)..(1 << 39) + 2], [1, 0]);
    }

    #[test]
    #[expect(unsafe_code, reason = "the view's contract")]
    fn threads_write_their_own_parts() {
        let mut values = vec![0; 100];
        let view = Disjoint::new(&mut values);
        std::thread::scope(|scope| {
            for i in 0..10 {
                let view = &view;
                // SAFETY: the ten parts do not overlap.
                scope.spawn(move || unsafe { view.part(i * 10..i * 10 + 10) }.fill(i));
            }
        });
        assert!(values.iter().enumerate().all(|(at, value)| *value == at / 10));
    }

    #[test]
    #[should_panic(expected = "of 3 values")]
    #[expect(unsafe_code, reason = "the view's contract")]
    fn parts_lie_inside_the_slice() {
        let mut values = [0; 3];
        let view = Disjoint::new(&mut values);
        // SAFETY: there is no other part.
        let _ = unsafe { view.part(2..4) };
    }
}
