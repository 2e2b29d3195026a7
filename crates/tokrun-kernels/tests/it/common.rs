//! Random weights and rows, and how far apart answers may lie.

use std::ops::Range;

use half::f16;
use tokrun_kernels::{Backend, MatrixSource, Reference, RowSource, Span, Step, WeightType, dequantise};

/// Numbers that depend on a seed alone (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// From -1 to 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| scale * self.unit()).collect()
    }

    /// Rows as they come in models: of different sizes, a few large values, now and then nothing but zeros.
    pub(crate) fn rows(&mut self, rows: usize, width: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows * width);
        for _ in 0..rows {
            let scale = [0.0, 0.01, 1.0, 1.0, 30.0][self.below(5)];
            values.extend((0..width).map(|_| {
                let outlier = if self.below(50) == 0 { 20.0 } else { 1.0 };
                scale * outlier * self.unit()
            }));
        }
        values
    }

    /// Rows that int8 and bf16 hold exactly: multiples of a power of two, 127 times it among every 32.
    pub(crate) fn exact_rows(&mut self, rows: usize, width: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows * width);
        for i in 0..rows * width {
            let code = if (i % width).is_multiple_of(32) { 127.0 } else { (127.0 * self.unit()).round() };
            values.push(code / 64.0);
        }
        values
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// A matrix as a file holds it.
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) weight_type: WeightType,
    bytes: Vec<u8>,
    /// What the bytes mean.
    pub(crate) values: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Matrix {
    /// Any codes, with scales that make the weights about 1 in size.
    pub(crate) fn random(random: &mut Random, weight_type: WeightType, rows: usize, columns: usize) -> Self {
        let row_bytes = weight_type.row_bytes(columns).expect("columns are whole blocks");
        let mut bytes: Vec<u8> = (0..rows * row_bytes).map(|_| random.bits() as u8).collect();
        for block in bytes.chunks_exact_mut(weight_type.block_bytes()) {
            make_sane(random, weight_type, block);
        }
        let mut values = Vec::new();
        dequantise(weight_type, &bytes, &mut values);
        Self { rows, columns, weight_type, bytes, values, bias: None }
    }

    pub(crate) fn with_bias(self, random: &mut Random) -> Self {
        Self { bias: Some(random.values(self.rows, 3.0)), ..self }
    }

    /// These rows, exactly.
    pub(crate) fn plain(values: &[f32], columns: usize) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = values.len() / columns;
        Self { rows, columns, weight_type: WeightType::F32, bytes, values: values.to_vec(), bias: None }
    }

    pub(crate) fn source(&self) -> MatrixSource<'_> {
        let Self { rows, columns, weight_type, ref bias, .. } = *self;
        MatrixSource { rows, columns, weight_type, source: self, bias: bias.as_deref() }
    }

    pub(crate) fn bias_of(&self, row: usize) -> f32 {
        self.bias.as_ref().map_or(0.0, |bias| bias[row])
    }
}

impl RowSource for Matrix {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        let row_bytes = self.bytes.len() / self.rows;
        bytes.copy_from_slice(&self.bytes[rows.start * row_bytes..rows.end * row_bytes]);
        Ok(())
    }
}

/// Replaces the scales in random bytes by finite ones of either sign, now and then by zero.
fn make_sane(random: &mut Random, weight_type: WeightType, block: &mut [u8]) {
    let mut put = |at: usize, size: f32| {
        let scale = if random.below(40) == 0 { 0.0 } else { size * random.unit() };
        block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    };
    match weight_type {
        WeightType::F32 => block.copy_from_slice(&random.unit().to_le_bytes()),
        WeightType::BF16 => block.copy_from_slice(&random.unit().to_le_bytes()[2..]),
        WeightType::F16 => put(0, 1.0),
        WeightType::Q4_0 | WeightType::Q5_0 => put(0, 0.1),
        WeightType::Q8_0 | WeightType::IQ4_NL => put(0, 0.01),
        WeightType::Q4_1 | WeightType::Q5_1 => {
            put(0, 0.1);
            put(2, 1.0);
        }
        WeightType::Q2_K => {
            put(80, 0.03);
            put(82, 0.06);
        }
        WeightType::Q3_K => put(108, 0.01),
        WeightType::Q4_K | WeightType::Q5_K => {
            put(0, 0.002);
            put(2, 0.01);
        }
        WeightType::Q6_K => put(208, 0.0003),
        WeightType::IQ4_XS => put(0, 0.0003),
        WeightType::MXFP4 => block[0] = 122 + random.below(5) as u8,
        WeightType::FP8 => {
            let scale = if random.below(40) == 0 { 0.0 } else { 0.01 * random.unit() };
            block[..4].copy_from_slice(&scale.to_le_bytes());
            // Files with weights that are no numbers are refused.
            block[4..].iter_mut().filter(|code| **code & 0x7f == 0x7f).for_each(|code| *code ^= 1);
        }
    }
}

/// A step over the first rows of one sequence, whose row `i` has token `first + i`.
pub(crate) fn one_span(first: usize, rows: usize) -> Step {
    let blocks = (0..rows.div_ceil(16) as u32).collect();
    Step {
        tokens: (first as u32..(first + rows) as u32).collect(),
        spans: vec![Span { rows: 0..rows, start: 0, blocks }],
    }
}

