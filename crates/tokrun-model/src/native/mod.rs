//! The native executor: every family that [`architecture`] can describe, over the operations of `tokrun-kernels`.
//!
//! A file is read into one description ([`gguf`], [`safetensors`]), its tensors are found and counted ([`sources`]), the
//! cache is planned ([`memory`]), the weights are packed ([`decoder`]), and the result runs behind the seam
//! ([`executor`]). What a file asks for and none of this honours is [`ModelError::Unsupported`], found before the first
//! weight is read; `ModelFile::load` then falls back to candle.

use std::path::Path;
use std::thread::{self, JoinHandle};

use tokrun_kernels::cpu::{Cpu, CpuOptions};
use tokrun_kernels::cuda::{CudaError, CudaUnavailable};
use tokrun_kernels::energy::EnergyMeter;
use tokrun_kernels::{Backend, Cuda, CudaOptions, KernelError};

use crate::config::Config;
use crate::gguf::Header;
use crate::mmap::MappedFile;
use crate::{Executor, ExecutorInfo, LoadOptions, MemoryPlan, ModelError, ModelInfo, Processor};

mod architecture;
mod decoder;
mod executor;
mod fp8;
mod gguf;
mod memory;
mod rope;
mod rounded;
mod safetensors;
mod sources;
pub(crate) mod synthetic;
#[cfg(test)]
mod tests;
mod weights;

use architecture::Architecture;
use decoder::{Buffers, Decoder};
use executor::NativeExecutor;
use memory::{Place, Plan};
use rounded::Rounded;
use sources::Sources;
use weights::{Counted, GgufWeights, SafetensorsWeights, Weights};

