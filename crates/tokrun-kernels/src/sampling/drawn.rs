//! Tokens that were drawn, for backends that have logits at hand.

use std::collections::VecDeque;

use super::BadLogit;

/// What was drawn last, and what nobody asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Drawn {
    latest: Vec<Result<u32, BadLogit>>,
    waiting: VecDeque<Vec<Result<u32, BadLogit>>>,
}

impl Drawn {
    /// Takes down what was drawn, one token for each of so many draws.
    pub(crate) fn push(&mut self, drawn: Vec<Result<u32, BadLogit>>, draws: usize) {
        assert_eq!(drawn.len(), draws, "a row for each draw");
        self.waiting.push_back(drawn.clone());
        self.latest = drawn;
    }

    /// Puts what was drawn last in place of tokens: see `Backend::feed`.
    pub(crate) fn feed(&self, drawn: &[(usize, usize)], tokens: &mut [u32]) {
        for &(row, index) in drawn {
            tokens[row] = self.latest[index].unwrap_or(0);
        }
    }

    /// What was drawn the longest ago.
    pub(crate) fn take(&mut self) -> Vec<Result<u32, BadLogit>> {
        self.waiting.pop_front().expect("it was sampled before")
    }
}
