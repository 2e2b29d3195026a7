//! What the machine can compute with: its processor's vector extensions and its CUDA devices.
//!
//! It opens the CUDA driver at run time, so that one binary starts on machines with and without a GPU.

pub mod cpu;
pub mod cuda;
