//! The operations that decoders are made of: the contract that every backend fulfils.
//!
//! A decoder family is written once, over [`Backend`]; a backend never knows which family runs on it. One step computes
//! the tokens of several sequences at once: a *row* is one token of the step, and all matrices of activations are
//! `[rows, width]`, f32, row-major.
//!
//! **One order of roundings.** What an operation computes for a row depends on that row, its position and its KV blocks
//! alone: never on the other rows of the step, their number, the number of threads, or how a prompt was cut into steps.
//! Every backend keeps this, so that greedy text is the same for any batch, chunking and thread count.
//! The one exception is a CUDA device that was not opened as deterministic: it adds in other orders for steps of many rows.

use std::ops::Range;
use std::sync::Arc;

use crate::sampling::{BadLogit, Draw};
use crate::{KernelError, WeightType};

/// Tokens a KV block holds.
pub const KV_BLOCK_TOKENS: usize = 16;

/// Names one block of a KV cache.
pub type BlockId = u32;

/// Where the rows of a weight matrix come from, as the file stores them. Backends read each row once and keep their own
/// packed form of it, so a file is never held in memory twice.
pub trait RowSource: Sync {
    /// Fills `bytes`, as long as these rows are, with them.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> std::io::Result<()>;
}

/// A weight matrix `[rows, columns]`: `rows` outputs of `columns` inputs each.
#[derive(Clone, Copy)]
pub struct MatrixSource<'a> {
    /// Outputs.
    pub rows: usize,
    /// Inputs; whole blocks of the type.
    pub columns: usize,
    /// How a row is stored.
    pub weight_type: WeightType,
    /// The bytes.
    pub source: &'a dyn RowSource,
    /// Added to the outputs, `[rows]`.
    pub bias: Option<&'a [f32]>,
}

/// Root-mean-square normalisation: `x / sqrt(mean(x^2) + epsilon) * weight`.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// `[width]`; families that store `weight - 1` add the 1 when they load. Shared, so that a device keeps one copy of it.
    pub weight: Arc<[f32]>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What an operation does with the rows it writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Replaces them.
    Set,
    /// Adds to them: the residual connection.
    Add,
}

/// The non-linearity of a gated feed-forward block: `activation(gate) * up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// Which two values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `2i` and `2i + 1`: Llama in GGUF files.
    Interleaved,
    /// `i` and `i + rotary / 2`: Hugging Face, and the other families in GGUF files.
    Halves,
}

/// Rotary position embedding of one kind of layer; scalings (linear, Llama 3, YaRN ...) are in its frequencies.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians a position of each pair, `[rotary / 2]`: the first `2 * len` values of a head turn, the others stay.
    pub frequencies: Vec<f32>,
    /// Factor on sine and cosine: 1 but for YaRN and LongRoPE.
    pub magnitude: f32,
    /// How pairs lie in a head.
    pub style: RopeStyle,
}

/// Names a rope table that a backend was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeId(pub usize);

/// How the attention of one layer works.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `cap * tanh(score / cap)` where set (Gemma 2).
    pub softcap: Option<f32>,
    /// A token sees itself and so many tokens less one before it.
    pub window_tokens: Option<usize>,
    /// The rotation of queries and keys; none for layers without positions.
    pub rope: Option<RopeId>,
    /// Normalises each query head and each key head, `[head_dim]` weights, before the rotation (Qwen3, Gemma 3).
    pub head_norms: Option<(Norm, Norm)>,
}

/// How values in the KV cache are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum KvType {
    F32,
    F16,
    BF16,
    Q8_0,
}

/// The size of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers with attention.
    pub layers: usize,
    /// Key and value heads a layer.
    pub kv_heads: usize,
    /// Values a head.
    pub head_dim: usize,
    /// Blocks of [`KV_BLOCK_TOKENS`] tokens, each over all layers.
    pub blocks: usize,
    /// How values are stored.
    pub kv_type: KvType,
}

impl KvShape {
    /// Bytes that one block takes at most, over all layers: heads are padded to whole vectors.
    pub const fn block_bytes(&self) -> usize {
        let head = self.head_dim.next_multiple_of(16);
        let head_bytes = match self.kv_type {
            KvType::F32 => 4 * head,
            KvType::F16 | KvType::BF16 => 2 * head,
            // A scale for each 32 values.
            KvType::Q8_0 => head + 2 * head.div_ceil(32),
        };
        2 * KV_BLOCK_TOKENS * self.layers * self.kv_heads * head_bytes
    }
}

