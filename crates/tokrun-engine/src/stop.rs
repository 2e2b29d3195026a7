//! Stop strings: they may span tokens, and no part of one is ever shown.

use crate::error::{EngineError, InvalidParameter};

#[cfg(test)]
mod tests;

/// Watches a stream of text for stop strings, holding back what may turn out to be the beginning of one.
///
/// The match that is complete first wins; of several complete at the same character, the longest. So the result does
/// not depend on how the text was cut into pieces.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Seen, but not yet safe to show: a prefix of some stop string.
    held: String,
    /// The one that is complete.
    stopped_by: Option<String>,
}

/// What one piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopStep {
    /// Safe to show.
    pub text: String,
    /// A stop string is complete: what came before it has been shown, nothing after it will be.
    pub stopped: bool,
}

impl StopMatcher {
    /// Watches for any of `stops`; none at all lets everything pass.
    ///
    /// # Errors
    /// When one of them is empty, since it would stop everything.
    pub fn new(stops: Vec<String>) -> Result<Self, EngineError> {
        if stops.iter().any(String::is_empty) {
            let range = "at least one character";
            return Err(InvalidParameter { name: "stop", value: "empty".to_owned(), range }.into());
        }
        Ok(Self { patterns: stops.into_iter().map(Pattern::new).collect(), held: String::new(), stopped_by: None })
    }

    /// Takes the next piece of text. After a stop it takes nothing more.
    pub fn push(&mut self, piece: &str) -> StopStep {
        if self.stopped_by.is_some() {
            return StopStep { text: String::new(), stopped: true };
        }
        let seen_before = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            if let Some(stop_bytes) = self.longest_match_at(byte) {
                let mut text = std::mem::take(&mut self.held);
                text.truncate(seen_before + index + 1);
                self.stopped_by = Some(text.split_off(text.len() - stop_bytes));
                return StopStep { text, stopped: true };
            }
        }
        // A prefix of a stop string begins with a whole character, so this never cuts one.
        let held_bytes = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - held_bytes);
        StopStep { text: std::mem::replace(&mut self.held, held), stopped: false }
    }

    /// The stop string that is complete, if one is.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }

    /// The text has ended: what was held back, empty after a stop.
    pub fn finish(self) -> String {
        self.held
    }

    /// Advances every pattern by `byte`; the length of the longest that is complete with it.
    fn longest_match_at(&mut self, byte: u8) -> Option<usize> {
        let mut longest = None;
        for pattern in &mut self.patterns {
            if pattern.advance(byte) {
                longest = longest.max(Some(pattern.bytes.len()));
            }
        }
        longest
    }
}

/// One stop string as a Knuth-Morris-Pratt automaton over bytes.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `borders[n]`: the longest proper prefix of the first `n` bytes that is also a suffix of them.
    borders: Vec<usize>,
    /// Bytes of the pattern that the text seen so far ends with.
    matched: usize,
}

impl Pattern {
    fn new(stop: String) -> Self {
        let bytes = stop.into_bytes();
        let mut borders = vec![0; bytes.len() + 1];
        let mut border = 0;
        for n in 1..bytes.len() {
            while border > 0 && bytes[n] != bytes[border] {
                border = borders[border];
            }
            border += usize::from(bytes[n] == bytes[border]);
            borders[n + 1] = border;
        }
        Self { bytes, borders, matched: 0 }
    }

    /// Whether the pattern is complete with `byte`; after that it must not be advanced again.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.borders[self.matched];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}
