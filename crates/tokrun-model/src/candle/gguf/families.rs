//! The GGUF architectures that candle runs rightly, what each of them honours, and how its tensors measure.

use std::io::Cursor;

use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device};
use candle_transformers::models as candle;

use Dim::{
    Convolution, Experts, FeedForward, Head, Hidden, Keys, Queries, QueriesKeysValues, ThreeHidden, TwoFeedForward,
};

use crate::candle::families::adapters::{once, plain, single};
use crate::candle::{CONTEXT_TOKENS_MAX, Decoder, Pieces};

/// One architecture as candle runs it.
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) architecture: &'static str,
    /// Keys after `{architecture}.` that candle honours beside those it honours for every family.
    pub(super) keys: &'static [&'static str],
    /// Keys after `{architecture}.` that candle takes to have this value.
    pub(super) fixed: &'static [(&'static str, f64)],
    pub(super) rotary: Rotary,
    /// Tensors beside the embedding: name, shape, whether it may be absent.
    pub(super) tensors: &'static [Tensor],
    /// The same for each layer, after `blk.N.`.
    pub(super) layer_tensors: &'static [Tensor],
    /// The length candle's own tables end at.
    pub(super) context_tokens_max: usize,
    pub(super) pieces: Pieces,
    pub(super) load: Load,
}

/// Builds a model from the tensors it reads.
type Load = fn(Content, &mut Cursor<&[u8]>) -> candle_core::Result<Box<dyn Decoder>>;

/// How much of each head candle rotates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rotary {
    Whole,
    Half,
    /// What `rope.dimension_count` says.
    AsSet,
}

/// A tensor's name and shape, and whether it must be there.
pub(super) type Tensor = (&'static str, &'static [Dim], Presence);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Presence {
    Required,
    Optional,
}

const REQUIRED: Presence = Presence::Required;
const OPTIONAL: Presence = Presence::Optional;

/// A dimension of a tensor, by meaning.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dim {
    Hidden,
    ThreeHidden,
    /// One head.
    Head,
    /// All query heads.
    Queries,
    /// All key (or value) heads.
    Keys,
    QueriesKeysValues,
    FeedForward,
    TwoFeedForward,
    Experts,
    /// Width of a short convolution.
    Convolution,
    /// Rows of the output matrix.
    Vocabulary,
}

/// Architectures that candle has and computes wrongly, or not on a CPU.
pub(super) const WRONG: &[(&str, &str)] = &[
    ("gemma2", "candle would run it as Gemma 3; use the safetensors files"),
    ("gemma3", "candle takes SiLU for its GELU and forgets the prompt; use the safetensors files"),
    ("qwen3moe", "candle computes its experts on a GPU only; use the safetensors files"),
];

const NORM: Tensor = ("output_norm.weight", &[Hidden], REQUIRED);
const OUTPUT: Tensor = ("output.weight", &[Dim::Vocabulary, Hidden], OPTIONAL);
const ATTENTION_NORM: Tensor = ("attn_norm.weight", &[Hidden], REQUIRED);
const QUERY: Tensor = ("attn_q.weight", &[Queries, Hidden], REQUIRED);
const KEY: Tensor = ("attn_k.weight", &[Keys, Hidden], REQUIRED);
const VALUE: Tensor = ("attn_v.weight", &[Keys, Hidden], REQUIRED);
const ATTENTION_OUTPUT: Tensor = ("attn_output.weight", &[Hidden, Queries], REQUIRED);
const FEED_FORWARD_NORM: Tensor = ("ffn_norm.weight", &[Hidden], REQUIRED);
const GATE: Tensor = ("ffn_gate.weight", &[FeedForward, Hidden], REQUIRED);
const UP: Tensor = ("ffn_up.weight", &[FeedForward, Hidden], REQUIRED);
const GATE_AND_UP: Tensor = ("ffn_up.weight", &[TwoFeedForward, Hidden], REQUIRED);
const DOWN: Tensor = ("ffn_down.weight", &[Hidden, FeedForward], REQUIRED);

const PLAIN: Family = Family {
    architecture: "",
    keys: &[],
    fixed: &[],
    rotary: Rotary::Whole,
    tensors: &[NORM, OUTPUT],
    layer_tensors: &[],
    context_tokens_max: CONTEXT_TOKENS_MAX,
    pieces: Pieces::Any,
    load: |_, _| Err(candle_core::Error::Msg("an architecture without loader".to_owned())),
};

