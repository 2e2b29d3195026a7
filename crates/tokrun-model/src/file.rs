//! A model on disk: a GGUF file, or a directory of safetensors with `config.json` and `tokenizer.json`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokrun_kernels::{KvType, WeightType};

use crate::config::Config;
use crate::embedder::{self, Embedder};
use crate::mmap::MappedFile;
use crate::native::Model;
use crate::native::synthetic::{self, Synthetic};
use crate::safetensors::Weights;
use crate::{Executor, ModelError, TokenId, gguf};

mod from_folder;
mod from_gguf;

/// Where the tokenizer comes from.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// The `tokenizer.ggml.*` keys of a GGUF file.
    Gguf(Arc<gguf::Metadata>),
    /// A `tokenizer.json`.
    Json(PathBuf),
}

/// What a model brings along for text: nothing here is needed to compute logits.
#[derive(Clone, Debug)]
pub struct Assets {
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerSource,
    /// The Jinja chat template, if the model has one.
    pub chat_template: Option<String>,
    /// Spelling of the begin-of-sequence token, as templates use it.
    pub bos_token: Option<String>,
    /// Spelling of the end-of-sequence token, as templates use it.
    pub eos_token: Option<String>,
    /// Spelling of the padding token.
    pub pad_token: Option<String>,
    /// Spelling of the unknown token.
    pub unk_token: Option<String>,
    /// Tokens that end an answer: from `generation_config.json`, `config.json` or `tokenizer.ggml.{eos,eot,eom}_token_id`.
    pub end_token_ids: Vec<TokenId>,
}

impl Assets {
    /// A tokenizer alone: no template, and no token is known to end an answer.
    pub fn of(tokenizer: TokenizerSource) -> Self {
        Self {
            tokenizer,
            chat_template: None,
            bos_token: None,
            eos_token: None,
            pad_token: None,
            unk_token: None,
            end_token_ids: Vec::new(),
        }
    }
}

/// What a model is, read from its header alone.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// As the file says: `llama`, `qwen3`.
    pub architecture: String,
    /// The name the file gives itself, if any.
    pub name: Option<String>,
    /// Most frequent weight type by bytes: `Q4_1`, `BF16`.
    pub dtype: String,
    /// Weights, counted one by one.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Bytes of weights that decoding one token reads: without the embedding, of which it takes one row, unless that is
    /// the output matrix as well, and without the experts that it does not choose.
    pub weight_bytes_per_token: u64,
    /// Longest sequence the model was made for, in tokens.
    pub context_tokens: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// KV-cache bytes a token at 32 bits a value, 0 for models without attention.
    pub kv_bytes_per_token: u64,
}

/// Which executor computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// The native one where it can, else candle; [`Executor::notes`] says why.
    #[default]
    Auto,
    /// The native one, or an error that says why it cannot.
    Native,
    /// candle.
    Candle,
}

/// Where a model is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Processor {
    /// The CPU.
    #[default]
    Cpu,
    /// The CUDA device with that number; only the native executor computes there.
    Cuda(usize),
    /// The first CUDA device if the model can be computed there, else the CPU; [`Executor::notes`] says why, unless there
    /// is no driver.
    Auto,
}

/// How to load. What candle has no say in is marked as native.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Which executor computes.
    pub backend: BackendChoice,
    /// Where.
    pub processor: Processor,
    /// Sequences that may exist at once, at most; the executor may allow fewer.
    pub sequences_max: Option<usize>,
    /// Longest sequence that will be needed, in tokens: shorter than what the model allows saves memory.
    pub context_tokens: Option<usize>,
    /// Native: threads that compute; those that the system lets this process run at once where nothing is said.
    pub threads: Option<usize>,
    /// Native: keeps each compute thread on one processor core.
    pub pin: bool,
    /// Native: bytes that the KV cache takes at most; what `sequences_max` whole contexts need, but at most half of the free
    /// memory, where nothing is said. Memory that no token was stored in is not taken from the system.
    pub kv_cache_bytes: Option<u64>,
    /// Native: how the KV cache stores values; F16 where nothing is said, F32 where the weights are F32.
    pub kv_type: Option<KvType>,
    /// Native: memory of the device that the model may take at most, all in all, bytes; what is free where nothing is said.
    pub memory_bytes: Option<u64>,
    /// Native: rounds the projections of a model of 16-bit or 32-bit floats to 8-bit ones (e4m3) as they are loaded.
    pub fp8: bool,
    /// Native: results do not depend on what else is computed at the same time, to the bit, on CUDA devices too, where it
    /// costs speed. The processor's never do.
    pub deterministic: bool,
    /// Native: counts the bytes of weights as they are read.
    pub progress: Option<LoadProgress>,
    /// Native: measures the time that each operation takes, for [`Executor::take_profile`].
    pub profile: bool,
}

