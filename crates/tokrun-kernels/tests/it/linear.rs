//! Weights of every type: linear maps, gated blocks and embeddings.

use std::ops::Range;

use proptest::prelude::*;
use tokrun_kernels::{Activation, Backend, Consumer, Norm, Store, WeightType};

use crate::support::{
    Agreement, Estimate, Matrix, PRODUCT_CASES, Random, cuts, one_span, processors, reference, table, through, upload,
    whole, within,
};

/// One to three matrices with the same input, on some rows of activations.
pub(crate) struct Case {
    matrices: Vec<Matrix>,
    columns: usize,
    rows: usize,
    x: Vec<f32>,
    /// What the outputs are added to, if they are.
    residual: Option<Vec<f32>>,
    norm: Option<Norm>,
}

impl Case {
    pub(crate) fn random(seed: u64, types: &[WeightType], blocks: usize, rows: usize) -> Self {
        let random = &mut Random::new(seed);
        let columns = columns_of(types, blocks);
        let matrices: Vec<Matrix> = types
            .iter()
            .map(|&weight_type| {
                let outputs = 1 + random.below(80);
                let matrix = Matrix::random(random, weight_type, outputs, columns);
                if random.below(3) == 0 { matrix.with_bias(random) } else { matrix }
            })
            .collect();
        let width: usize = matrices.iter().map(|matrix| matrix.rows).sum();
        let x = random.rows(rows, columns);
        let residual = (random.below(2) == 0).then(|| random.values(rows * width, 5.0));
        let norm = (random.below(2) == 0).then(|| Norm { weight: random.values(columns, 2.0).into(), epsilon: 1e-5 });
        Self { matrices, columns, rows, x, residual, norm }
    }

    /// As it is, but for inputs that are not rounded: what is left are the roundings of f32, and those of f16 weights.
    pub(crate) fn exact(self, seed: u64) -> Self {
        let x = Random::new(seed).exact_rows(self.rows, self.columns);
        Self { x, norm: None, ..self }
    }

    fn width(&self) -> usize {
        self.matrices.iter().map(|matrix| matrix.rows).sum()
    }

    /// The outputs of all rows, computed in steps of those parts.
    fn run<B: Backend>(&self, backend: &mut B, parts: &[Range<usize>]) -> Vec<f32> {
        let sources: Vec<_> = self.matrices.iter().map(Matrix::source).collect();
        let weights = backend.pack_linear(&sources).expect("the matrices fit");
        let inputs = table(backend, &self.x, self.columns);
        let residual = self.residual.as_ref().map(|values| table(backend, values, self.width()));
        let mut outputs = Vec::new();
        for part in parts {
            backend.begin(&one_span(part.start, part.len()));
            let x = upload(backend, part.len(), &inputs, self.columns);
            let mut encoded = backend.encoded(part.len(), self.columns).expect("there is memory");
            backend.encode(&x, self.norm.as_ref(), Consumer::Linear(&weights), &mut encoded);
            let (mut out, store) = match &residual {
                Some(residual) => (upload(backend, part.len(), residual, self.width()), Store::Add),
                None => (backend.rows(part.len(), self.width()).expect("there is memory"), Store::Set),
            };
            backend.linear(&encoded, &weights, store, &mut out);
            outputs.extend_from_slice(backend.read(&out));
        }
        outputs
    }

    fn estimates(&self) -> Vec<Estimate> {
        let mut all = Vec::new();
        for row in self.x.chunks_exact(self.columns) {
            let input = normalised(row, self.norm.as_ref());
            all.extend(self.matrices.iter().flat_map(|matrix| through(matrix, &input)));
        }
        if let Some(residual) = &self.residual {
            for (estimate, &residual) in all.iter_mut().zip(residual) {
                estimate.value += f64::from(residual);
                estimate.error += 1e-6 * f64::from(residual).abs();
            }
        }
        all
    }
}

/// Columns that are whole blocks of all types.
fn columns_of(types: &[WeightType], blocks: usize) -> usize {
    match types.iter().map(|weight_type| weight_type.block_size()).max() {
        Some(1) => 7 * blocks,
        Some(32) => 32 * blocks,
        _ => 256 * (1 + blocks % 3),
    }
}