/// Brings rows to the device: they are the embeddings of the tokens of the step that has begun.
pub(crate) fn upload<B: Backend>(backend: &mut B, rows: usize, table: &B::Linear, width: usize) -> B::Rows {
    let mut out = backend.rows(rows, width).expect("there is memory");
    backend.embed(table, 1.0, &mut out);
    out
}

/// A packed table whose row of each token is given.
pub(crate) fn table<B: Backend>(backend: &mut B, values: &[f32], width: usize) -> B::Linear {
    backend.pack_linear(&[Matrix::plain(values, width).source()]).expect("the table fits")
}

/// All rows in one part.
pub(crate) fn whole(rows: usize) -> Vec<Range<usize>> {
    std::iter::once(0..rows).collect()
}

/// Cuts `0..rows` into random consecutive parts.
pub(crate) fn cuts(random: &mut Random, rows: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    while start < rows {
        let longest = if random.below(2) == 0 { 3 } else { rows };
        let end = (start + 1 + random.below(longest)).min(rows);
        parts.push(start..end);
        start = end;
    }
    parts
}

/// What a model of the errors says about one number: its value, and how far an implementation may be from it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) error: f64,
}

impl From<f32> for Estimate {
    fn from(value: f32) -> Self {
        Self { value: f64::from(value), error: 0.0 }
    }
}

/// The outputs of a matrix for inputs that may be off themselves.
///
/// Quantised weights multiply with inputs rounded to int8: each is off by at most half a step, which is a 127th of the
/// largest of its block of 32. 16-bit weights multiply with inputs rounded to bf16, f16 weights being rounded so
/// themselves. Such roundings of many numbers do not conspire: their sum stays within eight standard deviations. On top
/// come the roundings of the f32 sums.
pub(crate) fn through(matrix: &Matrix, input: &[Estimate]) -> Vec<Estimate> {
    let roundings: Vec<f64> = input.chunks(32).flat_map(|block| roundings(matrix.weight_type, block)).collect();
    let rows = matrix.values.chunks_exact(matrix.columns).enumerate();
    rows.map(|(row, weights)| output(weights, input, &roundings, matrix.bias_of(row))).collect()
}

fn output(weights: &[f32], input: &[Estimate], roundings: &[f64], bias: f32) -> Estimate {
    let bias = f64::from(bias);
    let mut output = Estimate { value: bias, error: 1e-6 * bias.abs() + 1e-9 };
    let (mut worst, mut variance) = (0.0, 0.0);
    for ((weights, inputs), roundings) in weights.chunks(32).zip(input.chunks(32)).zip(roundings.chunks(32)) {
        // A minimum and the codes above it may cancel: what is summed is about the size of the block's largest.
        let largest = weights.iter().fold(0.0, |largest: f64, &weight| largest.max(f64::from(weight).abs()));
        for ((&weight, input), rounding) in weights.iter().zip(inputs).zip(roundings) {
            let weight = f64::from(weight);
            output.value += weight * input.value;
            output.error += weight.abs() * input.error + 1e-5 * largest * input.value.abs();
            worst += weight.abs() * rounding;
            variance += (weight * rounding).powi(2) / 3.0;
        }
    }
    output.error += f64::min(worst, 8.0 * variance.sqrt());
    output
}

/// How far each number of a block may be from what weights of that type are multiplied with.
fn roundings(weight_type: WeightType, block: &[Estimate]) -> Vec<f64> {
    let largest = block.iter().fold(0.0, |largest: f64, x| largest.max(x.value.abs() + x.error));
    let step = largest / 127.0;
    let rounding = |x: &Estimate| match weight_type {
        WeightType::F32 => 0.0,
        // Half of the last of eight bits; f16 weights are rounded as well as inputs, and 8-bit floats on tensor cores.
        WeightType::BF16 => x.value.abs() / 255.0,
        WeightType::F16 | WeightType::FP8 => x.value.abs() / 127.0,
        // Multiples of the step are themselves.
        _ if (x.value / step).fract() == 0.0 => 0.0,
        _ => 0.501 * step,
    };
    block.iter().map(rounding).collect()
}

/// Fails where a number is further from the reference's than estimated, and where the estimate itself misses the
/// reference.
#[track_caller]
pub(crate) fn within(found: &[f32], reference: &[f32], estimates: &[Estimate], who: &str) {
    assert_eq!(found.len(), reference.len(), "{who}");
    assert_eq!(found.len(), estimates.len(), "{who}");
    for (i, ((&found, &reference), estimate)) in found.iter().zip(reference).zip(estimates).enumerate() {
        let (found, reference) = (f64::from(found), f64::from(reference));
        let rounding = 1e-6 * estimate.value.abs() + 1e-9;
        assert!(
            (reference - estimate.value).abs() <= estimate.error + rounding,
            "number {i}: the reference has {reference}, not {estimate:?}"
        );
        assert!(
            (found - reference).abs() <= estimate.error + rounding,
            "{who}, number {i}: {found} is not {reference} (+- {})",
            estimate.error
        );
    }
}

/// Fails where numbers do not have the same bits.
#[track_caller]
pub(crate) fn same_bits(found: &[f32], expected: &[f32], who: &str) {
    assert_eq!(found.len(), expected.len(), "{who}");
    let differs = found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = differs {
        panic!("{who}, number {at}: {:e} is not {:e}", found[at], expected[at]);
    }
}

/// The reference, for symmetry with the processors.
pub(crate) fn reference() -> Reference {
    Reference::default()
}
