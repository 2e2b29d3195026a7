//! Safetensors with weights of 8-bit floats (e4m3), whose scales lie in tensors of their own: one for a matrix, for each of its
//! rows, or for each block of 128 x 128.

use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value;
use tokrun_kernels::{RowSource, WeightType};

use super::weights::Matrix;
use crate::config::Config;
use crate::mmap::MappedFile;
use crate::safetensors::{TensorInfo, Weights};

/// Columns that share a scale, as kernels have it; and rows, where scales are of blocks.
const BLOCK: usize = 128;

/// Whether the settings speak of 8-bit floats in a way that is computed here: as the weights' type. Activations keep their
/// bits, so how a file would have them rounded does not matter.
pub(super) fn is_meant(config: &Config) -> bool {
    let Some(quantization) = config.get("quantization_config") else { return false };
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    match text(quantization, "quant_method").as_deref() {
        Some("fp8") => {
            let block = quantization.get("weight_block_size").filter(|block| !block.is_null());
            let is_e4m3 = text(quantization, "fmt").is_none_or(|format| format == "e4m3");
            is_e4m3 && block.is_none_or(|block| *block == Value::from(vec![BLOCK, BLOCK]))
        }
        Some("compressed-tensors") => {
            text(quantization, "format").as_deref() == Some("float-quantized")
                && quantization.get("kv_cache_scheme").is_none_or(Value::is_null)
        }
        _ => false,
    }
}

/// The tensor that holds the scales of another one.
pub(super) fn scales_of<'a>(weights: &'a Weights, name: &str) -> Option<(String, &'a TensorInfo)> {
    let names = ["_scale_inv", "_scale"].map(|end| format!("{name}{end}"));
    names.into_iter().find_map(|name| weights.tensors().get(&name).map(|tensor| (name, tensor)))
}

/// The matrix of a tensor and its scales, or why there is none.
pub(super) fn matrix<'a>(weights: &'a Weights, tensor: &TensorInfo, scales: &TensorInfo) -> Result<Matrix<'a>, String> {
    let [rows, columns] = tensor.shape[..] else { return Err("is no matrix".to_owned()) };
    if !columns.is_multiple_of(BLOCK) {
        return Err(format!("has rows of {columns} values, which are not whole blocks of {BLOCK}"));
    }
    let (row_group, column_group) = match scales.shape[..] {
        [] | [1] | [1, 1] => (rows, columns),
        [count] | [count, 1] if count == rows => (1, columns),
        [down, across] if (down, across) == (rows.div_ceil(BLOCK), columns / BLOCK) => (BLOCK, BLOCK),
        _ => return Err(format!("has scales of shape {:?}", scales.shape)),
    };
    let bytes = weights.bytes(scales);
    let scales = match scales.dtype {
        Dtype::F32 => numbers(bytes, f32::from_le_bytes),
        Dtype::F16 => numbers(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => numbers(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        other => return Err(format!("has scales of type {other}")),
    };
    if !scales.iter().all(|scale| scale.is_finite()) {
        return Err("has scales that are no numbers".to_owned());
    }
    let (file, offset) = weights.place(tensor);
    Ok(Matrix::new(rows, columns, WeightType::FP8, Rows { file, offset, columns, scales, row_group, column_group }))
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}

/// Rows of codes, to be brought together with their scales.
struct Rows<'a> {
    file: &'a MappedFile,
    offset: u64,
    columns: usize,
    /// Row-major, one for each group.
    scales: Vec<f32>,
    row_group: usize,
    column_group: usize,
}

impl RowSource for Rows<'_> {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut codes = vec![0; rows.len() * self.columns];
        self.file.read_exact_at(&mut codes, self.offset + (rows.start * self.columns) as u64)?;
        if codes.iter().any(|code| code & 0x7f == 0x7f) {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a weight is not a number"));
        }
        let across = self.columns / self.column_group;
        let places = rows.flat_map(|row| (0..self.columns / BLOCK).map(move |block| (row, block)));
        let blocks = bytes.chunks_exact_mut(WeightType::FP8.block_bytes()).zip(codes.chunks_exact(BLOCK));
        for ((block, codes), (row, column)) in blocks.zip(places) {
            let scale = self.scales[row / self.row_group * across + column * BLOCK / self.column_group];
            let (head, tail) = block.split_at_mut(4);
            head.copy_from_slice(&scale.to_le_bytes());
            tail.copy_from_slice(codes);
        }
        Ok(())
    }
}
