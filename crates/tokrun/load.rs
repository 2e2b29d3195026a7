//! From what the user named to a model that speaks.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use tokrun_engine::{ChatTemplate, EngineOptions, SamplingParams, TextEncoder, Tokenizer};
use tokrun_kernels::cuda::CudaUnavailable;
use tokrun_ledger::{Credits, Price};
use tokrun_model::catalogue::{Catalogue, Decimal, Entry, SamplingDefaults};
use tokrun_model::store::{Resolved, Store};
use tokrun_model::{
    BackendChoice, LoadOptions, LoadProgress, MemoryPlan, ModelError, ModelFile, ModelInfo, Processor, WeightType,
};
use tokrun_runtime::{EmbeddingModel, Embeddings, Meter, Runtime, TextModel};

use crate::args::{Backend, Device, Devices, EngineArgs};
use crate::failure::{Failure, Status};
use crate::progress::{self, Bar};

/// A model that was found on disk, fetched if need be.
pub(crate) struct Found {
    /// Its name in the catalogue, or that of its file.
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) entry: Option<Entry>,
}

/// Where a model comes from.
pub(crate) enum Place {
    Disk(PathBuf),
    /// Nowhere: made-up weights of a known shape.
    Synthetic(String, WeightType),
}

/// The model the user named, or the default; a catalogue model that is not here is pulled.
pub(crate) fn find(home: &Path, catalogue: Catalogue, wanted: Option<&str>) -> Result<Found, Failure> {
    let wanted = wanted.map_or_else(|| catalogue.default_model().name.clone(), str::to_owned);
    let store = Store::new(home, catalogue);
    match store.resolve(&wanted)? {
        Resolved::Local { path } => Ok(local(&store, home, path)),
        Resolved::Pulled { path, entry } => {
            Ok(Found { name: entry.name.clone(), place: Place::Disk(path), entry: Some(entry.clone()) })
        }
        Resolved::NotPulled { entry } => {
            let path = pull(&store, entry)?;
            Ok(Found { name: entry.name.clone(), place: Place::Disk(path), entry: Some(entry.clone()) })
        }
    }
}

/// A model named by its path. One that was pulled is still that model, at its price.
fn local(store: &Store, home: &Path, path: PathBuf) -> Found {
    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
    let pulled = home.join("models").canonicalize().ok().and_then(|models| {
        let name = real.strip_prefix(models).ok()?.iter().next()?.to_str()?;
        store.catalogue().get(name).cloned()
    });
    let name = match &pulled {
        Some(entry) => entry.name.clone(),
        None => {
            let name = real.file_name().unwrap_or(real.as_os_str()).to_string_lossy();
            name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
        }
    };
    Found { name, place: Place::Disk(path), entry: pulled }
}

/// Fetches a model of the catalogue.
pub(crate) fn pull(store: &Store, entry: &Entry) -> Result<PathBuf, Failure> {
    Ok(store.pull(entry, &Bar::new())?)
}

impl Found {
    /// A model that is made up.
    pub(crate) fn synthetic(shape: &str, weight_type: WeightType) -> Self {
        let name = format!("synthetic {shape}");
        Self { name, place: Place::Synthetic(shape.to_owned(), weight_type), entry: None }
    }

    fn open(&self) -> Result<ModelFile, ModelError> {
        match &self.place {
            Place::Disk(path) => ModelFile::open(path),
            Place::Synthetic(shape, weight_type) => ModelFile::synthetic(shape, *weight_type),
        }
    }

    /// The model's file, if it is one that gives vectors of texts.
    pub(crate) fn embedder(&self) -> Result<Option<ModelFile>, Failure> {
        match &self.place {
            Place::Disk(_) => Ok(Some(self.open()?).filter(ModelFile::is_embedder)),
            Place::Synthetic(..) => Ok(None),
        }
    }

    /// What a token of this model costs now, as the catalogue has it. A model outside of it costs a credit a token.
    pub(crate) fn price(&self) -> Result<Price, Failure> {
        self.entry.as_ref().map_or(Ok(Price::default()), |entry| price_of(entry, jiff::Timestamp::now()))
    }

    /// How to sample where nothing else is said: as the model's makers recommend.
    pub(crate) fn sampling_params(&self) -> SamplingParams {
        let usual = SamplingDefaults {
            temperature: Some(0.8),
            top_k: Some(40),
            top_p: Some(0.95),
            ..SamplingDefaults::default()
        };
        // Whom nobody recommends anything for gets what local runtimes usually begin with.
        let recommended = self.entry.as_ref().map(|entry| &entry.sampling);
        let recommended = recommended.filter(|sampling| **sampling != SamplingDefaults::default()).unwrap_or(&usual);
        let off = SamplingParams::default();
        let or = |recommended: Option<f64>, off: f32| recommended.map_or(off, |value| value as f32);
        SamplingParams {
            temperature: or(recommended.temperature, off.temperature),
            top_k: recommended.top_k.map_or(off.top_k, |k| k as usize),
            top_p: or(recommended.top_p, off.top_p),
            min_p: or(recommended.min_p, off.min_p),
            repeat_penalty: or(recommended.repeat_penalty, off.repeat_penalty),
            ..off
        }
    }
}

