//! The table of families.

use candle_core::{DType, Device};
use candle_transformers::models as candle;
use serde_json::json;

use super::adapters::{Mamba2State, MambaState, once, plain, single, with_state};
use super::rules::{MAMBA_HARMLESS, gemma3_pattern, lfm2_feed_forward, llama_shapes, no_window, other_query_scale};
use super::{Family, PLAIN};
use crate::candle::Pieces;

/// A model that keeps its cache inside and is told the position.
macro_rules! model {
    ($model:expr) => {
        plain($model, |model, (), tokens, position| model.forward(tokens, position))
    };
}

/// Every family, in the order of their names.
pub(in crate::candle) const FAMILIES: &[Family] = &[
    Family {
        model_types: &["deepseek_v2"],
        defaults: r#"{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": false, "hidden_act": "silu",
            "tie_word_embeddings": false, "n_group": 1, "topk_group": 1}"#,
        honours: &[
            "rms_norm_eps",
            "hidden_act",
            "attention_bias",
            "kv_lora_rank",
            "q_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "n_routed_experts",
            "n_shared_experts",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "moe_layer_freq",
            "first_k_dense_replace",
            "routed_scaling_factor",
            "norm_topk_prob",
            "topk_method",
            "topk_group",
            "scoring_func",
            "n_group",
            "head_dim",
            "qk_head_dim",
        ],
        load: |setup, builder| {
            let model = candle::deepseek2::DeepSeekV2::new(&setup.build(json!({}))?, builder)?;
            single(model, |model, tokens, position| model.forward(tokens, position), |model| model.clear_kv_cache())
        },
        ..PLAIN
    },
    Family {
        model_types: &["gemma"],
        defaults: r#"{"attention_bias": false, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": 256,
            "tie_word_embeddings": true}"#,
        honours: &["attention_bias", "head_dim", "rms_norm_eps", "hidden_act"],
        // Early files say `gelu` and mean the approximation, as transformers took it.
        fixed: &[("hidden_activation", "\"gelu_pytorch_tanh\"")],
        refuse: |config| {
            let activation = config.get("hidden_act")?.as_str()?;
            (!matches!(activation, "gelu" | "gelu_pytorch_tanh")).then(|| format!("hidden_act {activation}"))
        },
        load: |setup, builder| {
            let activation = json!({"hidden_activation": "gelu_pytorch_tanh", "hidden_act": null});
            let model = candle::gemma::Model::new(false, &setup.build(activation)?, builder)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        model_types: &["gemma2"],
        defaults: r#"{"attention_bias": false, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "tie_word_embeddings": true, "sliding_window": 4096, "head_dim": 256,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}"#,
        honours: &[
            "attention_bias",
            "head_dim",
            "hidden_activation",
            "rms_norm_eps",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
        ],
        refuse: other_query_scale,
        load: |setup, builder| model!(candle::gemma2::Model::new(false, &setup.build(json!({}))?, builder)?),
        ..PLAIN
    },
    Family {
        model_types: &["gemma3_text"],
        defaults: r#"{"attention_bias": false, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "tie_word_embeddings": true,
            "sliding_window": 4096, "head_dim": 256, "query_pre_attn_scalar": 256, "vocab_size": 262208,
            "max_position_embeddings": 131072, "num_attention_heads": 8, "num_key_value_heads": 4}"#,
        honours: &[
            "attention_bias",
            "head_dim",
            "hidden_activation",
            "rms_norm_eps",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "rope_local_base_freq",
            "sliding_window_pattern",
            "_sliding_window_pattern",
            "layer_types",
        ],
        refuse: |config| {
            other_query_scale(config).or_else(|| match gemma3_pattern(config) {
                Some(_) => None,
                None => Some("layer_types do not repeat: windows, then one layer that sees everything".to_owned()),
            })
        },
        slides: true,
        // Each layer keeps rope tables of its own, 2 * head_dim bytes a token.
        context_tokens_max: 8192,
        // candle cannot store more than one token at a time (`slice-set only supports contiguous tensors`), and its masks
        // for more are one token too wide; one at a time, its rotating cache is right.
        pieces: |_| Pieces::Single,
        load: |setup, builder| {
            let window = setup.window_tokens.unwrap_or(setup.context_tokens);
            let pattern = json!({"sliding_window": window, "sliding_window_pattern": gemma3_pattern(&setup.config)});
            let model = candle::gemma3::Model::new(false, &setup.build(pattern)?, builder)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        model_types: &["glm4"],
        defaults: r#"{"attention_bias": true, "hidden_act": "silu", "rms_norm_eps": 1.5625e-7, "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5, "tie_word_embeddings": false, "head_dim": 128}"#,
        honours: &["attention_bias", "head_dim", "hidden_act", "partial_rotary_factor", "rms_norm_eps"],
        load: |setup, builder| {
            model!(candle::glm4_new::ModelForCausalLM::new(&setup.build(json!({"eos_token_id": null}))?, builder)?)
        },
        ..PLAIN
    },
    Family {
        model_types: &["gpt_bigcode"],
        defaults: r#"{"layer_norm_epsilon": 1e-5, "multi_query": true, "tie_word_embeddings": true}"#,
        honours: &[
            "layer_norm_epsilon",
            "multi_query",
            "n_inner",
            "attention_softmax_in_fp32",
            "scale_attention_softmax_in_fp32",
        ],
        fixed: &[
            ("activation_function", "\"gelu_pytorch_tanh\""),
            ("scale_attn_weights", "true"),
            ("tie_word_embeddings", "true"),
        ],
        // candle keeps a mask of context * context bytes.
        context_tokens_max: 8192,
        load: |setup, builder| {
            let size = |name| setup.uint(name).ok_or_else(|| candle_core::Error::Msg(format!("{name} is missing")));
            let config = candle::bigcode::Config {
                vocab_size: setup.vocab_size,
                max_position_embeddings: setup.context_tokens,
                num_hidden_layers: setup.layers,
                hidden_size: size("hidden_size")?,
                layer_norm_epsilon: setup.float("layer_norm_epsilon").unwrap_or(1e-5),
                n_inner: setup.uint("n_inner"),
                num_attention_heads: size("num_attention_heads")?,
                multi_query: setup.bool("multi_query"),
                use_cache: true,
            };
            let model = candle::bigcode::GPTBigCode::load(builder, config)?;
            once(model, |model, tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        model_types: &["granite"],
        defaults: r#"{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "attention_multiplier": 1.0}"#,
        honours: &["rms_norm_eps", "attention_multiplier"],
        fixed: &[
            ("hidden_act", "\"silu\""),
            ("embedding_multiplier", "1.0"),
            ("logits_scaling", "1.0"),
            ("residual_multiplier", "1.0"),
        ],
        tied_to: Some("model.embed_tokens.weight"),
        refuse: |config| {
            let width = config.uint("hidden_size")? / config.uint("num_attention_heads").filter(|&heads| heads > 0)?;
            let multiplier = config.get("attention_multiplier")?.as_f64()?;
            ((multiplier * (width as f64).sqrt() - 1.0).abs() > 1e-6)
                .then(|| format!("attention_multiplier {multiplier} is not one over the root of the heads' width"))
        },
        layer_shapes: llama_shapes,
        load: |setup, builder| {
            let config: candle::granite::GraniteConfig =
                setup.build(json!({"bos_token_id": null, "eos_token_id": null}))?;
            let config = config.into_config(false);
            let cache = candle::granite::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
            let model = candle::granite::Granite::load(builder, &config)?;
            with_state(model, cache, |model, cache, tokens, position| model.forward(tokens, position, cache))
        },
        ..PLAIN
    },
    Family {
        model_types: &["granitemoehybrid"],
        defaults: r#"{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "attention_multiplier": 1.0, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
            "residual_multiplier": 1.0, "shared_intermediate_size": 1024}"#,
        honours: &[
            "rms_norm_eps",
            "attention_multiplier",
            "embedding_multiplier",
            "logits_scaling",
            "residual_multiplier",
            "shared_intermediate_size",
            "layer_types",
            "num_experts_per_tok",
            "mamba_n_heads",
            "mamba_n_groups",
            "mamba_d_state",
            "mamba_d_head",
            "mamba_d_conv",
            "mamba_expand",
            "mamba_chunk_size",
            "mamba_conv_bias",
            "mamba_proj_bias",
            "time_step_limit",
        ],
        fixed: &[
            ("hidden_act", "\"silu\""),
            ("num_experts", "0"),
            ("num_local_experts", "0"),
            ("position_embedding_type", "\"rope\""),
            ("tie_word_embeddings", "true"),
        ],
        refuse: |config| {
            let types = config.layer_types().unwrap_or_default();
            let other = types.iter().find(|kind| !matches!(**kind, "attention" | "full_attention"))?;
            Some(format!("layer_types has {other}, and only attention is computed"))
        },
        load: |setup, builder| {
            let changes =
                json!({"bos_token_id": null, "eos_token_id": null, "layer_types": vec!["attention"; setup.layers]});
            let config: candle::granitemoehybrid::GraniteMoeHybridConfig = setup.build(changes)?;
            let config = config.into_config(false);
            let cache = candle::granitemoehybrid::GraniteMoeHybridCache::new(true, DType::F32, &config, &Device::Cpu)?;
            let model = candle::granitemoehybrid::GraniteMoeHybrid::load(builder, &config)?;
            with_state(model, cache, |model, cache, tokens, position| model.forward(tokens, position, cache))
        },
        ..PLAIN
    },
    Family {
        model_types: &["helium"],
        defaults: r#"{"attention_bias": false, "mlp_bias": false, "hidden_act": "silu", "rms_norm_eps": 1e-8,
            "rope_theta": 100000.0, "tie_word_embeddings": false, "head_dim": 128}"#,
        honours: &["attention_bias", "mlp_bias", "head_dim", "hidden_act", "rms_norm_eps"],
        load: |setup, builder| {
            let config = setup.build(json!({"bos_token_id": 0, "eos_token_id": 0}))?;
            let model = candle::helium::Model::new(&config, builder)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        model_types: &["lfm2"],
        defaults: r#"{"norm_eps": 1e-5, "rope_theta": 1000000.0, "conv_bias": false, "conv_L_cache": 3,
            "tie_word_embeddings": true, "block_auto_adjust_ff_dim": true}"#,
        honours: &[
            "norm_eps",
            "conv_L_cache",
            "conv_bias",
            "layer_types",
            "block_multiple_of",
            "block_ffn_dim_multiplier",
            "block_auto_adjust_ff_dim",
            "full_attn_idxs",
            "block_dim",
            "block_ff_dim",
            "block_mlp_init_scale",
            "block_norm_eps",
            "block_use_swiglu",
            "block_use_xavier_init",
            "block_out_init_scale",
            "conv_dim",
            "conv_dim_out",
            "conv_use_xavier_init",
        ],
        // Its convolution starts a later piece of several tokens from zeros.
        pieces: |_| Pieces::FirstOnly,
        load: |setup, builder| {
            let tied = setup.bool("tie_word_embeddings");
            let changes = json!({"bos_token_id": null, "eos_token_id": null, "tie_embedding": tied});
            let config: candle::lfm2::Lfm2Config = setup.build(changes)?;
            let mut config = config.into_config(false);
            config.intermediate_size = lfm2_feed_forward(setup).unwrap_or(config.intermediate_size);
            let cache = candle::lfm2::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
            let model = candle::lfm2::Model::new(&config, builder)?;
            with_state(model, cache, |model, cache, tokens, position| model.forward(tokens, position, cache))
        },
        ..PLAIN
    },
    Family {
        model_types: &["llama"],
        defaults: r#"{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false}"#,
        honours: &["rms_norm_eps", "rope_scaling", "original_max_position_embeddings"],
        fixed: &[("hidden_act", "\"silu\"")],
        refuse: |config| {
            let kind = config.get("rope_scaling")?.get("rope_type")?;
            (kind != "llama3").then(|| format!("rope_scaling of type {kind}"))
        },
        layer_shapes: llama_shapes,
        load: |setup, builder| {
            // Past this length candle cuts its cache, along the wrong dimension: by the number of heads.
            let length = setup.context_tokens.max(setup.uint("num_attention_heads").unwrap_or(0));
            let changes = json!({"bos_token_id": null, "eos_token_id": null, "max_position_embeddings": length});
            let config: candle::llama::LlamaConfig = setup.build(changes)?;
            let config = config.into_config(false);
            let cache = candle::llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
            let model = candle::llama::Llama::load(builder, &config)?;
            with_state(model, cache, |model, cache, tokens, position| model.forward(tokens, position, cache))
        },
        ..PLAIN
    },
    Family {
        model_types: &["mamba"],
        defaults: r#"{"tie_word_embeddings": true}"#,
        honours: MAMBA_HARMLESS,
        fixed: &[
            ("hidden_act", "\"silu\""),
            ("state_size", "16"),
            ("conv_kernel", "4"),
            ("expand", "2"),
            ("use_bias", "false"),
            ("use_conv_bias", "true"),
            ("layer_norm_epsilon", "1e-5"),
            ("tie_word_embeddings", "true"),
        ],
        refuse: |config| {
            let (hidden, rank) = (config.uint("hidden_size")?, config.uint("time_step_rank")?);
            (rank != hidden.div_ceil(16)).then(|| format!("time_step_rank {rank} is not a sixteenth of hidden_size"))
        },
        renames: &[("backbone.embedding.weight", "backbone.embeddings.weight")],
        pieces: |_| Pieces::Single,
        load: |setup, builder| {
            let changes =
                json!({"d_model": setup.uint("hidden_size"), "n_layer": setup.layers, "pad_vocab_size_multiple": 1});
            let config: candle::mamba::Config = setup.build(changes)?;
            let model = candle::mamba::Model::new(&config, builder.pp("backbone"))?;
            let state = candle::mamba::State::new(1, &config, DType::F32, &Device::Cpu)?;
            let state = MambaState { hs: state.hs, prev_xs: state.prev_xs, pos: 0 };
            with_state(model, state, |model, state, tokens, _| state.forward(model, tokens))
        },
        ..PLAIN
    },
    Family {
        model_types: &["mamba2"],
        defaults: r#"{"tie_word_embeddings": false, "expand": 2, "state_size": 128, "n_groups": 8, "head_dim": 64}"#,
        honours: &[
            "expand",
            "state_size",
            "n_groups",
            "head_dim",
            "num_heads",
            "rms_norm",
            "chunk_size",
            "time_step_rank",
            "time_step_min",
            "time_step_max",
            "time_step_floor",
            "rescale_prenorm_residual",
        ],
        fixed: &[
            ("hidden_act", "\"silu\""),
            ("conv_kernel", "4"),
            ("use_bias", "false"),
            ("use_conv_bias", "true"),
            ("layer_norm_epsilon", "1e-5"),
            ("norm_before_gate", "false"),
            ("time_step_limit", "[0.0, null]"),
            ("tie_word_embeddings", "true"),
        ],
        pieces: |_| Pieces::Single,
        load: |setup, builder| {
            let config: candle::mamba2::Config = setup.build(json!({"pad_vocab_size_multiple": 1}))?;
            let model = candle::mamba2::Model::new(&config, builder.pp("backbone"))?;
            let state = candle::mamba2::State::new(1, &config, DType::F32, &Device::Cpu)?;
            let state = Mamba2State { hs: state.hs, conv_states: state.conv_states, pos: 0 };
            with_state(model, state, |model, state, tokens, _| state.forward(model, tokens))
        },
        ..PLAIN
    },
    Family {
        model_types: &["mistral"],
        defaults: r#"{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu"}"#,
        honours: &["rms_norm_eps", "hidden_act", "head_dim"],
        tied_to: Some("model.embed_tokens.weight"),
        load: |setup, builder| model!(candle::mistral::Model::new(&setup.build(json!({}))?, builder)?),
        ..PLAIN
    },
    Family {
        model_types: &["mixtral"],
        defaults: r#"{"rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "tie_word_embeddings": false, "hidden_act": "silu"}"#,
        honours: &["rms_norm_eps", "hidden_act", "num_experts", "num_local_experts", "num_experts_per_tok"],
        tied_to: Some("model.embed_tokens.weight"),
        load: |setup, builder| model!(candle::mixtral::Model::new(&setup.build(no_window(setup))?, builder)?),
        ..PLAIN
    },
    Family {
        model_types: &["olmo"],
        defaults: r#"{"attention_bias": false, "hidden_act": "silu", "rope_theta": 10000.0,
            "tie_word_embeddings": false}"#,
        honours: &["attention_bias", "hidden_act"],
        load: |setup, builder| model!(candle::olmo::Model::new(&setup.build(json!({}))?, builder)?),
        ..PLAIN
    },
    Family {
        model_types: &["olmo2"],
        defaults: r#"{"attention_bias": false, "hidden_act": "silu", "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false}"#,
        honours: &["attention_bias", "hidden_act", "rms_norm_eps"],
        load: |setup, builder| model!(candle::olmo2::Model::new(&setup.build(json!({}))?, builder)?),
        ..PLAIN
    },
    Family {
        model_types: &["phi"],
        defaults: r#"{"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5, "qk_layernorm": false, "tie_word_embeddings": false}"#,
        honours: &["hidden_act", "layer_norm_eps", "partial_rotary_factor"],
        pieces: |_| Pieces::FirstOnly,
        load: |setup, builder| {
            let model = candle::phi::Model::new(&setup.build(json!({}))?, builder)?;
            plain(model, |model, (), tokens, _| model.forward(tokens))
        },
        ..PLAIN
    },
    Family {
        model_types: &["phi3"],
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false}"#,
        honours: &["hidden_act", "rms_norm_eps", "partial_rotary_factor"],
        load: |setup, builder| {
            let changes = json!({"bos_token_id": null, "eos_token_id": null, "original_max_position_embeddings": null});
            let model = candle::phi3::Model::new(&setup.build(changes)?, builder)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        model_types: &["qwen2"],
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false}"#,
        honours: &["hidden_act", "rms_norm_eps"],
        load: |setup, builder| model!(candle::qwen2::ModelForCausalLM::new(&setup.build(no_window(setup))?, builder)?),
        ..PLAIN
    },
    Family {
        model_types: &["qwen2_moe"],
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "decoder_sparse_step": 1, "norm_topk_prob": false}"#,
        honours: &[
            "hidden_act",
            "rms_norm_eps",
            "decoder_sparse_step",
            "moe_intermediate_size",
            "norm_topk_prob",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "shared_expert_intermediate_size",
        ],
        fixed: &[("qkv_bias", "true")],
        tied_to: Some("model.embed_tokens.weight"),
        load: |setup, builder| model!(candle::qwen2_moe::Model::new(&setup.build(no_window(setup))?, builder)?),
        ..PLAIN
    },
    Family {
        model_types: &["qwen3"],
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "attention_bias": false, "head_dim": 128}"#,
        honours: &["hidden_act", "rms_norm_eps", "attention_bias", "head_dim"],
        load: |setup, builder| model!(candle::qwen3::ModelForCausalLM::new(&setup.build(no_window(setup))?, builder)?),
        ..PLAIN
    },
    Family {
        model_types: &["qwen3_moe"],
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "attention_bias": false, "head_dim": 128, "decoder_sparse_step": 1, "norm_topk_prob": false}"#,
        honours: &[
            "hidden_act",
            "rms_norm_eps",
            "attention_bias",
            "head_dim",
            "decoder_sparse_step",
            "moe_intermediate_size",
            "norm_topk_prob",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
        ],
        load: |setup, builder| {
            model!(candle::qwen3_moe::ModelForCausalLM::new(&setup.build(no_window(setup))?, builder)?)
        },
        ..PLAIN
    },
    Family {
        model_types: &["smollm3"],
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 2000000.0, "tie_word_embeddings": true,
            "no_rope_layer_interval": 4}"#,
        honours: &[
            "hidden_act",
            "rms_norm_eps",
            "attention_bias",
            "mlp_bias",
            "no_rope_layers",
            "no_rope_layer_interval",
        ],
        load: |setup, builder| {
            let changes = json!({"bos_token_id": null, "eos_token_id": null, "pad_token_id": null});
            let model = candle::smol::smollm3::ModelForCausalLM::new(&setup.build(changes)?, builder)?;
            plain(model, |model, (), tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        model_types: &["stablelm"],
        defaults: r#"{"hidden_act": "silu", "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25, "use_qkv_bias": false, "use_cache": true, "tie_word_embeddings": false}"#,
        honours: &["hidden_act", "layer_norm_eps", "partial_rotary_factor", "use_qkv_bias"],
        tied_to: Some("model.embed_tokens.weight"),
        load: |setup, builder| {
            let model = candle::stable_lm::Model::new(&setup.build(json!({}))?, builder)?;
            once(model, |model, tokens, position| model.forward(tokens, position))
        },
        ..PLAIN
    },
    Family {
        model_types: &["starcoder2"],
        defaults: r#"{"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "rope_theta": 10000.0, "use_bias": true,
            "tie_word_embeddings": true}"#,
        honours: &["hidden_act", "norm_epsilon", "use_bias"],
        tied_to: Some("model.embed_tokens.weight"),
        load: |setup, builder| model!(candle::starcoder2::Model::new(&setup.build(json!({}))?, builder)?),
        ..PLAIN
    },
];

/// Families that candle has and computes wrongly.
pub(in crate::candle) const WRONG: &[(&str, &str)] = &[
    ("falcon", "its activation gelu would be approximated (logits off by 1e-3)"),
    ("recurrent_gemma", "its recurrence would be off (logits by 6e-3), and prompts in pieces fail"),
];
