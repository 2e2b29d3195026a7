//! Embedding models: tokens in, one vector a text out. The BERT family (BERT, RoBERTa, XLM-RoBERTa, DistilBERT), from
//! directories of safetensors, in the layout of sentence-transformers where there is one.
//!
//! All of them are one encoder, candle's, under different names (`family`). It is computed in f32 on the CPU. A text's
//! vector depends on its own tokens: what stands beside it in a batch is masked out.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config as BertConfig};
use serde_json::json;
use tokrun_kernels::energy::EnergyMeter;

use crate::candle::guarded;
use crate::config::{Config, sizes};
use crate::safetensors::Weights;
use crate::{LoadOptions, ModelError, TokenId};

mod family;
mod manner;

use family::{Family, Source};
use manner::Manner;
pub use manner::{Pooling, Shortening};

/// Attention scores of one text in one layer are held in full, as f32: the context ends where they would take more.
const SCORE_BYTES_MAX: usize = 1 << 30;

/// What an embedding model is and what it honours.
#[derive(Clone, Debug)]
pub struct EmbedderInfo {
    /// Where it is computed: `cpu`.
    pub device: String,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// Longest text, in tokens.
    pub context_tokens: usize,
    /// Rows of the embedding matrix: the first token that is outside.
    pub vocab_size: usize,
    /// How a vector is made of those of the tokens.
    pub pooling: Pooling,
    /// Vectors are of length 1.
    pub normalised: bool,
    /// Whether vectors mean something when they are cut short.
    pub shortening: Shortening,
}

/// A loaded embedding model.
pub struct Embedder {
    info: EmbedderInfo,
    notes: Vec<String>,
    model: BertModel,
    /// What fills rows up that are shorter than others; it is masked out.
    padding: TokenId,
    energy: Option<EnergyMeter>,
}

/// Whether a model of these settings is one of those that are embedded with, as opposed to decoders.
pub(crate) fn is_embedder(config: &Config) -> bool {
    Family::of(config.model_type()).is_some()
}

impl Embedder {
    /// Loads the model in `folder` with the settings `config`.
    pub(crate) fn load(
        folder: &Path,
        config: &Config,
        weights: &Weights,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        let malformed = |path: &Path, reason: String| ModelError::Malformed { path: path.to_owned(), reason };
        let family = Family::of(config.model_type()).ok_or_else(|| ModelError::Unsupported {
            reason: format!("{} is no embedding model", config.model_type()),
        })?;
        let config = family.settings(config)?;
        let config_path = folder.join("config.json");
        sizes::check(&config, weights.tensors().len()).map_err(|reason| malformed(&config_path, reason))?;
        let manner = Manner::read(folder, &config)?;
        let size = |name: &str| {
            config.uint(name).ok_or_else(|| malformed(&config_path, format!("{name} is missing or no whole number")))
        };
        let first_position = family.first_position(&config);
        let positions = size("max_position_embeddings")?.checked_sub(first_position).filter(|&positions| positions > 0);
        let positions = positions.ok_or_else(|| malformed(&config_path, "there are no positions".to_owned()))?;
        let fits = (SCORE_BYTES_MAX / 4 / size("num_attention_heads")?).isqrt();
        let allowed = positions.min(manner.context_tokens.unwrap_or(usize::MAX));
        let wanted = options.context_tokens.unwrap_or(usize::MAX).max(1);
        let mut notes = Vec::new();
        if fits < allowed && fits < wanted {
            notes.push(format!("texts of up to {fits} tokens are computed, of the {allowed} that the model takes"));
        }
        let vocab_size = size("vocab_size")?;
        let padding = config.uint("pad_token_id").filter(|&token| token < vocab_size).unwrap_or(0);
        let info = EmbedderInfo {
            device: "cpu".to_owned(),
            dimensions: size("hidden_size")?,
            context_tokens: allowed.min(wanted).min(fits),
            vocab_size,
            pooling: manner.pooling,
            normalised: manner.normalised,
            shortening: manner.shortening,
        };
        let model = build(folder, family, &config, weights, positions)?;
        let padding = TokenId::try_from(padding).unwrap_or(0);
        Ok(Self { info, notes, model, padding, energy: EnergyMeter::cpu() })
    }