/// Consecutive tokens of one sequence within a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its rows in the step.
    pub rows: Range<usize>,
    /// Position of its first row in the sequence; the positions before it are in the cache.
    pub start: usize,
    /// The sequence's blocks, enough for all its positions up to the last row's.
    pub blocks: Vec<BlockId>,
}

/// What one step computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// The rows, cut into sequences, in order and without gaps; no block is written to by two spans.
    pub spans: Vec<Span>,
}

/// One expert of a mixture: its feed-forward block.
#[derive(Debug)]
pub struct Expert<B: Backend> {
    /// Gate and up projections.
    pub gated: B::Gated,
    /// Down projection.
    pub down: B::Linear,
}

/// How tokens choose among experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Experts a token.
    pub experts_per_token: usize,
    /// Whether the chosen probabilities are scaled to sum to 1 (a softmax over the chosen is the same).
    pub normalise: bool,
}

/// A device and its arithmetic. Sizes that do not fit together are a bug of the caller: the operations panic on them.
/// What comes from files is checked when weights are packed.
pub trait Backend: Send + Sized {
    /// One or several matrices with the same input, their outputs side by side.
    type Linear: Send;
    /// Gate and up matrices of a feed-forward block.
    type Gated: Send;
    /// Activations, `[rows, width]` f32, with room for as many rows as were asked for.
    type Rows: Send;
    /// Activations in the forms that weights multiply with (int8 with scales, bf16, f32).
    type Encoded: Send;
    /// Keys and values of all layers.
    type Kv: Send;

    /// Whether [`sample`](Self::sample) returns before anybody knows the tokens, so that the next step can be prepared while
    /// they are computed.
    const SAMPLES_AHEAD: bool = false;

