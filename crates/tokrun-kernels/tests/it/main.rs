//! The operations from outside: what files mean, and every backend of this machine against [`tokrun_kernels::Reference`].

mod attention;
mod common;
mod dequantise;
mod linear;
mod mixture;
mod rows;
mod support;
