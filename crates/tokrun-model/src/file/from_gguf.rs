//! What a GGUF header says about its model.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Assets, ModelInfo, TokenizerSource};
use crate::gguf::{Header, Metadata, Strings, TensorInfo, Value};
use crate::{ModelError, TokenId};

/// Spellings that end an answer in the templates of models whose metadata names only the end of the text.
const TURN_ENDS: &[&str] =
    &["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|endoftext|>"];
/// `tokenizer.ggml.token_type` of control tokens.
const CONTROL_TOKEN: i64 = 3;

/// Describes the model of `header`, read from `path`.
pub(super) fn info(path: &Path, header: &Header) -> Result<ModelInfo, ModelError> {
    let metadata = &header.metadata;
    let architecture = header.architecture();
    let count = |key: &str| {
        let key = format!("{architecture}.{key}");
        let value = metadata.uint(&key).and_then(|value| usize::try_from(value).ok()).filter(|&value| value > 0);
        value.ok_or_else(|| malformed(path, format!("key {key} is missing or not a positive whole number")))
    };
    if let Some(parts) = metadata.uint("split.count").filter(|&parts| parts > 1) {
        let reason = format!("it is one of {parts} parts; join them first (llama-gguf-split --merge)");
        return Err(malformed(path, reason));
    }
    let layers = count("block_count")?;
    if layers > header.tensors.len() {
        return Err(malformed(path, format!("{layers} layers cannot be made of {} tensors", header.tensors.len())));
    }
    Ok(ModelInfo {
        architecture: architecture.to_owned(),
        name: metadata.str("general.name").map(str::to_owned),
        dtype: main_type(header).to_owned(),
        parameters: header.tensors.values().map(|tensor| tensor.elements()).sum(),
        weight_bytes: header.tensors.values().map(|tensor| tensor.bytes).sum(),
        weight_bytes_per_token: weight_bytes_per_token(header),
        context_tokens: count("context_length")?,
        vocab_size: tokens(path, metadata)?.len(),
        layers,
        kv_bytes_per_token: kv_bytes_per_token(metadata, architecture, layers),
    })
}

/// Collects what `header`, read from `path`, brings along for text.
pub(super) fn assets(path: &Path, header: &Header) -> Result<Assets, ModelError> {
    let metadata = &header.metadata;
    let tokens = tokens(path, metadata)?;
    let spelling = |key: &str| {
        let id = metadata.uint(&format!("tokenizer.ggml.{key}_token_id"))?;
        tokens.get(usize::try_from(id).ok()?).map(str::to_owned)
    };
    let chat_template = metadata.str("tokenizer.chat_template").map(str::to_owned);
    Ok(Assets {
        tokenizer: TokenizerSource::Gguf(metadata.clone()),
        bos_token: spelling("bos"),
        eos_token: spelling("eos"),
        pad_token: spelling("padding"),
        unk_token: spelling("unknown"),
        end_token_ids: end_token_ids(metadata, tokens, chat_template.as_deref()),
        chat_template,
    })
}

fn tokens<'a>(path: &Path, metadata: &'a Metadata) -> Result<&'a Strings, ModelError> {
    match metadata.strings("tokenizer.ggml.tokens") {
        Some(tokens) if !tokens.is_empty() => Ok(tokens),
        _ => {
            Err(malformed(path, "it holds no tokenizer (key tokenizer.ggml.tokens); use a complete export".to_owned()))
        }
    }
}

/// The end tokens that the metadata names, and the control tokens with which its template ends a turn.
fn end_token_ids(metadata: &Metadata, tokens: &Strings, chat_template: Option<&str>) -> Vec<TokenId> {
    let named = ["eos", "eot", "eom"].iter().filter_map(|key| metadata.uint(&format!("tokenizer.ggml.{key}_token_id")));
    let mut ids: Vec<TokenId> =
        named.filter(|&id| id < tokens.len() as u64).filter_map(|id| TokenId::try_from(id).ok()).collect();
    if let (Some(template), Some(types)) = (chat_template, metadata.ints("tokenizer.ggml.token_type")) {
        let turn_ends = tokens.iter().zip(types).zip(0..).filter(|((token, kind), _)| {
            **kind == CONTROL_TOKEN && TURN_ENDS.contains(token) && template.contains(token)
        });
        ids.extend(turn_ends.map(|(_, id): (_, TokenId)| id));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The tensor type that takes most bytes.
fn main_type(header: &Header) -> &'static str {
    let mut bytes_by_type = BTreeMap::new();
    for tensor in header.tensors.values() {
        *bytes_by_type.entry(tensor.tensor_type.name).or_insert(0_u64) += tensor.bytes;
    }
    bytes_by_type.into_iter().max_by_key(|&(_, bytes)| bytes).map_or("none", |(name, _)| name)
}

fn weight_bytes_per_token(header: &Header) -> u64 {
    let (metadata, architecture) = (&header.metadata, header.architecture());
    let uint = |key: &str| metadata.uint(&format!("{architecture}.{key}")).unwrap_or(0);
    let (experts, used) = (uint("expert_count").max(1), uint("expert_used_count"));
    let has_output = header.tensors.contains_key("output.weight");
    let read = |(name, tensor): (&String, &TensorInfo)| match name.as_str() {
        "token_embd.weight" if has_output => 0,
        name if name.contains("_exps.") => (tensor.bytes / experts).saturating_mul(used.min(experts)),
        _ => tensor.bytes,
    };
    header.tensors.iter().map(read).sum()
}

/// Bytes of keys and values a token over all layers, as f32; 0 where the metadata knows no attention heads.
fn kv_bytes_per_token(metadata: &Metadata, architecture: &str, layers: usize) -> u64 {
    let uint = |key: &str| metadata.uint(&format!("{architecture}.{key}"));
    let Some(heads) = uint("attention.head_count").filter(|&heads| heads > 0) else { return 0 };
    let width = uint("embedding_length").unwrap_or(0) / heads;
    let key_width = uint("attention.key_length").unwrap_or(width);
    let value_width = uint("attention.value_length").unwrap_or(width);
    // A number for all layers, or one a layer where layers differ.
    let kv_heads = match metadata.get(&format!("{architecture}.attention.head_count_kv")) {
        Some(Value::Ints(each)) => each.iter().map(|&heads| u64::try_from(heads).unwrap_or(0)).sum(),
        _ => uint("attention.head_count_kv").unwrap_or(heads).saturating_mul(layers as u64),
    };
    kv_heads.saturating_mul(key_width.saturating_add(value_width)).saturating_mul(4)
}

fn malformed(path: &Path, reason: String) -> ModelError {
    ModelError::Malformed { path: path.to_owned(), reason }
}
