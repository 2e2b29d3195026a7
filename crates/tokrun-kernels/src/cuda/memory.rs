//! Memory of a device, memory of the host that it copies from and to, and the copies.
#![expect(unsafe_code, reason = "calls the driver, and lends its memory as slices")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use cudarc::driver::result;
use cudarc::driver::{DriverError, sys};
use half::{bf16, f16};

use super::device::Device;
use super::error::{Asked, CudaError};
use super::stream::Event;

/// Numbers for which any bits are a value, alike on the host and on the device.
///
/// # Safety
/// That must be so, without padding.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($number:ty)*) => {
        $(
            // SAFETY: a number, of which all bits count.
            unsafe impl Plain for $number {}
        )*
    };
}
plain!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 f16 bf16);

/// `len` values on a device.
pub(crate) struct Buffer<T: Plain> {
    address: u64,
    len: usize,
    device: Device,
    of: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// Where it begins: a multiple of 256.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// How many values it holds.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of some of the values.
    fn place(&self, range: &Range<usize>) -> u64 {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} is out of bounds: {} values", self.len);
        self.address + (range.start * size_of::<T>()) as u64
    }
}

impl<T: Plain> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer of {} {}", self.len, std::any::type_name::<T>())
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        // An error here is that of an earlier kernel, and the memory is lost with the context.
        let _ = self.device.shared.context.bind_to_thread();
        // SAFETY: `buffer` allocated it. The driver waits for what still uses it.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// `len` values in memory of the host that the device copies from and to directly, zero at first. Writing to it waits for
/// copies that read it.
pub(crate) struct Pinned<T: Plain> {
    values: NonNull<T>,
    len: usize,
    device: Device,
    /// The latest copy from it.
    last_use: AtomicU64,
}

// SAFETY: it owns its memory, as a `Vec` does.
unsafe impl<T: Plain> Send for Pinned<T> {}
// SAFETY: as above; shared references only read.
unsafe impl<T: Plain> Sync for Pinned<T> {}

impl<T: Plain> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: so many values were allocated and zeroed; the device writes to them in `download` alone, which has
        // them for itself and waits.
        unsafe { slice::from_raw_parts(self.values.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.wait();
        // SAFETY: as above, and nobody reads them, as `wait` saw to.
        unsafe { slice::from_raw_parts_mut(self.values.as_ptr(), self.len) }
    }
}

impl<T: Plain> Pinned<T> {
    /// Until the device has read it. Costs nothing where somebody waited already.
    fn wait(&self) {
        if !self.device.shared.order.is_complete(self.last_use.load(SeqCst)) {
            // After a failure nothing reads it any more either.
            let _ = self.device.synchronise();
        }
    }
}

impl<T: Plain> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned of {} {}", self.len, std::any::type_name::<T>())
    }
}

impl<T: Plain> Drop for Pinned<T> {
    fn drop(&mut self) {
        self.wait();
        let _ = self.device.shared.context.bind_to_thread();
        // SAFETY: `pinned` allocated it, and nobody uses it any more.
        let _ = unsafe { result::free_host(self.values.as_ptr().cast()) };
    }
}

/// Memory of the host that the device copies to, which nobody reads until the copy is done.
#[derive(Debug)]
pub(crate) struct Arriving<T: Plain> {
    values: Pinned<T>,
    arrived: Event,
}

impl<T: Plain> Arriving<T> {
    /// How many values there is room for.
    pub(crate) fn len(&self) -> usize {
        self.values.len
    }

    /// The values, once they are there.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    pub(crate) fn wait(&mut self) -> Result<&[T], CudaError> {
        self.arrived.wait()?;
        Ok(&self.values)
    }
}

impl Device {
    /// Room in the host's memory for `len` values that will arrive.
    ///
    /// # Errors
    /// When the host's memory cannot be had.
    pub(crate) fn arriving<T: Plain>(&self, len: usize) -> Result<Arriving<T>, CudaError> {
        Ok(Arriving { values: self.pinned(len)?, arrived: self.event()? })
    }

    /// Copies values to the host's memory, in the order of the stream, without waiting.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    ///
    /// # Panics
    /// When the range is out of bounds, or longer than `to`.
    pub(crate) fn send<T: Plain>(
        &self,
        buffer: &Buffer<T>,
        range: Range<usize>,
        to: &mut Arriving<T>,
    ) -> Result<(), CudaError> {
        let place = buffer.place(&range);
        self.bind()?;
        let values = &mut to.values[..range.len()];
        // SAFETY: both are so long. `Arriving` lends the values only after it has waited for the event below, and they are
        // freed only after the use noted here.
        unsafe { result::memcpy_dtoh_async(values, place, self.shared.stream.cu_stream()) }.asked("a copy")?;
        to.values.last_use.store(self.shared.order.issue(), SeqCst);
        to.arrived.record()
    }

