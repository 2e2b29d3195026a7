//! The families of encoders as files name them, and as candle's one encoder asks for them.

use std::collections::BTreeSet;
use std::sync::Mutex;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use serde_json::{Value, json};

use crate::ModelError;
use crate::candle::read_tensor;
use crate::config::Config;
use crate::safetensors::{TensorInfo, Weights};

/// One family.
pub(super) struct Family {
    /// `model_type` in `config.json`.
    model_types: &'static [&'static str],
    /// What stands before the names of tensors where the encoder is part of a larger model.
    prefix: &'static str,
    /// Parts of names that candle asks for, and the ones that the files have; the first that fits is taken.
    renames: &'static [(&'static str, &'static str)],
    /// Settings with other names: BERT's, and the family's.
    settings: &'static [(&'static str, &'static str)],
    /// Positions are counted from the padding token's number on.
    counts_from_padding: bool,
    /// What transformers assumes where the file says nothing, as JSON.
    defaults: &'static str,
}

const FAMILIES: &[Family] = &[
    Family {
        model_types: &["bert"],
        prefix: "bert.",
        renames: &[],
        settings: &[],
        counts_from_padding: false,
        defaults: r#"{"layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 2, "hidden_act": "gelu"}"#,
    },
    Family {
        model_types: &["roberta", "xlm-roberta", "camembert"],
        prefix: "roberta.",
        renames: &[],
        settings: &[],
        counts_from_padding: true,
        defaults: r#"{"layer_norm_eps": 1e-12, "pad_token_id": 1, "type_vocab_size": 2, "hidden_act": "gelu"}"#,
    },
    Family {
        model_types: &["distilbert"],
        prefix: "distilbert.",
        renames: &[
            ("attention.self.query", "attention.q_lin"),
            ("attention.self.key", "attention.k_lin"),
            ("attention.self.value", "attention.v_lin"),
            ("attention.output.dense", "attention.out_lin"),
            ("attention.output.LayerNorm", "sa_layer_norm"),
            ("intermediate.dense", "ffn.lin1"),
            ("output.dense", "ffn.lin2"),
            ("output.LayerNorm", "output_layer_norm"),
        ],
        settings: &[("hidden_size", "dim"), ("intermediate_size", "hidden_dim"), ("hidden_act", "activation")],
        counts_from_padding: false,
        defaults: r#"{"layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 1, "activation": "gelu"}"#,
    },
];

/// Settings that the encoder honours, or that concern what stands behind it.
const HONOURED: &[&str] = &[
    "activation",
    "chunk_size_feed_forward",
    "hidden_act",
    "intermediate_size",
    "layer_norm_eps",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "position_embedding_type",
    "tie_weights_",
];

/// Where the tensors of an encoder begin; others belong to heads that vectors are not made with.
const HEADS: &[&str] = &["pooler.", "cls.", "lm_head.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector."];

impl Family {
    pub(super) fn of(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.model_types.contains(&model_type))
    }

    /// The settings under BERT's names, with what transformers assumes; those that would be ignored are refused.
    pub(super) fn settings(&self, config: &Config) -> Result<Config, ModelError> {
        let refused = |reason: String| Err(ModelError::Unsupported { reason });
        let usable = |name: &str| name.ends_with("Model") || name.ends_with("ForMaskedLM");
        let named = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
        if let Some(other) = named.filter_map(Value::as_str).find(|name| !usable(name)) {
            return refused(format!("{other} is made for something else than embeddings"));
        }
        config.refuse_ignored(HONOURED)?;
        if config.bool("is_decoder") == Some(true) {
            return refused("the encoder would ignore is_decoder = true".to_owned());
        }
        let defaults: Value = serde_json::from_str(self.defaults).expect("the table's JSON is valid, as a test shows");
        let mut config = config.clone().with_defaults(defaults.as_object().expect("they are objects"));
        for (name, other) in self.settings {
            if let Some(value) = config.get(other).cloned() {
                config = config.with_defaults(&serde_json::Map::from_iter([((*name).to_owned(), value)]));
            }
        }
        let approximate = ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"];
        let is_approximate =
            config.get("hidden_act").and_then(Value::as_str).is_some_and(|act| approximate.contains(&act));
        // What candle's reader wants to see, and does not use.
        let unused = json!({ "hidden_dropout_prob": 0.0, "initializer_range": 0.02 });
        let config = config.with_defaults(unused.as_object().expect("it is an object"));
        Ok(if is_approximate { config.with("hidden_act", json!("geluapproximate")) } else { config })
    }

    /// The row of the table of positions that the first token of a text has.
    pub(super) fn first_position(&self, config: &Config) -> usize {
        self.first_position_of(config.uint("pad_token_id").unwrap_or(0))
    }

    pub(super) fn first_position_of(&self, pad_token_id: usize) -> usize {
        if self.counts_from_padding { pad_token_id.saturating_add(1) } else { 0 }
    }
}

