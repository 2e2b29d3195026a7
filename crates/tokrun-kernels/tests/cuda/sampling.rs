//! Tokens drawn on a device are those drawn by one loop.

use proptest::prelude::*;
use tokrun_kernels::sampling::Draw;
use tokrun_kernels::{Backend, Cuda, Reference};

use crate::common::{Random, one_span, table, upload};
use crate::support::device;

/// Rows of logits as models and requests make them, and worse.
fn logits(random: &mut Random, vocab_size: usize) -> Vec<f32> {
    let spread = [0.0, 1e-3, 1.0, 3.0, 8.0, 40.0][random.below(6)];
    let step = [0.0, 0.5, 0.01][random.below(3)];
    let masked = [0, 0, 10, 2][random.below(4)];
    let shift = [0.0, -7.5, 300.0][random.below(3)];
    let mut logits: Vec<f32> = (0..vocab_size)
        .map(|_| {
            let bell = random.unit() + random.unit() + random.unit();
            let logit = spread * bell + shift;
            // Steps make ties.
            let logit = if step > 0.0 { (logit / step).round() * step } else { logit };
            if masked > 0 && random.below(masked) == 0 { f32::NEG_INFINITY } else { logit }
        })
        .collect();
    if random.below(2) == 0 {
        logits[random.below(vocab_size)] = spread * 4.0 + shift;
    }
    match random.below(12) {
        0 => logits[random.below(vocab_size)] = f32::NAN,
        1 => logits[random.below(vocab_size)] = f32::INFINITY,
        2 => logits.fill(f32::NEG_INFINITY),
        3 => logits.iter_mut().for_each(|logit| *logit = logit.clamp(-0.0, 0.0)),
        _ => {}
    }
    logits
}

fn draw(random: &mut Random, vocab_size: usize) -> Draw {
    let temperature = [0.0, 1.0, 0.7, 1e-3, 1e-38, 50.0, f32::MAX][random.below(7)];
    Draw {
        // Rows may be padded.
        vocab_size: vocab_size - random.below(vocab_size.min(4)),
        temperature,
        top_k: [0, 0, 1, 5, 40, vocab_size / 2 + 1, vocab_size, usize::MAX][random.below(8)],
        top_p: [1.0, 1.0, 0.95, 0.5, 1e-6, 0.999_999][random.below(6)],
        min_p: [0.0, 0.0, 0.05, 1.0][random.below(4)],
        number: [0, u64::MAX, random.bits(), random.bits()][random.below(4)],
    }
}

/// What is drawn from the rows from `first` on, over two steps, the second of which feeds the tokens of the first.
fn run<B: Backend>(backend: &mut B, rows: &[Vec<f32>], first: usize, draws: &[Draw]) -> Vec<String> {
    let width = rows[0].len();
    let values: Vec<f32> = rows.concat();
    let all = table(backend, &values, width);
    backend.begin(&one_span(0, rows.len()));
    let x = upload(backend, rows.len(), &all, width);
    let chosen: Vec<usize> = (0..rows.len()).collect();
    let mut logits = backend.rows(rows.len(), width).expect("there is memory");
    backend.select(&x, &chosen, &mut logits);
    backend.sample(&logits, first, draws);
    // A table that tells which of its rows was looked up.
    let numbers: Vec<f32> = (0..width).map(|token| token as f32).collect();
    let numbers = table(backend, &numbers, 1);
    backend.begin(&one_span(0, draws.len()));
    let fed: Vec<(usize, usize)> = (0..draws.len()).map(|row| (row, draws.len() - 1 - row)).collect();
    backend.feed(&fed);
    let tokens = {
        let mut out = backend.rows(draws.len(), 1).expect("there is memory");
        backend.embed(&numbers, 1.0, &mut out);
        backend.read(&out).to_vec()
    };
    let drawn = backend.sampled();
    assert!(backend.failure().is_none());
    for (token, drawn) in tokens.iter().rev().zip(&drawn) {
        assert!(drawn.is_err() || drawn == &Ok(*token as u32), "{token} was fed where {drawn:?} was drawn");
    }
    drawn.iter().map(|drawn| format!("{drawn:?}")).collect()
}

fn agree(seed: u64, vocab_size: usize, count: usize) {
    let Some(mut cuda) = device() else { return };
    let random = &mut Random::new(seed);
    let rows: Vec<Vec<f32>> = (0..count).map(|_| logits(random, vocab_size)).collect();
    let first = random.below(count);
    let draws: Vec<Draw> = (first..count).map(|_| draw(random, vocab_size)).collect();
    let found = run::<Cuda>(&mut cuda, &rows, first, &draws);
    let expected = run(&mut Reference::default(), &rows, first, &draws);
    for (index, draw) in draws.iter().enumerate() {
        assert_eq!(found[index], expected[index], "{draw:?} from {vocab_size}, seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_device_draws_the_tokens_of_the_processor(
        seed in any::<u64>(),
        vocab_size in prop_oneof![5..40_usize, 500..2000_usize, 4000..9000_usize],
        count in 1..6_usize,
    ) {
        agree(seed, vocab_size, count);
    }
}

#[test]
fn the_largest_vocabularies_are_drawn_from_alike() {
    for seed in 0..4 {
        agree(seed, [128_256, 151_936, 32_000, 260_000][seed as usize], 2);
    }
}
