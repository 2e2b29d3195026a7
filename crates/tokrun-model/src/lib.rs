//! From a model's name to its logits: the catalogue and pulling, GGUF and safetensors files, and the executors that run
//! them; and to vectors of texts, where a model gives those. It knows nothing of requests, text or money.

mod candle;
pub mod catalogue;
pub mod config;
mod digest;
mod embedder;
mod error;
mod executor;
mod file;
pub mod gguf;
mod mmap;
mod native;
pub mod pull;
mod safetensors;
pub mod store;

pub use embedder::{Embedder, EmbedderInfo, Pooling, Shortening, normalise};
pub use error::ModelError;
pub use executor::{
    BlockId, Drawing, Drawn, Executor, ExecutorInfo, Extend, Logits, Outcome, Paging, Place, SequenceHandle, TokenId,
    Wanted,
};
pub use file::{
    Assets, BackendChoice, LoadOptions, LoadProgress, MemoryPlan, ModelFile, ModelInfo, Processor, TokenizerSource,
};
pub use tokrun_kernels::{KvType, OpTime, WeightType, sampling};
