//! Where the weights of a decoder lie: by name and shape, whatever kind of file they are in.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ::safetensors::Dtype;
use half::{bf16, f16};
use tokrun_kernels::{MatrixSource, RowSource, WeightType};

use super::architecture::{Architecture, Norms};
use super::fp8;
use crate::config::Config;
use crate::gguf::Header;
use crate::mmap::MappedFile;
use crate::{LoadProgress, ModelError, safetensors};

/// The tensors of one model, by their names in GGUF files.
pub(super) trait Weights {
    /// Whether there is a tensor of that name.
    fn has(&self, name: &str) -> bool;

    /// The tensor of that name and shape, as rows of its last dimension.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Matrix<'_>, ModelError>;

    /// Refuses tensors that were never asked for: a model without them would be another model.
    fn refuse_left_over(&self) -> Result<(), ModelError>;

    /// A tensor of one dimension, as f32.
    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name, &[length])?;
        let mut bytes = vec![0; tensor.weight_type.row_bytes(length).unwrap_or(0)];
        tensor.read(0..1, &mut bytes).map_err(|error| ModelError::Weights(error.into()))?;
        match tensor.weight_type {
            WeightType::F32 => Ok(numbers(&bytes, f32::from_le_bytes)),
            WeightType::F16 => Ok(numbers(&bytes, |bytes| f16::from_le_bytes(bytes).to_f32())),
            WeightType::BF16 => Ok(numbers(&bytes, |bytes| bf16::from_le_bytes(bytes).to_f32())),
            other => Err(unsupported(format!("tensor {name} is a vector of type {}", other.name()))),
        }
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}

/// Rows of a tensor, not yet read.
#[derive(Clone)]
pub(super) struct Matrix<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) weight_type: WeightType,
    pub(super) bias: Option<Vec<f32>>,
    source: Arc<dyn RowSource + Send + 'a>,
    /// Its first row in the source.
    start: usize,
    /// Told of what is read.
    progress: Option<LoadProgress>,
}

impl<'a> Matrix<'a> {
    /// All `rows` rows of `source`.
    pub(super) fn new(
        rows: usize,
        columns: usize,
        weight_type: WeightType,
        source: impl RowSource + Send + 'a,
    ) -> Self {
        Self { rows, columns, weight_type, bias: None, source: Arc::new(source), start: 0, progress: None }
    }

    /// Some of its rows.
    pub(super) fn part(&self, rows: Range<usize>) -> Self {
        Self { rows: rows.len(), start: self.start + rows.start, bias: None, ..self.clone() }
    }

    /// What it takes once it is loaded. Processors have no 8-bit floats, and widen them to f32.
    pub(super) fn loaded_bytes(&self, is_card: bool) -> u64 {
        let loaded_as = match self.weight_type {
            WeightType::FP8 if !is_card => WeightType::F32,
            other => other,
        };
        loaded_as.row_bytes(self.columns).unwrap_or(0) as u64 * self.rows as u64
    }

    /// As backends take it.
    pub(super) fn as_source(&self) -> MatrixSource<'_> {
        MatrixSource {
            rows: self.rows,
            columns: self.columns,
            weight_type: self.weight_type,
            source: self,
            bias: self.bias.as_deref(),
        }
    }
}

impl RowSource for Matrix<'_> {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        if let Some(progress) = &self.progress {
            progress.add(bytes.len());
        }
        self.source.read(self.start + rows.start..self.start + rows.end, bytes)
    }
}

/// Weights that tell how much of them was read.
pub(super) struct Counted<'a> {
    pub(super) weights: &'a dyn Weights,
    pub(super) progress: Option<LoadProgress>,
}

impl Weights for Counted<'_> {
    fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Matrix<'_>, ModelError> {
        Ok(Matrix { progress: self.progress.clone(), ..self.weights.tensor(name, shape)? })
    }

    fn refuse_left_over(&self) -> Result<(), ModelError> {
        self.weights.refuse_left_over()
    }
}

/// Rows one after the other in a file, read past its mapping.
struct FileRows<'a> {
    file: &'a MappedFile,
    offset: u64,
    row_bytes: usize,
}

impl RowSource for FileRows<'_> {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(bytes, self.offset + (rows.start * self.row_bytes) as u64)
    }
}