/// The weights, as candle asks for them by name.
pub(super) struct Source<'a> {
    weights: &'a Weights,
    family: &'static Family,
    first_position: usize,
    used: Mutex<BTreeSet<String>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(weights: &'a Weights, family: &'static Family, first_position: usize) -> Self {
        Self { weights, family, first_position, used: Mutex::default() }
    }

    /// The tensor that candle asks for as `name`, and the name that the file has for it.
    fn find(&self, name: &str) -> Option<(String, &'a TensorInfo)> {
        let named = match self.family.renames.iter().find(|(asked, _)| name.contains(asked)) {
            Some((asked, in_file)) => name.replace("encoder.layer", "transformer.layer").replace(asked, in_file),
            None => name.to_owned(),
        };
        // As the first checkpoints had it.
        let old = named.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        let names = [named, old].into_iter().flat_map(|name| [format!("{}{name}", self.family.prefix), name]);
        names.into_iter().find_map(|name| self.weights.tensors().get(&name).map(|tensor| (name, tensor)))
    }

    /// Refuses weights that nobody asked for: a model without them would be another model.
    pub(super) fn refuse_left_over(&self) -> Result<(), ModelError> {
        let used = self.used.lock().map_err(|_| ModelError::Unsupported { reason: "a loader panicked".to_owned() })?;
        let is_head = |name: &str| {
            let name = name.strip_prefix(self.family.prefix).unwrap_or(name);
            HEADS.iter().any(|head| name.starts_with(head)) || name.ends_with("position_ids")
        };
        match self.weights.tensors().keys().find(|name| !used.contains(*name) && !is_head(name)) {
            Some(name) => Err(ModelError::Unsupported { reason: format!("the encoder would ignore tensor {name}") }),
            None => Ok(()),
        }
    }

    /// A table of which only the rows from `first` on are used.
    fn tensor(&self, name: &str, first: usize, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let Some((file_name, tensor)) = self.find(name) else {
            return Err(candle_core::Error::Msg(format!("tensor {name} is missing")));
        };
        let read = read_tensor(self.weights, &file_name, tensor, dtype, device)?;
        self.used.lock().map_err(|_| candle_core::Error::Msg("a loader panicked".to_owned()))?.insert(file_name);
        let rows = read.dim(0)?;
        if first == 0 { Ok(read) } else { read.narrow(0, first, rows.saturating_sub(first))?.contiguous() }
    }
}

impl SimpleBackend for &Source<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        // Kinds of segments that a family does not know add nothing.
        if name.ends_with("token_type_embeddings.weight") && self.find(name).is_none() {
            return Tensor::zeros(shape, dtype, device);
        }
        let first = if name.ends_with("position_embeddings.weight") { self.first_position } else { 0 };
        let mut wanted = shape.dims().to_vec();
        wanted[0] += first;
        // The shape is compared before anything is allocated.
        match self.find(name) {
            Some((_, tensor)) if tensor.shape == wanted => self.tensor(name, first, dtype, device),
            Some((name, tensor)) => {
                let message = format!("tensor {name} has shape {:?}, expected {wanted:?}", tensor.shape);
                Err(candle_core::Error::Msg(message))
            }
            None => Err(candle_core::Error::Msg(format!("tensor {name} is missing"))),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, 0, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_json_is_valid() {
        for family in FAMILIES {
            let defaults: Value = serde_json::from_str(family.defaults).expect("it is JSON");
            assert!(defaults.is_object(), "{:?}", family.model_types);
        }
    }
}
