//! CUDA devices, through a driver that is opened when it is asked for.

mod attention;
mod backend;
mod bandwidth;
mod device;
mod error;
mod formats;
mod graph;
mod launches;
mod matrix;
#[allow(dead_code, reason = "part of it is for tests")]
mod memory;
mod mixture;
mod modules;
mod order;
mod products;
mod prompts;
mod rows;
mod sample;
mod stage;
#[allow(dead_code, reason = "part of it is for tests")]
mod stream;
mod tiles;

pub use attention::CudaKv;
pub use backend::{Cuda, CudaGated, CudaLinear, CudaOptions};
pub use bandwidth::Bandwidth;
pub use device::Device;
pub use error::CudaError;
pub use rows::{CudaEncoded, CudaRows};

use std::ffi::CStr;

use cudarc::driver::{CudaContext, DriverError, sys};

/// One CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// The driver's number for it, as in `--device cuda:N`.
    pub ordinal: usize,
    /// The marketing name.
    pub name: String,
    /// Compute capability, major and minor: (9, 0) is Hopper.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// All of its memory.
    pub memory_total_bytes: usize,
    /// Memory that nobody uses now.
    pub memory_free_bytes: usize,
}

/// The devices, and the newest CUDA version that the driver understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaMachine {
    /// Major and minor: (13, 0).
    pub driver_version: (i32, i32),
    /// At least one device.
    pub devices: Vec<CudaDevice>,
}

/// Why there is no CUDA device to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaUnavailable {
    /// The driver's library cannot be opened.
    #[error("no CUDA driver was found (libcuda.so.1)")]
    NoDriver,
    /// The driver is there and counts no device.
    #[error("the CUDA driver is there, but it reports no device")]
    NoDevice,
    /// The driver refuses to work.
    #[error("the CUDA driver does not work: {0}")]
    Broken(String),
}

impl From<DriverError> for CudaUnavailable {
    fn from(error: DriverError) -> Self {
        match error.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => Self::NoDevice,
            code => Self::Broken(format!("{code:?}")),
        }
    }
}

/// Asks the driver for its devices. Never panics: without a driver it says so.
///
/// # Errors
/// When there is no driver, no device, or the driver refuses.
pub fn probe() -> Result<CudaMachine, CudaUnavailable> {
    if !driver_present() {
        return Err(CudaUnavailable::NoDriver);
    }
    let count = usize::try_from(CudaContext::device_count()?).unwrap_or(0);
    if count == 0 {
        return Err(CudaUnavailable::NoDevice);
    }
    let devices = (0..count).map(|ordinal| facts(&*CudaContext::new(ordinal)?)).collect::<Result<_, DriverError>>()?;
    Ok(CudaMachine { driver_version: driver_version()?, devices })
}

fn facts(context: &CudaContext) -> Result<CudaDevice, DriverError> {
    let (memory_free_bytes, memory_total_bytes) = context.mem_get_info()?;
    Ok(CudaDevice {
        ordinal: context.ordinal(),
        name: context.name()?,
        compute_capability: context.compute_capability()?,
        multiprocessors: context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_total_bytes,
        memory_free_bytes,
    })
}

/// Where a device is on the bus: `0000:01:00.0`. It is how NVML knows it.
#[expect(unsafe_code, reason = "the safe layer has no call for it")]
pub(crate) fn pci_bus_id(ordinal: usize) -> Option<String> {
    if !driver_present() || ordinal >= usize::try_from(CudaContext::device_count().ok()?).unwrap_or(0) {
        return None;
    }
    let mut id = [0u8; 32];
    // SAFETY: the device is there, and the call writes no more than so many bytes, ended by a zero.
    unsafe { sys::cuDeviceGetPCIBusId(id.as_mut_ptr().cast(), id.len() as i32, i32::try_from(ordinal).ok()?) }
        .result()
        .ok()?;
    Some(CStr::from_bytes_until_nul(&id).ok()?.to_str().ok()?.to_owned())
}

/// cudarc's calls panic when the library is absent, so this comes before any other.
#[expect(unsafe_code, reason = "opens a shared library")]
fn driver_present() -> bool {
    // SAFETY: opening libcuda runs only its own initialisers; the handle is dropped again at once.
    unsafe { sys::is_culib_present() }
}

#[expect(unsafe_code, reason = "the safe layer has no call for the version")]
fn driver_version() -> Result<(i32, i32), DriverError> {
    let mut version = 0;
    // SAFETY: `probe` found the library, and the call writes one integer to the address it is given.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok((version / 1000, version % 1000 / 10))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