fn normalised(row: &[f32], norm: Option<&Norm>) -> Vec<Estimate> {
    let Some(norm) = norm else {
        return row.iter().copied().map(Estimate::from).collect();
    };
    let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let factor = (squares / row.len() as f64 + f64::from(norm.epsilon)).sqrt().recip();
    let value = |(&x, &weight): (&f32, &f32)| f64::from(x) * factor * f64::from(weight);
    row.iter().zip(norm.weight.iter()).map(value).map(|value| Estimate { value, error: 2e-6 * value.abs() }).collect()
}

pub(crate) fn check_linear(case: &Case, types: &[WeightType], seed: u64) {
    let all = whole(case.rows);
    let expected = case.run(&mut reference(), &all);
    let estimates = case.estimates();
    let mut agreement = Agreement::default();
    for mut processor in processors() {
        let who = &processor.who;
        let found = case.run(&mut processor.cpu, &all);
        within(&found, &expected, &estimates, who);
        let pieces = case.run(&mut processor.cpu, &cuts(&mut Random::new(seed), case.rows));
        processor.in_other_steps(&pieces, &found, &expected, &estimates);
        agreement.check(&processor, types, found);
    }
}

#[test]
fn every_type_is_multiplied_as_the_reference_does() {
    for (i, weight_type) in WeightType::ALL.into_iter().enumerate() {
        for (blocks, rows) in [(1, 1), (3, 5), (5, 33)] {
            let seed = (100 * i + rows) as u64;
            let types = [weight_type];
            check_linear(&Case::random(seed, &types, blocks, rows), &types, seed);
            check_linear(&Case::random(seed, &types, blocks, rows).exact(seed), &types, seed);
        }
    }
}

fn any_type() -> impl Strategy<Value = WeightType> {
    proptest::sample::select(WeightType::ALL.to_vec())
}

fn types() -> impl Strategy<Value = Vec<WeightType>> {
    proptest::collection::vec(any_type(), 1..=3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: PRODUCT_CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear_maps_agree_on_any_shape(
        types in types(), seed: u64, blocks in 1..20usize, rows in 1..=70usize, exact: bool,
    ) {
        let case = Case::random(seed, &types, blocks, rows);
        check_linear(&if exact { case.exact(seed) } else { case }, &types, seed);
    }

    #[test]
    fn gated_blocks_agree_on_any_shape(
        gate in any_type(), up in any_type(), down in any_type(), seed: u64, blocks in 1..6usize, rows in 1..=70usize,
        gelu: bool,
    ) {
        let activation = if gelu { Activation::GeluTanh } else { Activation::Silu };
        check_gated([gate, up, down], seed, blocks, rows, activation);
    }

    #[test]
    fn embeddings_agree_on_any_shape(weight_type in any_type(), seed: u64, blocks in 1..20usize, rows in 1..=40usize) {
        check_embedding(weight_type, seed, blocks, rows);
    }
}

#[test]
fn gated_blocks_of_every_type_agree() {
    for (i, weight_type) in WeightType::ALL.into_iter().enumerate() {
        check_gated([weight_type; 3], i as u64, 2, 6, Activation::Silu);
    }
}

/// A feed-forward block: gate, up and down.
pub(crate) struct FeedForward {
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) activation: Activation,
}

impl FeedForward {
    /// `width` values in and out, whole blocks of gate and up, `hidden` ones of down.
    pub(crate) fn random(
        random: &mut Random,
        types: [WeightType; 3],
        width: usize,
        hidden: usize,
        activation: Activation,
    ) -> Self {
        let [gate, up, down] = types;
        Self {
            gate: Matrix::random(random, gate, hidden, width),
            up: Matrix::random(random, up, hidden, width),
            down: Matrix::random(random, down, width, hidden),
            activation,
        }
    }

    pub(crate) fn estimates(&self, input: &[Estimate]) -> Vec<Estimate> {
        let (gates, ups) = (through(&self.gate, input), through(&self.up, input));
        let hidden: Vec<Estimate> = gates.iter().zip(&ups).map(|(gate, up)| self.estimate(*gate, *up)).collect();
        through(&self.down, &hidden)
    }

    /// No activation is steeper than 1.13.
    fn estimate(&self, gate: Estimate, up: Estimate) -> Estimate {
        let x = gate.value;
        let activated = match self.activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
        };
        let activated_error = 1.13 * gate.error + 1e-6 * x.abs();
        let error = activated_error * (up.value.abs() + up.error) + activated.abs() * up.error;
        Estimate { value: activated * up.value, error: error + 1e-6 * (activated * up.value).abs() }
    }
}

