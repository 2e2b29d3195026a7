//! What a directory of safetensors says about its model.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::{Assets, ModelInfo, TokenizerSource};
use crate::config::Config;
use crate::safetensors::Weights;
use crate::{ModelError, TokenId};

/// What a model without positions (a recurrent one) is taken to have been made for.
const CONTEXT_TOKENS_UNBOUNDED: usize = 1 << 20;

/// Reads `config.json`.
pub(super) fn config(folder: &Path) -> Result<Config, ModelError> {
    let path = folder.join("config.json");
    Config::parse(&path, &read(&path)?)
}

/// Describes the model in `folder`.
pub(super) fn info(folder: &Path, config: &Config, weights: &Weights) -> Result<ModelInfo, ModelError> {
    let tensors = weights.tensors();
    let mut bytes_by_type = BTreeMap::new();
    for tensor in tensors.values() {
        *bytes_by_type.entry(tensor.dtype.to_string()).or_insert(0_u64) += tensor.bytes();
    }
    let main_type = bytes_by_type.into_iter().max_by_key(|&(_, bytes)| bytes);
    let size = |name: &str| {
        let missing =
            || malformed(&folder.join("config.json"), format!("{name} is missing or not a positive whole number"));
        config.uint(name).filter(|&value| value > 0).ok_or_else(missing)
    };
    let layers = size("num_hidden_layers")?;
    Ok(ModelInfo {
        architecture: config.model_type().to_owned(),
        name: folder.file_name().map(|name| name.to_string_lossy().into_owned()),
        dtype: main_type.map_or_else(|| "none".to_owned(), |(name, _)| name),
        parameters: tensors.values().map(|tensor| tensor.elements()).sum(),
        weight_bytes: tensors.values().map(|tensor| tensor.bytes()).sum(),
        weight_bytes_per_token: weight_bytes_per_token(config, weights),
        context_tokens: config.uint("max_position_embeddings").unwrap_or(CONTEXT_TOKENS_UNBOUNDED),
        vocab_size: size("vocab_size")?,
        layers,
        kv_bytes_per_token: kv_bytes_per_token(config, layers),
    })
}

fn weight_bytes_per_token(config: &Config, weights: &Weights) -> u64 {
    let uint = |names: &[&str]| names.iter().find_map(|name| config.uint(name)).unwrap_or(0) as u64;
    let experts = uint(&["num_local_experts", "num_experts", "n_routed_experts"]).max(1);
    let used = uint(&["num_experts_per_tok"]).min(experts);
    let tensors = weights.tensors();
    let has_output = tensors.contains_key("lm_head.weight");
    let read = |name: &str, bytes: u64| match name {
        "model.embed_tokens.weight" if has_output => 0,
        name if name.contains(".experts.") => bytes / experts * used,
        _ => bytes,
    };
    tensors.iter().map(|(name, tensor)| read(name, tensor.bytes())).sum()
}

/// Collects what `folder` brings along for text.
pub(super) fn assets(folder: &Path, config: &Config) -> Result<Assets, ModelError> {
    let tokenizer = folder.join("tokenizer.json");
    if !tokenizer.is_file() {
        return Err(malformed(folder, "it has no tokenizer.json; fetch it beside the weights".to_owned()));
    }
    let settings = optional_object(&folder.join("tokenizer_config.json"))?;
    let generation = optional_object(&folder.join("generation_config.json"))?;
    let template_file = folder.join("chat_template.jinja");
    let chat_template = if template_file.is_file() {
        Some(read(&template_file)?)
    } else {
        chat_template(settings.get("chat_template"))
    };
    let end_tokens =
        generation.get("eos_token_id").filter(|value| !value.is_null()).or_else(|| config.get("eos_token_id"));
    Ok(Assets {
        tokenizer: TokenizerSource::Json(tokenizer),
        chat_template,
        bos_token: spelling(settings.get("bos_token")),
        eos_token: spelling(settings.get("eos_token")),
        pad_token: spelling(settings.get("pad_token")),
        unk_token: spelling(settings.get("unk_token")),
        end_token_ids: token_ids(end_tokens),
    })
}

/// One template, or the one called `default` of several.
fn chat_template(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// A token is written as its spelling, or as an object around it.
fn spelling(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// One number or several.
fn token_ids(value: Option<&Value>) -> Vec<TokenId> {
    let values = value.map_or(&[][..], |value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice));
    values.iter().filter_map(Value::as_u64).filter_map(|id| TokenId::try_from(id).ok()).collect()
}

/// Bytes of keys and values a token over all layers, as f32; 0 for models without attention.
fn kv_bytes_per_token(config: &Config, layers: usize) -> u64 {
    let Some(heads) = config.uint("num_attention_heads").filter(|&heads| heads > 0) else { return 0 };
    let width = config.uint("head_dim").or_else(|| Some(config.uint("hidden_size")? / heads)).unwrap_or(0);
    let attends = |kind: &&str| matches!(*kind, "attention" | "full_attention" | "sliding_attention");
    let layers = config.layer_types().map_or(layers, |types| types.iter().filter(|kind| attends(kind)).count());
    let kv_heads = config.uint("num_key_value_heads").unwrap_or(heads) as u64;
    kv_heads.saturating_mul(width as u64).saturating_mul(layers as u64).saturating_mul(2 * 4)
}

fn optional_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    serde_json::from_str(&read(path)?).map_err(|error| malformed(path, format!("it is no JSON object: {error}")))
}

fn read(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

fn malformed(path: &Path, reason: String) -> ModelError {
    ModelError::Malformed { path: path.to_owned(), reason }
}