/// The memory that a model takes on a device, decided before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Where: `cpu`, `cuda:0`.
    pub device: String,
    /// Memory of the device that nobody uses now, bytes.
    pub free_bytes: u64,
    /// All of its memory, bytes.
    pub total_bytes: u64,
    /// For the weights.
    pub weight_bytes: u64,
    /// For what is computed on the way, at most, bytes.
    pub workspace_bytes: u64,
    /// For keys and values, bytes.
    pub kv_cache_bytes: u64,
    /// How they are stored.
    pub kv_type: KvType,
    /// Tokens that the cache holds, over all sequences.
    pub cache_tokens: usize,
    /// The longest sequence that fits, in tokens.
    pub context_tokens: usize,
}

impl MemoryPlan {
    /// All that the model takes.
    pub fn taken_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.workspace_bytes).saturating_add(self.kv_cache_bytes)
    }
}

/// How far loading has come. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct LoadProgress(Arc<AtomicU64>);

impl LoadProgress {
    /// Bytes of weights that were read until now.
    pub fn bytes_read(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Relaxed);
    }
}

/// An opened and checked model: its header was read, its weights were not.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    info: ModelInfo,
    assets: Assets,
    source: Source,
}

/// What was opened.
#[derive(Debug)]
enum Source {
    Gguf { file: Arc<MappedFile>, header: gguf::Header },
    Folder { config: Config, weights: Arc<Weights> },
    Synthetic(Synthetic),
}

