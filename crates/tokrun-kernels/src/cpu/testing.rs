//! What the tests of this backend share.

use std::ops::Range;

use half::{bf16, f16};

use super::pool::Pool;
use super::rows::CpuRows;
use super::simd::Level;
use crate::dequantise::dequantise;
use crate::{MatrixSource, RowSource, WeightType};

/// Numbers between -1 and 1 that look random.
pub(super) fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn rows(rows: usize, width: usize, seed: u32) -> CpuRows {
    let mut out = CpuRows::new(rows, width).expect("little memory");
    out.first_mut(rows).copy_from_slice(&noise(rows * width, seed));
    out
}

/// Calls `check` with every level and several numbers of threads.
pub(super) fn everywhere(mut check: impl FnMut(&mut Pool, Level)) {
    for level in Level::available() {
        for threads in 1..4 {
            check(&mut Pool::new(threads, false).expect("threads start"), level);
        }
    }
}

/// Within `tolerance` of the larger of 1 and what is expected.
pub(super) fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance * expected.abs().max(1.0), "value {at}: {got}, not {expected}");
    }
}

/// Rows of a matrix, as a file stores them.
pub(super) struct Weights {
    pub(super) weight_type: WeightType,
    pub(super) rows: usize,
    pub(super) columns: usize,
    bytes: Vec<u8>,
}

impl Weights {
    /// Any bytes, but for scales: those are between 0.01 and 0.02.
    pub(super) fn random(weight_type: WeightType, rows: usize, columns: usize, seed: u32) -> Self {
        let row_bytes = weight_type.row_bytes(columns).expect("whole blocks");
        let mut bytes: Vec<u8> = noise(rows * row_bytes, seed).into_iter().map(|x| (x * 1e5) as i32 as u8).collect();
        let scales: &[usize] = match weight_type {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 | WeightType::MXFP4 | WeightType::FP8 => &[],
            WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4_K | WeightType::Q5_K => &[0, 2],
            WeightType::Q2_K => &[80, 82],
            WeightType::Q3_K => &[108],
            WeightType::Q6_K => &[208],
            _ => &[0],
        };
        let numbers = noise(bytes.len(), seed + 1);
        for (block, bytes) in bytes.chunks_exact_mut(weight_type.block_bytes()).enumerate() {
            let number = numbers[block];
            for (i, at) in scales.iter().enumerate() {
                let scale = f16::from_f32(0.015 + 0.005 * numbers[block + i]);
                bytes[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            match weight_type {
                WeightType::F32 => bytes.copy_from_slice(&number.to_le_bytes()),
                WeightType::F16 => bytes.copy_from_slice(&f16::from_f32(number).to_le_bytes()),
                WeightType::BF16 => bytes.copy_from_slice(&bf16::from_f32(number).to_le_bytes()),
                WeightType::MXFP4 => bytes[0] = 118u8.wrapping_add_signed((number * 4.0) as i8),
                WeightType::FP8 => {
                    bytes[..4].copy_from_slice(&(0.015 + 0.005 * number).to_le_bytes());
                    bytes[4..].iter_mut().for_each(|code| *code &= 0xbf);
                }
                _ => {}
            }
        }
        Self { weight_type, rows, columns, bytes }
    }

    pub(super) fn source(&self) -> MatrixSource<'_> {
        let &Self { weight_type, rows, columns, .. } = self;
        MatrixSource { rows, columns, weight_type, source: self, bias: None }
    }

    /// As numbers, row-major.
    pub(super) fn values(&self) -> Vec<f32> {
        let mut values = Vec::new();
        dequantise(self.weight_type, &self.bytes, &mut values);
        values
    }
}

impl RowSource for Weights {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        let row_bytes = self.bytes.len() / self.rows;
        bytes.copy_from_slice(&self.bytes[rows.start * row_bytes..rows.end * row_bytes]);
        Ok(())
    }
}
