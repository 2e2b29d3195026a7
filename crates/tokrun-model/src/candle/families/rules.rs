//! What single families need beyond the table.

use serde_json::{Value, json};

use super::NamedShape;
use crate::candle::safetensors::Setup;
use crate::config::Config;

/// The tensors of a Llama layer.
pub(super) fn llama_shapes(setup: &Setup) -> Vec<NamedShape> {
    let size = |name| setup.uint(name).unwrap_or(0);
    let (hidden, heads, feed_forward) = (size("hidden_size"), size("num_attention_heads"), size("intermediate_size"));
    let keys = hidden / heads.max(1) * setup.uint("num_key_value_heads").unwrap_or(heads);
    vec![
        ("input_layernorm", vec![hidden]),
        ("post_attention_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![hidden, hidden]),
        ("self_attn.k_proj", vec![keys, hidden]),
        ("self_attn.v_proj", vec![keys, hidden]),
        ("self_attn.o_proj", vec![hidden, hidden]),
        ("mlp.gate_proj", vec![feed_forward, hidden]),
        ("mlp.up_proj", vec![feed_forward, hidden]),
        ("mlp.down_proj", vec![hidden, feed_forward]),
    ]
}

/// How Mamba's weights were initialised, which their values say already.
pub(super) const MAMBA_HARMLESS: &[&str] = &[
    "time_step_scale",
    "time_step_min",
    "time_step_max",
    "time_step_init_scheme",
    "time_step_floor",
    "time_step_rank",
    "rescale_prenorm_residual",
];

/// A window that no sequence outgrows, in the words of Qwen and Mixtral.
pub(super) fn no_window(setup: &Setup) -> Value {
    json!({"sliding_window": setup.context_tokens, "max_window_layers": 0})
}

/// Gemma 2 and 3 scale queries by a setting of their own; candle takes the heads' width.
pub(super) fn other_query_scale(config: &Config) -> Option<String> {
    let (scalar, width) = (config.get("query_pre_attn_scalar")?.as_f64()?, config.uint("head_dim")?);
    (scalar != width as f64).then(|| format!("query_pre_attn_scalar {scalar} is not the heads' width, {width}"))
}

/// Every how many layers one of Gemma 3 sees everything.
pub(super) fn gemma3_pattern(config: &Config) -> Option<usize> {
    let Some(types) = config.layer_types() else {
        let named = config.uint("sliding_window_pattern").or_else(|| config.uint("_sliding_window_pattern"));
        return Some(named.unwrap_or(6).max(1));
    };
    let first = types.iter().position(|kind| *kind == "full_attention");
    let pattern = first.map_or(types.len() + 1, |first| first + 1);
    let repeats = types
        .iter()
        .zip(1..)
        .all(|(kind, layer): (_, usize)| (*kind == "full_attention") == layer.is_multiple_of(pattern));
    repeats.then_some(pattern)
}

/// LFM2's feed-forward width, which its configuration adjusts in steps; candle assumes one way of them.
pub(super) fn lfm2_feed_forward(setup: &Setup) -> Option<usize> {
    let full = setup.uint("block_ff_dim").or_else(|| setup.uint("intermediate_size"))?;
    if !setup.bool("block_auto_adjust_ff_dim") {
        return Some(full);
    }
    let multiplier = setup.float("block_ffn_dim_multiplier").unwrap_or(1.0);
    let adjusted = (multiplier * (2 * full / 3) as f64) as usize;
    adjusted.checked_next_multiple_of(setup.uint("block_multiple_of").unwrap_or(256).max(1))
}
