//! Tokens to text, one at a time.

use std::sync::Arc;

use tokrun_model::TokenId;

use super::pieces::{Pieces, Start};
use crate::error::EngineError;

/// Turns tokens into text as they come. No piece of text ends within a character.
#[derive(Clone, Debug)]
pub struct DetokenizeStream {
    pieces: Arc<Pieces>,
    /// The beginning of a character whose other bytes are to come: at most 3 bytes.
    pending: Vec<u8>,
    /// No token of the text has been pushed yet.
    at_first_token: bool,
    /// No text has come out yet, so its first space may have to go.
    at_first_text: bool,
}

impl DetokenizeStream {
    pub(super) fn new(pieces: Arc<Pieces>, continues: bool) -> Self {
        Self { pieces, pending: Vec::new(), at_first_token: !continues, at_first_text: !continues }
    }

    /// Takes the next token; the text that is complete with it, often empty. Special tokens have none.
    ///
    /// # Errors
    /// When it is outside the vocabulary.
    pub fn push(&mut self, token: TokenId) -> Result<String, EngineError> {
        if self.pieces.get(token)?.special { Ok(String::new()) } else { self.spell(token) }
    }

    /// As [`push`](Self::push), for special tokens too: they are spelled out.
    ///
    /// # Errors
    /// When it is outside the vocabulary.
    pub fn spell(&mut self, token: TokenId) -> Result<String, EngineError> {
        let piece = self.pieces.get(token)?;
        match self.pieces.start() {
            Start::Joined if !self.at_first_token => self.pending.push(b' '),
            Start::WithoutSpaces if self.at_first_token => {
                self.pending.extend(piece.bytes.iter().filter(|byte| **byte != b' '));
                self.at_first_token = false;
                return Ok(self.take_complete());
            }
            _ => {}
        }
        self.at_first_token = false;
        self.pending.extend_from_slice(piece.bytes);
        Ok(self.take_complete())
    }

    /// No more tokens will come: U+FFFD if they ended within a character, else nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    /// Takes all whole characters out of `pending`.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(broken_bytes) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[broken_bytes..];
                }
            }
        }
        self.pending = rest.to_vec();
        if self.at_first_text && !text.is_empty() {
            self.at_first_text = false;
            if self.pieces.start() == Start::WithoutOneSpace && text.starts_with(' ') {
                text.remove(0);
            }
        }
        text
    }
}
