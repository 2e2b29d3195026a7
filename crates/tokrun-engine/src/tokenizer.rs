//! Text to tokens and back, exactly as Hugging Face does it.
//!
//! Encoding is the `tokenizers` library's, from a model's `tokenizer.json`, or rebuilt from the keys of a GGUF file; only
//! the byte-pair encoding of the latter is our own, because the library takes too long to set its own up.
//! Decoding is our own, over the bytes that each token stands for, so that text can be streamed a token at a time at a
//! cost that does not grow with it. The two agree on every text that is valid UTF-8; where a model emits broken UTF-8,
//! U+FFFD stands for each maximal broken part, as `String::from_utf8_lossy` has it.

use std::path::Path;
use std::sync::Arc;

use tokrun_model::{Assets, TokenId, TokenizerSource};

use crate::error::EngineError;
use crate::panics::catching;

mod detokenize;
mod encoder;
mod gguf;
mod pairs;
mod pieces;
mod pre_tokenizer;
#[cfg(test)]
mod tests;

pub use detokenize::DetokenizeStream;
use encoder::Encoder;
use pieces::Pieces;
pub(crate) use pieces::Start as TextStart;

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    pieces: Arc<Pieces>,
}

impl Tokenizer {
    /// The tokenizer that a model brings along.
    ///
    /// # Errors
    /// When it cannot be read, contradicts itself, or is of a kind that would have to be guessed at.
    pub fn from_assets(assets: &Assets) -> Result<Self, EngineError> {
        match &assets.tokenizer {
            TokenizerSource::Json(path) => Self::from_json(path),
            TokenizerSource::Gguf(metadata) => {
                let rebuilt = gguf::rebuild(metadata)?;
                Self::new(rebuilt.tokenizer, rebuilt.vocab_size)
            }
        }
    }

    /// The tokens of `text`. Special tokens spelled out in it are recognised. With `add_special`, those that the
    /// tokenizer puts around every text (a begin-of-sequence token, say) are added; text from a chat template has its own.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, EngineError> {
        encode(&self.encoder, text, add_special)
    }

    /// The text of `tokens`, without special tokens.
    ///
    /// # Errors
    /// When one of them is outside the vocabulary.
    pub fn decode(&self, tokens: &[TokenId]) -> Result<String, EngineError> {
        let mut stream = self.stream();
        let mut text = String::new();
        for token in tokens {
            text.push_str(&stream.push(*token)?);
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// Decodes a text that begins with the first token pushed: together exactly what [`decode`](Self::decode) gives.
    pub fn stream(&self) -> DetokenizeStream {
        DetokenizeStream::new(Arc::clone(&self.pieces), false)
    }

    /// Decodes a text that continues another. Where a tokenizer marks the beginning of a text with a space that is
    /// none, the first token's space is a real one here.
    pub fn continuing_stream(&self) -> DetokenizeStream {
        DetokenizeStream::new(Arc::clone(&self.pieces), true)
    }

    /// The bytes a token stands for, not always whole characters; of a special token, its spelling.
    ///
    /// # Errors
    /// When it is outside the vocabulary.
    pub fn token_bytes(&self, token: TokenId) -> Result<&[u8], EngineError> {
        Ok(self.pieces.get(token)?.bytes)
    }

    /// A token as text, for display; bytes that are no whole character become U+FFFD.
    ///
    /// # Errors
    /// When it is outside the vocabulary.
    pub fn token_text(&self, token: TokenId) -> Result<String, EngineError> {
        Ok(String::from_utf8_lossy(self.token_bytes(token)?).into_owned())
    }

    /// Whether a token is left out of decoded text, as those are that mark turns or the end.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.pieces.get(token).is_ok_and(|piece| piece.special)
    }

    /// The token of this exact spelling, in the tokenizer's own alphabet.
    pub fn token_id(&self, spelling: &str) -> Option<TokenId> {
        self.encoder.token_to_id(spelling)
    }

    /// One more than the highest token. A model may compute logits for more: those rows are padding.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// How a text of its own begins.
    pub(crate) fn text_start(&self) -> TextStart {
        self.pieces.start()
    }

    fn from_json(path: &Path) -> Result<Self, EngineError> {
        let (encoder, vocab_size) = read_json(path)?;
        Self::new(encoder, vocab_size)
    }

    fn new(encoder: Encoder, vocab_size: usize) -> Result<Self, EngineError> {
        let pieces = Arc::new(Pieces::of(&encoder, vocab_size)?);
        Ok(Self { encoder, pieces })
    }
}

/// The half of a tokenizer that models need which give no text back: text to tokens. It takes every `tokenizer.json`.
#[derive(Debug)]
pub struct TextEncoder {
    encoder: Encoder,
}

impl TextEncoder {
    /// That of a model.
    ///
    /// # Errors
    /// When it cannot be read or contradicts itself.
    pub fn from_assets(assets: &Assets) -> Result<Self, EngineError> {
        let encoder = match &assets.tokenizer {
            TokenizerSource::Json(path) => read_json(path)?.0,
            TokenizerSource::Gguf(metadata) => gguf::rebuild(metadata)?.tokenizer,
        };
        Ok(Self { encoder })
    }

    /// The tokens of `text`, with those that the tokenizer puts around every text if `add_special` says so.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, EngineError> {
        encode(&self.encoder, text, add_special)
    }

    /// How a token is spelled, in the tokenizer's own alphabet.
    pub fn spelling(&self, token: TokenId) -> Option<String> {
        self.encoder.id_to_token(token)
    }
}

fn encode(encoder: &Encoder, text: &str, add_special: bool) -> Result<Vec<TokenId>, EngineError> {
    // The tables of a hostile tokenizer can make the library index out of bounds.
    let encoding = catching(|| encoder.encode_fast(text, add_special).map_err(|error| error.to_string()));
    let encoding = encoding.flatten().map_err(|reason| EngineError::Encode { reason })?;
    Ok(encoding.get_ids().to_vec())
}

/// Reads a `tokenizer.json`; with one more than its highest token.
fn read_json(path: &Path) -> Result<(Encoder, usize), EngineError> {
    let json = std::fs::read(path).map_err(|source| EngineError::Read { path: path.to_owned(), source })?;
    let broken = |reason| EngineError::BrokenTokenizer { reason: format!("{}: {reason}", path.display()) };
    let mut encoder: Encoder = serde_json::from_slice(&json).map_err(|error| broken(error.to_string()))?;
    // Settings for training batches; transformers ignores them as well unless asked.
    encoder.with_truncation(None).map_err(|error| broken(error.to_string()))?;
    encoder.with_padding(None);
    let highest = encoder.get_vocab(true).into_values().max();
    let vocab_size = highest.ok_or_else(|| broken("its vocabulary is empty".to_owned()))? as usize + 1;
    Ok((encoder, vocab_size))
}
