//! Compares what a GGUF header says with what candle will do about it.

use std::collections::BTreeSet;
use std::path::Path;

use super::families::{Dim, Family, Presence, Rotary};
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
    /// Experts of a layer, 0 without them.
    pub(super) experts: usize,
    /// Width of the short convolutions, 1 without them.
    pub(super) convolution: usize,
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
    checker.widths(&sizes)?;
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
        let tensors = self.header.tensors.len();
        let layers = self.count("block_count")?;
        // Some layers may have no keys of their own.
        let kv_heads = match self.header.metadata.ints(&self.key("attention.head_count_kv")) {
            Some(each) => each.iter().copied().max().and_then(|heads| usize::try_from(heads).ok()).unwrap_or(0),
            None => self.count_or("attention.head_count_kv", self.count("attention.head_count")?)?,
        };
        let (hidden, heads) = (self.count("embedding_length")?, self.count("attention.head_count")?);
        let experts = self.header.metadata.uint(&self.key("expert_count")).unwrap_or(0) as usize;
        let window = self.count_or("attention.sliding_window", usize::MAX).unwrap_or(usize::MAX);
        let sizes = Sizes {
            layers,
            hidden,
            heads,
            kv_heads,
            head_width: self.count_or("attention.key_length", hidden / heads)?,
            feed_forward: self.count("feed_forward_length")?,
            experts,
            convolution: self.count_or("shortconv.l_cache", 1)?,
            vocab_size: self.rows("output.weight").or_else(|_| self.rows("token_embd.weight"))?,
            embedded_tokens: self.rows("token_embd.weight")?,
            // candle's quantised models see the whole context: the same as a window while the context fits into it.
            context_tokens: self.count("context_length")?.min(window),
        };
        if layers > tensors || experts > tensors * 1024 {
            return Err(self.malformed(format!("{layers} layers of {experts} experts in {tensors} tensors")));
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(self.malformed(format!("{heads} query heads cannot share {kv_heads} key heads")));
        }
        let used = self.header.metadata.uint(&self.key("expert_used_count")).unwrap_or(0) as usize;
        if experts > 1 && !(1..=experts).contains(&used) {
            return Err(self.malformed(format!("{used} of {experts} experts are used")));
        }
        if experts > 1 && !self.header.tensors.contains_key("blk.0.ffn_gate_inp.weight") {
            return Err(self.malformed("tensor blk.0.ffn_gate_inp.weight is missing".to_owned()));
        }
        Ok(sizes)
    }

    /// Widths that candle takes for granted.
    fn widths(&self, sizes: &Sizes) -> Result<(), ModelError> {
        let width = sizes.head_width;
        if self.count_or("attention.value_length", width)? != width {
            return Err(unsupported("keys and values of different widths (attention.value_length)".to_owned()));
        }
        if !self.family.keys.contains(&"attention.key_length") && width.saturating_mul(sizes.heads) != sizes.hidden {
            return Err(unsupported(format!("the executor would ignore attention.key_length = {width}")));
        }
        let rotated = match self.family.rotary {
            Rotary::Whole => width,
            Rotary::Half => width / 2,
            Rotary::AsSet => self.count_or("rope.dimension_count", width)?.min(width),
        };
        let set = self.count_or("rope.dimension_count", rotated)?;
        if set != rotated || !rotated.is_multiple_of(2) {
            return Err(unsupported(format!(
                "the executor would rotate {rotated} values a head, not the {set} that rope.dimension_count says"
            )));
        }
        for (setting, expected) in self.family.fixed {
            if self.header.metadata.float(&self.key(setting)).is_some_and(|value| value != *expected) {
                return Err(unsupported(format!("the executor takes {setting} = {expected}, not what the file says")));
            }
        }
        Ok(())
    }

    /// Every tensor has its shape, none is missing and none is left over.
    fn tensors(&self, sizes: &Sizes) -> Result<(), ModelError> {
        let embedding = ("token_embd.weight", &[Dim::Vocabulary, Dim::Hidden][..], Presence::Required);
        let outer = self.family.tensors.iter().chain([&embedding]).map(|tensor| (tensor.0.to_owned(), tensor));
        let layers = (0..sizes.layers).flat_map(|layer| {
            self.family.layer_tensors.iter().map(move |tensor| (format!("blk.{layer}.{}", tensor.0), tensor))
        });
        let mut left_over: BTreeSet<_> = self.header.tensors.keys().collect();
        for (name, (_, dims, presence)) in outer.chain(layers) {
            let Some(tensor) = self.header.tensors.get(&name) else {
                if *presence == Presence::Optional {
                    continue;
                }
                return Err(self.malformed(format!("tensor {name} is missing")));
            };
            let mut dims: Vec<_> = dims.iter().map(|dim| dim.size(sizes)).collect();
            if name == "token_embd.weight" {
                dims[0] = sizes.embedded_tokens;
            }
            if tensor.dims != dims {
                return Err(self.malformed(format!("tensor {name} has shape {:?}, expected {dims:?}", tensor.dims)));
            }
            // candle takes blocks of these in pairs.
            let (kind, columns) = (tensor.tensor_type.name, dims.last().copied().unwrap_or(0));
            if matches!(kind, "Q4_1" | "Q5_0" | "Q5_1") && !columns.is_multiple_of(64) {
                return Err(unsupported(format!(
                    "tensor {name} has {columns} columns, not a multiple of 64, in {kind}"
                )));
            }
            left_over.remove(&name);
        }
        match left_over.first() {
            None => Ok(()),
            Some(name) if *name == "rope_freqs.weight" => Err(unsupported(
                "the executor would ignore tensor rope_freqs.weight (Llama 3 rope scaling); use the safetensors files"
                    .to_owned(),
            )),
            Some(name) => Err(unsupported(format!("the executor would ignore tensor {name}"))),
        }
    }

    fn rows(&self, tensor: &str) -> Result<usize, ModelError> {
        let tensor_info = self.header.tensors.get(tensor);
        tensor_info.map(|info| info.dims[0]).ok_or_else(|| self.malformed(format!("tensor {tensor} is missing")))
    }

    fn key(&self, setting: &str) -> String {
        format!("{}.{setting}", self.family.architecture)
    }

    fn count(&self, setting: &str) -> Result<usize, ModelError> {
        let key = self.key(setting);
        // Sizes are 32 bits wide in candle, and no model comes near.
        let value = self.header.metadata.uint(&key).filter(|&value| value > 0 && value <= u64::from(u32::MAX));
        value.map(|value| value as usize).ok_or_else(|| self.malformed(format!("key {key} is missing or out of range")))
    }

    fn count_or(&self, setting: &str, default: usize) -> Result<usize, ModelError> {
        if self.header.metadata.get(&self.key(setting)).is_some() { self.count(setting) } else { Ok(default) }
    }

    fn malformed(&self, reason: String) -> ModelError {
        ModelError::Malformed { path: self.path.to_owned(), reason }
    }
}

impl Dim {
    fn size(self, sizes: &Sizes) -> usize {
        match self {
            Self::Hidden => sizes.hidden,
            Self::ThreeHidden => sizes.hidden.saturating_mul(3),
            Self::Head => sizes.head_width,
            Self::Queries => sizes.heads.saturating_mul(sizes.head_width),
            Self::Keys => sizes.kv_heads.saturating_mul(sizes.head_width),
            Self::QueriesKeysValues => (sizes.heads + 2 * sizes.kv_heads).saturating_mul(sizes.head_width),
            Self::FeedForward => sizes.feed_forward,
            Self::TwoFeedForward => sizes.feed_forward.saturating_mul(2),
            Self::Experts => sizes.experts,
            Self::Convolution => sizes.convolution,
            Self::Vocabulary => sizes.vocab_size,
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
