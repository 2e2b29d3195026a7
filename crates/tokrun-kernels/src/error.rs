//! What can go wrong before the first operation: packing weights and reserving memory.

use crate::cuda::CudaError;

/// Weights that cannot be packed, or memory that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The rows of a matrix could not be read.
    #[error("the weights cannot be read")]
    Read(#[from] std::io::Error),
    /// Shapes that do not fit together: a bug of the caller or a file that was not checked.
    #[error("a weight matrix does not fit: {reason}")]
    Shape {
        /// What does not fit.
        reason: String,
    },
    /// The system has no memory for it.
    #[error("{bytes} bytes of memory cannot be had: choose a smaller model, context or --kv-cache-bytes")]
    OutOfMemory {
        /// How much was asked for.
        bytes: usize,
    },
    /// Something on a CUDA device.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// Threads that the system refuses to start.
    #[error("cannot start {threads} compute threads")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
}
