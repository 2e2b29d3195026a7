//! What a CUDA device can refuse.

use cudarc::driver::{DriverError, sys::CUresult};

use super::CudaUnavailable;

/// Why something on a CUDA device did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is nothing to compute on.
    #[error(transparent)]
    Unavailable(#[from] CudaUnavailable),
    /// A number that no device has.
    #[error("there is no CUDA device {ordinal}: the driver counts {devices}, from 0")]
    NoSuchDevice {
        /// What was asked for.
        ordinal: usize,
        /// How many there are.
        devices: usize,
    },
    /// A card that the kernels were not made for.
    #[error("{name} has compute capability {}.{}: tokrun needs 8.0 (Ampere) or newer", capability.0, capability.1)]
    TooOld {
        /// The card.
        name: String,
        /// Major and minor.
        capability: (i32, i32),
    },
    /// A driver that does not understand the kernels.
    #[error("the CUDA driver is too old for the kernels of {module}: install a newer one")]
    DriverTooOld {
        /// The kernel's file.
        module: String,
    },
    /// A kernel that is not part of this build.
    #[error("this build has no CUDA kernel {module}::{kernel} for the device")]
    NoKernel {
        /// Its file.
        module: String,
        /// Its name.
        kernel: String,
    },
    /// The device's memory is taken.
    #[error(
        "the GPU cannot give {bytes} bytes of memory, {free_bytes} are free: choose a smaller model, context or \
         --kv-cache-bytes, or end other programs on it"
    )]
    OutOfMemory {
        /// How much was asked for.
        bytes: usize,
        /// How much there was.
        free_bytes: usize,
    },
    /// A kernel went wrong, and with it everything on the device: the process has to start anew.
    #[error(
        "the GPU stopped working: a kernel failed with {code}; start the program again, and report it if it comes back"
    )]
    KernelFailed {
        /// The driver's name for it.
        code: String,
    },
    /// Whatever else the driver refuses.
    #[error("the CUDA driver refused {what}: {code}")]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// Its name for the reason.
        code: String,
    },
}

impl CudaError {
    /// The driver's answer to `what`.
    pub(super) fn new(what: &'static str, DriverError(code): DriverError) -> Self {
        let name = format!("{code:?}");
        match code {
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_LAUNCH_FAILED => Self::KernelFailed { code: name },
            _ => Self::Refused { what, code: name },
        }
    }
}

/// Says what was asked when the driver refuses it.
pub(super) trait Asked<T> {
    fn asked(self, what: &'static str) -> Result<T, CudaError>;
}

impl<T> Asked<T> for Result<T, DriverError> {
    fn asked(self, what: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::new(what, error))
    }
}