impl ModelFile {
    /// Reads and checks the header of the GGUF file or safetensors directory at `path`; a single safetensors file stands
    /// for its directory.
    ///
    /// # Errors
    /// When it cannot be read, is truncated or hostile, or lacks its tokenizer.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            return Self::open_folder(path);
        }
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Self::open_folder(path.parent().unwrap_or(path));
        }
        let file = MappedFile::open(path)?;
        let header = gguf::Header::parse(path, &file)?;
        let info = from_gguf::info(path, &header)?;
        let assets = from_gguf::assets(path, &header)?;
        Ok(Self { path: path.to_owned(), info, assets, source: Source::Gguf { file: Arc::new(file), header } })
    }

    fn open_folder(path: &Path) -> Result<Self, ModelError> {
        let config = from_folder::config(path)?;
        let weights = Weights::open(path)?;
        let info = from_folder::info(path, &config, &weights)?;
        let assets = from_folder::assets(path, &config)?;
        Ok(Self { path: path.to_owned(), info, assets, source: Source::Folder { config, weights: Arc::new(weights) } })
    }

    /// A model of a known shape (`llama-3.2-1b`) with made-up weights of one type; the native executor computes it.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], naming the shapes there are.
    pub fn synthetic(shape: &str, weight_type: WeightType) -> Result<Self, ModelError> {
        let model = Synthetic::new(shape, weight_type)?;
        let info = model.info(shape)?;
        let assets = Assets::of(TokenizerSource::Gguf(Arc::new(synthetic::tokenizer(info.vocab_size))));
        let path = PathBuf::from(format!("synthetic:{shape}:{}", weight_type.name()));
        Ok(Self { path, info, assets, source: Source::Synthetic(model) })
    }

    /// The shapes that [`synthetic`](Self::synthetic) knows.
    pub fn synthetic_shapes() -> impl Iterator<Item = &'static str> {
        synthetic::names()
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What it brings along for text.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// Memory that the loaded weights take, in bytes: as many as in the file, but candle computes safetensors in float32.
    pub fn resident_bytes(&self, options: &LoadOptions) -> u64 {
        match &self.source {
            Source::Folder { config, weights }
                if options.backend == BackendChoice::Candle
                    || !crate::native::computes_safetensors(&self.path, config, weights) =>
            {
                self.info.parameters.saturating_mul(4)
            }
            _ => self.info.weight_bytes,
        }
    }

    /// What loading with these options takes, from the header alone. It is what [`load`](Self::load) goes by.
    ///
    /// # Errors
    /// [`ModelError::DoesNotFit`], with what would; [`ModelError::Unsupported`] for what the native executor does not
    /// compute.
    pub fn plan(&self, options: &LoadOptions) -> Result<MemoryPlan, ModelError> {
        self.check_rounding(options)?;
        crate::native::plan(self.native(), &self.info, options)
    }

    /// What is told of it once it is loaded: with weights that are rounded, their type and size.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn info_as_loaded(&self, options: &LoadOptions) -> Result<ModelInfo, ModelError> {
        let mut info = self.info.clone();
        if options.fp8 {
            info.weight_bytes = crate::native::weight_bytes(self.native(), options)?;
            info.dtype = "FP8".to_owned();
        }
        Ok(info)
    }

    fn check_rounding(&self, options: &LoadOptions) -> Result<(), ModelError> {
        let is_float = matches!(&*self.info.dtype, "F32" | "F16" | "BF16");
        let reason = match options.backend {
            _ if !options.fp8 => return Ok(()),
            BackendChoice::Candle => "candle rounds no weights to 8-bit floats: use --backend native".to_owned(),
            _ if is_float => return Ok(()),
            _ => format!(
                "only weights of 16-bit and 32-bit floats are rounded to 8-bit ones, and these are {} already: leave out \
                 --dtype",
                self.info.dtype
            ),
        };
        Err(ModelError::Unsupported { reason })
    }

    /// Whether it gives vectors of texts, and no logits.
    pub fn is_embedder(&self) -> bool {
        matches!(&self.source, Source::Folder { config, .. } if embedder::is_embedder(config))
    }

    /// Loads the weights of an embedding model. Of the options the context is honoured.
    ///
    /// # Errors
    /// When it is none, a setting or a part of it is not supported, or a tensor is missing or misshapen.
    pub fn load_embedder(&self, options: &LoadOptions) -> Result<Embedder, ModelError> {
        match &self.source {
            Source::Folder { config, weights } => Embedder::load(&self.path, config, weights, options),
            _ => Err(ModelError::Unsupported { reason: "embedding models are directories of safetensors".to_owned() }),
        }
    }

    /// Loads the weights.
    ///
    /// # Errors
    /// When the family or one of its settings is not supported, or a tensor is missing or misshapen.
    pub fn load(&self, options: &LoadOptions) -> Result<Box<dyn Executor>, ModelError> {
        if self.is_embedder() {
            let reason = "it is an embedding model, which gives vectors and no text: `tokrun serve` answers \
                          /v1/embeddings with it"
                .to_owned();
            return Err(ModelError::Unsupported { reason });
        }
        self.check_rounding(options)?;
        match options.backend {
            BackendChoice::Candle if matches!(options.processor, Processor::Cuda(_)) => {
                let reason = "candle computes on the CPU only: use --backend native, or --device cpu".to_owned();
                Err(ModelError::Unsupported { reason })
            }
            BackendChoice::Native => self.load_native(options),
            BackendChoice::Candle => self.load_candle(options, Vec::new()),
            BackendChoice::Auto => match self.load_native(options) {
                Err(ModelError::Unsupported { reason }) if matches!(options.processor, Processor::Cuda(_)) => {
                    let reason = format!("{reason}; candle may run it with --device cpu");
                    Err(ModelError::Unsupported { reason })
                }
                Err(ModelError::Unsupported { reason }) if !options.fp8 => self.fall_back(options, &reason),
                result => result,
            },
        }
    }

    /// Loads what the native executor refused for `reason`.
    fn fall_back(&self, options: &LoadOptions, reason: &str) -> Result<Box<dyn Executor>, ModelError> {
        let note = format!("candle computes this model, more slowly: {reason}");
        self.load_candle(options, vec![note]).map_err(|error| match error {
            ModelError::Unsupported { reason: other } if other != reason => {
                ModelError::Unsupported { reason: format!("{reason}; nor does candle run it: {other}") }
            }
            error => error,
        })
    }

    fn load_native(&self, options: &LoadOptions) -> Result<Box<dyn Executor>, ModelError> {
        crate::native::load(self.native(), &self.info, options)
    }

    fn native(&self) -> Model<'_> {
        let path = &self.path;
        match &self.source {
            Source::Gguf { file, header } => Model::Gguf { path, file, header },
            Source::Folder { config, weights } => Model::Folder { path, config, weights },
            Source::Synthetic(model) => Model::Synthetic(model),
        }
    }

    fn load_candle(&self, options: &LoadOptions, notes: Vec<String>) -> Result<Box<dyn Executor>, ModelError> {
        let path = &self.path;
        match &self.source {
            Source::Gguf { file, header } => crate::candle::load_gguf(path, file, header, options, notes),
            Source::Folder { config, weights } => {
                crate::candle::load_safetensors(path, config, weights, options, notes)
            }
            Source::Synthetic(_) => Err(ModelError::Unsupported {
                reason: "synthetic weights are computed natively (not through candle)".to_owned(),
            }),
        }
    }
}
