//! Devices and arithmetic: what the machine can compute with, and the operations that decoders are made of.
//!
//! [`Backend`] is the contract.
//! The CUDA driver is opened at run time, so that one binary starts on machines with and without a GPU.

mod backend;
mod codes;
pub mod cpu;
pub mod cuda;
mod dequantise;
pub mod energy;
mod error;
pub mod reference;
pub mod sampling;
mod weight_type;

pub use backend::{
    Activation, Attention, Backend, BlockId, Consumer, Expert, KV_BLOCK_TOKENS, KvShape, KvType, MatrixSource, Norm,
    OpTime, Rope, RopeId, RopeStyle, Routing, RowSource, Span, Step, Store,
};
pub use cpu::{Cpu, CpuOptions};
pub use cuda::{Cuda, CudaOptions};
pub use dequantise::dequantise;
pub use error::KernelError;
pub use reference::Reference;
pub use weight_type::WeightType;
