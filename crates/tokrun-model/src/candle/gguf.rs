//! GGUF files through candle's quantised models.
//!
//! candle takes the keys and tensors it knows and ignores the rest, so a file's settings are compared with what each
//! family honours first: an unknown key or a tensor nobody would read is an error that names it.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use candle_core::Shape;
use candle_core::quantized::{GgmlDType, gguf_file};

use super::{CONTEXT_TOKENS_MAX, Loaded, executor, guarded};
use crate::gguf::{Header, TensorInfo, Value};
use crate::mmap::MappedFile;
use crate::{Executor, LoadOptions, ModelError};

mod checks;
mod families;

use checks::Sizes;
use families::{FAMILIES, WRONG};

/// Loads the model of `header`, whose file is `file`.
pub(crate) fn load(
    path: &Path,
    file: &Arc<MappedFile>,
    header: &Header,
    options: &LoadOptions,
    notes: Vec<String>,
) -> Result<Box<dyn Executor>, ModelError> {
    let architecture = header.architecture();
    if let Some((_, fault)) = WRONG.iter().find(|(name, _)| *name == architecture) {
        return Err(ModelError::Unsupported { reason: format!("{architecture} as GGUF: {fault}") });
    }
    let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        let reason = format!("no executor for GGUF architecture {architecture} (there are: {})", known.join(", "));
        return Err(ModelError::Unsupported { reason });
    };
    let sizes = checks::check(path, header, family)?;
    let wanted = options.context_tokens.unwrap_or(usize::MAX).max(1);
    let context_tokens = sizes.context_tokens.min(family.context_tokens_max).min(CONTEXT_TOKENS_MAX).min(wanted);
    let load = {
        let (path, file, header, sizes) = (path.to_owned(), Arc::clone(file), header.clone(), sizes.clone());
        move || {
            let content = content(&header, &sizes, context_tokens)?;
            let mut source = Cursor::new(&file[..]);
            guarded(|| (family.load)(content, &mut source)).map_err(|error| match error {
                ModelError::Compute(error) => ModelError::Malformed { path: path.clone(), reason: error.to_string() },
                other => other,
            })
        }
    };
    let loaded = Loaded {
        decoder: load()?,
        load: Box::new(load),
        pieces: family.pieces,
        vocab_size: sizes.vocab_size,
        embedded_tokens: sizes.embedded_tokens,
        context_tokens,
    };
    Ok(executor(loaded, options.sequences_max, notes))
}

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
    // Without it, Qwen 3's rope tables are computed in f16, where positions beyond 2048 are not even numbers.
    metadata.insert("general.dtype".to_owned(), gguf_file::Value::U32(0));
    for (setting, value) in [
        ("attention.key_length", sizes.head_width),
        ("attention.value_length", sizes.head_width),
        // candle sizes tables and caches by it.
        ("context_length", context_tokens),
    ] {
        metadata.insert(format!("{prefix}{setting}"), gguf_file::Value::U32(value as u32));
    }
    for (setting, value) in [("rope.dimension_count", sizes.head_width), ("attention.head_count_kv", sizes.kv_heads)] {
        metadata.entry(format!("{prefix}{setting}")).or_insert(gguf_file::Value::U32(value as u32));
    }
    let mut tensors = HashMap::new();
    for (name, tensor) in &header.tensors {
        for (name, tensor) in split_experts(name, tensor) {
            tensors.insert(name.clone(), candle_tensor(&name, &tensor)?);
        }
    }
    Ok(gguf_file::Content {
        magic: gguf_file::VersionedMagic::GgufV3,
        metadata,
        tensor_infos: tensors,
        tensor_data_offset: header.data_offset,
    })
}

/// The experts of a layer, which files keep in one tensor and candle wants one by one; other tensors as they are.
fn split_experts(name: &str, tensor: &TensorInfo) -> Vec<(String, TensorInfo)> {
    let (Some(stem), &[experts, rows, columns]) = (name.strip_suffix("_exps.weight"), &tensor.dims[..]) else {
        return vec![(name.to_owned(), tensor.clone())];
    };
    let bytes = tensor.bytes / experts as u64;
    let expert = |index: usize| {
        let offset = tensor.offset + index as u64 * bytes;
        let part = TensorInfo { tensor_type: tensor.tensor_type, dims: vec![rows, columns], offset, bytes };
        (format!("{stem}.{index}.weight"), part)
    };
    (0..experts).map(expert).collect()
}

/// A value in the type candle asks for; `None` for arrays of anything but numbers.
fn candle_value(value: &Value) -> Option<gguf_file::Value> {
    match value {
        Value::Bool(value) => Some(gguf_file::Value::Bool(*value)),
        Value::Int(value) => Some(u32::try_from(*value).map_or(gguf_file::Value::I64(*value), gguf_file::Value::U32)),
        Value::Float(value) => Some(gguf_file::Value::F32(*value as f32)),
        Value::String(value) => Some(gguf_file::Value::String(value.clone())),
        Value::Ints(values) => values
            .iter()
            .map(|value| candle_value(&Value::Int(*value)))
            .collect::<Option<_>>()
            .map(gguf_file::Value::Array),
        Value::Bools(_) | Value::Floats(_) | Value::Strings(_) => None,
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
