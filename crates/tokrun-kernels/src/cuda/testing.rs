//! A device for tests.

use super::{CudaError, CudaUnavailable, Device};

/// The first device, or nothing where there is no driver. `TOKRUN_REQUIRE_CUDA=1` makes that a failure, so that a run that
/// is meant to test kernels does.
pub(crate) fn device() -> Option<Device> {
    let required = std::env::var_os("TOKRUN_REQUIRE_CUDA").is_some_and(|value| value == "1");
    match Device::open(0) {
        Ok(device) => Some(device),
        Err(CudaError::Unavailable(CudaUnavailable::NoDriver)) if !required => {
            eprintln!("skipped: no CUDA driver (LD_LIBRARY_PATH=$(cargo xtask fake-driver) brings one for tests)");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
