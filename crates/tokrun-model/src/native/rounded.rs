//! Weights of 16-bit and 32-bit floats, rounded to 8-bit ones (e4m3) as they are loaded: a token then takes half the time of
//! bf16, where that is a question of bytes.
//!
//! 128 weights of a row share a scale, which makes the largest of them 448, the largest 8-bit float. None is off by more than
//! 1/16 of itself, or 1/450,000 of the largest. Embeddings, the output matrix and routers stay as they are: they decide more
//! than their share of the bytes.

use std::io::{Error, ErrorKind};
use std::ops::Range;

use tokrun_kernels::{RowSource, WeightType, dequantise};

use super::weights::{Matrix, Weights};
use crate::ModelError;

/// The largest 8-bit float.
const LARGEST: f32 = 448.0;
/// Weights that share a scale.
const BLOCK: usize = WeightType::FP8.block_size();

/// Weights whose projections are rounded, as far as their rows are whole blocks.
pub(super) struct Rounded<'a> {
    pub(super) weights: &'a dyn Weights,
}

impl Weights for Rounded<'_> {
    fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Matrix<'_>, ModelError> {
        let tensor = self.weights.tensor(name, shape)?;
        let is_projection = name.starts_with("blk.") && shape.len() > 1 && !name.contains("ffn_gate_inp");
        let is_float = matches!(tensor.weight_type, WeightType::F32 | WeightType::F16 | WeightType::BF16);
        if !is_projection || !is_float || !tensor.columns.is_multiple_of(BLOCK) {
            return Ok(tensor);
        }
        Ok(Matrix::new(tensor.rows, tensor.columns, WeightType::FP8, Rows(tensor)))
    }

    fn refuse_left_over(&self) -> Result<(), ModelError> {
        self.weights.refuse_left_over()
    }
}

/// The rows of a matrix of wider floats.
struct Rows<'a>(Matrix<'a>);

impl RowSource for Rows<'_> {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        let Self(wide) = self;
        let row_bytes = wide.weight_type.row_bytes(wide.columns).expect("floats have no blocks");
        let mut file = vec![0; rows.len() * row_bytes];
        wide.read(rows, &mut file)?;
        let mut values = Vec::new();
        dequantise(wide.weight_type, &file, &mut values);
        let blocks = bytes.chunks_exact_mut(WeightType::FP8.block_bytes());
        blocks.zip(values.chunks_exact(BLOCK)).try_for_each(|(block, values)| round(values, block))
    }
}

/// Writes a scale and the codes of its values.
fn round(values: &[f32], block: &mut [u8]) -> std::io::Result<()> {
    if !values.iter().all(|value| value.is_finite()) {
        return Err(Error::new(ErrorKind::InvalidData, "a weight is not a number"));
    }
    let scale = values.iter().fold(0f32, |largest, value| largest.max(value.abs())) / LARGEST;
    let (head, codes) = block.split_at_mut(4);
    head.copy_from_slice(&scale.to_le_bytes());
    for (code, value) in codes.iter_mut().zip(values) {
        *code = if scale == 0.0 { 0 } else { e4m3(value / scale) };
    }
    Ok(())
}

/// The 8-bit float that is nearest, of two the even one.
fn e4m3(value: f32) -> u8 {
    let size = value.abs().min(LARGEST);
    let code = if size < 2f32.powi(-6) {
        // Below the smallest exponent steps are all alike; the eighth is the first number above.
        (size * 512.0).round_ties_even() as u32
    } else {
        let bits = size.to_bits();
        // Three bits of mantissa stay, and exponents begin 120 later.
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)
    };
    code as u8 | if value.is_sign_negative() { 0x80 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a block of codes with a scale of 1 means.
    fn meant(codes: &[u8]) -> Vec<f32> {
        let mut values = Vec::new();
        for codes in codes.chunks(BLOCK) {
            let mut block = [1f32.to_le_bytes().to_vec(), codes.to_vec()].concat();
            block.resize(WeightType::FP8.block_bytes(), 0);
            dequantise(WeightType::FP8, &block, &mut values);
        }
        values.truncate(codes.len());
        values
    }

    #[test]
    fn each_code_is_nearest_to_what_it_means_and_its_neighbours_begin_half_way() {
        let codes: Vec<u8> = (0..=0x7e).collect();
        let values = meant(&codes);
        for (code, value) in codes.iter().zip(&values) {
            assert_eq!((e4m3(*value), e4m3(-value)), (*code, code | 0x80), "{value}");
        }
        for (code, pair) in codes.iter().zip(values.windows(2)) {
            let middle = f32::midpoint(pair[0], pair[1]);
            assert_eq!(e4m3(middle), code + (code & 1), "of {pair:?} the even one");
            assert_eq!((e4m3(middle.next_down()), e4m3(middle.next_up())), (*code, code + 1), "{pair:?}");
        }
        assert_eq!((e4m3(1e9), e4m3(-1e9)), (0x7e, 0xfe));
    }

    #[test]
    fn weights_are_off_by_a_sixteenth_at_most() {
        let values: Vec<f32> = (0..BLOCK).map(|at| 0.03 * (-0.9f32).powi(at as i32)).collect();
        let mut block = vec![0; WeightType::FP8.block_bytes()];
        round(&values, &mut block).unwrap();
        let mut rounded = Vec::new();
        dequantise(WeightType::FP8, &block, &mut rounded);
        assert_eq!(rounded[0], values[0], "the largest is exact");
        for (value, rounded) in values.iter().zip(&rounded) {
            let most = (value.abs() / 16.0).max(0.03 / 450_000.0) * 1.000_01;
            assert!((value - rounded).abs() <= most, "{rounded} for {value}");
        }
        round(&[0.0; BLOCK], &mut block).unwrap();
        assert!(block.iter().all(|byte| *byte == 0));
        let mut bad = values;
        bad[77] = f32::NAN;
        assert!(round(&bad, &mut block).is_err());
    }
}
