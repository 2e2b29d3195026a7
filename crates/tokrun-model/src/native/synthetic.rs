//! Models of known shapes with made-up weights, so that a machine can be judged without a download.
//!
//! Weights are one pseudo-random run of blocks, repeated: their bytes are as many and as hard to multiply with as real
//! ones, and of such a size that activations neither vanish nor overflow.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use tokrun_kernels::{RowSource, WeightType, dequantise};

use super::architecture::Architecture;
use super::safetensors;
use super::sources::Sources;
use super::weights::{Matrix, Weights};
use crate::config::Config;
use crate::{ModelError, ModelInfo, gguf};

/// A shape: name, family, hidden and feed-forward width, layers, heads, key heads, head width, vocabulary, context, rope
/// base, whether the embedding is the output matrix, and what else is set.
type Shape =
    (&'static str, &'static str, usize, usize, usize, usize, usize, usize, usize, usize, f64, bool, &'static str);

const LLAMA_1: &str = r#"{"rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#;
const LLAMA_8: &str = r#"{"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#;
const QWEN_EXPERTS: &str = r#"{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    "norm_topk_prob": true}"#;
const GEMMA_4B: &str = r#"{"sliding_window": 1024, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}"#;

#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    ("gemma-2-2b", "gemma2", 2304, 9216, 26, 8, 4, 256, 256_000, 8192, 1e4, true, r#"{"sliding_window": 4096}"#),
    ("gemma-3-1b", "gemma3_text", 1152, 6912, 26, 4, 1, 256, 262_144, 32_768, 1e6, true, r#"{"sliding_window": 512}"#),
    ("gemma-3-4b", "gemma3_text", 2560, 10_240, 34, 8, 4, 256, 262_208, 131_072, 1e6, true, GEMMA_4B),
    ("llama-3.1-8b", "llama", 4096, 14_336, 32, 32, 8, 128, 128_256, 131_072, 5e5, false, LLAMA_8),
    ("llama-3.1-70b", "llama", 8192, 28_672, 80, 64, 8, 128, 128_256, 131_072, 5e5, false, LLAMA_8),
    ("llama-3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128_256, 131_072, 5e5, true, LLAMA_1),
    ("llama-3.2-3b", "llama", 3072, 8192, 28, 24, 8, 128, 128_256, 131_072, 5e5, true, LLAMA_1),
    ("mistral-7b", "mistral", 4096, 14_336, 32, 32, 8, 128, 32_768, 32_768, 1e6, false, "{}"),
    ("mixtral-8x7b", "mixtral", 4096, 14_336, 32, 32, 8, 128, 32_000, 32_768, 1e6, false,
        r#"{"num_experts": 8, "num_experts_per_tok": 2}"#),
    ("olmo-2-1b", "olmo2", 2048, 8192, 16, 16, 16, 128, 100_352, 4096, 5e5, false, "{}"),
    ("phi-4", "phi3", 5120, 17_920, 40, 40, 10, 128, 100_352, 16_384, 2.5e5, false, "{}"),
    // Without the factors of its rope, which change no speed.
    ("phi-4-mini", "phi3", 3072, 8192, 32, 24, 8, 128, 200_064, 131_072, 1e4, true,
        r#"{"partial_rotary_factor": 0.75}"#),
    ("qwen2.5-0.5b", "qwen2", 896, 4864, 24, 14, 2, 64, 151_936, 32_768, 1e6, true, "{}"),
    ("qwen2.5-7b", "qwen2", 3584, 18_944, 28, 28, 4, 128, 152_064, 32_768, 1e6, false, "{}"),
    ("qwen3-0.6b", "qwen3", 1024, 3072, 28, 16, 8, 128, 151_936, 40_960, 1e6, true, "{}"),
    ("qwen3-1.7b", "qwen3", 2048, 6144, 28, 16, 8, 128, 151_936, 40_960, 1e6, true, "{}"),
    ("qwen3-4b", "qwen3", 2560, 9728, 36, 32, 8, 128, 151_936, 40_960, 1e6, true, "{}"),
    ("qwen3-8b", "qwen3", 4096, 12_288, 36, 32, 8, 128, 151_936, 40_960, 1e6, false, "{}"),
    ("qwen3-14b", "qwen3", 5120, 17_408, 40, 40, 8, 128, 151_936, 40_960, 1e6, false, "{}"),
    ("qwen3-30b-a3b", "qwen3_moe", 2048, 6144, 48, 32, 4, 128, 151_936, 40_960, 1e6, false, QWEN_EXPERTS),
    ("smollm2-135m", "llama", 576, 1536, 30, 9, 3, 64, 49_152, 8192, 1e5, true, "{}"),
    ("smollm2-360m", "llama", 960, 2560, 32, 15, 5, 64, 49_152, 8192, 1e5, true, "{}"),
    ("smollm3-3b", "smollm3", 2048, 11_008, 36, 16, 4, 128, 128_256, 65_536, 5e6, true, "{}"),
];

/// The names of all shapes.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.0)
}

/// A model of one shape.
#[derive(Clone, Debug)]
pub(crate) struct Synthetic {
    config: Config,
    weight_type: WeightType,
}

impl Synthetic {
    /// The shape of that name, with weights of one type.
    pub(crate) fn new(name: &str, weight_type: WeightType) -> Result<Self, ModelError> {
        let Some(shape) = SHAPES.iter().find(|shape| shape.0 == name) else {
            let known: Vec<_> = names().collect();
            let reason = format!("no synthetic shape {name} (there are: {})", known.join(", "));
            return Err(ModelError::Unsupported { reason });
        };
        Ok(Self { config: config(shape)?, weight_type })
    }

    /// Describes it.
    pub(crate) fn info(&self, name: &str) -> Result<ModelInfo, ModelError> {
        let architecture = self.architecture(usize::MAX)?;
        let weights = SyntheticWeights::new(self.weight_type);
        Sources::find(&architecture, &weights)?;
        let tensors = weights.tensors.borrow();
        let (experts, used) = architecture.experts.map_or((1, 1), |experts| (experts.count, experts.per_token));
        let read_per_token = |name: &str, bytes: u64| match name {
            "token_embd.weight" if !architecture.tied => 0,
            name if name.contains("_exps.") => bytes / experts as u64 * used as u64,
            _ => bytes,
        };
        let kv_values = 2 * architecture.key_width() * architecture.layers.len();
        Ok(ModelInfo {
            architecture: architecture.name.clone(),
            name: Some(name.to_owned()),
            dtype: self.weight_type.name().to_owned(),
            parameters: tensors.iter().map(|(_, elements, _)| elements).sum(),
            weight_bytes: tensors.iter().map(|(_, _, bytes)| bytes).sum(),
            weight_bytes_per_token: tensors.iter().map(|(name, _, bytes)| read_per_token(name, *bytes)).sum(),
            context_tokens: architecture.context_tokens,
            vocab_size: architecture.vocab_size,
            layers: architecture.layers.len(),
            kv_bytes_per_token: 4 * kv_values as u64,
        })
    }

    /// The decoder's description, for sequences of at most `context_tokens` tokens.
    pub(super) fn architecture(&self, context_tokens: usize) -> Result<Architecture, ModelError> {
        safetensors::architecture(Path::new("synthetic"), &self.config, usize::MAX, context_tokens)
    }

    pub(super) fn weights(&self) -> SyntheticWeights {
        SyntheticWeights::new(self.weight_type)
    }
}

fn config(shape: &Shape) -> Result<Config, ModelError> {
    let (_, family, hidden, feed_forward, layers, heads, kv_heads, head_dim, vocabulary, context, base, tied, more) =
        *shape;
    let mut settings = json!({
        "model_type": family, "hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocabulary,
        "max_position_embeddings": context, "rope_theta": base, "tie_word_embeddings": tied,
    });
    let more: Map<String, Value> = serde_json::from_str(more).expect("the table's JSON is valid, as a test shows");
    if let Value::Object(settings) = &mut settings {
        settings.extend(more);
    }
    Config::parse(Path::new("synthetic"), &settings.to_string())
}

/// A tokenizer of single bytes; the other tokens of the vocabulary have no text worth reading.
pub(crate) fn tokenizer(vocab_size: usize) -> gguf::Metadata {
    // GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..256).filter(|byte| !printable(*byte)).zip(256..);
    let others: BTreeMap<u32, u32> = others.collect();
    let letter = |byte: u32| char::from_u32(others.get(&byte).copied().unwrap_or(byte)).expect("below 512 are letters");
    let bytes = (0..256).map(|byte| letter(byte).to_string());
    let tokens: Vec<String> = bytes.chain((256..vocab_size).map(|token| format!("<|{token}|>"))).collect();
    let text = |text: &str| gguf::Value::String(text.to_owned());
    gguf::Metadata(BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.pre".to_owned(), text("gpt-2")),
        ("tokenizer.ggml.token_type".to_owned(), gguf::Value::Ints(vec![1; tokens.len()])),
        ("tokenizer.ggml.merges".to_owned(), gguf::Value::Strings(std::iter::empty::<&str>().collect())),
        ("tokenizer.ggml.tokens".to_owned(), gguf::Value::Strings(tokens.into_iter().collect())),
    ]))
}

/// Weights that come from nowhere.
pub(super) struct SyntheticWeights {
    weight_type: WeightType,
    /// Runs of blocks, by type and columns.
    pools: RefCell<BTreeMap<(WeightType, usize), Arc<Pool>>>,
    /// What was asked for: names, numbers, bytes.
    tensors: RefCell<Vec<(String, u64, u64)>>,
}

impl SyntheticWeights {
    fn new(weight_type: WeightType) -> Self {
        Self { weight_type, pools: RefCell::default(), tensors: RefCell::default() }
    }
}

impl Weights for SyntheticWeights {
    fn has(&self, name: &str) -> bool {
        name.ends_with("_exps.weight")
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Matrix<'_>, ModelError> {
        let (&columns, outer) = shape.split_last().expect("a tensor has dimensions");
        let rows: usize = outer.iter().product();
        // As converters do it: vectors stay floats, and rows that the type's blocks do not fit get another one.
        let fits = |weight_type: &WeightType| weight_type.row_bytes(columns).is_some();
        let weight_type = if outer.is_empty() { WeightType::F32 } else { self.weight_type };
        let weight_type = [weight_type, WeightType::Q8_0, WeightType::F16].into_iter().find(fits);
        let weight_type = weight_type.expect("F16 fits any row");
        let row_bytes = weight_type.row_bytes(columns).expect("it fits");
        self.tensors.borrow_mut().push((name.to_owned(), (rows * columns) as u64, (rows * row_bytes) as u64));
        if outer.is_empty() {
            let value: f32 = if name.ends_with(".bias") { 0.0 } else { 1.0 };
            let bytes = value.to_le_bytes().repeat(columns);
            return Ok(Matrix::new(1, columns, weight_type, Pool { bytes, block_bytes: 4, row_bytes }));
        }
        let mut pools = self.pools.borrow_mut();
        let pool = pools.entry((weight_type, columns)).or_insert_with(|| Arc::new(Pool::new(weight_type, columns)));
        Ok(Matrix::new(rows, columns, weight_type, Shared(Arc::clone(pool))))
    }

    fn refuse_left_over(&self) -> Result<(), ModelError> {
        Ok(())
    }
}

/// Blocks in a run, of which rows are pieces.
struct Pool {
    bytes: Vec<u8>,
    block_bytes: usize,
    row_bytes: usize,
}

/// Blocks of a pool.
const POOL_BLOCKS: usize = 4093;

impl Pool {
    /// Random blocks of a type, whose values spread as far as `1 / sqrt(columns)`.
    fn new(weight_type: WeightType, columns: usize) -> Self {
        let spread = 1.0 / (columns as f32).sqrt();
        let bytes = match weight_type {
            WeightType::F32 => floats(spread).flat_map(f32::to_le_bytes).collect(),
            WeightType::F16 => floats(spread).flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
            WeightType::BF16 => floats(spread).flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => {
                // How far they spread at one scale says which scale is wanted.
                let trial = f32::powi(2.0, -8);
                blocks(weight_type, trial * spread / deviation(weight_type, &blocks(weight_type, trial)))
            }
        };
        let row_bytes = weight_type.row_bytes(columns).expect("the caller chose a type that fits");
        Self { bytes, block_bytes: weight_type.block_bytes(), row_bytes }
    }
}

impl RowSource for Pool {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        let blocks = self.bytes.len() / self.block_bytes;
        for (row, mut bytes) in rows.zip(bytes.chunks_exact_mut(self.row_bytes)) {
            let mut at = row.wrapping_mul(1_000_003) % blocks * self.block_bytes;
            while !bytes.is_empty() {
                let count = bytes.len().min(self.bytes.len() - at);
                let (now, later) = bytes.split_at_mut(count);
                now.copy_from_slice(&self.bytes[at..at + count]);
                (bytes, at) = (later, 0);
            }
        }
        Ok(())
    }
}

