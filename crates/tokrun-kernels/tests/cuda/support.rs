//! As in `tests/it`, with the device in the place of the processors.

use tokrun_kernels::{Cuda, CudaOptions, WeightType};

pub(crate) use crate::common::{
    Estimate, Matrix, Random, cuts, one_span, reference, same_bits, table, through, upload, whole, within,
};

/// A device to test; the field is called as the cases call it.
pub(crate) struct Processor {
    pub(crate) who: String,
    pub(crate) cpu: Cuda,
}

/// The first device, if there is one.
pub(crate) fn processors() -> Vec<Processor> {
    device().into_iter().map(|cpu| Processor { who: "cuda".to_owned(), cpu }).collect()
}

/// The first device. Where there is none the test is skipped, or fails where a device is required.
#[expect(clippy::print_stderr, reason = "nobody may take a skipped test for one that passed")]
pub(crate) fn device() -> Option<Cuda> {
    if let Err(reason) = tokrun_kernels::cuda::probe() {
        assert!(std::env::var_os("TOKRUN_REQUIRE_CUDA").is_none(), "TOKRUN_REQUIRE_CUDA is set, but {reason}");
        eprintln!("skipped: {reason}");
        return None;
    }
    Some(Cuda::new(0, CudaOptions { deterministic: true }).expect("the device opens"))
}

/// There is one device, which the cases hold against itself: nothing is left to compare but that it answered.
#[derive(Default)]
pub(crate) struct Agreement {
    answers: usize,
}

impl Agreement {
    pub(crate) fn check(&mut self, processor: &Processor, _: &[WeightType], found: Vec<f32>) {
        self.answers += 1;
        assert!(self.answers == 1 && !found.is_empty(), "{} answers once", processor.who);
    }
}