/// A tensor of a file that has the wanted shape.
fn in_file<'a>(
    name: &str,
    shape: &[usize],
    weight_type: Option<WeightType>,
    type_name: &str,
    (file, offset): (&'a MappedFile, u64),
) -> Result<Matrix<'a>, ModelError> {
    let (columns, outer) = shape.split_last().expect("a tensor has dimensions");
    let row_bytes = weight_type.and_then(|weight_type| weight_type.row_bytes(*columns));
    let (Some(weight_type), Some(row_bytes)) = (weight_type, row_bytes) else {
        return Err(unsupported(format!("tensor {name} is of type {type_name}, which is not computed in")));
    };
    Ok(Matrix::new(outer.iter().product(), *columns, weight_type, FileRows { file, offset, row_bytes }))
}

/// The tensors of a GGUF file.
pub(super) struct GgufWeights<'a> {
    path: &'a Path,
    header: &'a Header,
    file: &'a MappedFile,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> GgufWeights<'a> {
    pub(super) fn new(path: &'a Path, header: &'a Header, file: &'a MappedFile) -> Self {
        Self { path, header, file, used: RefCell::default() }
    }
}

impl Weights for GgufWeights<'_> {
    fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Matrix<'_>, ModelError> {
        let Some(tensor) = self.header.tensors.get(name) else { return Err(missing(self.path, name)) };
        if tensor.dims != shape {
            return Err(misshapen(self.path, name, &tensor.dims, shape));
        }
        self.used.borrow_mut().insert(name.to_owned());
        let kind = tensor.tensor_type.name;
        in_file(name, shape, WeightType::from_name(kind), kind, (self.file, self.header.data_offset + tensor.offset))
    }

    fn refuse_left_over(&self) -> Result<(), ModelError> {
        let used = self.used.borrow();
        match self.header.tensors.keys().find(|name| !used.contains(*name)) {
            Some(name) => Err(ignored(self.header.architecture(), name)),
            None => Ok(()),
        }
    }
}

/// The tensors of a directory of safetensors.
pub(super) struct SafetensorsWeights<'a> {
    folder: &'a Path,
    weights: &'a safetensors::Weights,
    architecture: &'a Architecture,
    /// The model is a part of a larger one, whose other tensors are not ours.
    nested: bool,
    used: RefCell<BTreeSet<String>>,
}

/// Ends of names of tensors that hold no weights: tables that every implementation computes itself, and how 8-bit
/// activations would be scaled, which are not rounded here.
const TABLES: &[&str] = &["rotary_emb.inv_freq", "_proj.input_scale", "_proj.activation_scale"];
/// The output matrix, which may lie beside an embedding that it is tied to.
const HEAD: &str = "lm_head.weight";

impl<'a> SafetensorsWeights<'a> {
    pub(super) fn new(
        folder: &'a Path,
        weights: &'a safetensors::Weights,
        config: &Config,
        architecture: &'a Architecture,
    ) -> Self {
        Self { folder, weights, architecture, nested: config.is_nested(), used: RefCell::default() }
    }

    /// The tensor that is called `name` in GGUF files, and what it is called here.
    fn find(&self, name: &str) -> Option<(String, &'a safetensors::TensorInfo)> {
        let name = hugging_face_name(name, self.architecture)?;
        let inner = name.strip_prefix("model.").map(|rest| format!("model.language_model.{rest}"));
        let nested = [Some(format!("language_model.{name}")), inner];
        let mut names = std::iter::once(name).chain(nested.into_iter().flatten().filter(|_| self.nested));
        names.find_map(|name| self.weights.tensors().get(&name).map(|tensor| (name, tensor)))
    }
}

