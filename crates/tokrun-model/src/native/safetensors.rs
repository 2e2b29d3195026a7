//! Reads a decoder's description from `config.json`.

use std::path::Path;

use serde_json::{Map, Value};
use tokrun_kernels::{Activation, RopeStyle};

use super::architecture::{Architecture, Experts, HEAD_DIM_MAX, Layer, Norms, QueryKeyNorms};
use super::fp8;
use super::rope::{Scaling, longrope_magnitude, rope, yarn_magnitude};
use crate::ModelError;
use crate::config::{Config, sizes};

/// What sets a family apart from the others, as far as its settings do not say it themselves.
struct Family {
    /// `model_type` in `config.json`.
    model_type: &'static str,
    /// What transformers assumes where the file says nothing, as JSON.
    defaults: &'static str,
    /// Settings that it has beyond those of [`COMMON`].
    honours: &'static [&'static str],
    norms: Norms,
    query_key_norms: QueryKeyNorms,
    /// Whether query, key and value have biases whatever the settings say.
    qkv_bias: bool,
    /// Name of the setting that holds the activation.
    activation: &'static str,
    /// Stored norm weights are this much too small, and embeddings are scaled by the root of their width.
    gemma: bool,
}

/// Settings that every family has, or that are looked at whatever the family.
const COMMON: &[&str] =
    &["rms_norm_eps", "rope_theta", "rope_scaling", "partial_rotary_factor", "head_dim", "intermediate_size"];

const PLAIN: Family = Family {
    model_type: "",
    defaults: "{}",
    honours: &["attention_bias"],
    norms: Norms::Before,
    query_key_norms: QueryKeyNorms::Nothing,
    qkv_bias: false,
    activation: "hidden_act",
    gemma: false,
};

const MIXTURE: &[&str] = &[
    "attention_bias",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
];
const GEMMA: &[&str] = &[
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "sliding_window_pattern",
    "_sliding_window_pattern",
];

/// Every family, in the order of their names.
const FAMILIES: &[Family] = &[
    Family {
        model_type: "gemma2",
        defaults: r#"{"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "sliding_window": 4096, "head_dim": 256, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}"#,
        honours: GEMMA,
        norms: Norms::Around,
        activation: "hidden_activation",
        gemma: true,
        ..PLAIN
    },
    Family {
        model_type: "gemma3_text",
        defaults: r#"{"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0, "tie_word_embeddings": true, "sliding_window": 4096, "head_dim": 256,
            "query_pre_attn_scalar": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
            "num_attention_heads": 8, "num_key_value_heads": 4}"#,
        honours: GEMMA,
        norms: Norms::Around,
        query_key_norms: QueryKeyNorms::Heads,
        activation: "hidden_activation",
        gemma: true,
        ..PLAIN
    },
    Family {
        model_type: "llama",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false}"#,
        ..PLAIN
    },
    Family {
        model_type: "mistral",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false}"#,
        honours: &[],
        ..PLAIN
    },
    Family {
        model_type: "mixtral",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
            "tie_word_embeddings": false}"#,
        honours: &["num_experts", "num_local_experts", "num_experts_per_tok"],
        ..PLAIN
    },
    Family {
        model_type: "olmo2",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false}"#,
        norms: Norms::After,
        query_key_norms: QueryKeyNorms::Rows,
        ..PLAIN
    },
    Family {
        model_type: "phi3",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false}"#,
        honours: &[],
        ..PLAIN
    },
    Family {
        model_type: "qwen2",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false}"#,
        honours: &[],
        qkv_bias: true,
        ..PLAIN
    },
    Family {
        model_type: "qwen3",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "head_dim": 128}"#,
        query_key_norms: QueryKeyNorms::Heads,
        ..PLAIN
    },
    Family {
        model_type: "qwen3_moe",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "head_dim": 128, "decoder_sparse_step": 1, "norm_topk_prob": false}"#,
        honours: MIXTURE,
        query_key_norms: QueryKeyNorms::Heads,
        ..PLAIN
    },
    Family {
        model_type: "smollm3",
        defaults: r#"{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 2000000.0,
            "tie_word_embeddings": true, "no_rope_layer_interval": 4}"#,
        honours: &["attention_bias", "no_rope_layers", "no_rope_layer_interval"],
        ..PLAIN
    },
];