/// A pool that several matrices read.
struct Shared(Arc<Pool>);

impl RowSource for Shared {
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()> {
        self.0.read(rows, bytes)
    }
}

/// Uniform numbers with that deviation.
fn floats(deviation: f32) -> impl Iterator<Item = f32> {
    let widest = deviation * 3.0_f32.sqrt();
    random().take(POOL_BLOCKS).map(move |bits| ((bits >> 40) as f32 / (1 << 23) as f32 - 1.0) * widest)
}

/// Random blocks with that scale.
fn blocks(weight_type: WeightType, scale: f32) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        random().flat_map(u64::to_le_bytes).take(POOL_BLOCKS * weight_type.block_bytes()).collect();
    for block in bytes.chunks_exact_mut(weight_type.block_bytes()) {
        match weight_type {
            // A power of two.
            WeightType::MXFP4 => block[0] = (127.0 + scale.log2()).round().clamp(0.0, 254.0) as u8,
            WeightType::FP8 => {
                block[..4].copy_from_slice(&scale.to_le_bytes());
                block[4..].iter_mut().filter(|code| **code & 0x7f == 0x7f).for_each(|code| *code ^= 1);
            }
            _ => {}
        }
        for &(at, share) in scales(weight_type) {
            block[at..at + 2].copy_from_slice(&f16::from_f32(scale * share).to_le_bytes());
        }
    }
    bytes
}

