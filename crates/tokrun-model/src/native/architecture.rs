//! One description that fits every decoder here: what is in a layer, and in which order. Files are read into it, the
//! decoder is built from it.

use tokrun_kernels::{Activation, Rope};

use crate::ModelError;

/// Widest head there may be: rope tables are made before any tensor is looked at.
pub(super) const HEAD_DIM_MAX: usize = 1 << 10;

/// A decoder-only transformer with rotary positions and gated feed-forward blocks.
#[derive(Clone, Debug)]
pub(super) struct Architecture {
    /// As the file says: `llama`, `qwen3`.
    pub(super) name: String,
    /// Width of the residual stream.
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Width of a dense feed-forward block.
    pub(super) feed_forward: usize,
    /// Rows of the embedding matrix.
    pub(super) embedded_tokens: usize,
    /// Rows of the output matrix.
    pub(super) vocab_size: usize,
    /// Whether the embedding matrix is the output matrix.
    pub(super) tied: bool,
    /// Longest sequence that is computed.
    pub(super) context_tokens: usize,
    pub(super) epsilon: f32,
    /// Stored norm weights are this much less than the factors they stand for.
    pub(super) norm_offset: f32,
    pub(super) norms: Norms,
    pub(super) query_key_norms: QueryKeyNorms,
    /// Query, key and value have biases.
    pub(super) qkv_bias: bool,
    /// So has the output of attention.
    pub(super) output_bias: bool,
    /// Query, key and value are one tensor, gate and up another.
    pub(super) fused: bool,
    pub(super) embedding_scale: f32,
    pub(super) attention_scale: f32,
    pub(super) attention_softcap: Option<f32>,
    pub(super) logit_softcap: Option<f32>,
    pub(super) activation: Activation,
    pub(super) experts: Option<Experts>,
    /// Rope tables that layers refer to.
    pub(super) ropes: Vec<Rope>,
    pub(super) layers: Vec<Layer>,
}

/// What sets one layer apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// How far back it sees, itself included.
    pub(super) window_tokens: Option<usize>,
    /// Its rope table; none for layers without positions.
    pub(super) rope: Option<usize>,
    /// Its feed-forward block is a mixture of experts.
    pub(super) mixture: bool,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Experts {
    pub(super) count: usize,
    pub(super) per_token: usize,
    /// Width of each.
    pub(super) feed_forward: usize,
    /// The chosen ones' shares sum to 1.
    pub(super) normalise: bool,
}

/// What is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norms {
    /// The input of each block: Llama.
    Before,
    /// Its output: OLMo 2.
    After,
    /// Both: Gemma 2 and 3.
    Around,
}

/// What of queries and keys is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryKeyNorms {
    Nothing,
    /// Each head: Qwen 3, Gemma 3.
    Heads,
    /// All heads together: OLMo 2.
    Rows,
}

impl Architecture {
    /// Values of all query heads.
    pub(super) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of all key heads, and of all value heads.
    pub(super) fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Checks what readers do not: how sizes go together.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        let refuse = |reason: String| Err(ModelError::Unsupported { reason: format!("{}: {reason}", self.name) });
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return refuse(format!("{heads} query heads cannot share {kv_heads} key heads"));
        }
        if head_dim == 0 || head_dim > HEAD_DIM_MAX || !head_dim.is_multiple_of(2) {
            return refuse(format!("heads of {head_dim} values are not even or wider than {HEAD_DIM_MAX}"));
        }
        if self.ropes.iter().any(|rope| rope.frequencies.len() * 2 > head_dim) {
            return refuse(format!("more than the {head_dim} values of a head are rotated"));
        }
        if let Some(experts) = &self.experts
            && !(1..=experts.count).contains(&experts.per_token)
        {
            return refuse(format!("{} of {} experts are used", experts.per_token, experts.count));
        }
        let numbers = [self.epsilon, self.attention_scale, self.embedding_scale];
        let caps = [self.attention_softcap, self.logit_softcap];
        let frequencies = self.ropes.iter().flat_map(|rope| rope.frequencies.iter().chain([&rope.magnitude]));
        if !numbers.iter().chain(frequencies).chain(caps.iter().flatten()).all(|number| number.is_finite()) {
            return refuse("a norm, rope or scale setting is out of range".to_owned());
        }
        Ok(())
    }
}