/// Describes the decoder of `config`, which lies in `folder` beside `tensors` tensors, for sequences of at most
/// `context_tokens` tokens.
pub(super) fn architecture(
    folder: &Path,
    config: &Config,
    tensors: usize,
    context_tokens: usize,
) -> Result<Architecture, ModelError> {
    let model_type = config.model_type();
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
        return Err(unsupported(format!("no native executor for {model_type} (there are: {})", known.join(", "))));
    };
    let defaults: Map<String, Value> = serde_json::from_str(family.defaults).expect("the table's JSON is valid");
    let config = config.clone().with_defaults(&defaults);
    let honoured: Vec<&str> = [COMMON, family.honours, &[family.activation, "layer_types"]].concat();
    let honoured = if fp8::is_meant(&config) { [&honoured[..], &["quantization_config"]].concat() } else { honoured };
    config.refuse_ignored(&honoured)?;
    let malformed = |reason| ModelError::Malformed { path: folder.join("config.json"), reason };
    sizes::check(&config, tensors).map_err(malformed)?;
    let architecture = Reader { family, config: &config, context_tokens }.architecture()?;
    architecture.check()?;
    Ok(architecture)
}

struct Reader<'a> {
    family: &'a Family,
    config: &'a Config,
    /// Longest sequence that the caller needs.
    context_tokens: usize,
}

