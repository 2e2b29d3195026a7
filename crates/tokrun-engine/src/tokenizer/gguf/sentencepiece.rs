//! SentencePiece models: BPE with scores (`llama`) and unigram (`t5`). Both write a space as `▁`.

use std::cmp::Reverse;
use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::strip::Strip as StripText;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokrun_model::TokenId;

use super::{Defaults, Kind, Vocabulary, broken, bytes};
use crate::error::EngineError;
use crate::tokenizer::encoder::{Encoder, WordModel};
use crate::tokenizer::pairs::{Pairs, Settings};

const SPACE: &str = "▁";

/// BPE over characters, with bytes for those that are no tokens. Texts begin with a space that is none, unless the file
/// says otherwise, and so does what follows a special token.
pub(super) fn build_bpe(vocabulary: &Vocabulary<'_>) -> Result<(Encoder, Defaults), EngineError> {
    let unknown = vocabulary.named("tokenizer.ggml.unknown_token_id");
    let settings = Settings { byte_fallback: true, unknown, ..Settings::default() };
    let mut pairs = Pairs::new(vocabulary.table()?, settings);
    pairs.add_merges(merges(vocabulary, vocabulary.scores()?).into_iter());
    let mut tokenizer = Encoder::new(WordModel::Pairs(Box::new(pairs)));
    let add_prefix_space = vocabulary.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if add_prefix_space {
        normalizers.push(Prepend::new(SPACE.to_owned()).into());
    }
    normalizers.push(Replace::new(" ", SPACE).map_err(failed)?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
    let mut decoders: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE, " ").map_err(failed)?.into(), ByteFallback::default().into(), Fuse::default().into()];
    if add_prefix_space {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok((tokenizer, Defaults { add_bos: true, add_eos: false }))
}

/// Unigram: the most probable way to cut a text into tokens.
pub(super) fn build_unigram(vocabulary: &Vocabulary<'_>) -> Result<(Encoder, Defaults), EngineError> {
    let unknown = vocabulary.named("tokenizer.ggml.unknown_token_id");
    let unknown = unknown.ok_or_else(|| broken("tokenizer.ggml.unknown_token_id is missing"))?;
    if vocabulary.tokens().any(str::is_empty) {
        return Err(broken("tokenizer.ggml.tokens has an empty token"));
    }
    let scores = vocabulary.scores()?.iter().map(|score| f64::from(*score));
    let vocab = vocabulary.tokens().map(str::to_owned).zip(scores).collect();
    let byte_fallback = vocabulary.kinds.contains(&Kind::Byte);
    let model = Unigram::from(vocab, Some(unknown as usize), byte_fallback).map_err(failed)?;
    let mut tokenizer = Encoder::new(WordModel::Library(Box::new(model.into())));
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if let Some(map) = vocabulary.metadata.get("tokenizer.ggml.precompiled_charsmap") {
        let map = bytes(map).ok_or_else(|| broken("tokenizer.ggml.precompiled_charsmap is not bytes"))?;
        // The library makes room for as many entries as the table says it has, before it looks for them.
        let claimed = map.first_chunk().map_or(u64::MAX, |length| u64::from(u32::from_le_bytes(*length)));
        if claimed > map.len() as u64 {
            return Err(broken("tokenizer.ggml.precompiled_charsmap is truncated"));
        }
        normalizers.push(Precompiled::from(&map).map_err(|error| broken(error.to_string()))?.into());
    }
    if vocabulary.metadata.bool("tokenizer.ggml.remove_extra_whitespaces").unwrap_or(true) {
        normalizers.push(StripText::new(false, true).into());
        normalizers.push(Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), SPACE).map_err(failed)?.into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
    let add_prefix_space = vocabulary.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let scheme = if add_prefix_space { PrependScheme::Always } else { PrependScheme::Never };
    let metaspace = Metaspace::new('▁', scheme, true);
    tokenizer.with_pre_tokenizer(Some(metaspace.clone()));
    tokenizer.with_decoder(Some(metaspace));
    Ok((tokenizer, Defaults { add_bos: false, add_eos: true }))
}

/// The pairs that make up a token, and that token, those of the highest score first: SentencePiece merges whatever gives
/// the best token. The order of equal scores is that of transformers.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<(TokenId, TokenId, TokenId)> {
    let mergeable = |id: TokenId| matches!(vocabulary.kinds[id as usize], Kind::Normal | Kind::UserDefined);
    let ids: HashMap<&str, TokenId> = vocabulary.entries().filter(|(_, id)| mergeable(*id)).collect();
    let mut pairs = Vec::new();
    for (token, id) in vocabulary.entries().filter(|(_, id)| mergeable(*id)) {
        for (left_chars, (cut, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                pairs.push((scores[id as usize], left_chars, right.chars().count(), (left_id, right_id, id)));
            }
        }
    }
    // A stable sort: of equal ones, that of the lower token comes first.
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| Reverse((a.1, a.2)).cmp(&Reverse((b.1, b.2)))));
    pairs.into_iter().map(|(_, _, _, merge)| merge).collect()
}

fn failed(error: tokenizers::Error) -> EngineError {
    broken(error.to_string())
}