    /// Room for `len` values, whatever they are at first.
    ///
    /// # Errors
    /// When the device's memory is taken.
    pub(crate) fn buffer<T: Plain>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        let bytes = bytes_of::<T>(len);
        self.bind()?;
        // SAFETY: it is used through a `Buffer` alone, whose values may have any bits.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|error| self.out_of_memory(bytes, error))?;
        Ok(Buffer { address, len, device: self.clone(), of: PhantomData })
    }

    /// Room for `len` zeros.
    ///
    /// # Errors
    /// When the device's memory is taken.
    pub(crate) fn zeroed<T: Plain>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        let buffer = self.buffer(len)?;
        self.zero(&buffer, 0..len)?;
        Ok(buffer)
    }

    /// A copy of `values`. Waits.
    ///
    /// # Errors
    /// When the device's memory is taken.
    pub(crate) fn buffer_of<T: Plain>(&self, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let buffer = self.buffer(values.len())?;
        // SAFETY: both are so long; and the values are not lent for longer than the wait below.
        unsafe { result::memcpy_htod_async(buffer.address, values, self.shared.stream.cu_stream()) }.asked("a copy")?;
        self.synchronise()?;
        Ok(buffer)
    }

    /// `len` zeros in the host's memory.
    ///
    /// # Errors
    /// When the host's memory cannot be had.
    pub(crate) fn pinned<T: Plain>(&self, len: usize) -> Result<Pinned<T>, CudaError> {
        let bytes = bytes_of::<T>(len);
        self.bind()?;
        // SAFETY: it is zeroed before anybody reads it.
        let memory = unsafe { result::malloc_host(bytes, 0) }.map_err(|error| self.out_of_memory(bytes, error))?;
        let values = NonNull::new(memory.cast::<T>()).expect("the driver gives memory or an error");
        // SAFETY: so many bytes were allocated.
        unsafe { values.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned { values, len, device: self.clone(), last_use: AtomicU64::new(0) })
    }

    /// Copies values of the host's memory to `to` and after, in the order of the stream, without waiting.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    ///
    /// # Panics
    /// When a range is out of bounds, or in a capture.
    pub(crate) fn upload<T: Plain>(
        &self,
        from: &Pinned<T>,
        range: Range<usize>,
        buffer: &Buffer<T>,
        to: usize,
    ) -> Result<(), CudaError> {
        assert!(!self.is_capturing(), "a graph would read memory of the host that may have changed, or gone, by then");
        let place = buffer.place(&(to..to + range.len()));
        self.bind()?;
        from.last_use.store(self.shared.order.issue(), SeqCst);
        // SAFETY: both ranges are in bounds; the pinned memory neither changes nor goes before the copy is done.
        unsafe { result::memcpy_htod_async(place, &from[range], self.shared.stream.cu_stream()) }.asked("a copy")
    }

    /// Copies values to the beginning of the host's memory, and waits.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    ///
    /// # Panics
    /// When the range is out of bounds, or longer than `to`.
    pub(crate) fn download<T: Plain>(
        &self,
        buffer: &Buffer<T>,
        range: Range<usize>,
        to: &mut Pinned<T>,
    ) -> Result<(), CudaError> {
        let place = buffer.place(&range);
        self.bind()?;
        let values = &mut to[..range.len()];
        // SAFETY: both are so long, and the wait below ends before anybody else gets at them.
        unsafe { result::memcpy_dtoh_async(values, place, self.shared.stream.cu_stream()) }.asked("a copy")?;
        self.synchronise()
    }

    /// All values, in memory of their own. Waits; for what need not be fast.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    pub(crate) fn read<T: Plain>(&self, buffer: &Buffer<T>) -> Result<Vec<T>, CudaError> {
        let mut pinned = self.pinned(buffer.len)?;
        self.download(buffer, 0..buffer.len, &mut pinned)?;
        Ok(pinned.to_vec())
    }

    /// Copies values of one buffer to another, in the order of the stream.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    ///
    /// # Panics
    /// When a range is out of bounds.
    pub(crate) fn copy<T: Plain>(
        &self,
        from: &Buffer<T>,
        range: Range<usize>,
        buffer: &Buffer<T>,
        to: usize,
    ) -> Result<(), CudaError> {
        let (place, bytes) = (buffer.place(&(to..to + range.len())), range.len() * size_of::<T>());
        let from = from.place(&range);
        self.bind()?;
        // SAFETY: both ranges are in bounds.
        unsafe { result::memcpy_dtod_async(place, from, bytes, self.shared.stream.cu_stream()) }.asked("a copy")
    }

    /// Sets values to zero, in the order of the stream.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub(crate) fn zero<T: Plain>(&self, buffer: &Buffer<T>, range: Range<usize>) -> Result<(), CudaError> {
        let (place, bytes) = (buffer.place(&range), range.len() * size_of::<T>());
        self.bind()?;
        // SAFETY: the range is in bounds, and zero is a value.
        unsafe { result::memset_d8_async(place, 0, bytes, self.shared.stream.cu_stream()) }.asked("zeros")
    }

    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.shared.context.bind_to_thread().asked("its context")
    }

    fn out_of_memory(&self, bytes: usize, error: DriverError) -> CudaError {
        match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                CudaError::OutOfMemory { bytes, free_bytes: self.memory_free_bytes().unwrap_or(0) }
            }
            _ => CudaError::new("memory", error),
        }
    }
}

/// Of at least one value: the driver gives no empty memory.
fn bytes_of<T>(len: usize) -> usize {
    len.max(1).saturating_mul(size_of::<T>())
}
