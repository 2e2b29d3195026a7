//! Sizes in `config.json` that executors would believe before they look at a tensor: they multiply and divide by them,
//! and compute tables of them, so a lie must be found out here.

use serde_json::Value;

use crate::config::Config;

/// Largest width of a head: rope tables have half of it for each token of the context.
const HEAD_WIDTH_MAX: usize = 1 << 10;
/// Largest number in a configuration, but for the two that are larger in earnest.
const SIZE_MAX: u64 = 1 << 20;
const LARGE: &[&str] = &["vocab_size", "max_position_embeddings", "original_max_position_embeddings"];
const LARGE_MAX: u64 = 1 << 24;
/// Largest number of any kind.
const NUMBER_MAX: f64 = 1e12;
/// Sizes that nothing can be divided by when they are 0.
const NOT_ZERO: &[&str] = &[
    "block_multiple_of",
    "conv_L_cache",
    "decoder_sparse_step",
    "expand",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "kv_lora_rank",
    "max_position_embeddings",
    "moe_intermediate_size",
    "moe_layer_freq",
    "n_group",
    "n_groups",
    "no_rope_layer_interval",
    "num_attention_heads",
    "num_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "state_size",
    "topk_group",
    "v_head_dim",
    "vocab_size",
];

/// Says what is wrong with the sizes of a model of `tensors` tensors.
pub(crate) fn check(config: &Config, tensors: usize) -> Result<(), String> {
    for (name, value) in config.settings() {
        check_one(name, value)?;
    }
    for name in ["num_hidden_layers", "hidden_size", "vocab_size"] {
        at_most(config, name, usize::MAX)?.ok_or_else(|| format!("{name} is missing"))?;
    }
    // Each layer and each expert has tensors.
    for name in ["num_hidden_layers", "num_experts", "n_routed_experts"] {
        at_most(config, name, tensors)?;
    }
    let experts = config.uint("num_experts").or_else(|| config.uint("n_routed_experts")).filter(|&experts| experts > 0);
    if let Some(experts) = experts
        && at_most(config, "num_experts_per_tok", experts)?.is_none_or(|each| each == 0)
    {
        return Err("num_experts_per_tok is missing or 0".to_owned());
    }
    heads(config)
}

fn check_one(name: &str, value: &Value) -> Result<(), String> {
    let Some(number) = value.as_f64() else { return Ok(()) };
    let most = if LARGE.contains(&name) { LARGE_MAX } else { SIZE_MAX };
    let is_token = name.ends_with("token_id");
    if !is_token && value.as_u64().is_some_and(|value| value > most) && !name.contains("rope") {
        return Err(format!("{name} = {value} is more than {most}"));
    }
    if number.abs() > NUMBER_MAX {
        return Err(format!("{name} = {value} is absurd"));
    }
    if NOT_ZERO.contains(&name) && value.as_u64().is_none_or(|value| value == 0) {
        return Err(format!("{name} = {value} is not a positive whole number"));
    }
    if name == "partial_rotary_factor" && !(number > 0.0 && number <= 1.0) {
        return Err(format!("{name} = {value} is not between 0 and 1"));
    }
    Ok(())
}

/// A setting that is a whole number, and not above `most`.
fn at_most(config: &Config, name: &str, most: usize) -> Result<Option<usize>, String> {
    match config.get(name) {
        None => Ok(None),
        Some(value) => match config.uint(name).filter(|&value| value <= most) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{name} = {value} is not a whole number up to {most}")),
        },
    }
}

/// Heads share the hidden width, and queries share keys, without remainder.
fn heads(config: &Config) -> Result<(), String> {
    let Some(heads) = config.uint("num_attention_heads") else { return Ok(()) };
    let (hidden, kv_heads) =
        (config.uint("hidden_size").unwrap_or(0), config.uint("num_key_value_heads").unwrap_or(heads));
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} query heads cannot share {kv_heads} key heads"));
    }
    if config.get("head_dim").is_none() && !hidden.is_multiple_of(heads) {
        return Err(format!("hidden_size {hidden} cannot be shared by {heads} heads"));
    }
    let widths = [config.uint("head_dim").unwrap_or(hidden / heads), config.uint("qk_rope_head_dim").unwrap_or(2)];
    match widths.into_iter().find(|&width| width > HEAD_WIDTH_MAX || !width.is_multiple_of(2)) {
        Some(width) => Err(format!("heads of {width} values are not even or wider than {HEAD_WIDTH_MAX}")),
        None => Ok(()),
    }
}