pub(crate) fn check_gated(types: [WeightType; 3], seed: u64, blocks: usize, rows: usize, activation: Activation) {
    let random = &mut Random::new(seed);
    let (width, hidden) = (columns_of(&types[..2], blocks), columns_of(&types[2..], 1 + random.below(4)));
    let block = FeedForward::random(random, types, width, hidden, activation);
    let x: Vec<f32> = random.rows(rows, width).iter().map(|x| x / 4.0).collect();

    let all = whole(rows);
    let expected = run_gated(&mut reference(), &block, &x, &all);
    let estimates: Vec<Estimate> =
        x.chunks_exact(width).flat_map(|row| block.estimates(&normalised(row, None))).collect();
    let mut agreement = Agreement::default();
    for mut processor in processors() {
        let who = &processor.who;
        let found = run_gated(&mut processor.cpu, &block, &x, &all);
        within(&found, &expected, &estimates, who);
        let pieces = run_gated(&mut processor.cpu, &block, &x, &cuts(random, rows));
        processor.in_other_steps(&pieces, &found, &expected, &estimates);
        agreement.check(&processor, &types, found);
    }
}

fn run_gated<B: Backend>(backend: &mut B, block: &FeedForward, x: &[f32], parts: &[Range<usize>]) -> Vec<f32> {
    let (width, hidden) = (block.gate.columns, block.gate.rows);
    let gated = backend.pack_gated(block.gate.source(), block.up.source()).expect("the matrices fit");
    let down = backend.pack_linear(&[block.down.source()]).expect("the matrix fits");
    let inputs = table(backend, x, width);
    let mut outputs = Vec::new();
    for part in parts {
        let rows = part.len();
        backend.begin(&one_span(part.start, rows));
        let x = upload(backend, rows, &inputs, width);
        let mut encoded = backend.encoded(rows, width).expect("there is memory");
        let mut between = backend.encoded(rows, hidden).expect("there is memory");
        let mut out = backend.rows(rows, width).expect("there is memory");
        backend.encode(&x, None, Consumer::Gated(&gated), &mut encoded);
        backend.gated(&encoded, &gated, block.activation, &down, &mut between);
        backend.linear(&between, &down, Store::Set, &mut out);
        outputs.extend_from_slice(backend.read(&out));
    }
    outputs
}

fn check_embedding(weight_type: WeightType, seed: u64, blocks: usize, rows: usize) {
    let random = &mut Random::new(seed);
    let columns = columns_of(&[weight_type], blocks);
    let outputs = 1 + random.below(60);
    let matrix = Matrix::random(random, weight_type, outputs, columns);
    let mut step = one_span(0, rows);
    for token in &mut step.tokens {
        *token = random.below(matrix.rows) as u32;
    }
    let scale = 3.5;

    let estimates: Vec<Estimate> = step
        .tokens
        .iter()
        .flat_map(|&token| {
            matrix.values[token as usize * columns..][..columns].chunks(32).flat_map(embedded(weight_type, scale))
        })
        .collect();
    let expected = embed(&mut reference(), &matrix, &step, scale);
    for mut processor in processors() {
        within(&embed(&mut processor.cpu, &matrix, &step, scale), &expected, &estimates, &processor.who);
    }
}

/// What is read back is what was packed: f16 may have become bf16, other types lose only roundings of f32.
fn embedded(weight_type: WeightType, scale: f32) -> impl Fn(&[f32]) -> Vec<Estimate> {
    move |block| {
        let largest = block.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        let error = |x: f32| match weight_type {
            WeightType::F32 | WeightType::BF16 => 0.0,
            WeightType::F16 => x.abs() / 255.0,
            _ => 1e-6 * largest,
        };
        let estimate = |&x: &f32| Estimate { value: f64::from(x * scale), error: f64::from(error(x) * scale) };
        block.iter().map(estimate).collect()
    }
}

fn embed<B: Backend>(backend: &mut B, matrix: &Matrix, step: &tokrun_kernels::Step, scale: f32) -> Vec<f32> {
    let weights = backend.pack_linear(&[matrix.source()]).expect("the matrix fits");
    let mut out = backend.rows(step.tokens.len(), matrix.columns).expect("there is memory");
    backend.begin(step);
    backend.embed(&weights, scale, &mut out);
    backend.read(&out).to_vec()
}
