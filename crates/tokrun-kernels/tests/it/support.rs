//! The processors to test, beside what all cases share.

use tokrun_kernels::cpu::Level;
use tokrun_kernels::{Cpu, CpuOptions, KvType, WeightType};

pub(crate) use crate::common::{
    Estimate, Matrix, Random, cuts, one_span, reference, same_bits, table, through, upload, whole, within,
};

/// How many cases are drawn at random, of products and of attention; and the sequences of a long one.
pub(crate) const PRODUCT_CASES: u32 = 48;
pub(crate) const ATTENTION_CASES: u32 = 40;
pub(crate) const LONG_TOKENS: [usize; 3] = [777, 3, 300];

/// A backend to test.
pub(crate) struct Processor {
    pub(crate) who: String,
    pub(crate) cpu: Cpu,
    level: Level,
}

impl Processor {
    /// How far queries and weights of attention are rounded: not at all.
    pub(crate) fn attention_rounding(&self, _: KvType) -> f64 {
        0.0
    }

    /// Fails unless the same rows, computed in other steps, have the same bits.
    #[track_caller]
    pub(crate) fn in_other_steps(&self, pieces: &[f32], found: &[f32], _reference: &[f32], _estimates: &[Estimate]) {
        same_bits(pieces, found, &format!("{}, in other steps", self.who));
    }
}

/// Every level on one thread, and the fastest on several.
pub(crate) fn processors() -> Vec<Processor> {
    let levels = Level::available().into_iter().map(|level| (level, 1));
    let threads = [2, 3].map(|threads| (Level::best(), threads));
    let processor = |(level, threads): (Level, usize)| {
        let options = CpuOptions { threads, level: Some(level), ..CpuOptions::default() };
        let cpu = Cpu::new(options).expect("threads can be had");
        Processor { who: format!("{} with {threads} threads", level.name()), cpu, level }
    };
    levels.chain(threads).map(processor).collect()
}

/// What the processors answered so far.
#[derive(Default)]
pub(crate) struct Agreement(Vec<(Level, Vec<f32>)>);

impl Agreement {
    /// Fails unless the answer is that of the processors before, bit for bit. 16-bit weights may multiply differently on
    /// other levels: as bf16 pairs where there are instructions for it.
    #[track_caller]
    pub(crate) fn check(&mut self, processor: &Processor, types: &[WeightType], found: Vec<f32>) {
        let differ = types.iter().any(|weight_type| matches!(weight_type, WeightType::F16 | WeightType::BF16));
        for (level, before) in &self.0 {
            if !differ || *level == processor.level {
                same_bits(&found, before, &processor.who);
            }
        }
        self.0.push((processor.level, found));
    }
}