    /// What it is and what it honours.
    pub fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    /// What the user should know about how it is computed. One sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Microjoules that the processor has used since the model was loaded; `None` where the machine does not tell.
    pub fn energy_uj(&mut self) -> Option<u64> {
        self.energy.as_mut().map(EnergyMeter::total_uj)
    }

    /// The vector of each text of a batch. The batch is computed as one, as wide as its longest text.
    ///
    /// # Errors
    /// When a text is empty, longer than the context or has a token outside the vocabulary, or the arithmetic fails.
    pub fn embed(&self, texts: &[&[TokenId]]) -> Result<Vec<Vec<f32>>, ModelError> {
        texts.iter().try_for_each(|text| self.check(text))?;
        let Some(width) = texts.iter().map(|text| text.len()).max() else { return Ok(Vec::new()) };
        let padded = |text: &&[TokenId], filler: TokenId, of: fn(TokenId) -> TokenId| -> Vec<TokenId> {
            let rest = std::iter::repeat_n(filler, width - text.len());
            text.iter().map(|&token| of(token)).chain(rest).collect()
        };
        let tokens: Vec<TokenId> = texts.iter().flat_map(|text| padded(text, self.padding, |token| token)).collect();
        let mask: Vec<TokenId> = texts.iter().flat_map(|text| padded(text, 0, |_| 1)).collect();
        let hidden = guarded(|| {
            let shape = (texts.len(), width);
            let tokens = Tensor::from_vec(tokens, shape, &Device::Cpu)?;
            let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
            self.model.forward(&tokens, &tokens.zeros_like()?, Some(&mask))?.flatten_all()?.to_vec1::<f32>()
        })?;
        let rows = hidden.chunks_exact(width * self.info.dimensions).zip(texts);
        Ok(rows.map(|(row, text)| self.vector(&row[..text.len() * self.info.dimensions])).collect())
    }

    /// A text's vector, of those of its tokens.
    fn vector(&self, tokens: &[f32]) -> Vec<f32> {
        let mut vector = self.info.pooling.pool(tokens, self.info.dimensions);
        if self.info.normalised {
            normalise(&mut vector);
        }
        vector
    }

    fn check(&self, text: &[TokenId]) -> Result<(), ModelError> {
        let EmbedderInfo { context_tokens, vocab_size, .. } = self.info;
        if text.is_empty() {
            return Err(ModelError::InvalidBatch { reason: "a text has no tokens".to_owned() });
        }
        if let Some(token) = text.iter().find(|&&token| token as usize >= vocab_size) {
            let reason = format!("token {token} is outside the vocabulary of {vocab_size}");
            return Err(ModelError::InvalidBatch { reason });
        }
        if text.len() > context_tokens {
            return Err(ModelError::ContextFull { wanted_tokens: text.len(), context_tokens });
        }
        Ok(())
    }
}

/// Makes a vector one of length 1; one of nothing stays as it is.
pub fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

/// Builds the encoder from its weights, every one of which must be used.
fn build(
    folder: &Path,
    family: &'static Family,
    config: &Config,
    weights: &Weights,
    positions: usize,
) -> Result<BertModel, ModelError> {
    let mut settings = config.settings().clone();
    // The positions that no text has are cut off as the weights are read.
    settings.insert("max_position_embeddings".to_owned(), json!(positions));
    let config: BertConfig = serde_json::from_value(settings.into())
        .map_err(|error| ModelError::Unsupported { reason: format!("config.json does not fit an encoder: {error}") })?;
    let source = Source::new(weights, family, family.first_position_of(config.pad_token_id));
    let builder = VarBuilder::from_backend(Box::new(&source), DType::F32, Device::Cpu);
    let model = guarded(|| BertModel::load(builder, &config)).map_err(|error| match error {
        ModelError::Compute(error) => ModelError::Malformed { path: folder.to_owned(), reason: error.to_string() },
        other => other,
    })?;
    source.refuse_left_over()?;
    Ok(model)
}