/// The catalogue's price of a model at an instant. One that the ledger has goes before it, at the admission.
pub(crate) fn price_of(entry: &Entry, at: jiff::Timestamp) -> Result<Price, Failure> {
    let price = entry.price_at(at);
    Ok(Price {
        prompt: credits(&price.prompt)?,
        cached_prompt: credits(&price.cached_prompt)?,
        output: credits(&price.output)?,
        reasoning: credits(&price.reasoning)?,
    })
}

/// The catalogue's decimals as the ledger's credits.
pub(crate) fn credits(amount: &Decimal) -> Result<Credits, Failure> {
    amount.as_str().parse().map_err(|error| {
        Failure::new(Status::Failed, "bad_catalogue", format!("the amount `{}`: {error}", amount.as_str()))
            .hint("correct it in models.toml")
    })
}

/// What loading a model on one device takes, decided before.
pub(crate) struct Planned {
    /// `cpu`, `cuda:0`.
    pub(crate) device: String,
    /// All that it takes of the device.
    pub(crate) bytes: u64,
    /// Of the device, free now.
    pub(crate) free_bytes: u64,
    /// The longest sequence, in tokens.
    pub(crate) context_tokens: usize,
    /// How to load it just so, whatever is loaded beside it by then.
    pub(crate) options: LoadOptions,
}

/// Decides it, from the model's header alone.
pub(crate) fn plan(found: &Found, options: &LoadOptions) -> Result<Planned, Failure> {
    let file = found.open()?;
    if options.backend == BackendChoice::Candle {
        return Ok(Planned::on_candle(&file, options));
    }
    match file.plan(options) {
        Ok(plan) => Ok(Planned::natively(plan, options)),
        Err(ModelError::Unsupported { .. }) if options.backend != BackendChoice::Native => {
            Ok(Planned::on_candle(&file, options))
        }
        Err(error) => Err(error.into()),
    }
}

impl Planned {
    fn natively(plan: MemoryPlan, options: &LoadOptions) -> Self {
        let card = plan.device.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
        Self {
            bytes: plan.taken_bytes(),
            free_bytes: plan.free_bytes,
            context_tokens: plan.context_tokens,
            options: LoadOptions {
                processor: card.map_or(options.processor, Processor::Cuda),
                kv_cache_bytes: Some(plan.kv_cache_bytes),
                ..options.clone()
            },
            device: plan.device,
        }
    }

    /// candle computes on the CPU, and its caches grow as they are filled.
    fn on_candle(file: &ModelFile, options: &LoadOptions) -> Self {
        let info = file.info();
        let context_tokens = options.context_tokens.unwrap_or(usize::MAX).min(info.context_tokens);
        let tokens = (context_tokens as u64).saturating_mul(options.sequences_max.unwrap_or(1) as u64);
        let candle = LoadOptions { backend: BackendChoice::Candle, ..options.clone() };
        Self {
            device: "cpu".to_owned(),
            bytes: file.resident_bytes(&candle).saturating_add(info.kv_bytes_per_token.saturating_mul(tokens)),
            free_bytes: u64::MAX,
            context_tokens,
            options: options.clone(),
        }
    }
}

/// A running model.
pub(crate) struct Loaded {
    pub(crate) runtime: Runtime,
    pub(crate) info: ModelInfo,
    pub(crate) load_ms: f64,
}

/// Loads the weights, opens the meter meanwhile, and starts the engine.
pub(crate) fn start(
    found: &Found,
    meter: impl FnOnce() -> Result<Arc<dyn Meter>, Failure>,
    load: &LoadOptions,
    engine: EngineOptions,
) -> Result<Loaded, Failure> {
    let begun = Instant::now();
    let (meter, loaded) = std::thread::scope(|scope| {
        let loaded = scope.spawn(|| open(found, load));
        (meter(), loaded.join())
    });
    let meter = meter?;
    let (model, info) =
        loaded.map_err(|_| Failure::new(Status::Failed, "bad_model", format!("{} cannot be loaded", found.name)))??;
    let runtime = Runtime::start(model, meter, engine)?;
    Ok(Loaded { runtime, info, load_ms: begun.elapsed().as_secs_f64() * 1e3 })
}

