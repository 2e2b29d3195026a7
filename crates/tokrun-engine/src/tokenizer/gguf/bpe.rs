//! Byte-level BPE, as GPT-2 introduced it: `tokenizer.ggml.model` is `gpt2`.

use tokenizers::Tokenizer;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;

use super::{Defaults, Vocabulary, broken, tokenizer_of, unsupported};
use crate::error::EngineError;
use crate::tokenizer::pre_tokenizer;

pub(super) fn build(vocabulary: &Vocabulary<'_>) -> Result<(Tokenizer, Defaults), EngineError> {
    // A missing name means a file from before there were any: nobody can tell which cut its model was trained with.
    let name = vocabulary.required("tokenizer.ggml.pre")?;
    let recipe = pre_tokenizer::recipe(name).ok_or_else(|| unsupported(format!("tokenizer.ggml.pre is {name:?}")))?;
    let vocab: Vocab = vocabulary.entries().map(|(token, id)| (token.clone(), id)).collect();
    if vocab.len() < vocabulary.entries().count() {
        return Err(broken("tokenizer.ggml.tokens has the same token twice"));
    }
    let merges = merges(vocabulary, &vocab)?;
    let failed = |error: tokenizers::Error| broken(error.to_string());
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(recipe.ignore_merges);
    let mut tokenizer = tokenizer_of(model.build().map_err(failed)?);
    if recipe.compose {
        tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
    }
    let add_prefix_space = vocabulary.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(recipe.build(add_prefix_space).map_err(failed)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok((tokenizer, Defaults { add_bos: recipe.add_bos, add_eos: false }))
}

/// The pairs to merge, each checked: the library trusts that both halves and their union are tokens.
fn merges(vocabulary: &Vocabulary<'_>, vocab: &Vocab) -> Result<Vec<(String, String)>, EngineError> {
    let lines = vocabulary.metadata.strings("tokenizer.ggml.merges");
    let lines = lines.ok_or_else(|| broken("tokenizer.ggml.merges is missing"))?;
    let pair = |line: &String| {
        let (left, right) = line.split_once(' ')?;
        let known =
            vocab.contains_key(left) && vocab.contains_key(right) && vocab.contains_key(&[left, right].concat());
        known.then(|| (left.to_owned(), right.to_owned()))
    };
    let checked = |line| pair(line).ok_or_else(|| broken(format!("the merge {line:?} is not of tokens")));
    lines.iter().map(checked).collect()
}
