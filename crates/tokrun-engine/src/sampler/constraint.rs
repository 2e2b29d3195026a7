//! What a request may generate, when that is narrower than anything.

use std::fmt::Debug;

use tokrun_model::TokenId;

use crate::error::EngineError;

/// Narrows what one request may generate, one token at a time: `mask`, then `advance` by what was sampled, and so on.
/// Only tokens that are really generated reach it; speculation never does.
pub trait Constraint: Debug + Send {
    /// Sets the logits of all tokens that may not come next to negative infinity, and touches no others. `logits` is
    /// `[vocab_size]`, bias and penalties applied.
    ///
    /// # Errors
    /// When nothing may come next; that fails the request.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError>;

    /// `token` comes next.
    ///
    /// # Errors
    /// When it may not; that fails the request.
    fn advance(&mut self, token: TokenId) -> Result<(), EngineError>;
}
