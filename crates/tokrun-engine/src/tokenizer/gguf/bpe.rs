//! Byte-level BPE, as GPT-2 introduced it: `tokenizer.ggml.model` is `gpt2`.

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::normalizers::NFC;
use tokrun_model::TokenId;

use super::{Defaults, Vocabulary, broken, unsupported};
use crate::error::EngineError;
use crate::tokenizer::encoder::{Encoder, WordModel};
use crate::tokenizer::pairs::{Pairs, Settings, TokenTable};
use crate::tokenizer::pre_tokenizer;

pub(super) fn build(vocabulary: &Vocabulary<'_>) -> Result<(Encoder, Defaults), EngineError> {
    // A missing name means a file from before there were any: nobody can tell which cut its model was trained with.
    let name = vocabulary.required("tokenizer.ggml.pre")?;
    let recipe = pre_tokenizer::recipe(name).ok_or_else(|| unsupported(format!("tokenizer.ggml.pre is {name:?}")))?;
    let table = vocabulary.table()?;
    let merges = merges(vocabulary, &table)?;
    let mut pairs = Pairs::new(table, Settings { ignore_merges: recipe.ignore_merges, ..Settings::default() });
    pairs.add_merges(merges.into_iter());
    let failed = |error: tokenizers::Error| broken(error.to_string());
    let mut tokenizer = Encoder::new(WordModel::Pairs(Box::new(pairs)));
    if recipe.compose {
        tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
    }
    let add_prefix_space = vocabulary.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(recipe.build(add_prefix_space).map_err(failed)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok((tokenizer, Defaults { add_bos: recipe.add_bos, add_eos: false }))
}

/// The pairs to merge and what they become, each of tokens.
fn merges(vocabulary: &Vocabulary<'_>, table: &TokenTable) -> Result<Vec<(TokenId, TokenId, TokenId)>, EngineError> {
    let lines = vocabulary.metadata.strings("tokenizer.ggml.merges");
    let lines = lines.ok_or_else(|| broken("tokenizer.ggml.merges is missing"))?;
    let mut whole = String::new();
    // Vocabularies are mostly in the order of their merges: what a pair becomes follows what the one before became.
    let mut next = 0;
    let mut merge = |line: &str| {
        let (left, right) = line.split_once(' ')?;
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        let merged = if table.token(next) == Some(&whole) { next } else { table.id(&whole)? };
        next = merged.saturating_add(1);
        Some((table.id(left)?, table.id(right)?, merged))
    };
    let mut checked = |line| merge(line).ok_or_else(|| broken(format!("the merge {line:?} is not of tokens")));
    lines.iter().map(&mut checked).collect()
}
