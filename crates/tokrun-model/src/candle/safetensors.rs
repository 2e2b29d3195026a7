//! Safetensors directories through candle's float models, computed in f32.
//!
//! Weights in bf16 or f16 are widened as they are loaded: candle's CPU kernels have no bf16 matrix product, and rounding
//! activations to 16 bits would cost more than the memory saves.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::families::{FAMILIES, Family, WRONG};
use super::{CONTEXT_TOKENS_MAX, Decoder, Loaded, executor, guarded};
use crate::config::{Config, sizes};
use crate::safetensors::{TensorInfo, Weights};
use crate::{Executor, LoadOptions, ModelError};

/// Loads the model in `folder` with the settings `config`.
pub(crate) fn load(
    folder: &Path,
    config: &Config,
    weights: &Arc<Weights>,
    options: &LoadOptions,
    notes: Vec<String>,
) -> Result<Box<dyn Executor>, ModelError> {
    let family = find_family(config.model_type())?;
    let config = config.clone().with_defaults(&family.defaults());
    family.check(&config)?;
    let setup = Setup::new(folder, config, weights, family, options)?;
    let (vocab_size, context_tokens, pieces) = (setup.vocab_size, setup.context_tokens, (family.pieces)(&setup));
    let (folder, weights) = (folder.to_owned(), Arc::clone(weights));
    let load = move || decoder(&folder, family, &setup, &weights);
    let loaded = Loaded {
        decoder: load()?,
        load: Box::new(load),
        pieces,
        vocab_size,
        embedded_tokens: vocab_size,
        context_tokens,
    };
    Ok(executor(loaded, options.sequences_max, notes))
}

/// Builds the model from its weights, every one of which must be used.
fn decoder(folder: &Path, family: &Family, setup: &Setup, weights: &Weights) -> Result<Box<dyn Decoder>, ModelError> {
    let source = Source::new(weights, &setup.config, family);
    let malformed = |reason| ModelError::Malformed { path: folder.to_owned(), reason };
    let shapes = (family.layer_shapes)(setup);
    for (layer, (name, shape)) in (0..setup.layers).flat_map(|layer| shapes.iter().map(move |entry| (layer, entry))) {
        source.check(&format!("model.layers.{layer}.{name}.weight"), shape).map_err(malformed)?;
    }
    let builder = VarBuilder::from_backend(Box::new(&source), DType::F32, Device::Cpu);
    let decoder = guarded(|| (family.load)(setup, builder)).map_err(|error| match error {
        ModelError::Compute(error) => malformed(error.to_string()),
        other => other,
    })?;
    source.refuse_left_over(&setup.config)?;
    Ok(decoder)
}

fn find_family(model_type: &str) -> Result<&'static Family, ModelError> {
    if let Some((_, fault)) = WRONG.iter().find(|(name, _)| *name == model_type) {
        return Err(ModelError::Unsupported { reason: format!("{model_type}: {fault}") });
    }
    FAMILIES.iter().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        ModelError::Unsupported { reason: format!("no executor for {model_type} (there are: {})", known.join(", ")) }
    })
}

/// What a family's loader works from.
pub(super) struct Setup {
    pub(super) config: Config,
    /// The settings as candle wants them: limited to the context, without window, for plain attention.
    settings: Map<String, Value>,
    pub(super) layers: usize,
    pub(super) vocab_size: usize,
    /// Longest sequence that will be computed.
    pub(super) context_tokens: usize,
    /// How far the narrowest layer sees, where it sees less than the model's context.
    pub(super) window_tokens: Option<usize>,
}

impl Setup {
    fn new(
        folder: &Path,
        config: Config,
        weights: &Weights,
        family: &Family,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        let malformed = |reason: String| ModelError::Malformed { path: folder.join("config.json"), reason };
        sizes::check(&config, weights.tensors().len()).map_err(malformed)?;
        let size = |name| config.uint(name).ok_or_else(|| malformed(format!("{name} is missing")));
        let (layers, vocab_size) = (size("num_hidden_layers")?, size("vocab_size")?);
        let context = config.uint("max_position_embeddings").unwrap_or(CONTEXT_TOKENS_MAX);
        let window_tokens = config.window_tokens().filter(|&window| window < context);
        let most =
            family.context_tokens_max.min(if family.slides { usize::MAX } else { window_tokens.unwrap_or(usize::MAX) });
        let wanted = options.context_tokens.unwrap_or(usize::MAX).max(1);
        let context_tokens = context.min(most).min(CONTEXT_TOKENS_MAX).min(wanted);
        let mut settings = config.settings().clone();
        settings.insert("max_position_embeddings".to_owned(), json!(context_tokens));
        settings.insert("use_flash_attn".to_owned(), json!(false));
        settings.insert("use_sliding_window".to_owned(), json!(false));
        if !family.slides {
            settings.insert("sliding_window".to_owned(), Value::Null);
        }
        Ok(Self { config, settings, layers, vocab_size, context_tokens, window_tokens })
    }

