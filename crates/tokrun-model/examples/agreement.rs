//! Whether the first CUDA device computes what the processor does: `agreement MODEL...`, where a model is a GGUF file or
//! `synthetic:SHAPE:TYPE`. Prints one JSON object a line; fails if one disagrees.
//!
//! Both are fed the processor's likeliest tokens. They agree if each chooses the same token wherever the processor's margin
//! over the second one exceeds 0.3, or 0.01 where weights are f32, and if logits differ by less than a tenth of their spread on
//! average.

#![expect(clippy::print_stdout, reason = "its output")]

use std::path::Path;
use std::process::ExitCode;

use tokrun_model::{Executor, Extend, LoadOptions, ModelError, ModelFile, Place, Processor, Wanted, WeightType};

const PROMPT_TOKENS: usize = 40;
const STEPS: usize = 16;

fn main() -> Result<ExitCode, ModelError> {
    let mut all_agree = true;
    for name in std::env::args().skip(1) {
        all_agree &= agree(&name)?;
    }
    Ok(if all_agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn agree(name: &str) -> Result<bool, ModelError> {
    let file = open(name)?;
    let load = |processor| {
        let options = LoadOptions {
            processor,
            sequences_max: Some(1),
            context_tokens: Some(PROMPT_TOKENS + STEPS),
            ..LoadOptions::default()
        };
        file.load(&options)
    };
    let (mut cpu, mut cuda) = (load(Processor::Cpu)?, load(Processor::Cuda(0))?);
    let tokens_max = file.info().vocab_size.min(250);
    let mut tokens: Vec<u32> = (0..PROMPT_TOKENS).map(|at| (at * 7 % tokens_max) as u32).collect();
    let margin_min = if file.info().dtype == "F32" { 0.01 } else { 0.3 };
    let (mut start, mut equal, mut decided, mut wrong) = (0, 0, 0, 0);
    let (mut difference, mut spread) = (0.0_f64, 0.0_f64);
    for _ in 0..STEPS {
        let expected = logits(&mut *cpu, &tokens, start)?;
        let found = logits(&mut *cuda, &tokens, start)?;
        let (best, margin) = choice(&expected);
        let same = choice(&found).0 == best;
        equal += usize::from(same);
        decided += usize::from(margin > margin_min);
        wrong += usize::from(margin > margin_min && !same);
        let apart: f32 = expected.iter().zip(&found).map(|(left, right)| (left - right).abs()).sum();
        difference += f64::from(apart) / expected.len() as f64;
        spread += deviation(&expected);
        start = tokens.len();
        tokens.push(best as u32);
    }
    let agrees = wrong == 0 && difference < 0.1 * spread;
    println!(
        r#"{{"model":"{name}","agrees":{agrees},"steps":{STEPS},"equal_choices":{equal},"decided_choices":{decided},"difference_of_spread":{:.2e}}}"#,
        difference / spread
    );
    Ok(agrees)
}

fn open(name: &str) -> Result<ModelFile, ModelError> {
    let mut parts = name.splitn(3, ':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("synthetic"), Some(shape), Some(kind)) => {
            let weight_type = WeightType::from_name(&kind.to_uppercase());
            ModelFile::synthetic(shape, weight_type.expect("a weight type, such as q8_0"))
        }
        _ => ModelFile::open(Path::new(name)),
    }
}

/// Those after the last token, with all from `start` on computed.
fn logits(executor: &mut dyn Executor, tokens: &[u32], start: usize) -> Result<Vec<f32>, ModelError> {
    let sequence = executor.create()?;
    let blocks: Vec<u32> = (0..(PROMPT_TOKENS + STEPS).div_ceil(16) as u32).collect();
    let place = Place { start, blocks: &blocks };
    let part = Extend { place, wanted: Wanted::Last, ..Extend::new(sequence, &tokens[start..]) };
    let logits = executor.extend(&[part])?.row(0).to_vec();
    executor.drop_sequence(sequence);
    Ok(logits)
}

/// The likeliest token, and how far it is above the second one.
fn choice(logits: &[f32]) -> (usize, f32) {
    let best = (0..logits.len()).fold(0, |best, at| if logits[at] > logits[best] { at } else { best });
    let others = logits.iter().enumerate().filter(|(at, _)| *at != best);
    let second = others.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
    (best, logits[best] - second)
}

fn deviation(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    (values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count).sqrt()
}