impl Reader<'_> {
    fn architecture(&self) -> Result<Architecture, ModelError> {
        let (family, config) = (self.family, self.config);
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let head_dim = config.uint("head_dim").unwrap_or(hidden / heads);
        let context_tokens = self.size("max_position_embeddings")?.min(self.context_tokens);
        let rotary =
            (head_dim as f64 * config.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0)) as usize;
        if head_dim > HEAD_DIM_MAX || rotary > head_dim || !rotary.is_multiple_of(2) || rotary == 0 {
            return Err(self.refused(format!("{rotary} of {head_dim} values a head cannot be rotated")));
        }
        let base = self.number("rope_theta")?;
        let mut ropes = vec![rope(base, rotary, RopeStyle::Halves, &self.scaling(rotary, context_tokens)?)];
        if config.get("rope_local_base_freq").is_some() {
            ropes.push(rope(self.number("rope_local_base_freq")?, rotary, RopeStyle::Halves, &Scaling::None));
        }
        let experts = self.experts()?;
        let layers = self.layers(context_tokens, ropes.len(), experts.is_some())?;
        let query_scale = if family.gemma { self.number("query_pre_attn_scalar")? } else { head_dim as f64 };
        let bias = config.bool("attention_bias") == Some(true);
        Ok(Architecture {
            name: family.model_type.to_owned(),
            hidden,
            heads,
            kv_heads: config.uint("num_key_value_heads").unwrap_or(heads),
            head_dim,
            feed_forward: self.size("intermediate_size")?,
            embedded_tokens: self.size("vocab_size")?,
            vocab_size: self.size("vocab_size")?,
            tied: config.bool("tie_word_embeddings") == Some(true),
            context_tokens,
            epsilon: self.number("rms_norm_eps")? as f32,
            norm_offset: if family.gemma { 1.0 } else { 0.0 },
            norms: family.norms,
            query_key_norms: family.query_key_norms,
            qkv_bias: family.qkv_bias || bias,
            output_bias: bias,
            fused: family.model_type == "phi3",
            embedding_scale: if family.gemma { (hidden as f32).sqrt() } else { 1.0 },
            attention_scale: (1.0 / query_scale.sqrt()) as f32,
            attention_softcap: self.cap("attn_logit_softcapping"),
            logit_softcap: self.cap("final_logit_softcapping"),
            activation: self.activation()?,
            experts,
            ropes,
            layers,
        })
    }

    /// What sets the layers apart: windows, positions, experts.
    fn layers(&self, context_tokens: usize, ropes: usize, mixture: bool) -> Result<Vec<Layer>, ModelError> {
        let config = self.config;
        let count = self.size("num_hidden_layers")?;
        let window = config.uint("sliding_window").filter(|&window| window > 0);
        let window = window.filter(|_| config.bool("use_sliding_window") != Some(false));
        let slides = self.slides(count)?;
        let has_rope = self.has_rope(count)?;
        let sparse_step = config.uint("decoder_sparse_step").unwrap_or(1);
        let dense: Vec<_> = config.get("mlp_only_layers").and_then(Value::as_array).into_iter().flatten().collect();
        let layers = (0..count).map(|index| {
            let window = if slides[index] { window } else { None };
            Layer {
                window_tokens: window.filter(|&window| window < context_tokens),
                rope: has_rope[index].then_some(if ropes > 1 && slides[index] { 1 } else { 0 }),
                mixture: mixture
                    && sparse_step > 0
                    && (index + 1).is_multiple_of(sparse_step)
                    && !dense.iter().any(|layer| layer.as_u64() == Some(index as u64)),
            }
        });
        Ok(layers.collect())
    }

    /// Which layers see a window only, where there is one.
    fn slides(&self, layers: usize) -> Result<Vec<bool>, ModelError> {
        let config = self.config;
        if let Some(types) = config.layer_types() {
            let other = types.iter().find(|kind| !matches!(**kind, "full_attention" | "sliding_attention"));
            if let Some(other) = other {
                return Err(self.refused(format!("layer_types has {other}, which is not computed")));
            }
            if types.len() != layers {
                return Err(self.refused(format!("layer_types lists {} of {layers} layers", types.len())));
            }
            return Ok(types.iter().map(|kind| *kind == "sliding_attention").collect());
        }
        let slides: Box<dyn Fn(usize) -> bool> = match self.family.model_type {
            "gemma2" => Box::new(|layer| layer.is_multiple_of(2)),
            "gemma3_text" => {
                let pattern = config
                    .uint("sliding_window_pattern")
                    .or_else(|| config.uint("_sliding_window_pattern"))
                    .unwrap_or(6);
                Box::new(move |layer| pattern == 0 || !(layer + 1).is_multiple_of(pattern))
            }
            // These slide only when told to.
            "qwen2" | "qwen3" | "qwen3_moe" | "smollm3" if config.bool("use_sliding_window") != Some(true) => {
                Box::new(|_| false)
            }
            "qwen2" | "qwen3" => {
                let first = config.uint("max_window_layers").unwrap_or(28);
                Box::new(move |layer| layer >= first)
            }
            "smollm3" => return Err(self.refused("use_sliding_window without layer_types".to_owned())),
            _ => Box::new(|_| true),
        };
        Ok((0..layers).map(slides).collect())
    }

    /// Which layers have positions.
    fn has_rope(&self, layers: usize) -> Result<Vec<bool>, ModelError> {
        if self.family.model_type != "smollm3" {
            return Ok(vec![true; layers]);
        }
        let Some(listed) = self.config.get("no_rope_layers").and_then(Value::as_array) else {
            let interval = self.config.uint("no_rope_layer_interval").unwrap_or(4);
            return Ok((1..=layers).map(|layer| interval == 0 || !layer.is_multiple_of(interval)).collect());
        };
        if listed.len() != layers {
            return Err(self.refused(format!("no_rope_layers lists {} of {layers} layers", listed.len())));
        }
        // A one stands for a layer that has positions, against the name.
        Ok(listed.iter().map(|value| value.as_u64() == Some(1)).collect())
    }

    fn experts(&self) -> Result<Option<Experts>, ModelError> {
        let config = self.config;
        let Some(count) = config.uint("num_experts").filter(|&count| count > 0) else { return Ok(None) };
        let feed_forward = match config.uint("moe_intermediate_size") {
            Some(width) => width,
            None => self.size("intermediate_size")?,
        };
        Ok(Some(Experts {
            count,
            per_token: self.size("num_experts_per_tok")?,
            feed_forward,
            normalise: self.family.model_type == "mixtral" || config.bool("norm_topk_prob") == Some(true),
        }))
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        match self.config.get(self.family.activation).and_then(Value::as_str) {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            other => Err(self.refused(format!("{} = {other:?}", self.family.activation))),
        }
    }

    /// How the settings stretch the rope of layers that see everything.
    fn scaling(&self, rotary: usize, context_tokens: usize) -> Result<Scaling, ModelError> {
        let Some(Value::Object(settings)) = self.config.get("rope_scaling") else { return Ok(Scaling::None) };
        let kind = settings.get("rope_type").and_then(Value::as_str).unwrap_or_default();
        let scaling = RopeScaling { settings, kind, reader: self };
        match kind {
            "linear" => {
                scaling.refuse_others(&["factor"])?;
                Ok(Scaling::Linear(scaling.factor()?))
            }
            "llama3" => {
                scaling.refuse_others(&["factor", "low_freq_factor", "high_freq_factor"])?;
                Ok(Scaling::Llama3 {
                    factor: scaling.factor()?,
                    low: scaling.required("low_freq_factor")?,
                    high: scaling.required("high_freq_factor")?,
                    original_tokens: self.original_tokens(settings)?,
                })
            }
            "yarn" => scaling.yarn(),
            "longrope" | "su" => scaling.longrope(rotary, context_tokens),
            other => Err(self.refused(format!("rope_scaling of type {other}"))),
        }
    }

    /// The context before it was stretched.
    fn original_tokens(&self, scaling: &Map<String, Value>) -> Result<f64, ModelError> {
        let name = "original_max_position_embeddings";
        let value = scaling.get(name).and_then(Value::as_f64).or_else(|| self.config.get(name)?.as_f64());
        match value {
            Some(value) if value >= 1.0 => Ok(value),
            Some(value) => Err(self.refused(format!("{name} = {value}"))),
            None => self.number("max_position_embeddings"),
        }
    }

    /// A soft cap, where it is on.
    fn cap(&self, name: &str) -> Option<f32> {
        let cap = self.config.get(name)?.as_f64().filter(|&cap| cap != 0.0)?;
        self.family.honours.contains(&name).then_some(cap as f32)
    }

    fn size(&self, name: &str) -> Result<usize, ModelError> {
        self.config
            .uint(name)
            .filter(|&size| size > 0)
            .ok_or_else(|| self.refused(format!("{name} is missing or not a positive whole number")))
    }

    fn number(&self, name: &str) -> Result<f64, ModelError> {
        let number = self.config.get(name).and_then(Value::as_f64).filter(|&number| number > 0.0);
        number.ok_or_else(|| self.refused(format!("{name} is missing or not a positive number")))
    }

    fn refused(&self, reason: String) -> ModelError {
        unsupported(format!("{}: {reason}", self.family.model_type))
    }
}