    /// A setting that is a whole number.
    pub(super) fn uint(&self, name: &str) -> Option<usize> {
        self.config.uint(name)
    }

    /// A setting that is a number.
    pub(super) fn float(&self, name: &str) -> Option<f64> {
        self.config.get(name)?.as_f64()
    }

    /// Whether a setting is on.
    pub(super) fn bool(&self, name: &str) -> bool {
        self.config.bool(name) == Some(true)
    }

    /// candle's configuration of a family, with `changes` to the settings.
    pub(super) fn build<T: serde::de::DeserializeOwned>(&self, changes: Value) -> candle_core::Result<T> {
        let mut settings = self.settings.clone();
        if let Value::Object(changes) = changes {
            settings.extend(changes);
        }
        serde_json::from_value(Value::Object(settings))
            .map_err(|error| candle_core::Error::Msg(format!("config.json does not fit the family: {error}")))
    }
}

/// Hands tensors to candle's models, and remembers which were asked for.
struct Source<'a> {
    weights: &'a Weights,
    /// The model is a part of a larger one, whose other tensors are not ours.
    nested: bool,
    /// The output matrix is the embedding matrix.
    tied: bool,
    family: &'a Family,
    used: Mutex<BTreeSet<String>>,
}

/// Where the output matrix lies.
const HEAD: &str = "lm_head.weight";
/// Ends of names of tensors that hold no weights: tables that every implementation computes itself.
const TABLES: &[&str] = &["rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "self_attn.bias"];

impl<'a> Source<'a> {
    fn new(weights: &'a Weights, config: &Config, family: &'a Family) -> Self {
        let tied = config.bool("tie_word_embeddings") == Some(true);
        Self { weights, nested: config.is_nested(), tied, family, used: Mutex::default() }
    }

    /// The tensor that a model asks for as `name`, and the name the file has for it.
    fn find(&self, name: &str) -> Option<(String, &'a TensorInfo)> {
        if self.tied && name == HEAD {
            return self.family.tied_to.and_then(|embedding| self.find(embedding));
        }
        let renamed = self.family.renames.iter().find(|(asked, _)| *asked == name);
        let name = renamed.map_or(name, |(_, in_file)| in_file);
        let inner = name.strip_prefix("model.").map(|rest| format!("model.language_model.{rest}"));
        let nested = [Some(format!("language_model.{name}")), inner];
        let mut names = std::iter::once(name.to_owned()).chain(nested.into_iter().flatten().filter(|_| self.nested));
        names.find_map(|name| self.weights.tensors().get(&name).map(|tensor| (name, tensor)))
    }

    /// Says so where a tensor is missing or has another shape.
    fn check(&self, name: &str, shape: &[usize]) -> Result<(), String> {
        match self.find(name) {
            None => Err(format!("tensor {name} is missing")),
            Some((_, tensor)) if tensor.shape == shape => Ok(()),
            Some((_, tensor)) => Err(format!("tensor {name} has shape {:?}, expected {shape:?}", tensor.shape)),
        }
    }

    fn tensor(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let Some((file_name, tensor)) = self.find(name) else {
            return Err(candle_core::Error::Msg(format!("tensor {name} is missing")));
        };
        self.used.lock().map_err(|_| candle_core::Error::Msg("a loader panicked".to_owned()))?.insert(file_name);
        read(self.weights, name, tensor, dtype, device)
    }

    /// Refuses weights that nobody asked for: a model without them would be another model.
    fn refuse_left_over(&self, config: &Config) -> Result<(), ModelError> {
        let used = self.used.lock().map_err(|_| ModelError::Unsupported { reason: "a loader panicked".to_owned() })?;
        let is_ours = |name: &str| !self.nested || name.contains("language_model.") || name == HEAD;
        let ignored = self.weights.tensors().keys().find(|name| {
            let is_table = TABLES.iter().any(|end| name.ends_with(end));
            let is_tied_head = self.tied && name.ends_with(HEAD);
            !used.contains(*name) && !is_table && !is_tied_head && is_ours(name)
        });
        match ignored {
            Some(name) => Err(ModelError::Unsupported {
                reason: format!("the executor for {} would ignore tensor {name}", config.model_type()),
            }),
            None => Ok(()),
        }
    }
}

/// A tensor as candle computes with it.
pub(crate) fn read(
    weights: &Weights,
    name: &str,
    tensor: &TensorInfo,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let file_dtype = match tensor.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F64 => DType::F64,
        other => {
            return Err(candle_core::Error::Msg(format!("tensor {name} has type {other}, which is not computed in")));
        }
    };
    Tensor::from_raw_buffer(weights.bytes(tensor), file_dtype, &tensor.shape, device)?.to_dtype(dtype)
}

impl SimpleBackend for &Source<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        // The shape is compared before anything is allocated.
        self.check(name, shape.dims()).map_err(candle_core::Error::Msg)?;
        self.tensor(name, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}
