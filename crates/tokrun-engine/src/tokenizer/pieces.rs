//! The bytes each token stands for, read off the tokenizer's decoder once.

use std::borrow::Cow;

use serde_json::Value;
use tokrun_model::TokenId;

use super::encoder::Encoder;
use crate::error::EngineError;

/// The bytes of every token of a vocabulary.
#[derive(Debug)]
pub(super) struct Pieces {
    /// All of them, one after the other.
    bytes: Vec<u8>,
    /// Where each token's end in `bytes`.
    ends: Vec<usize>,
    special: Vec<bool>,
    start: Start,
}

/// What one token stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a [u8],
    /// Left out of decoded text.
    pub(super) special: bool,
}

/// How a text begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// As its tokens say.
    Plain,
    /// Without its first space, if it begins with one.
    WithoutOneSpace,
    /// Without the spaces of its first token.
    WithoutSpaces,
    /// As its tokens say, with a space between any two of them.
    Joined,
}

impl Pieces {
    /// Reads the bytes of the first `vocab_size` tokens off a tokenizer. Numbers that no token has stand for nothing.
    pub(super) fn of(tokenizer: &Encoder, vocab_size: usize) -> Result<Self, EngineError> {
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| EngineError::BrokenTokenizer { reason: error.to_string() })?;
        let reading = Reading::of(&decoder)?;
        let mut special = vec![false; vocab_size];
        let mut added = vec![None; vocab_size];
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if let Some(index) = usize::try_from(id).ok().filter(|index| *index < vocab_size) {
                special[index] = token.special;
                added[index] = Some(token.content);
            }
        }
        let mut pieces =
            Self { bytes: Vec::new(), ends: Vec::with_capacity(vocab_size), special, start: reading.start };
        for (id, added) in (0 as TokenId..).zip(added) {
            let token = match added {
                Some(token) => Cow::Owned(token),
                None => tokenizer.get_model().spelling(id).unwrap_or_default(),
            };
            if pieces.special[id as usize] {
                pieces.bytes.extend_from_slice(token.as_bytes());
            } else {
                reading.append_bytes(&token, &mut pieces.bytes);
            }
            pieces.ends.push(pieces.bytes.len());
        }
        Ok(pieces)
    }

    pub(super) fn get(&self, token: TokenId) -> Result<Piece<'_>, EngineError> {
        let index = token as usize;
        let end = *self.ends.get(index).ok_or(EngineError::UnknownToken { token, vocab_size: self.len() })?;
        let begin = if index == 0 { 0 } else { self.ends[index - 1] };
        Ok(Piece { bytes: &self.bytes[begin..end], special: self.special[index] })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn start(&self) -> Start {
        self.start
    }
}

/// How a decoder turns the spelling of a token into bytes.
struct Reading {
    /// The bytes of GPT-2's printable stand-ins, by the number of the character; empty when the spelling is not in them.
    byte_of: Vec<Option<u8>>,
    /// Spellings to replace, in this order: `▁` by a space.
    replacements: Vec<(String, String)>,
    /// `<0x0A>` stands for that byte.
    byte_fallback: bool,
    start: Start,
}

impl Reading {
    /// What a decoder does, from its description in `tokenizer.json`.
    fn of(decoder: &Value) -> Result<Self, EngineError> {
        let mut reading =
            Self { byte_of: Vec::new(), replacements: Vec::new(), byte_fallback: false, start: Start::Plain };
        if decoder.is_null() {
            reading.start = Start::Joined;
            return Ok(reading);
        }
        let one = std::slice::from_ref(decoder);
        let is_sequence = decoder["type"] == "Sequence";
        let steps = if is_sequence { decoder["decoders"].as_array().map_or(one, Vec::as_slice) } else { one };
        // Before the pieces are fused, `Strip` would take spaces from every token.
        let mut fused = false;
        for step in steps {
            match step["type"].as_str() {
                Some("ByteLevel") => reading.byte_of = byte_alphabet(),
                Some("ByteFallback") => reading.byte_fallback = true,
                Some("Fuse") => fused = true,
                Some("Replace") if step["pattern"]["String"].is_string() => {
                    reading.replacements.push((text(&step["pattern"]["String"]), text(&step["content"])));
                }
                Some("Metaspace") => {
                    reading.replacements.push((text(&step["replacement"]), " ".to_owned()));
                    if step["prepend_scheme"] != "never" {
                        reading.start = Start::WithoutSpaces;
                    }
                }
                Some("Strip") if fused && step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                    reading.start = Start::WithoutOneSpace;
                }
                _ => return Err(EngineError::UnsupportedTokenizer { reason: format!("its decoder is {step}") }),
            }
        }
        Ok(reading)
    }

    fn append_bytes(&self, token: &str, bytes: &mut Vec<u8>) {
        if !self.byte_of.is_empty() {
            // A token added by hand may be spelled outside the alphabet, and then stands for itself.
            let start = bytes.len();
            for character in token.chars() {
                let Some(byte) = self.byte_of.get(character as usize).copied().flatten() else {
                    bytes.truncate(start);
                    bytes.extend_from_slice(token.as_bytes());
                    return;
                };
                bytes.push(byte);
            }
            return;
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            bytes.push(byte);
            return;
        }
        let mut token = token.to_owned();
        for (from, to) in &self.replacements {
            token = token.replace(from.as_str(), to);
        }
        bytes.extend_from_slice(token.as_bytes());
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The byte of a token spelled `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2 spells every byte as a printable character: those of Latin-1 that are printable as themselves, the other 68 as
/// U+0100 and up, in order.
fn byte_alphabet() -> Vec<Option<u8>> {
    let mut substitutes = '\u{100}'..;
    let spell = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some(char::from(byte)),
        _ => substitutes.next(),
    };
    let mut byte_of = vec![None; 0x200];
    for (character, byte) in (0..=u8::MAX).map(spell).zip(0..=u8::MAX) {
        if let Some(character) = character {
            byte_of[character as usize] = Some(byte);
        }
    }
    byte_of
}