/// The object that `rope_scaling` is.
struct RopeScaling<'a> {
    settings: &'a Map<String, Value>,
    kind: &'a str,
    reader: &'a Reader<'a>,
}

impl RopeScaling<'_> {
    fn yarn(&self) -> Result<Scaling, ModelError> {
        let own = ["factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"];
        self.refuse_others(&own)?;
        let factor = self.factor()?;
        let scaled = self.number("mscale").zip(self.number("mscale_all_dim")).filter(|&(one, all)| one * all != 0.0);
        let magnitude = match (self.number("attention_factor"), scaled) {
            (Some(magnitude), _) => magnitude,
            (None, Some((one, all))) => yarn_magnitude(factor, one) / yarn_magnitude(factor, all),
            (None, None) => yarn_magnitude(factor, 1.0),
        };
        Ok(Scaling::Yarn {
            factor,
            original_tokens: self.reader.original_tokens(self.settings)?,
            beta_fast: self.number("beta_fast").unwrap_or(32.0),
            beta_slow: self.number("beta_slow").unwrap_or(1.0),
            truncate: self.settings.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            magnitude,
        })
    }

    /// One of two sets of factors: the long one where the context that is computed exceeds the original one.
    fn longrope(&self, rotary: usize, context_tokens: usize) -> Result<Scaling, ModelError> {
        self.refuse_others(&["factor", "attention_factor", "short_factor", "long_factor"])?;
        let original_tokens = self.reader.original_tokens(self.settings)?;
        let model_tokens = self.reader.number("max_position_embeddings")?;
        let stretch = self.number("factor").unwrap_or(model_tokens / original_tokens);
        let magnitude = self.number("attention_factor").unwrap_or_else(|| longrope_magnitude(stretch, original_tokens));
        let name = if context_tokens as f64 > original_tokens { "long_factor" } else { "short_factor" };
        let each: Option<Vec<f32>> = self.settings.get(name).and_then(Value::as_array).and_then(|values| {
            values.iter().map(|value| value.as_f64().filter(|&value| value > 0.0).map(|value| value as f32)).collect()
        });
        match each.filter(|each| each.len() == rotary / 2) {
            Some(each) => Ok(Scaling::Factors { each, magnitude }),
            None => Err(self.reader.refused(format!("{name} is no list of {} positive numbers", rotary / 2))),
        }
    }

    fn factor(&self) -> Result<f64, ModelError> {
        self.required("factor")
    }

    fn required(&self, name: &str) -> Result<f64, ModelError> {
        let number = self.number(name).filter(|&number| number > 0.0);
        number.ok_or_else(|| self.reader.refused(format!("rope_scaling of type {} lacks {name}", self.kind)))
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.settings.get(name)?.as_f64()
    }

    /// Refuses settings that the type does not have.
    fn refuse_others(&self, own: &[&str]) -> Result<(), ModelError> {
        let shared = ["rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
        let is_known = |name: &str| own.contains(&name) || shared.contains(&name);
        match self.settings.iter().find(|(name, value)| !value.is_null() && !is_known(name)) {
            None => Ok(()),
            Some((name, value)) => {
                Err(self.reader.refused(format!("rope_scaling of type {} with {name} = {value}", self.kind)))
            }
        }
    }
}

fn unsupported(reason: String) -> ModelError {
    ModelError::Unsupported { reason }
}
