//! Reads a decoder's description from the header of a GGUF file.

use std::path::Path;

use tokrun_kernels::{Activation, RopeStyle};

use super::architecture::{Architecture, Experts, HEAD_DIM_MAX, Layer, Norms, QueryKeyNorms};
use super::rope::{Scaling, rope, yarn_magnitude};
use super::weights::Weights;
use crate::ModelError;
use crate::gguf::{Header, Value};

/// What sets an architecture apart from the others, as far as the file does not say it itself.
struct Family {
    /// `general.architecture`.
    name: &'static str,
    rope_style: RopeStyle,
    norms: Norms,
    query_key_norms: QueryKeyNorms,
    fused: bool,
    gemma: bool,
    /// Every so many layers one sees everything, where a window is set; 0 for never.
    sliding_pattern: usize,
    /// Every so many layers one has no positions.
    no_rope_interval: usize,
}

const PLAIN: Family = Family {
    name: "",
    rope_style: RopeStyle::Halves,
    norms: Norms::Before,
    query_key_norms: QueryKeyNorms::Nothing,
    fused: false,
    gemma: false,
    sliding_pattern: 0,
    no_rope_interval: usize::MAX,
};

/// Every architecture, in the order of their names.
const FAMILIES: &[Family] = &[
    Family { name: "gemma2", norms: Norms::Around, gemma: true, sliding_pattern: 2, ..PLAIN },
    Family {
        name: "gemma3",
        norms: Norms::Around,
        query_key_norms: QueryKeyNorms::Heads,
        gemma: true,
        sliding_pattern: 6,
        ..PLAIN
    },
    // Also Mistral and Mixtral.
    Family { name: "llama", rope_style: RopeStyle::Interleaved, ..PLAIN },
    Family { name: "olmo2", norms: Norms::After, query_key_norms: QueryKeyNorms::Rows, ..PLAIN },
    Family { name: "phi3", fused: true, ..PLAIN },
    Family { name: "qwen2", ..PLAIN },
    Family { name: "qwen3", query_key_norms: QueryKeyNorms::Heads, ..PLAIN },
    Family { name: "qwen3moe", query_key_norms: QueryKeyNorms::Heads, ..PLAIN },
    Family { name: "smollm3", rope_style: RopeStyle::Interleaved, no_rope_interval: 4, ..PLAIN },
];

/// Keys after the architecture's name that are read here.
const HONOURED: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    // These say nothing about the computation.
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
];

/// Describes the decoder of `header`, read from `path`, for sequences of at most `context_tokens` tokens.
pub(super) fn architecture(
    path: &Path,
    header: &Header,
    weights: &dyn Weights,
    context_tokens: usize,
) -> Result<Architecture, ModelError> {
    let name = header.architecture();
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        let reason = format!("no native executor for GGUF architecture {name} (there are: {})", known.join(", "));
        return Err(ModelError::Unsupported { reason });
    };
    let reader = Reader { path, header, family, weights, context_tokens };
    reader.refuse_ignored()?;
    let architecture = reader.architecture()?;
    architecture.check()?;
    Ok(architecture)
}

struct Reader<'a> {
    path: &'a Path,
    header: &'a Header,
    family: &'a Family,
    weights: &'a dyn Weights,
    /// Longest sequence that the caller needs.
    context_tokens: usize,
}

