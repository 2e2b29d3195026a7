//! The families of `config.json` that candle runs, and what each of them honours.
//!
//! A setting that is not listed here is refused where it would change the result: candle's models read the settings they
//! know and ignore the rest. Several of them also get windows wrong (one token too wide in the prompt, none at all
//! afterwards), so models are loaded without window and the context is limited to it, which computes the same.

use candle_nn::VarBuilder;
use serde_json::{Map, Value};

use super::safetensors::Setup;
use super::{CONTEXT_TOKENS_MAX, Decoder, Pieces};
use crate::ModelError;
use crate::config::Config;

pub(in crate::candle) mod adapters;
mod rules;
mod table;

pub(in crate::candle) use table::{FAMILIES, WRONG};

/// One family as candle runs it.
pub(super) struct Family {
    /// `model_type` in `config.json`.
    pub(super) model_types: &'static [&'static str],
    /// What transformers assumes where the file says nothing, as JSON.
    defaults: &'static str,
    /// Settings that candle honours whatever their value.
    honours: &'static [&'static str],
    /// Settings that candle assumes to have this value, as JSON.
    fixed: &'static [(&'static str, &'static str)],
    /// Name of the embedding matrix where the family asks for `lm_head` even though it is tied.
    pub(super) tied_to: Option<&'static str>,
    /// Names that candle asks for, and the ones the files have.
    pub(super) renames: &'static [(&'static str, &'static str)],
    /// The family slides its windows rightly.
    pub(super) slides: bool,
    /// Longest context whose tables are worth their memory.
    pub(super) context_tokens_max: usize,
    pub(super) pieces: fn(&Setup) -> Pieces,
    /// Says what else of the settings candle would get wrong.
    refuse: fn(&Config) -> Option<String>,
    /// Tensors of a layer, after `model.layers.N.`, and their shapes, where candle answers a wrong one with a panic.
    pub(super) layer_shapes: fn(&Setup) -> Vec<NamedShape>,
    pub(super) load: fn(&Setup, VarBuilder<'_>) -> candle_core::Result<Box<dyn Decoder>>,
}

/// A tensor's name within its layer, and its shape.
pub(super) type NamedShape = (&'static str, Vec<usize>);

impl Family {
    /// What transformers assumes where the file says nothing.
    pub(super) fn defaults(&self) -> Map<String, Value> {
        serde_json::from_str(self.defaults).expect("the table's JSON is valid, as a test shows")
    }

    /// Refuses settings that candle would ignore.
    pub(super) fn check(&self, config: &Config) -> Result<(), ModelError> {
        let fixed = self.fixed.iter().map(|(name, _)| *name);
        let honoured: Vec<_> =
            self.honours.iter().copied().chain(fixed).chain(["intermediate_size", "rope_theta"]).collect();
        config.refuse_ignored(&honoured)?;
        for (name, expected) in self.fixed {
            let expected: Value = serde_json::from_str(expected).expect("the table's JSON is valid, as a test shows");
            if let Some(value) = config.get(name).filter(|value| !is_same(value, &expected)) {
                let reason = format!("the executor for {} takes {name} = {expected}, not {value}", config.model_type());
                return Err(ModelError::Unsupported { reason });
            }
        }
        match (self.refuse)(config) {
            Some(reason) => Err(ModelError::Unsupported { reason: format!("{}: {reason}", config.model_type()) }),
            None => Ok(()),
        }
    }
}

/// Equal, or equal as numbers.
fn is_same(value: &Value, expected: &Value) -> bool {
    value == expected || value.as_f64().is_some_and(|value| Some(value) == expected.as_f64())
}

/// What most families have in common.
const PLAIN: Family = Family {
    model_types: &[],
    defaults: "{}",
    honours: &[],
    fixed: &[],
    tied_to: None,
    refuse: |_| None,
    renames: &[],
    slides: false,
    context_tokens_max: CONTEXT_TOKENS_MAX,
    pieces: |_| Pieces::Any,
    layer_shapes: |_| Vec::new(),
    load: |_, _| Err(candle_core::Error::Msg("a family without loader".to_owned())),
};
