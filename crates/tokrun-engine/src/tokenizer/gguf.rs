//! Rebuilds a tokenizer from the `tokenizer.ggml.*` keys of a GGUF file, as the one its model was converted from.

use tokenizers::AddedToken;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokrun_model::TokenId;
use tokrun_model::gguf::{Metadata, Strings, Value};

use super::encoder::Encoder;
use super::pairs::TokenTable;
use crate::error::EngineError;

mod bpe;
mod sentencepiece;

/// A rebuilt tokenizer.
pub(super) struct Rebuilt {
    pub(super) tokenizer: Encoder,
    /// Tokens in use: the padding at the end of the list does not count.
    pub(super) vocab_size: usize,
}

/// What each token is, by the numbers that GGUF files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    /// Recognised in texts, left out of decoded ones.
    Control,
    /// Recognised in texts as a whole.
    UserDefined,
    Unused,
    Byte,
}

/// The keys of one file, checked against each other.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a Strings,
    /// One for each token in use; the padding behind them does not count.
    kinds: Vec<Kind>,
}

/// Whether texts are put between special tokens, where the file does not say.
#[derive(Clone, Copy)]
struct Defaults {
    add_bos: bool,
    add_eos: bool,
}

/// Rebuilds the tokenizer described by `metadata`.
pub(super) fn rebuild(metadata: &Metadata) -> Result<Rebuilt, EngineError> {
    let vocabulary = Vocabulary::of(metadata)?;
    let (mut tokenizer, defaults) = match vocabulary.required("tokenizer.ggml.model")? {
        "gpt2" => bpe::build(&vocabulary)?,
        "llama" => sentencepiece::build_bpe(&vocabulary)?,
        "t5" => sentencepiece::build_unigram(&vocabulary)?,
        other => return Err(unsupported(format!("tokenizer.ggml.model is {other:?}"))),
    };
    vocabulary.add_special_tokens(&mut tokenizer)?;
    vocabulary.add_post_processing(&mut tokenizer, defaults)?;
    Ok(Rebuilt { tokenizer, vocab_size: vocabulary.kinds.len() })
}

impl<'a> Vocabulary<'a> {
    fn of(metadata: &'a Metadata) -> Result<Self, EngineError> {
        let missing = || broken("tokenizer.ggml.tokens is missing or empty");
        let tokens = metadata.strings("tokenizer.ggml.tokens").ok_or_else(missing)?;
        let types = metadata.ints("tokenizer.ggml.token_type");
        if types.is_some_and(|types| types.len() < tokens.len()) {
            return Err(broken("tokenizer.ggml.token_type is shorter than tokenizer.ggml.tokens"));
        }
        let kind = |index| Kind::of(types.map_or(1, |types: &[i64]| types[index]));
        let mut kinds: Vec<Kind> = (0..tokens.len()).map(kind).collect();
        let used = kinds.iter().rposition(|kind| *kind != Kind::Unused).map_or(0, |last| last + 1);
        if used == 0 {
            return Err(missing());
        }
        kinds.truncate(used);
        Ok(Self { metadata, tokens, kinds })
    }

    fn required(&self, key: &str) -> Result<&'a str, EngineError> {
        self.metadata.str(key).ok_or_else(|| broken(format!("{key} is missing")))
    }

    /// The scores of a SentencePiece model, one a token.
    fn scores(&self) -> Result<&'a [f32], EngineError> {
        let scores = self.metadata.floats("tokenizer.ggml.scores").unwrap_or_default();
        if scores.len() < self.kinds.len() || scores.iter().any(|score| score.is_nan()) {
            return Err(broken("tokenizer.ggml.scores does not have a number for each token"));
        }
        Ok(scores)
    }

    /// All tokens in use.
    fn tokens(&self) -> impl Iterator<Item = &'a str> {
        self.tokens.iter().take(self.kinds.len())
    }

    /// The same with their numbers; an empty one cannot be told from another, and is left out.
    fn entries(&self) -> impl Iterator<Item = (&'a str, TokenId)> {
        self.tokens().zip(0..).filter(|(token, _)| !token.is_empty())
    }

    /// To look them up.
    fn table(&self) -> Result<TokenTable, EngineError> {
        TokenTable::new(self.tokens, self.kinds.len())
            .ok_or_else(|| broken("tokenizer.ggml.tokens has the same token twice"))
    }

    /// The token that a key such as `tokenizer.ggml.bos_token_id` names.
    fn named(&self, key: &str) -> Option<TokenId> {
        let id = self.metadata.uint(key)?;
        // Some files say 2^32 - 1 for "none".
        (id < self.kinds.len() as u64).then_some(id as TokenId)
    }

    /// Makes control and user-defined tokens known as such.
    fn add_special_tokens(&self, tokenizer: &mut Encoder) -> Result<(), EngineError> {
        let named = ["bos", "eos", "eot", "eom", "unknown", "padding"];
        let named: Vec<_> =
            named.iter().filter_map(|name| self.named(&format!("tokenizer.ggml.{name}_token_id"))).collect();
        let added = self.entries().filter_map(|(token, id)| {
            let special = self.kinds[id as usize] == Kind::Control || named.contains(&id);
            let known = special || self.kinds[id as usize] == Kind::UserDefined;
            known.then(|| AddedToken::from(token, special).normalized(false))
        });
        tokenizer.add_tokens(added).map_err(|error| broken(error.to_string()))?;
        Ok(())
    }

    fn add_post_processing(&self, tokenizer: &mut Encoder, defaults: Defaults) -> Result<(), EngineError> {
        let around = |name: &str, default| {
            let wanted = self.metadata.bool(&format!("tokenizer.ggml.add_{name}_token")).unwrap_or(default);
            let id = self.named(&format!("tokenizer.ggml.{name}_token_id"));
            match (wanted, id) {
                (false, _) => Ok(None),
                (true, Some(id)) => Ok(Some((name.to_owned(), id))),
                (true, None) => {
                    Err(broken(format!("texts get a {name} token, but tokenizer.ggml.{name}_token_id is missing")))
                }
            }
        };
        let (bos, eos) = (around("bos", defaults.add_bos)?, around("eos", defaults.add_eos)?);
        if bos.is_none() && eos.is_none() {
            return Ok(());
        }
        let pieces: Vec<&str> =
            [bos.as_ref().map(|_| "bos"), Some("$A"), eos.as_ref().map(|_| "eos")].into_iter().flatten().collect();
        let special = bos.into_iter().chain(eos).map(|(name, id)| {
            SpecialToken::new(name, vec![id], vec![self.tokens.get(id as usize).unwrap_or_default().to_owned()])
        });
        let special = special.collect::<Result<Vec<_>, _>>().map_err(|error| broken(error.to_string()))?;
        let mut template = TemplateProcessing::builder();
        template.try_single(pieces).map_err(broken)?.special_tokens(special);
        tokenizer.with_post_processor(Some(template.build().map_err(|error| broken(error.to_string()))?));
        Ok(())
    }
}

impl Kind {
    fn of(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

fn broken(reason: impl Into<String>) -> EngineError {
    EngineError::BrokenTokenizer { reason: reason.into() }
}

fn unsupported(reason: String) -> EngineError {
    EngineError::UnsupportedTokenizer { reason }
}

/// The bytes of an array of numbers from -128 to 255.
fn bytes(value: &Value) -> Option<Vec<u8>> {
    let Value::Ints(numbers) = value else { return None };
    numbers
        .iter()
        .map(|number| u8::try_from(*number).or_else(|_| i8::try_from(*number).map(|n| n as u8)).ok())
        .collect()
}