/// Every architecture, in the order of their names.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        architecture: "glm4",
        keys: &["attention.key_length"],
        rotary: Rotary::Half,
        layer_tensors: &[
            ATTENTION_NORM,
            QUERY,
            KEY,
            VALUE,
            ATTENTION_OUTPUT,
            ("attn_q.bias", &[Queries], OPTIONAL),
            ("attn_k.bias", &[Keys], OPTIONAL),
            ("attn_v.bias", &[Keys], OPTIONAL),
            ("post_attention_norm.weight", &[Hidden], REQUIRED),
            FEED_FORWARD_NORM,
            GATE_AND_UP,
            DOWN,
            ("post_ffw_norm.weight", &[Hidden], REQUIRED),
        ],
        load: |content, file| {
            let model = candle::quantized_glm4::ModelWeights::from_gguf(content, file, &Device::Cpu, DType::F32)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        architecture: "lfm2",
        keys: &["shortconv.l_cache"],
        tensors: &[("token_embd_norm.weight", &[Hidden], REQUIRED), OUTPUT],
        // Layers are convolutions or attention, so no tensor of either is in all of them.
        layer_tensors: &[
            ATTENTION_NORM,
            ("attn_q.weight", &[Queries, Hidden], OPTIONAL),
            ("attn_k.weight", &[Keys, Hidden], OPTIONAL),
            ("attn_v.weight", &[Keys, Hidden], OPTIONAL),
            ("attn_output.weight", &[Hidden, Queries], OPTIONAL),
            ("attn_q_norm.weight", &[Head], OPTIONAL),
            ("attn_k_norm.weight", &[Head], OPTIONAL),
            ("shortconv.in_proj.weight", &[ThreeHidden, Hidden], OPTIONAL),
            ("shortconv.out_proj.weight", &[Hidden, Hidden], OPTIONAL),
            ("shortconv.conv.weight", &[Hidden, Convolution], OPTIONAL),
            FEED_FORWARD_NORM,
            GATE,
            UP,
            DOWN,
        ],
        // Its convolution starts a later piece of several tokens from zeros.
        pieces: Pieces::FirstOnly,
        load: |content, file| {
            let model = candle::quantized_lfm2::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
            once(model, |model, tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        architecture: "llama",
        keys: &["expert_count", "expert_used_count"],
        layer_tensors: &[
            ATTENTION_NORM,
            QUERY,
            KEY,
            VALUE,
            ATTENTION_OUTPUT,
            FEED_FORWARD_NORM,
            // A layer has one feed-forward block or experts.
            ("ffn_gate.weight", &[FeedForward, Hidden], OPTIONAL),
            ("ffn_up.weight", &[FeedForward, Hidden], OPTIONAL),
            ("ffn_down.weight", &[Hidden, FeedForward], OPTIONAL),
            ("ffn_gate_inp.weight", &[Experts, Hidden], OPTIONAL),
            ("ffn_gate_exps.weight", &[Experts, FeedForward, Hidden], OPTIONAL),
            ("ffn_up_exps.weight", &[Experts, FeedForward, Hidden], OPTIONAL),
            ("ffn_down_exps.weight", &[Experts, Hidden, FeedForward], OPTIONAL),
        ],
        context_tokens_max: candle::quantized_llama::MAX_SEQ_LEN,
        load: |content, file| {
            let model = candle::quantized_llama::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        architecture: "phi2",
        keys: &["attention.layer_norm_epsilon"],
        fixed: &[("rope.freq_base", 10_000.0)],
        rotary: Rotary::AsSet,
        tensors: &[
            NORM,
            ("output_norm.bias", &[Hidden], REQUIRED),
            ("output.weight", &[Dim::Vocabulary, Hidden], REQUIRED),
            ("output.bias", &[Dim::Vocabulary], REQUIRED),
        ],
        layer_tensors: &[
            ATTENTION_NORM,
            ("attn_norm.bias", &[Hidden], REQUIRED),
            ("attn_qkv.weight", &[QueriesKeysValues, Hidden], REQUIRED),
            ("attn_qkv.bias", &[QueriesKeysValues], REQUIRED),
            ATTENTION_OUTPUT,
            ("attn_output.bias", &[Hidden], REQUIRED),
            UP,
            ("ffn_up.bias", &[FeedForward], REQUIRED),
            DOWN,
            ("ffn_down.bias", &[Hidden], REQUIRED),
        ],
        context_tokens_max: candle::quantized_phi::MAX_SEQ_LEN,
        load: |content, file| {
            let model = candle::quantized_phi::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        architecture: "phi3",
        fixed: &[("rope.freq_base", 10_000.0)],
        tensors: &[NORM, ("output.weight", &[Dim::Vocabulary, Hidden], REQUIRED)],
        layer_tensors: &[
            ATTENTION_NORM,
            ("attn_qkv.weight", &[QueriesKeysValues, Hidden], REQUIRED),
            ATTENTION_OUTPUT,
            FEED_FORWARD_NORM,
            GATE_AND_UP,
            DOWN,
        ],
        load: |content, file| {
            let model = candle::quantized_phi3::ModelWeights::from_gguf(false, content, file, &Device::Cpu)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        architecture: "qwen2",
        layer_tensors: &[
            ATTENTION_NORM,
            QUERY,
            KEY,
            VALUE,
            ("attn_q.bias", &[Queries], REQUIRED),
            ("attn_k.bias", &[Keys], REQUIRED),
            ("attn_v.bias", &[Keys], REQUIRED),
            ATTENTION_OUTPUT,
            FEED_FORWARD_NORM,
            GATE,
            UP,
            DOWN,
        ],
        load: |content, file| {
            let model = candle::quantized_qwen2::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
            single(model, |model, tokens, position| model.forward(tokens, position), |model| model.clear_kv_cache())
        },
        ..PLAIN
    },
    Family {
        architecture: "qwen3",
        keys: &["attention.key_length"],
        layer_tensors: &[
            ATTENTION_NORM,
            QUERY,
            KEY,
            VALUE,
            ("attn_q_norm.weight", &[Head], REQUIRED),
            ("attn_k_norm.weight", &[Head], REQUIRED),
            ATTENTION_OUTPUT,
            FEED_FORWARD_NORM,
            GATE,
            UP,
            DOWN,
        ],
        // Single tokens go into one cache, pieces into another and it.
        pieces: Pieces::UntilSingle,
        load: |content, file| {
            let model = candle::quantized_qwen3::ModelWeights::from_gguf(content, file, &Device::Cpu)?;
            // A copy would touch a cache of 4096 tokens at once.
            single(model, |model, tokens, position| model.forward(tokens, position), |model| model.clear_kv_cache())
        },
        ..PLAIN
    },
];
