//! As in `tests/it`, with the device in the place of the processors.

use tokrun_kernels::{Cuda, CudaOptions, KvType, WeightType};

pub(crate) use crate::common::{
    Estimate, Matrix, Random, cuts, one_span, reference, same_bits, table, through, upload, whole, within,
};

/// Fewer than on processors, and shorter: the driver for tests runs a card's threads one by one, and every kernel has cases of
/// its own.
pub(crate) const PRODUCT_CASES: u32 = 24;
pub(crate) const ATTENTION_CASES: u32 = 12;
pub(crate) const LONG_TOKENS: [usize; 3] = [330, 3, 130];

/// A device to test; the field is called as the cases call it.
pub(crate) struct Processor {
    pub(crate) who: String,
    pub(crate) cpu: Cuda,
}

impl Processor {
    /// How far queries and weights of attention are rounded: on tensor cores to half of the last bit of the type that keys
    /// are multiplied in, and 8-bit keys once more when they become halves.
    pub(crate) fn attention_rounding(&self, kv_type: KvType) -> f64 {
        match kv_type {
            _ if self.cpu.options().deterministic => 0.0,
            KvType::F32 => 0.0,
            KvType::F16 => 2f64.powi(-11),
            KvType::Q8_0 => 2f64.powi(-10),
            KvType::BF16 => 2f64.powi(-8),
        }
    }

    /// Fails unless the same rows, computed in other steps, have the same bits, or, where tensor cores add in an order of
    /// their own, are as close to the reference as they have to be anyway.
    #[track_caller]
    pub(crate) fn in_other_steps(&self, pieces: &[f32], found: &[f32], reference: &[f32], estimates: &[Estimate]) {
        let who = format!("{}, in other steps", self.who);
        if self.cpu.options().deterministic {
            same_bits(pieces, found, &who);
        } else {
            within(pieces, reference, estimates, &who);
        }
    }
}

/// The first device, if there is one, with and without tensor cores.
pub(crate) fn processors() -> Vec<Processor> {
    let fixed = device().map(|cpu| Processor { who: "cuda".to_owned(), cpu });
    let tensor = tensor_device().map(|cpu| Processor { who: "tensor cores".to_owned(), cpu });
    fixed.into_iter().chain(tensor).collect()
}

/// The first device, with tensor cores.
pub(crate) fn tensor_device() -> Option<Cuda> {
    device_with(CudaOptions::default())
}

/// The first device, with one order of sums.
pub(crate) fn device() -> Option<Cuda> {
    device_with(CudaOptions { deterministic: true })
}

/// The first device. Where there is none the test is skipped, or fails where a device is required.
#[expect(clippy::print_stderr, reason = "nobody may take a skipped test for one that passed")]
fn device_with(options: CudaOptions) -> Option<Cuda> {
    if let Err(reason) = tokrun_kernels::cuda::probe() {
        assert!(std::env::var_os("TOKRUN_REQUIRE_CUDA").is_none(), "TOKRUN_REQUIRE_CUDA is set, but {reason}");
        eprintln!("skipped: {reason}");
        return None;
    }
    Some(Cuda::new(0, options).expect("the device opens"))
}

/// Both ways of a device are held against the reference: nothing is left to compare but that they answered.
#[derive(Default)]
pub(crate) struct Agreement {
    answers: usize,
}

impl Agreement {
    pub(crate) fn check(&mut self, processor: &Processor, _: &[WeightType], found: Vec<f32>) {
        self.answers += 1;
        assert!(self.answers <= 2 && !found.is_empty(), "{} answers", processor.who);
    }
}
