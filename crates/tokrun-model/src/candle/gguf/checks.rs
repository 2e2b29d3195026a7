//! Compares what a GGUF header says with what candle will do about it.

use std::path::Path;

use super::{Dim, Family};
use crate::ModelError;
use crate::gguf::{Header, Value};

/// Keys that every family honours, or that say nothing about the computation.
const COMMON_KEYS: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "tensor_data_layout",
];

/// What a model's tensors measure.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_width: usize,
    pub(super) feed_forward: usize,
    /// Rows of the output matrix.
    pub(super) vocab_size: usize,
    /// Rows of the embedding matrix.
    pub(super) embedded_tokens: usize,
    /// Longest sequence the settings allow.
    pub(super) context_tokens: usize,
}

/// Checks every setting and every tensor of `header`, read from `path`, against `family`.
pub(super) fn check(path: &Path, header: &Header, family: &Family) -> Result<Sizes, ModelError> {
    let checker = Checker { path, header, family };
    checker.keys()?;
    let sizes = checker.sizes()?;
    checker.tensors(&sizes)?;
    Ok(sizes)
}

struct Checker<'a> {
    path: &'a Path,
    header: &'a Header,
    family: &'a Family,
}

impl Checker<'_> {
    /// Every key of the architecture is honoured, or has the value that changes nothing.
    fn keys(&self) -> Result<(), ModelError> {
        let prefix = format!("{}.", self.family.architecture);
        for (key, value) in &self.header.metadata.0 {
            let Some(setting) = key.strip_prefix(&prefix) else { continue };
            let honoured = COMMON_KEYS.contains(&setting) || self.family.keys.contains(&setting);
            if !honoured && !self.is_neutral(setting, value) {
                return Err(unsupported(format!("the executor would ignore {key} = {}", shorten(value))));
            }
        }
        Ok(())
    }

    fn is_neutral(&self, setting: &str, value: &Value) -> bool {
        match (setting, value) {
            ("rope.scaling.type", Value::String(kind)) => kind == "none",
            ("rope.scaling.factor" | "rope.scale_linear" | "rope.scaling.attn_factor", _) => is_number(value, 1.0),
            ("rope.scaling.finetuned" | "rope.scaling.original_context_length", _) => self.rope_is_unscaled(),
            ("expert_count" | "expert_used_count", Value::Int(0)) => true,
            ("attention.causal", Value::Bool(true)) => true,
            ("attn_logit_softcapping" | "final_logit_softcapping", _) => is_number(value, 0.0),
            _ => false,
        }
    }

    /// Whether no rope scaling type is set (the type itself is checked beside this).
    fn rope_is_unscaled(&self) -> bool {
        let key = format!("{}.rope.scaling.type", self.family.architecture);
        self.header.metadata.str(&key).is_none_or(|kind| kind == "none")
    }

    fn sizes(&self) -> Result<Sizes, ModelError> {
        let layers = self.count("block_count")?;
        if layers > self.header.tensors.len() {
            return Err(
                self.malformed(format!("{layers} layers cannot be made of {} tensors", self.header.tensors.len()))
            );
        }
        let hidden = self.count("embedding_length")?;
        let heads = self.count("attention.head_count")?;
        let kv_heads = self.count_or("attention.head_count_kv", heads)?;
        let head_width = self.count_or("attention.key_length", hidden / heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.malformed(format!("{heads} query heads cannot share {kv_heads} key heads")));
        }
        if self.count_or("attention.value_length", head_width)? != head_width {
            return Err(unsupported("keys and values of different widths (attention.value_length)".to_owned()));
        }
        if !self.family.keys.contains(&"attention.key_length") && head_width * heads != hidden {
            return Err(unsupported(format!("attention.key_length {head_width} with {heads} heads in {hidden}")));
        }
        if self.count_or("rope.dimension_count", head_width)? != head_width && !self.family.partial_rotary() {
            return Err(unsupported("a rope.dimension_count that is not the heads' width".to_owned()));
        }
        let window = self.count_or("attention.sliding_window", usize::MAX).unwrap_or(usize::MAX);
        Ok(Sizes {
            layers,
            hidden,
            heads,
            kv_heads,
            head_width,
            feed_forward: self.count("feed_forward_length")?,
            vocab_size: self.rows("output.weight").or_else(|_| self.rows("token_embd.weight"))?,
            embedded_tokens: self.rows("token_embd.weight")?,
            // candle's quantised models see the whole context: the same as a window while the context fits into it.
            context_tokens: self.count("context_length")?.min(window),
        })
    }

    /// Every tensor has its shape and a type candle reads, none is missing and none is left over.
    fn tensors(&self, sizes: &Sizes) -> Result<(), ModelError> {
        let mut used = 0;
        let mut check = |name: &str, dims: &[usize], optional: bool| {
            let Some(tensor) = self.header.tensors.get(name) else {
                return if optional { Ok(()) } else { Err(self.malformed(format!("tensor {name} is missing"))) };
            };
            if tensor.dims != dims {
                return Err(self.malformed(format!("tensor {name} has shape {:?}, expected {dims:?}", tensor.dims)));
            }
            used += 1;
            Ok(())
        };
        check("token_embd.weight", &[sizes.embedded_tokens, sizes.hidden], false)?;
        check("output_norm.weight", &[sizes.hidden], false)?;
        check("output.weight", &[sizes.vocab_size, sizes.hidden], true)?;
        for layer in 0..sizes.layers {
            for (name, dims) in self.family.layer_tensors {
                let dims: Vec<_> = dims.iter().map(|dim| dim.size(sizes)).collect();
                check(&format!("blk.{layer}.{name}"), &dims, self.family.optional.contains(name))?;
            }
        }
        if used == self.header.tensors.len() { Ok(()) } else { Err(self.left_over(sizes)) }
    }

    /// Names a tensor that no layer reads.
    fn left_over(&self, sizes: &Sizes) -> ModelError {
        let is_used = |name: &str| {
            let layer_tensor = || {
                let (layer, name) = name.strip_prefix("blk.")?.split_once('.')?;
                let known = self.family.layer_tensors.iter().any(|(known, _)| *known == name);
                Some(known && layer.parse::<usize>().is_ok_and(|layer| layer < sizes.layers))
            };
            matches!(name, "token_embd.weight" | "output_norm.weight" | "output.weight") || layer_tensor() == Some(true)
        };
        let name = self.header.tensors.keys().find(|name| !is_used(name)).map_or("of an unknown name", String::as_str);
        let hint = if name == "rope_freqs.weight" { " (Llama 3 rope scaling; use the safetensors files)" } else { "" };
        unsupported(format!("the executor would ignore tensor {name}{hint}"))
    }

    fn rows(&self, tensor: &str) -> Result<usize, ModelError> {
        let tensor_info = self.header.tensors.get(tensor);
        tensor_info.map(|info| info.dims[0]).ok_or_else(|| self.malformed(format!("tensor {tensor} is missing")))
    }

    fn count(&self, setting: &str) -> Result<usize, ModelError> {
        let key = format!("{}.{setting}", self.family.architecture);
        // Sizes are 32 bits wide in candle, and no model comes near.
        let value = self.header.metadata.uint(&key).filter(|&value| value > 0 && value <= u64::from(u32::MAX));
        value.map(|value| value as usize).ok_or_else(|| self.malformed(format!("key {key} is missing or out of range")))
    }

    fn count_or(&self, setting: &str, default: usize) -> Result<usize, ModelError> {
        let key = format!("{}.{setting}", self.family.architecture);
        if self.header.metadata.get(&key).is_some() { self.count(setting) } else { Ok(default) }
    }

    fn malformed(&self, reason: String) -> ModelError {
        ModelError::Malformed { path: self.path.to_owned(), reason }
    }
}

impl Dim {
    fn size(self, sizes: &Sizes) -> usize {
        match self {
            Self::Hidden => sizes.hidden,
            Self::Queries => sizes.heads * sizes.head_width,
            Self::Keys => sizes.kv_heads * sizes.head_width,
            Self::FeedForward => sizes.feed_forward,
        }
    }
}

fn is_number(value: &Value, expected: f64) -> bool {
    match value {
        Value::Float(value) => *value == expected,
        Value::Int(value) => *value as f64 == expected,
        _ => false,
    }
}

fn shorten(value: &Value) -> String {
    let text = format!("{value:?}");
    if text.len() <= 60 { text } else { format!("{}...", text.chars().take(60).collect::<String>()) }
}

fn unsupported(reason: String) -> ModelError {
    ModelError::Unsupported { reason }
}