/// Loads the weights, and what it takes to speak.
pub(crate) fn open(found: &Found, options: &LoadOptions) -> Result<(TextModel, ModelInfo), Failure> {
    let file = found.open()?;
    let progress = LoadProgress::default();
    let options = &LoadOptions { progress: Some(progress.clone()), ..options.clone() };
    let is_loaded = AtomicBool::new(false);
    // The tokenizer is built while the weights are read.
    let (executor, tokenizer) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| Tokenizer::from_assets(file.assets()));
        if std::io::stderr().is_terminal() {
            scope.spawn(|| progress::show_load(&found.name, file.info().weight_bytes, &progress, &is_loaded));
        }
        let executor = file.load(options);
        is_loaded.store(true, Relaxed);
        (executor, tokenizer.join())
    });
    let tokenizer = tokenizer.map_err(|_| {
        Failure::new(Status::Failed, "tokenizer", format!("the tokenizer of {} cannot be built", file.path().display()))
    })??;
    let executor = executor?;
    for note in executor.notes() {
        say!("note: {note}");
    }
    if executor.info().backend == "candle"
        && let Some(threads) = options.threads
        && !candle_has(threads)
    {
        say!("note: candle takes its threads from the environment: {CANDLE_THREADS}={threads}");
    }
    let model = TextModel {
        name: found.name.clone(),
        executor,
        tokenizer: Arc::new(tokenizer),
        template: ChatTemplate::compile(file.assets()),
        end_tokens: file.assets().end_token_ids.clone(),
    };
    Ok((model, file.info_as_loaded(options)?))
}

/// Loads an embedding model, and starts the thread that computes with it.
pub(crate) fn start_embedder(
    found: &Found,
    file: &ModelFile,
    meter: Arc<dyn Meter>,
    options: &LoadOptions,
) -> Result<Embeddings, Failure> {
    let encoder = TextEncoder::from_assets(file.assets())?;
    let embedder = file.load_embedder(options)?;
    for note in embedder.notes() {
        say!("note: {note}");
    }
    Ok(Embeddings::start(EmbeddingModel { name: found.name.clone(), embedder, encoder }, meter)?)
}

/// The devices that are meant, in order, each of which can compute.
pub(crate) fn devices(wanted: Devices) -> Result<Vec<Device>, Failure> {
    match wanted {
        Devices::One(device) => check_device(device).map(|()| vec![device]),
        Devices::AllCuda => {
            check_device(Device::Cuda(0))?;
            let machine = tokrun_kernels::cuda::probe();
            Ok((0..machine.map_or(0, |machine| machine.devices.len())).map(Device::Cuda).collect())
        }
    }
}

/// Refuses a device that cannot compute, and says what can. Whoever sits at a terminal hears where it will be computed when
/// there is nothing to choose from.
pub(crate) fn check_device(device: Device) -> Result<(), Failure> {
    if device == Device::Auto
        && std::io::stderr().is_terminal()
        && let Err(reason @ CudaUnavailable::NoDriver) = tokrun_kernels::cuda::probe()
    {
        say!("note: the CPU computes: {reason}");
    }
    let Device::Cuda(ordinal) = device else { return Ok(()) };
    let failure = match tokrun_kernels::cuda::probe() {
        Err(reason) => Failure::new(Status::Failed, "no_cuda", reason.to_string()),
        Ok(machine) if ordinal >= machine.devices.len() => Failure::new(
            Status::Failed,
            "no_cuda",
            format!("there is no CUDA device {ordinal}; the driver reports {}", machine.devices.len()),
        ),
        Ok(_) => return Ok(()),
    };
    Err(failure.hint("use --device cpu; `tokrun doctor` shows what this machine has"))
}

/// Where candle reads its thread count, once.
const CANDLE_THREADS: &str = "RAYON_NUM_THREADS";

fn candle_has(threads: usize) -> bool {
    std::env::var(CANDLE_THREADS).is_ok_and(|value| value == threads.to_string())
}

/// Where candle was asked for, the process starts itself anew with its thread count set.
pub(crate) fn prepare_threads(engine: &EngineArgs, threads: Option<u16>) -> Result<(), Failure> {
    use std::os::unix::process::CommandExt;
    let Some(threads) = threads.map(usize::from).filter(|_| engine.backend == Backend::Candle) else { return Ok(()) };
    if candle_has(threads) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|error| Failure::io("cannot find this program", &error))?;
    let mut command = std::process::Command::new(program);
    let error = command.args(std::env::args_os().skip(1)).env(CANDLE_THREADS, threads.to_string()).exec();
    Err(Failure::io("cannot start anew with that many threads", &error))
}