/// An opened model.
#[derive(Clone, Copy)]
pub(crate) enum Model<'a> {
    Gguf { path: &'a Path, file: &'a MappedFile, header: &'a Header },
    Folder { path: &'a Path, config: &'a Config, weights: &'a crate::safetensors::Weights },
    Synthetic(&'a synthetic::Synthetic),
}

/// Loads its weights.
pub(crate) fn load(model: Model<'_>, info: &ModelInfo, options: &LoadOptions) -> Result<Box<dyn Executor>, ModelError> {
    model.examine(options, |architecture, sources| start(architecture, sources, info, options))
}

/// What loading it takes.
pub(crate) fn plan(model: Model<'_>, info: &ModelInfo, options: &LoadOptions) -> Result<MemoryPlan, ModelError> {
    model.examine(options, |architecture, sources| {
        let on = |place| Ok(memory::plan(architecture, sources, info, options, place)?.memory);
        match options.processor {
            Processor::Cpu => on(Place::host()),
            Processor::Cuda(ordinal) => on(Place::cuda(ordinal)?),
            Processor::Auto => Place::cuda(0).and_then(on).or_else(|_| on(Place::host())),
        }
    })
}

/// What its weights take once they are rounded as the options ask for.
pub(crate) fn weight_bytes(model: Model<'_>, options: &LoadOptions) -> Result<u64, ModelError> {
    model
        .examine(options, |_, sources| Ok(sources.matrices().into_iter().map(|matrix| matrix.loaded_bytes(true)).sum()))
}

impl Model<'_> {
    /// Reads its description, and finds all of its weights.
    fn examine<T>(
        self,
        options: &LoadOptions,
        then: impl FnOnce(&Architecture, &Sources<'_>) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let found = |architecture: &Architecture, weights: &dyn Weights| {
            let counted = Counted { weights, progress: options.progress.clone() };
            let rounded = Rounded { weights: &counted };
            let weights: &dyn Weights = if options.fp8 { &rounded } else { &counted };
            then(architecture, &Sources::find(architecture, weights)?)
        };
        match self {
            Self::Gguf { path, file, header } => {
                let weights = GgufWeights::new(path, header, file);
                let architecture = gguf::architecture(path, header, &weights, wanted_tokens(options))?;
                found(&architecture, &weights)
            }
            Self::Folder { path, config, weights } => {
                let count = weights.tensors().len();
                let architecture = safetensors::architecture(path, config, count, wanted_tokens(options))?;
                let weights = SafetensorsWeights::new(path, weights, config, &architecture);
                found(&architecture, &weights)
            }
            Self::Synthetic(model) => {
                let architecture = model.architecture(wanted_tokens(options))?;
                let weights = model.weights();
                found(&architecture, &weights)
            }
        }
    }
}

/// Whether [`load`] would find a decoder in the folder.
pub(crate) fn computes_safetensors(folder: &Path, config: &Config, tensors: &crate::safetensors::Weights) -> bool {
    let architecture = safetensors::architecture(folder, config, tensors.tensors().len(), usize::MAX);
    architecture.is_ok_and(|architecture| {
        Sources::find(&architecture, &SafetensorsWeights::new(folder, tensors, config, &architecture)).is_ok()
    })
}

/// Longest sequence that the caller needs.
fn wanted_tokens(options: &LoadOptions) -> usize {
    options.context_tokens.unwrap_or(usize::MAX).max(1)
}

fn start(
    architecture: &Architecture,
    sources: &Sources<'_>,
    info: &ModelInfo,
    options: &LoadOptions,
) -> Result<Box<dyn Executor>, ModelError> {
    let rounding: Vec<String> = options.fp8.then(|| sources.not_rounded()).flatten().into_iter().collect();
    let cpu =
        |notes: Vec<String>| start_on_cpu(architecture, sources, info, options, [notes, rounding.clone()].concat());
    let cuda = |ordinal: usize| {
        let place = Place::cuda(ordinal)?;
        let plan = memory::plan(architecture, sources, info, options, place)?;
        let energy = thread::spawn(move || EnergyMeter::cuda(ordinal));
        let backend = Cuda::new(ordinal, CudaOptions { deterministic: options.deterministic })?;
        Ok::<_, ModelError>(Box::new(build(backend, plan, rounding.clone(), energy, architecture, sources)?))
    };
    match options.processor {
        Processor::Cpu => cpu(Vec::new()),
        Processor::Cuda(ordinal) => Ok(cuda(ordinal)?),
        Processor::Auto => match cuda(0) {
            Ok(executor) => Ok(executor),
            Err(ModelError::Weights(KernelError::Cuda(CudaError::Unavailable(CudaUnavailable::NoDriver)))) => {
                cpu(Vec::new())
            }
            Err(ModelError::Weights(KernelError::Cuda(reason))) => cpu(vec![format!("the CPU computes: {reason}")]),
            Err(error @ ModelError::DoesNotFit { .. }) => cpu(vec![format!("the CPU computes: {error}")]),
            Err(error) => Err(error),
        },
    }
}

fn start_on_cpu(
    architecture: &Architecture,
    sources: &Sources<'_>,
    info: &ModelInfo,
    options: &LoadOptions,
    notes: Vec<String>,
) -> Result<Box<dyn Executor>, ModelError> {
    let threads = options.threads.unwrap_or(CpuOptions::default().threads).max(1);
    let backend =
        Cpu::new(CpuOptions { threads, pin: options.pin, profile: options.profile, ..CpuOptions::default() })?;
    let plan = memory::plan(architecture, sources, info, options, Place::host())?;
    let energy = thread::spawn(EnergyMeter::cpu);
    Ok(Box::new(build(backend, plan, notes, energy, architecture, sources)?))
}

/// An executor on `backend`, with `notes` on how that came to be chosen. Opening `energy` can take as long as reading some
/// weights: it is waited for at the end.
fn build<B: Backend>(
    mut backend: B,
    plan: Plan,
    notes: Vec<String>,
    energy: JoinHandle<Option<EnergyMeter>>,
    architecture: &Architecture,
    sources: &Sources<'_>,
) -> Result<NativeExecutor<B>, ModelError> {
    let Plan { memory, shape, paging, sequences_max, room, note } = plan;
    let decoder = Decoder::pack(&mut backend, architecture, sources)?;
    let buffers = Buffers::new(&mut backend, architecture, room)?;
    let kv = backend.kv_cache(shape)?;
    let info = ExecutorInfo {
        backend: "native",
        device: memory.device,
        vocab_size: architecture.vocab_size,
        context_tokens: memory.context_tokens,
        sequences_max,
        paging: Some(paging),
    };
    let notes = notes.into_iter().chain(note).collect();
    let (embedded_tokens, energy) = (architecture.embedded_tokens, energy.join().ok().flatten());
    // A drawn token is fed before anybody could see that it is outside the matrix.
    let steps_ahead = usize::from(B::SAMPLES_AHEAD && architecture.embedded_tokens >= architecture.vocab_size);
    let mut parts = executor::Parts { backend, decoder, buffers, kv, room, embedded_tokens, energy, steps_ahead };
    parts.rehearse(sequences_max, info.context_tokens)?;
    Ok(NativeExecutor::new(info, notes, parts))
}