impl Weights for SafetensorsWeights<'_> {
    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Matrix<'_>, ModelError> {
        let Some((name, tensor)) = self.find(name) else {
            let name = hugging_face_name(name, self.architecture).unwrap_or_else(|| name.to_owned());
            return Err(missing(self.folder, &name));
        };
        if tensor.shape != shape {
            return Err(misshapen(self.folder, &name, &tensor.shape, shape));
        }
        if tensor.dtype == Dtype::F8_E4M3
            && let Some((scales_name, scales)) = fp8::scales_of(self.weights, &name)
        {
            let matrix = fp8::matrix(self.weights, tensor, scales);
            let matrix = matrix.map_err(|reason| unsupported(format!("tensor {name} of 8-bit floats {reason}")))?;
            self.used.borrow_mut().extend([name, scales_name]);
            return Ok(matrix);
        }
        let kind = tensor.dtype.to_string();
        let matrix = in_file(&name, shape, WeightType::from_name(&kind), &kind, self.weights.place(tensor))?;
        self.used.borrow_mut().insert(name);
        Ok(matrix)
    }

    fn refuse_left_over(&self) -> Result<(), ModelError> {
        let used = self.used.borrow();
        let is_ours = |name: &str| !self.nested || name.contains("language_model.") || name == HEAD;
        let left_over = self.weights.tensors().keys().find(|name| {
            let is_table = TABLES.iter().any(|end| name.ends_with(end));
            let is_tied_head = self.architecture.tied && name.ends_with(HEAD);
            !used.contains(*name) && !is_table && !is_tied_head && is_ours(name)
        });
        match left_over {
            Some(name) => Err(ignored(&self.architecture.name, name)),
            None => Ok(()),
        }
    }
}

/// What Hugging Face calls the tensor that GGUF files call `name`; `None` where it has no such thing.
fn hugging_face_name(name: &str, architecture: &Architecture) -> Option<String> {
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        let outer = [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", HEAD),
        ];
        return outer.iter().find(|(gguf, _)| *gguf == name).map(|(_, name)| (*name).to_owned());
    };
    let (part, kind) = part.rsplit_once('.')?;
    let (part, expert) = part.split_once('.').map_or((part, None), |(part, expert)| (part, Some(expert)));
    let mixtral = architecture.name == "mixtral";
    let experts = if mixtral { "block_sparse_moe" } else { "mlp" };
    let part = match (part, expert) {
        ("attn_norm", None) => "input_layernorm",
        ("attn_q", None) => "self_attn.q_proj",
        ("attn_k", None) => "self_attn.k_proj",
        ("attn_v", None) => "self_attn.v_proj",
        ("attn_qkv", None) => "self_attn.qkv_proj",
        ("attn_q_norm", None) => "self_attn.q_norm",
        ("attn_k_norm", None) => "self_attn.k_norm",
        ("attn_output", None) => "self_attn.o_proj",
        ("post_attention_norm", None) => "post_attention_layernorm",
        ("ffn_norm", None) if architecture.norms == Norms::Around => "pre_feedforward_layernorm",
        ("ffn_norm", None) => "post_attention_layernorm",
        ("post_ffw_norm", None) => "post_feedforward_layernorm",
        ("ffn_gate", None) => "mlp.gate_proj",
        ("ffn_up", None) if architecture.fused => "mlp.gate_up_proj",
        ("ffn_up", None) => "mlp.up_proj",
        ("ffn_down", None) => "mlp.down_proj",
        ("ffn_gate_inp", None) => return Some(format!("model.layers.{layer}.{experts}.gate.{kind}")),
        (part, Some(expert)) => {
            let part = match part {
                "ffn_gate" => {
                    if mixtral {
                        "w1"
                    } else {
                        "gate_proj"
                    }
                }
                "ffn_up" => {
                    if mixtral {
                        "w3"
                    } else {
                        "up_proj"
                    }
                }
                "ffn_down" => {
                    if mixtral {
                        "w2"
                    } else {
                        "down_proj"
                    }
                }
                _ => return None,
            };
            return Some(format!("model.layers.{layer}.{experts}.experts.{expert}.{part}.{kind}"));
        }
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

fn missing(path: &Path, name: &str) -> ModelError {
    ModelError::Malformed { path: path.to_owned(), reason: format!("tensor {name} is missing") }
}

fn misshapen(path: &Path, name: &str, shape: &[usize], expected: &[usize]) -> ModelError {
    let reason = format!("tensor {name} has shape {shape:?}, expected {expected:?}");
    ModelError::Malformed { path: path.to_owned(), reason }
}

fn ignored(architecture: &str, name: &str) -> ModelError {
    unsupported(format!("the executor for {architecture} would ignore tensor {name}"))
}

fn unsupported(reason: String) -> ModelError {
    ModelError::Unsupported { reason }
}
