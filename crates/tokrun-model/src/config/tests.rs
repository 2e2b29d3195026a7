//! Both versions of the settings become the same.

use super::*;

fn parse(text: &str) -> Result<Config, ModelError> {
    Config::parse(Path::new("config.json"), text)
}

fn settings(text: &str) -> Config {
    parse(text).expect("the settings are sound")
}

fn refusal(text: &str) -> String {
    parse(text).expect_err("the settings are unsound").to_string()
}

#[test]
fn versions_4_and_5_agree() {
    let old = settings(
        r#"{"model_type": "qwen3_moe", "rope_theta": 5000.0, "num_experts": 8, "torch_dtype": "bfloat16",
            "rope_scaling": {"type": "yarn", "factor": 4.0}}"#,
    );
    let new = settings(
        r#"{"model_type": "qwen3_moe", "num_local_experts": 8, "dtype": "bfloat16",
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5000.0}}"#,
    );
    for name in ["rope_theta", "rope_scaling", "num_experts", "num_local_experts"] {
        assert_eq!(old.get(name), new.get(name), "{name}");
        assert!(old.get(name).is_some(), "{name}");
    }
}

#[test]
fn rope_that_scales_nothing_is_dropped() {
    for text in [
        r#"{"model_type": "llama", "rope_theta": 1.0, "rope_scaling": null}"#,
        r#"{"model_type": "llama", "rope_theta": 1.0, "rope_scaling": {"rope_type": "default"}}"#,
        r#"{"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 1.0}}"#,
    ] {
        let config = settings(text);
        assert_eq!(config.get("rope_theta"), Some(&Value::from(1.0)), "{text}");
        assert_eq!(config.get("rope_scaling"), None, "{text}");
    }
}

#[test]
fn rope_by_layer_type_is_told_apart() {
    let config = settings(
        r#"{"model_type": "gemma3_text", "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}"#,
    );
    assert_eq!(config.get("rope_theta"), Some(&Value::from(1e6)));
    assert_eq!(config.get("rope_local_base_freq"), Some(&Value::from(1e4)));
    assert!(config.get("rope_scaling").is_some_and(|scaling| scaling["rope_type"] == "linear"));
    let unknown = r#"{"model_type": "x", "rope_parameters": {"chunked_attention": {"rope_theta": 1.0}}}"#;
    assert!(refusal(unknown).contains("chunked_attention"));
    let sliding = r#"{"model_type": "x", "rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}"#;
    assert!(refusal(sliding).contains("sliding"));
}

#[test]
fn text_of_larger_models_is_lifted_out() {
    let config = settings(
        r#"{"model_type": "gemma3", "tie_word_embeddings": true, "vision_config": {"hidden_size": 7},
            "text_config": {"model_type": "gemma3_text", "hidden_size": 64, "n_layer": 3}}"#,
    );
    assert_eq!(config.model_type(), "gemma3_text");
    assert!(config.is_nested());
    assert_eq!(config.uint("hidden_size"), Some(64));
    assert_eq!(config.uint("num_hidden_layers"), Some(3));
    assert_eq!(config.bool("tie_word_embeddings"), Some(true));
    assert_eq!(config.get("vision_config"), None);
}

#[test]
fn infinities_are_read() {
    let python = settings(r#"{"model_type": "mamba2", "time_step_limit": [0.0, Infinity], "note": "Infinity \" NaN"}"#);
    let wrapped = settings(r#"{"model_type": "mamba2", "time_step_limit": [0.0, {"__float__": "Infinity"}]}"#);
    assert_eq!(python.get("time_step_limit"), wrapped.get("time_step_limit"));
    assert_eq!(python.get("note"), Some(&Value::from("Infinity \" NaN")));
}

#[test]
fn windows_count_where_a_layer_slides() {
    for (text, window) in [
        (r#""sliding_window": 16"#, Some(16)),
        (r#""sliding_window": null"#, None),
        (r#""sliding_window": 0"#, None),
        (r#""sliding_window": 16, "use_sliding_window": false"#, None),
        (r#""sliding_window": 16, "layer_types": ["full_attention"]"#, None),
        (r#""sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]"#, Some(16)),
    ] {
        let config = settings(&format!(r#"{{"model_type": "x", {text}}}"#));
        assert_eq!(config.window_tokens(), window, "{text}");
    }
}

#[test]
fn what_would_be_ignored_is_named() {
    let config = settings(
        r#"{"model_type": "x", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "use_cache": true,
            "attention_bias": false, "logit_scale": null, "quantization_config": {}, "layer_types": ["full_attention"],
            "transformers_version": "5.0.0", "architectures": ["X"], "initializer_range": 0.02}"#,
    );
    config.refuse_ignored(&[]).expect("nothing of it changes the computation");
    for (setting, value) in
        [("logit_scale", "0.5"), ("use_qk_norm", "true"), ("layer_types", r#"["mamba"]"#), ("head_dim", "8")]
    {
        let text =
            format!(r#"{{"model_type": "x", "hidden_size": 64, "num_attention_heads": 4, "{setting}": {value}}}"#);
        let error = settings(&text).refuse_ignored(&[]).expect_err("it changes the computation").to_string();
        assert!(error.contains(setting), "{error}");
        settings(&text).refuse_ignored(&[setting]).expect("it is honoured");
    }
}

#[test]
fn unsound_settings_are_refused() {
    assert!(refusal("{").contains("no JSON"));
    assert!(refusal("[]").contains("no JSON object"));
    assert!(refusal("{}").contains("model_type"));
    assert!(refusal(r#"{"model_type": "x", "rope_scaling": {"factor": 2.0}}"#).contains("type"));
    assert!(refusal(r#"{"model_type": "x", "rope_parameters": 3}"#).contains("rope_parameters"));
}