impl Reader<'_> {
    /// Every key of the architecture is honoured, or has the value that changes nothing.
    fn refuse_ignored(&self) -> Result<(), ModelError> {
        let prefix = format!("{}.", self.family.name);
        let own = self.header.metadata.0.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
        for (setting, value) in own {
            let neutral = match setting {
                "attention.causal" => *value == Value::Bool(true),
                // A softmax over all experts.
                "expert_gating_func" => *value == Value::Int(1),
                "expert_weights_norm" => *value == Value::Bool(true),
                "expert_weights_scale" => is_number(value, &[0.0, 1.0]),
                "attention.clamp_kqv"
                | "expert_shared_count"
                | "leading_dense_block_count"
                | "logit_scale"
                | "nextn_predict_layers"
                | "rope.scaling.yarn_log_multiplier" => is_number(value, &[0.0]),
                "rope.scaling.yarn_ext_factor" => is_number(value, &[1.0]),
                _ => false,
            };
            if !neutral && !HONOURED.contains(&setting) {
                return Err(self.refused(format!("the executor would ignore {setting} = {}", shorten(value))));
            }
        }
        Ok(())
    }

    fn architecture(&self) -> Result<Architecture, ModelError> {
        let family = self.family;
        let (hidden, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head_dim = self.size_or("attention.key_length", hidden / heads)?;
        if self.size_or("attention.value_length", head_dim)? != head_dim {
            return Err(self.refused("keys and values of different widths (attention.value_length)".to_owned()));
        }
        let rotary = self.size_or("rope.dimension_count", head_dim)?;
        if head_dim > HEAD_DIM_MAX || rotary > head_dim || !rotary.is_multiple_of(2) {
            return Err(self.refused(format!("{rotary} of {head_dim} values a head cannot be rotated")));
        }
        let context_tokens = self.size("context_length")?.min(self.context_tokens);
        let (ropes, layers) = self.layers(rotary, context_tokens)?;
        let tied = !self.weights.has("output.weight");
        let embedded_tokens = self.rows("token_embd.weight")?;
        Ok(Architecture {
            name: family.name.to_owned(),
            hidden,
            heads,
            kv_heads: self.size_or("attention.head_count_kv", heads)?,
            head_dim,
            feed_forward: self.size("feed_forward_length")?,
            embedded_tokens,
            vocab_size: if tied { embedded_tokens } else { self.rows("output.weight")? },
            tied,
            context_tokens,
            epsilon: self.number("attention.layer_norm_rms_epsilon")? as f32,
            // Files hold the factors themselves.
            norm_offset: 0.0,
            norms: family.norms,
            query_key_norms: family.query_key_norms,
            qkv_bias: self.weights.has("blk.0.attn_q.bias") || self.weights.has("blk.0.attn_qkv.bias"),
            output_bias: self.weights.has("blk.0.attn_output.bias"),
            fused: family.fused,
            embedding_scale: if family.gemma { (hidden as f32).sqrt() } else { 1.0 },
            attention_scale: self.attention_scale(hidden, heads, head_dim, layers.len())?,
            attention_softcap: self.cap("attn_logit_softcapping")?,
            logit_softcap: self.cap("final_logit_softcapping")?,
            activation: if family.gemma { Activation::GeluTanh } else { Activation::Silu },
            experts: self.experts()?,
            ropes,
            layers,
        })
    }

    /// Files do not say how Gemma scales its scores: by the heads' width, but by that of an even share in the largest
    /// model of each generation.
    fn attention_scale(&self, hidden: usize, heads: usize, head_dim: usize, layers: usize) -> Result<f32, ModelError> {
        if let Some(scale) = self.optional("attention.scale")?.filter(|&scale| scale != 0.0) {
            return Ok(scale as f32);
        }
        let largest = matches!((self.family.name, layers), ("gemma2", 46) | ("gemma3", 62));
        let width = if largest { hidden as f64 / heads as f64 } else { head_dim as f64 };
        Ok((1.0 / width.sqrt()) as f32)
    }

    /// The rope tables, and what sets the layers apart.
    fn layers(
        &self,
        rotary: usize,
        context_tokens: usize,
    ) -> Result<(Vec<tokrun_kernels::Rope>, Vec<Layer>), ModelError> {
        let family = self.family;
        let base = self.optional("rope.freq_base")?.unwrap_or(10_000.0);
        let mut ropes = vec![rope(base, rotary, family.rope_style, &self.scaling(rotary, context_tokens)?)];
        if family.name == "gemma3" {
            let base = self.optional("rope.freq_base_swa")?.unwrap_or(10_000.0);
            ropes.push(rope(base, rotary, family.rope_style, &Scaling::None));
        }
        let count = self.size("block_count")?;
        let default_window = if family.name == "gemma2" { 4096 } else { 0 };
        let window = self.optional("attention.sliding_window")?.map_or(default_window, |window| window as usize);
        let slides = self.slides(count)?;
        let mixture = self.experts()?.is_some();
        let layers = (0..count).map(|index| Layer {
            window_tokens: (slides[index] && window > 0 && window < context_tokens).then_some(window),
            rope: (!(index + 1).is_multiple_of(family.no_rope_interval))
                .then_some(if ropes.len() > 1 && slides[index] { 1 } else { 0 }),
            mixture,
        });
        let layers = layers.collect();
        Ok((ropes, layers))
    }

    /// Which layers see a window only, where there is one.
    fn slides(&self, layers: usize) -> Result<Vec<bool>, ModelError> {
        let pattern = match self.get("attention.sliding_window_pattern") {
            Some(Value::Bools(each)) if each.len() == layers => return Ok(each.clone()),
            Some(Value::Int(pattern)) if *pattern >= 0 => *pattern as usize,
            Some(other) => {
                return Err(self.refused(format!("attention.sliding_window_pattern = {}", shorten(other))));
            }
            None => self.family.sliding_pattern,
        };
        Ok((1..=layers).map(|layer| pattern == 0 || !layer.is_multiple_of(pattern)).collect())
    }

    fn experts(&self) -> Result<Option<Experts>, ModelError> {
        let count = self.size_or_zero("expert_count")?;
        if count == 0 {
            return Ok(None);
        }
        Ok(Some(Experts {
            count,
            per_token: self.size("expert_used_count")?,
            feed_forward: match self.size_or_zero("expert_feed_forward_length")? {
                0 => self.size("feed_forward_length")?,
                width => width,
            },
            normalise: true,
        }))
    }

    /// How keys and tensors stretch the rope of layers that see everything.
    fn scaling(&self, rotary: usize, context_tokens: usize) -> Result<Scaling, ModelError> {
        let kind = self.header.metadata.str(&self.key("rope.scaling.type")).unwrap_or("none");
        let factor = self.optional("rope.scaling.factor")?.or(self.optional("rope.scale_linear")?);
        let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
        let original_tokens = match self.optional("rope.scaling.original_context_length")? {
            Some(tokens) if tokens >= 1.0 => tokens,
            _ => self.size("context_length")? as f64,
        };
        let magnitude = self.optional("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let factors = ["rope_freqs", "rope_factors_short", "rope_factors_long"]
            .map(|name| format!("{name}.weight"))
            .map(|name| self.weights.has(&name).then(|| self.weights.vector(&name, rotary / 2)).transpose());
        let [freqs, short, long] = factors;
        match (kind, freqs?, short?, long?) {
            ("none" | "linear", None, None, None) if magnitude == 1.0 => match (kind, factor) {
                (_, 1.0) => Ok(Scaling::None),
                ("linear", factor) => Ok(Scaling::Linear(factor)),
                (_, factor) => Err(self.refused(format!("rope.scaling.factor = {factor} without a type"))),
            },
            ("none", Some(each), None, None) if magnitude == 1.0 && factor == 1.0 => {
                Ok(Scaling::Factors { each, magnitude })
            }
            ("none" | "longrope", None, Some(short), Some(long)) => {
                let each = if context_tokens as f64 > original_tokens { long } else { short };
                Ok(Scaling::Factors { each, magnitude })
            }
            ("yarn", None, None, None) => Ok(Scaling::Yarn {
                factor,
                original_tokens,
                beta_fast: self.optional("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.optional("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                truncate: true,
                magnitude: magnitude * yarn_magnitude(factor, 1.0),
            }),
            (kind, ..) => Err(self.refused(format!("this combination of rope.scaling.type = {kind} and its tensors"))),
        }
    }

    /// A soft cap, where it is on.
    fn cap(&self, setting: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.optional(setting)?.filter(|&cap| cap != 0.0).map(|cap| cap as f32))
    }

    fn rows(&self, tensor: &str) -> Result<usize, ModelError> {
        let info = self.header.tensors.get(tensor);
        info.map(|info| info.dims[0]).ok_or_else(|| self.malformed(format!("tensor {tensor} is missing")))
    }

    fn key(&self, setting: &str) -> String {
        format!("{}.{setting}", self.family.name)
    }

    fn get(&self, setting: &str) -> Option<&Value> {
        self.header.metadata.get(&self.key(setting))
    }

    /// A size, which is positive and fits 32 bits: no model comes near.
    fn size(&self, setting: &str) -> Result<usize, ModelError> {
        let key = self.key(setting);
        let size = self.header.metadata.uint(&key).filter(|&size| size > 0 && size <= u64::from(u32::MAX));
        size.map(|size| size as usize).ok_or_else(|| self.malformed(format!("key {key} is missing or out of range")))
    }

    fn size_or(&self, setting: &str, default: usize) -> Result<usize, ModelError> {
        if self.get(setting).is_some() { self.size(setting) } else { Ok(default) }
    }

    fn size_or_zero(&self, setting: &str) -> Result<usize, ModelError> {
        if self.get(setting).is_none_or(|value| *value == Value::Int(0)) { Ok(0) } else { self.size(setting) }
    }

    fn number(&self, setting: &str) -> Result<f64, ModelError> {
        let number = self.optional(setting)?;
        number.ok_or_else(|| self.malformed(format!("key {} is missing", self.key(setting))))
    }

    /// A number that is not negative, where it is set.
    fn optional(&self, setting: &str) -> Result<Option<f64>, ModelError> {
        if self.get(setting).is_none() {
            return Ok(None);
        }
        let key = self.key(setting);
        match self.header.metadata.float(&key).filter(|number| number.is_finite() && *number >= 0.0) {
            Some(number) => Ok(Some(number)),
            None => Err(self.malformed(format!("key {key} is out of range"))),
        }
    }

    fn malformed(&self, reason: String) -> ModelError {
        ModelError::Malformed { path: self.path.to_owned(), reason }
    }

    fn refused(&self, reason: String) -> ModelError {
        ModelError::Unsupported { reason: format!("{} as GGUF: {reason}", self.family.name) }
    }
}

fn is_number(value: &Value, expected: &[f64]) -> bool {
    match value {
        Value::Float(value) => expected.contains(value),
        Value::Int(value) => expected.contains(&(*value as f64)),
        _ => false,
    }
}

fn shorten(value: &Value) -> String {
    let text = format!("{value:?}");
    if text.len() <= 60 { text } else { format!("{}...", text.chars().take(60).collect::<String>()) }
}
