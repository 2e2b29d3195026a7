//! GGUF files through candle's quantised models.
//!
//! candle takes the keys and tensors it knows and ignores the rest, so a file's settings are compared with what each
//! family honours first: an unknown key or a tensor nobody would read is an error that names it.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::{Device, Shape, Tensor};
use candle_transformers::models::quantized_llama;

use super::{Decoder, Loaded, Pieces, executor, guarded};
use crate::gguf::{Header, TensorInfo, Value};
use crate::{Executor, LoadOptions, ModelError};

mod checks;

use checks::Sizes;

/// Loads the model of `header`, whose file has the bytes `file`.
pub(crate) fn load(
    path: &Path,
    file: &[u8],
    header: &Header,
    options: &LoadOptions,
) -> Result<Box<dyn Executor>, ModelError> {
    let architecture = header.architecture();
    let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        let reason = format!("no executor for GGUF architecture {architecture} (there are: {})", known.join(", "));
        return Err(ModelError::Unsupported { reason });
    };
    let sizes = checks::check(path, header, family)?;
    let context_tokens = sizes.context_tokens.min(family.context_tokens_max);
    let content = content(header, &sizes, context_tokens)?;
    let decoder = guarded(|| (family.load)(content, &mut Cursor::new(file)))?;
    let loaded = Loaded {
        decoder,
        pieces: family.pieces,
        vocab_size: sizes.vocab_size,
        embedded_tokens: sizes.embedded_tokens,
        context_tokens,
    };
    Ok(executor(loaded, options.sequences_max))
}

/// One GGUF architecture as candle runs it.
struct Family {
    /// `general.architecture`.
    architecture: &'static str,
    /// Keys after `{architecture}.` that candle honours beside those it honours for every family.
    keys: &'static [&'static str],
    /// Tensors of each layer, after `blk.N.`, and their shapes.
    layer_tensors: &'static [(&'static str, &'static [Dim])],
    /// Layer tensors that may be absent.
    optional: &'static [&'static str],
    /// The length candle's own tables end at.
    context_tokens_max: usize,
    pieces: Pieces,
    load: fn(gguf_file::Content, &mut Cursor<&[u8]>) -> candle_core::Result<Box<dyn Decoder>>,
}

impl Family {
    /// Whether candle rotates only the first `rope.dimension_count` values of a head.
    fn partial_rotary(&self) -> bool {
        self.keys.contains(&"rope.dimension_count")
    }
}

/// A dimension of a tensor, by meaning.
#[derive(Clone, Copy, Debug)]
enum Dim {
    Hidden,
    /// All query heads.
    Queries,
    /// All key (or value) heads.
    Keys,
    FeedForward,
}

const FAMILIES: &[Family] = &[Family {
    architecture: "llama",
    keys: &[],
    layer_tensors: &[
        ("attn_norm.weight", &[Dim::Hidden]),
        ("attn_q.weight", &[Dim::Queries, Dim::Hidden]),
        ("attn_k.weight", &[Dim::Keys, Dim::Hidden]),
        ("attn_v.weight", &[Dim::Keys, Dim::Hidden]),
        ("attn_output.weight", &[Dim::Hidden, Dim::Queries]),
        ("ffn_norm.weight", &[Dim::Hidden]),
        ("ffn_gate.weight", &[Dim::FeedForward, Dim::Hidden]),
        ("ffn_up.weight", &[Dim::FeedForward, Dim::Hidden]),
        ("ffn_down.weight", &[Dim::Hidden, Dim::FeedForward]),
    ],
    optional: &[],
    context_tokens_max: quantized_llama::MAX_SEQ_LEN,
    pieces: Pieces::Any,
    load: |content, file| Ok(Box::new(quantized_llama::ModelWeights::from_gguf(content, file, &Device::Cpu)?)),
}];

/// The header as candle wants it: every setting spelled out, and in the width candle insists on.
fn content(header: &Header, sizes: &Sizes, context_tokens: usize) -> Result<gguf_file::Content, ModelError> {
    let architecture = header.architecture();
    let prefix = format!("{architecture}.");
    let mut metadata: HashMap<_, _> = header
        .metadata
        .0
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix))
        .filter_map(|(key, value)| Some((key.clone(), candle_value(value)?)))
        .collect();
    metadata.insert("general.architecture".to_owned(), gguf_file::Value::String(architecture.to_owned()));
    for (setting, value) in [
        ("attention.head_count_kv", sizes.kv_heads),
        ("attention.key_length", sizes.head_width),
        ("attention.value_length", sizes.head_width),
        // candle sizes tables and caches by it.
        ("context_length", context_tokens),
    ] {
        metadata.insert(format!("{prefix}{setting}"), gguf_file::Value::U32(value as u32));
    }
    let rope_width = gguf_file::Value::U32(sizes.head_width as u32);
    metadata.entry(format!("{prefix}rope.dimension_count")).or_insert(rope_width);
    let tensors = header.tensors.iter().map(|(name, tensor)| Ok((name.clone(), candle_tensor(name, tensor)?)));
    Ok(gguf_file::Content {
        magic: gguf_file::VersionedMagic::GgufV3,
        metadata,
        tensor_infos: tensors.collect::<Result<_, ModelError>>()?,
        tensor_data_offset: header.data_offset,
    })
}

/// A value in the type candle asks for; `None` for arrays, which no family here reads.
fn candle_value(value: &Value) -> Option<gguf_file::Value> {
    match value {
        Value::Bool(value) => Some(gguf_file::Value::Bool(*value)),
        Value::Int(value) => Some(u32::try_from(*value).map_or(gguf_file::Value::I64(*value), gguf_file::Value::U32)),
        Value::Float(value) => Some(gguf_file::Value::F32(*value as f32)),
        Value::String(value) => Some(gguf_file::Value::String(value.clone())),
        Value::Bools(_) | Value::Ints(_) | Value::Floats(_) | Value::Strings(_) => None,
    }
}

fn candle_tensor(name: &str, tensor: &TensorInfo) -> Result<gguf_file::TensorInfo, ModelError> {
    let ggml_dtype = match tensor.tensor_type.name {
        "F32" => GgmlDType::F32,
        "F16" => GgmlDType::F16,
        "BF16" => GgmlDType::BF16,
        "Q4_0" => GgmlDType::Q4_0,
        "Q4_1" => GgmlDType::Q4_1,
        "Q5_0" => GgmlDType::Q5_0,
        "Q5_1" => GgmlDType::Q5_1,
        "Q8_0" => GgmlDType::Q8_0,
        "Q2_K" => GgmlDType::Q2K,
        "Q3_K" => GgmlDType::Q3K,
        "Q4_K" => GgmlDType::Q4K,
        "Q5_K" => GgmlDType::Q5K,
        "Q6_K" => GgmlDType::Q6K,
        other => {
            let reason = format!("tensor {name} has type {other}, which the executor does not compute in");
            return Err(ModelError::Unsupported { reason });
        }
    };
    Ok(gguf_file::TensorInfo { ggml_dtype, shape: Shape::from(tensor.dims.clone()), offset: tensor.offset })
}

impl Decoder for quantized_llama::ModelWeights {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> candle_core::Result<Tensor> {
        quantized_llama::ModelWeights::forward(self, tokens, position)
    }

    fn fork(&self) -> Option<Box<dyn Decoder>> {
        Some(Box::new(self.clone()))
    }
}
