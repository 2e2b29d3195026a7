//! A model without the engine around it: what `--perplexity` and `--profile` feed tokens to themselves.

use tokrun_engine::TokenId;
use tokrun_model::{BlockId, Executor, Extend, Logits, ModelError, OpTime, Place, SequenceHandle, Wanted};

/// One sequence of an executor that has no other.
pub(super) struct Sequence<'a> {
    executor: &'a mut dyn Executor,
    handle: SequenceHandle,
    /// In a paged cache: as many as the sequence can grow to need.
    blocks: Vec<BlockId>,
    length: usize,
}

impl<'a> Sequence<'a> {
    /// Begins a sequence of at most `tokens_max` tokens.
    pub(super) fn begin(executor: &'a mut dyn Executor, tokens_max: usize) -> Result<Self, ModelError> {
        let handle = executor.create()?;
        let blocks = match executor.info().paging {
            Some(paging) => (0..tokens_max.div_ceil(paging.block_tokens) as BlockId).collect(),
            None => Vec::new(),
        };
        Ok(Self { executor, handle, blocks, length: 0 })
    }

    /// Appends tokens whose logits nobody needs, so many at a time.
    pub(super) fn skip(&mut self, tokens: &[TokenId], step_tokens: usize) -> Result<(), ModelError> {
        tokens.chunks(step_tokens).try_for_each(|piece| self.extend(piece, Wanted::Nothing).map(drop))
    }

    /// Appends tokens, and hands `see` the logits after each of them.
    pub(super) fn read(
        &mut self,
        tokens: &[TokenId],
        step_tokens: usize,
        mut see: impl FnMut(&[f32]),
    ) -> Result<(), ModelError> {
        let (step_tokens, wanted) = match self.executor.info().paging {
            Some(_) => (step_tokens, Wanted::All),
            None => (1, Wanted::Last),
        };
        for piece in tokens.chunks(step_tokens) {
            let logits = self.extend(piece, wanted)?;
            for row in 0..logits.rows() {
                see(logits.row(row));
            }
        }
        Ok(())
    }

    /// Appends tokens and computes what follows the last of them.
    pub(super) fn answer(&mut self, tokens: &[TokenId], step_tokens: usize) -> Result<(), ModelError> {
        let Some(last) = tokens.chunks(step_tokens).next_back() else { return Ok(()) };
        self.skip(&tokens[..tokens.len() - last.len()], step_tokens)?;
        self.extend(last, Wanted::Last).map(drop)
    }

    /// Time spent in each operation since the last call.
    pub(super) fn take_profile(&mut self) -> Vec<OpTime> {
        self.executor.take_profile()
    }

    fn extend(&mut self, tokens: &[TokenId], wanted: Wanted) -> Result<Logits<'_>, ModelError> {
        let place = Place { start: self.length, blocks: &self.blocks };
        self.length += tokens.len();
        self.executor.extend(&[Extend { sequence: self.handle, tokens, place, wanted }])
    }
}

impl Drop for Sequence<'_> {
    fn drop(&mut self) {
        self.executor.drop_sequence(self.handle);
    }
}
