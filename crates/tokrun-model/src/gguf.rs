//! The header of a GGUF file: metadata and where each tensor lies, checked against the file before anything is allocated.
//!
//! Versions 2 and 3, little endian. Whatever a file claims about itself (counts, lengths, offsets, shapes) is compared
//! with the bytes that are there, so a truncated or hostile file costs an error and nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::ModelError;

mod reader;
mod strings;
#[cfg(test)]
mod tests;

pub use strings::Strings;

/// One metadata value; integers and floats are widened, arrays keep one kind.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    Bools(Vec<bool>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Strings),
}

/// The metadata of a file, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub BTreeMap<String, Value>);

impl Metadata {
    /// Any value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Option<&str> {
        if let Some(Value::String(value)) = self.get(key) { Some(value) } else { None }
    }

    /// A whole number that is not negative.
    pub fn uint(&self, key: &str) -> Option<u64> {
        if let Some(Value::Int(value)) = self.get(key) { u64::try_from(*value).ok() } else { None }
    }

    /// A number.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.get(key) {
            Some(Value::Float(value)) => Some(*value),
            Some(Value::Int(value)) => Some(*value as f64),
            _ => None,
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Option<bool> {
        if let Some(Value::Bool(value)) = self.get(key) { Some(*value) } else { None }
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Option<&Strings> {
        if let Some(Value::Strings(values)) = self.get(key) { Some(values) } else { None }
    }

    /// An array of whole numbers.
    pub fn ints(&self, key: &str) -> Option<&[i64]> {
        if let Some(Value::Ints(values)) = self.get(key) { Some(values) } else { None }
    }

    /// An array of numbers.
    pub fn floats(&self, key: &str) -> Option<&[f32]> {
        if let Some(Value::Floats(values)) = self.get(key) { Some(values) } else { None }
    }
}

/// How a tensor's numbers are stored: blocks of `block_size` values in `block_bytes` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// The number GGUF files use.
    pub id: u32,
    /// The usual name: `Q4_1`.
    pub name: &'static str,
    /// Values a block.
    pub block_size: u64,
    /// Bytes a block.
    pub block_bytes: u64,
}

/// Every type in use: id, name, values a block, bytes a block.
const TENSOR_TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

impl TensorType {
    /// The type of that number, if it is known.
    pub fn from_id(id: u32) -> Option<Self> {
        TENSOR_TYPES.iter().find(|row| row.0 == id).map(|&(id, name, block_size, block_bytes)| Self {
            id,
            name,
            block_size,
            block_bytes,
        })
    }
}

/// Where one tensor lies and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// How its numbers are stored.
    pub tensor_type: TensorType,
    /// Its shape, outermost dimension first (the file has it the other way round): `[rows, columns]`.
    pub dims: Vec<usize>,
    /// First byte, from the start of the tensor data.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// How many numbers it holds.
    pub fn elements(&self) -> u64 {
        self.dims.iter().map(|&dim| dim as u64).product()
    }
}

/// A checked header.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// Every key but the tensors'.
    pub metadata: Arc<Metadata>,
    /// Every tensor, by name; none overlaps another or the end of the file.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Where the tensor data begins, in bytes from the start of the file.
    pub data_offset: u64,
}

impl Header {
    /// Reads the header of the file at `path`, whose bytes are `file`.
    ///
    /// # Errors
    /// [`ModelError::Malformed`], saying what is wrong and at which byte.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Self, ModelError> {
        reader::read_header(file).map_err(|reason| ModelError::Malformed { path: path.to_owned(), reason })
    }

    /// `general.architecture`: `llama`, `qwen3`.
    pub fn architecture(&self) -> &str {
        self.metadata.str("general.architecture").expect("checked when the header was read")
    }
}