/// Where the f16 scales of a block lie; a second one moves the values so that they lie around zero.
fn scales(weight_type: WeightType) -> &'static [(usize, f32)] {
    match weight_type {
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 | WeightType::IQ4_NL | WeightType::IQ4_XS => &[(0, 1.0)],
        WeightType::Q4_1 => &[(0, 1.0), (2, -7.5)],
        WeightType::Q5_1 => &[(0, 1.0), (2, -15.5)],
        WeightType::Q2_K => &[(80, 1.0), (82, 1.5)],
        WeightType::Q3_K => &[(108, 1.0)],
        WeightType::Q4_K => &[(0, 1.0), (2, 7.5)],
        WeightType::Q5_K => &[(0, 1.0), (2, 15.5)],
        WeightType::Q6_K => &[(208, 1.0)],
        WeightType::F32 | WeightType::F16 | WeightType::BF16 | WeightType::MXFP4 | WeightType::FP8 => &[],
    }
}

/// How far the values of blocks spread.
fn deviation(weight_type: WeightType, bytes: &[u8]) -> f32 {
    let mut values = Vec::new();
    dequantise(weight_type, bytes, &mut values);
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
    let squares = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>();
    (squares / values.len() as f64).sqrt() as f32
}

/// The same numbers each time (SplitMix64).
fn random() -> impl Iterator<Item = u64> {
    (1_u64..).map(|index| {
        let mut bits = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_those_of_the_models_they_are_named_after() {
        for (name, parameters) in [
            ("smollm2-135m", 134_515_008),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.1-8b", 8_030_261_248),
            ("qwen3-0.6b", 596_049_920),
            ("gemma-3-1b", 999_885_952),
            ("mixtral-8x7b", 46_702_792_704),
            ("phi-4-mini", 3_836_021_760),
        ] {
            let info = Synthetic::new(name, WeightType::Q4_0).and_then(|model| model.info(name)).expect("it is known");
            assert_eq!(info.parameters, parameters, "{name}");
        }
        for name in names() {
            Synthetic::new(name, WeightType::Q4_K).and_then(|model| model.info(name)).expect("the table is sound");
        }
        let unknown = Synthetic::new("llama-9", WeightType::F16).expect_err("there is none").to_string();
        assert!(unknown.contains("smollm2-135m"), "{unknown}");
    }

    #[test]
    fn weights_of_every_type_spread_as_far_as_their_width_asks() {
        for weight_type in WeightType::ALL {
            let pool = Pool::new(weight_type, 1024);
            let far = deviation(weight_type, &pool.bytes) * 32.0;
            assert!((0.7..1.4).contains(&far), "{}: {far}", weight_type.name());
            let row_bytes = weight_type.row_bytes(1024).expect("whole blocks");
            let (mut one, mut other) = (vec![0; 2 * row_bytes], vec![0; row_bytes]);
            pool.read(3..5, &mut one).expect("nothing is read");
            pool.read(4..5, &mut other).expect("nothing is read");
            assert_eq!(one[row_bytes..], other);
        }
    }
}
