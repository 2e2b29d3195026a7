//! `config.json` as transformers 4 and 5 write it, brought into one form before any executor sees it.
//!
//! The one form has the names of transformers 4: version 5's `rope_parameters` (one set, or one a layer type) becomes
//! `rope_theta`, `partial_rotary_factor`, `rope_local_base_freq` and `rope_scaling` (absent where nothing is scaled), a
//! nested `text_config` is lifted out, and sizes with several names keep one. Which settings matter to a family is for
//! its executor to say: [`Config::refuse_ignored`] finds the ones it would ignore.

use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;

mod normalise;
pub(crate) mod sizes;
#[cfg(test)]
mod tests;

/// A model's settings, normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    model_type: String,
    settings: Map<String, Value>,
    /// Whether the settings come from the `text_config` of a larger model.
    nested: bool,
}

impl Config {
    /// Reads the text of the `config.json` at `path`.
    ///
    /// # Errors
    /// [`ModelError::Malformed`] when it is no JSON object or lacks `model_type`, [`ModelError::Unsupported`] when its
    /// rope settings have no common form.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ModelError> {
        let malformed = |reason: String| ModelError::Malformed { path: path.to_owned(), reason };
        let mut value: Value = serde_json::from_str(&normalise::without_infinities(text))
            .map_err(|error| malformed(format!("it is no JSON: {error}")))?;
        normalise::without_float_objects(&mut value);
        let Value::Object(outer) = value else {
            return Err(malformed("it is no JSON object".to_owned()));
        };
        let (mut settings, nested) = normalise::lift_text_config(outer);
        let Some(Value::String(model_type)) = settings.remove("model_type") else {
            return Err(malformed("it lacks model_type".to_owned()));
        };
        normalise::sizes(&mut settings);
        normalise::rope(&mut settings).map_err(|reason| ModelError::Unsupported { reason })?;
        normalise::experts(&mut settings);
        Ok(Self { model_type, settings, nested })
    }

    /// The family: `llama`, `gemma3_text`.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Whether the model is the text part of a larger one.
    pub fn is_nested(&self) -> bool {
        self.nested
    }

    /// All settings, by their normalised names.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// A setting that is present and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.settings.get(name).filter(|value| !value.is_null())
    }

    /// A setting that is a whole number.
    pub fn uint(&self, name: &str) -> Option<usize> {
        self.get(name)?.as_u64().and_then(|value| usize::try_from(value).ok())
    }

    /// A setting that is a truth value.
    pub fn bool(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    /// Fills in what the file leaves out: transformers does not write what equals a family's defaults.
    pub fn with_defaults(mut self, defaults: &Map<String, Value>) -> Self {
        for (name, value) in defaults {
            if self.get(name).is_none() {
                self.settings.insert(name.clone(), value.clone());
            }
        }
        self
    }

    /// The same with another value of a setting.
    pub(crate) fn with(mut self, name: &str, value: Value) -> Self {
        self.settings.insert(name.to_owned(), value);
        self
    }

    /// How many tokens back the narrowest layer sees, itself included; `None` where every layer sees everything.
    pub fn window_tokens(&self) -> Option<usize> {
        let off = self.bool("use_sliding_window") == Some(false);
        let no_layer = self.layer_types().is_some_and(|types| !types.contains(&"sliding_attention"));
        if off || no_layer { None } else { self.uint("sliding_window").filter(|&window| window > 0) }
    }

    /// The kind of each layer, where the file lists them.
    pub fn layer_types(&self) -> Option<Vec<&str>> {
        self.get("layer_types")?.as_array()?.iter().map(Value::as_str).collect()
    }

    /// Refuses the first setting that changes what is computed and is neither in `honoured` nor neutral.
    ///
    /// A setting is taken to change the computation when its name says so (rope, window, scale, bias ...); names that
    /// are known to be harmless, and values that switch something off, pass.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], naming the setting and its value.
    pub fn refuse_ignored(&self, honoured: &[&str]) -> Result<(), ModelError> {
        for (name, value) in &self.settings {
            let known = honoured.contains(&name.as_str()) || HARMLESS.contains(&name.as_str());
            let telling = TELLING.iter().any(|part| name.contains(part));
            if telling && !known && !is_off(value) && !self.is_implied(name) {
                let value = shorten(&value.to_string());
                let reason = format!("the executor for {} would ignore {name} = {value}", self.model_type);
                return Err(ModelError::Unsupported { reason });
            }
        }
        Ok(())
    }

    /// Whether a setting only repeats what others say.
    fn is_implied(&self, name: &str) -> bool {
        let head_width =
            || Some(self.uint("hidden_size")? / self.uint("num_attention_heads").filter(|&heads| heads > 0)?);
        match name {
            "head_dim" => self.uint(name) == head_width(),
            // Windows are accounted for by [`Config::window_tokens`].
            "layer_types" => self
                .layer_types()
                .is_some_and(|types| types.iter().all(|kind| matches!(*kind, "full_attention" | "sliding_attention"))),
            "partial_rotary_factor" => self.get(name).and_then(Value::as_f64) == Some(1.0),
            _ => false,
        }
    }
}

/// Settings that steer training, saving or sampling, or that are accounted for elsewhere.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "embd_pdrop",
    "hidden_dropout",
    "is_decoder",
    "is_encoder_decoder",
    "max_position_embeddings",
    "max_window_layers",
    "model_parallel",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    // Means something only beside a `rope_scaling`, which is looked at itself.
    "original_max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pretraining_tp",
    "residual_dropout",
    "residual_in_fp32",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
    "sliding_window",
    "task_specific_params",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Parts of names that announce a change of what is computed.
const TELLING: &[&str] = &[
    "act",
    "alibi",
    "attention",
    "attn",
    "bias",
    "block",
    "cap",
    "chunk",
    "clip",
    "conv",
    "expand",
    "expert",
    "factor",
    "feed_forward",
    "gate",
    "group",
    "head",
    "intermediate",
    "layer",
    "lora",
    "mask",
    "mixer",
    "moe",
    "mlp",
    "multiplier",
    "multi_query",
    "no_rope",
    "norm",
    "parallel",
    "position",
    "prefix",
    "qk",
    "quant",
    "residual",
    "rope",
    "rotary",
    "router",
    "routed",
    "scal",
    "shared",
    "softmax",
    "ssm",
    "state",
    "theta",
    "tie",
    "time_step",
    "topk",
    "window",
];

/// Null, `false` and nothing: a setting that is switched off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 60 {
        text.to_owned()
    } else {
        format!("{}...", text.chars().take(60).collect::<String>())
    }
}
