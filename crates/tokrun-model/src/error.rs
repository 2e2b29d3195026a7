//! What can go wrong between a model file and its logits.

use std::path::PathBuf;

/// A model that cannot be read, understood or run. Each message names the remedy where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused to read a file.
    #[error("cannot read {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is truncated, or lies about itself.
    #[error("{path} is not a usable model file: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The model needs something that no executor here honours.
    #[error("unsupported model: {reason}")]
    Unsupported {
        /// Which setting or family.
        reason: String,
    },
    /// The device has too little memory for the model.
    #[error("the model does not fit on {device}: {reason}")]
    DoesNotFit {
        /// Which: `cpu`, `cuda:0`.
        device: String,
        /// What takes how much; and what would fit.
        reason: String,
    },
    /// A sequence would outgrow the context.
    #[error("a sequence of {wanted_tokens} tokens does not fit the context of {context_tokens}")]
    ContextFull {
        /// The length asked for.
        wanted_tokens: usize,
        /// The longest that is honoured.
        context_tokens: usize,
    },
    /// `create` was called with `sequences_max` sequences alive.
    #[error("the executor already holds its {sequences_max} sequences")]
    SequencesFull {
        /// The limit.
        sequences_max: usize,
    },
    /// An unknown or dropped sequence, or a token outside the vocabulary: a bug of the caller, answered as an error.
    #[error("invalid batch: {reason}")]
    InvalidBatch {
        /// What is wrong with it.
        reason: String,
    },
    /// The weights cannot be read or packed, or memory for computing with them cannot be had.
    #[error("the weights cannot be loaded")]
    Weights(#[from] tokrun_kernels::KernelError),
    /// The arithmetic failed.
    #[error("the model could not be computed")]
    Compute(#[from] candle_core::Error),
}
