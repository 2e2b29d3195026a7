//! Tokens that were drawn, for backends that have logits at hand.

use std::collections::VecDeque;

use super::{BadLogit, Draw};

/// What was drawn last, and what nobody asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Drawn {
    latest: Vec<Result<u32, BadLogit>>,
    waiting: VecDeque<Vec<Result<u32, BadLogit>>>,
}

impl Drawn {
    /// Draws from rows of `width` logits.
    pub(crate) fn sample(&mut self, logits: &[f32], width: usize, draws: &[Draw]) {
        assert!(draws.len() * width <= logits.len(), "a row for each of {} draws", draws.len());
        self.latest = draws.iter().zip(logits.chunks(width)).map(|(draw, row)| draw.choose(row)).collect();
        self.waiting.push_back(self.latest.clone());
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