    /// Packs matrices that share their input; the output of a row is theirs in this order.
    ///
    /// # Errors
    /// When a source cannot be read, or memory is short.
    fn pack_linear(&mut self, matrices: &[MatrixSource<'_>]) -> Result<Self::Linear, KernelError>;

    /// Packs the two matrices of a gated feed-forward block, of equal shape.
    ///
    /// # Errors
    /// As [`pack_linear`](Self::pack_linear).
    fn pack_gated(&mut self, gate: MatrixSource<'_>, up: MatrixSource<'_>) -> Result<Self::Gated, KernelError>;

    /// Takes a rope table.
    fn add_rope(&mut self, rope: Rope) -> RopeId;

    /// Room for `rows` rows of `width` values.
    ///
    /// # Errors
    /// When memory is short.
    fn rows(&mut self, rows: usize, width: usize) -> Result<Self::Rows, KernelError>;

    /// Room for `rows` encoded rows of `width` values.
    ///
    /// # Errors
    /// When memory is short.
    fn encoded(&mut self, rows: usize, width: usize) -> Result<Self::Encoded, KernelError>;

    /// A KV cache. Memory is reserved here and never grows.
    ///
    /// # Errors
    /// When memory is short.
    fn kv_cache(&mut self, shape: KvShape) -> Result<Self::Kv, KernelError>;

    /// Makes ready for steps of one row a sequence, of up to `sequences_max` sequences that have up to `blocks_max` blocks in
    /// all, so that none of them waits for memory or for a device to learn what it has to do. `step` goes through one of so
    /// many rows, of which nothing is computed; the answers that it reads are worthless. Nothing where that gains nothing.
    fn rehearse(&mut self, sequences_max: usize, blocks_max: usize, step: impl FnMut(&mut Self, usize)) {
        let _ = (sequences_max, blocks_max, step);
    }

    /// Begins a step: the operations up to the next `begin` work on its rows.
    fn begin(&mut self, step: &Step);

    /// `out[row] = scale * table[token of row]`; `table` is one packed matrix with a row for each token, and may be the
    /// output matrix.
    fn embed(&mut self, table: &Self::Linear, scale: f32, out: &mut Self::Rows);

    /// Normalises rows (if asked to) and brings them into the form that `consumer` multiplies with.
    fn encode(&mut self, x: &Self::Rows, norm: Option<&Norm>, consumer: Consumer<'_, Self>, out: &mut Self::Encoded);

    /// `out[row] = weights * input[row] + bias`, or added to what is there.
    fn linear(&mut self, input: &Self::Encoded, weights: &Self::Linear, store: Store, out: &mut Self::Rows);

    /// `activation(gate * input[row]) * (up * input[row])`, encoded for `consumer`.
    fn gated(
        &mut self,
        input: &Self::Encoded,
        weights: &Self::Gated,
        activation: Activation,
        consumer: &Self::Linear,
        out: &mut Self::Encoded,
    );

    /// Attention of one layer over the paged cache. `qkv` holds queries, keys and values side by side, as one
    /// [`linear`](Self::linear) wrote them: `[rows, (heads + 2 kv_heads) * head_dim]`. Head norms and rotation are applied,
    /// keys and values of the step's rows are stored, and `out` is `[rows, heads * head_dim]`.
    fn attention(
        &mut self,
        layer: usize,
        attention: &Attention,
        qkv: &Self::Rows,
        kv: &mut Self::Kv,
        out: &mut Self::Rows,
    );

    /// Normalises the values `columns` of each row in place (OLMo 2 over whole query and key rows).
    fn norm(&mut self, x: &mut Self::Rows, columns: Range<usize>, norm: &Norm);

    /// `x += norm(y)`: the residual connection of families that normalise a block's output (Gemma, OLMo 2).
    fn add_norm(&mut self, x: &mut Self::Rows, y: &Self::Rows, norm: &Norm);

    /// A mixture of experts: softmax over `router` (`[rows, experts]` logits), the best `experts_per_token` (of equal
    /// ones the first), each expert's feed-forward block on `input`, and their weighted sum added to `x` in the order of
    /// rank.
    fn moe(
        &mut self,
        input: &Self::Encoded,
        router: &Self::Rows,
        routing: Routing,
        activation: Activation,
        experts: &[Expert<Self>],
        x: &mut Self::Rows,
    );

    /// Keeps the given rows of the step, in this order: `out[i] = x[rows[i]]`. The operations after it work on those.
    fn select(&mut self, x: &Self::Rows, rows: &[usize], out: &mut Self::Rows);

    /// `cap * tanh(x / cap)` on each value (Gemma 2's logits).
    fn softcap(&mut self, x: &mut Self::Rows, cap: f32);

    /// Gives rows of the step, directly after [`begin`](Self::begin), tokens that nobody may have seen yet: for each
    /// `(row, index)` that of this index among those that the latest [`sample`](Self::sample) drew. Where there was no
    /// choice to make, it is some token.
    fn feed(&mut self, drawn: &[(usize, usize)]);

    /// Draws tokens where the logits are, one with each of `draws` from the rows from `first` on of those that were
    /// [selected](Self::select), the last operation of a step. It does not wait for them. Without draws there is nothing to be
    /// [`sampled`](Self::sampled) either.
    fn sample(&mut self, logits: &Self::Rows, first: usize, draws: &[Draw]);

    /// What the earliest `sample` drew that was not asked for yet, waiting until it is there; two at most may be left.
    fn sampled(&mut self) -> Vec<Result<u32, BadLogit>>;

    /// The values, in this process's memory: `[rows, width]`, waiting until they are there.
    fn read<'a>(&mut self, x: &'a Self::Rows) -> &'a [f32] {
        self.read_from(x, 0)
    }

    /// The values of the rows from `first` on: see [`read`](Self::read).
    fn read_from<'a>(&mut self, x: &'a Self::Rows, first: usize) -> &'a [f32];

    /// What went wrong since the last call: a device may fail at any time, and operations have no way to say so. What was
    /// read since the failure is worthless.
    fn failure(&mut self) -> Option<KernelError> {
        None
    }

    /// Time spent in each operation since the last call, in order of first use, where the backend was asked to measure.
    fn take_profile(&mut self) -> Vec<OpTime> {
        Vec::new()
    }
}

/// Which weights will multiply what is encoded.
#[derive(Debug)]
pub enum Consumer<'a, B: Backend> {
    /// Some linear map.
    Linear(&'a B::Linear),
    /// A gated feed-forward block.
    Gated(&'a B::Gated),
    /// Several experts of the same types, of which this is one.
    Expert(&'a Expert<B>),
}

/// Time spent in one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpTime {
    /// Its name.
    pub op: &'static str,
    /// How often it ran.
    pub calls: u64,
    /// How long, in all.
    pub total_ns: u64,
}
