//! The seam between models and whoever decides what they compute: tokens in, logits out.

use crate::ModelError;

/// A token's number in its model's vocabulary.
pub type TokenId = u32;

/// Names one sequence inside one executor; what it keeps for it (a KV cache, a recurrent state) stays hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceHandle(pub(crate) u64);

impl SequenceHandle {
    /// The handle of this number; an executor gives out each number once.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

/// What an executor is and what it honours.
#[derive(Clone, Debug)]
pub struct ExecutorInfo {
    /// What computes: `candle`.
    pub backend: &'static str,
    /// Where: `cpu`.
    pub device: String,
    /// Logits a token, the padded rows of the output matrix included.
    pub vocab_size: usize,
    /// Longest sequence, prompt and output together, in tokens: what the model allows and the executor can honour.
    pub context_tokens: usize,
    /// Sequences that may exist at the same time; `create` refuses the next one.
    pub sequences_max: usize,
}

/// Tokens to append to one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Extend<'a> {
    /// The sequence to append to.
    pub sequence: SequenceHandle,
    /// What to append, at least one token.
    pub tokens: &'a [TokenId],
}

/// Next-token logits, `[sequences, vocab_size]`, f32, row-major: a row for the last token of each extended sequence.
#[derive(Clone, Debug)]
pub struct Logits {
    values: Vec<f32>,
    vocab_size: usize,
}

impl Logits {
    /// Wraps `values`, `[sequences, vocab_size]`, row-major.
    ///
    /// # Panics
    /// If `values` is no whole number of rows.
    pub fn new(values: Vec<f32>, vocab_size: usize) -> Self {
        assert!(vocab_size > 0 && values.len().is_multiple_of(vocab_size), "logits must be whole rows");
        Self { values, vocab_size }
    }

    /// The logits of sequence `index` of the batch, `[vocab_size]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab_size..(index + 1) * self.vocab_size]
    }

    /// The same, to be changed in place.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.vocab_size..(index + 1) * self.vocab_size]
    }

    /// How many sequences there are rows for.
    pub fn rows(&self) -> usize {
        self.values.len() / self.vocab_size
    }
}

/// Runs one loaded model. It lives on the engine's thread and is never shared.
///
/// A sequence is opaque: create it, extend it, drop it. `extend` takes any split of a sequence into pieces (a whole
/// prompt, chunks of it, one token): the logits after the same tokens are the same up to rounding.
pub trait Executor: Send {
    /// What this executor is and what it honours.
    fn info(&self) -> &ExecutorInfo;

    /// Begins an empty sequence.
    ///
    /// # Errors
    /// When `sequences_max` of them exist.
    fn create(&mut self) -> Result<SequenceHandle, ModelError>;

    /// Appends tokens to each sequence of `batch` and returns a row of logits for each, in the same order.
    ///
    /// # Errors
    /// When a sequence is unknown or would outgrow `context_tokens`, a token is outside the vocabulary, or the
    /// arithmetic fails. The sequences of a failed batch can only be dropped.
    fn extend(&mut self, batch: &[Extend<'_>]) -> Result<Logits, ModelError>;

    /// Forgets a sequence and frees what was kept for it; an unknown handle is ignored.
    fn drop_sequence(&mut self, sequence: SequenceHandle);
}
