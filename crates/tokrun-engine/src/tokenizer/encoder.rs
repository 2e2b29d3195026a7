//! The library's tokenizer, with our own byte-pair encoding beside its models.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Token, TokenizerImpl,
};
use tokrun_model::TokenId;

use super::pairs::Pairs;

/// Normalises, cuts into words, encodes them, and puts special tokens around.
pub(super) type Encoder =
    TokenizerImpl<WordModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Turns words into tokens.
#[derive(Debug)]
pub(super) enum WordModel {
    Library(Box<ModelWrapper>),
    Pairs(Box<Pairs>),
}

impl WordModel {
    /// How a token of the model is spelled; tokens added to it by hand are not in it.
    pub(super) fn spelling(&self, id: TokenId) -> Option<Cow<'_, str>> {
        match self {
            Self::Library(model) => model.id_to_token(id).map(Cow::Owned),
            Self::Pairs(pairs) => pairs.table().token(id).map(Cow::Borrowed),
        }
    }
}

impl<'de> Deserialize<'de> for WordModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::Library(Box::new(ModelWrapper::deserialize(deserializer)?)))
    }
}

impl Model for WordModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        let pairs = match self {
            Self::Library(model) => return model.tokenize(sequence),
            Self::Pairs(pairs) => pairs,
        };
        let mut start = 0;
        let token = |(id, bytes): (TokenId, usize)| {
            let offsets = (start, start + bytes);
            start += bytes;
            Token::new(id, pairs.table().token(id).unwrap_or_default().to_owned(), offsets)
        };
        Ok(pairs.tokens(sequence).into_iter().map(token).collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Library(model) => model.token_to_id(token),
            Self::Pairs(pairs) => pairs.table().id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Library(model) => model.id_to_token(id),
            Self::Pairs(pairs) => pairs.table().token(id).map(str::to_owned),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Library(model) => model.get_vocab(),
            Self::Pairs(pairs) => pairs.table().entries().map(|(token, id)| (token.to_owned(), id)).collect(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Library(model) => model.get_vocab_size(),
            Self::Pairs(pairs) => pairs.table().entries().count(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        match self {
            Self::Library(model) => model.save(folder, prefix),
            Self::Pairs(_) => Err("a tokenizer that came from a GGUF file is kept there".into()),
        }
    }

    fn get_trainer(&self) -> Self::Trainer {
        match self {
            Self::Library(model) => model.get_trainer(),
            Self::Pairs(_) => BpeTrainer::default().into(),
        }
    }
}
