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
use crate::{Executor, ExecutorInfo, LoadOptions, ModelError, ModelInfo, Processor};

mod architecture;
mod decoder;
mod executor;
mod gguf;
mod memory;
mod rope;
mod safetensors;
mod sources;
pub(crate) mod synthetic;
#[cfg(test)]
mod tests;
mod weights;

use architecture::Architecture;
use decoder::{Buffers, Decoder, Room};
use executor::NativeExecutor;
use sources::Sources;
use weights::{GgufWeights, SafetensorsWeights};

/// Rows of a step at most, beside one for each sequence: longer ones are cut, which changes no result.
const PREFILL_ROWS: usize = 512;
/// What the logits of a step take at most, unless the sequences have more.
const LOGITS_BYTES: usize = 64 << 20;

/// Loads the GGUF file of `header`.
pub(crate) fn load_gguf(
    path: &Path,
    file: &MappedFile,
    header: &Header,
    info: &ModelInfo,
    options: &LoadOptions,
) -> Result<Box<dyn Executor>, ModelError> {
    let weights = GgufWeights::new(path, header, file);
    let architecture = gguf::architecture(path, header, &weights, wanted_tokens(options))?;
    start(&architecture, &Sources::find(&architecture, &weights)?, info, options)
}

/// Loads the directory of safetensors `folder` with the settings `config`.
pub(crate) fn load_safetensors(
    folder: &Path,
    config: &Config,
    tensors: &crate::safetensors::Weights,
    info: &ModelInfo,
    options: &LoadOptions,
) -> Result<Box<dyn Executor>, ModelError> {
    let architecture = safetensors::architecture(folder, config, tensors.tensors().len(), wanted_tokens(options))?;
    let weights = SafetensorsWeights::new(folder, tensors, config, &architecture);
    start(&architecture, &Sources::find(&architecture, &weights)?, info, options)
}

/// Whether [`load_safetensors`] would find a decoder in the folder.
pub(crate) fn computes_safetensors(folder: &Path, config: &Config, tensors: &crate::safetensors::Weights) -> bool {
    let architecture = safetensors::architecture(folder, config, tensors.tensors().len(), usize::MAX);
    architecture.is_ok_and(|architecture| {
        Sources::find(&architecture, &SafetensorsWeights::new(folder, tensors, config, &architecture)).is_ok()
    })
}

/// Makes up the weights of a synthetic model.
pub(crate) fn load_synthetic(
    model: &synthetic::Synthetic,
    info: &ModelInfo,
    options: &LoadOptions,
) -> Result<Box<dyn Executor>, ModelError> {
    let architecture = model.architecture(wanted_tokens(options))?;
    let weights = model.weights();
    start(&architecture, &Sources::find(&architecture, &weights)?, info, options)
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
    let cpu = |notes| start_on_cpu(architecture, sources, info, options, notes);
    let cuda = |ordinal: usize| {
        let backend = Cuda::new(ordinal, CudaOptions::default())?;
        let site = Site {
            device: format!("cuda:{ordinal}"),
            free_bytes: backend.memory_free_bytes()? as u64,
            notes: Vec::new(),
            energy: thread::spawn(move || EnergyMeter::cuda(ordinal)),
        };
        Ok::<_, ModelError>(Box::new(build(backend, site, architecture, sources, info, options)?))
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
    let energy = thread::spawn(EnergyMeter::cpu);
    let site = Site { device: "cpu".to_owned(), free_bytes: memory::free_bytes(), notes, energy };
    Ok(Box::new(build(backend, site, architecture, sources, info, options)?))
}

/// Where a backend computes, as far as planning and telling of it are concerned.
struct Site {
    device: String,
    /// Memory for weights and cache.
    free_bytes: u64,
    /// How it came to be chosen.
    notes: Vec<String>,
    /// Opening it can take as long as reading some weights: that happens meanwhile.
    energy: JoinHandle<Option<EnergyMeter>>,
}

/// An executor on `backend`.
fn build<B: Backend>(
    mut backend: B,
    site: Site,
    architecture: &Architecture,
    sources: &Sources<'_>,
    info: &ModelInfo,
    options: &LoadOptions,
) -> Result<NativeExecutor<B>, ModelError> {
    let plan = memory::plan(architecture, options, site.free_bytes, info.weight_bytes, info.dtype == "F32")?;
    let sequences_max = options.sequences_max.unwrap_or(memory::SEQUENCES_MAX).max(1);
    let rows = PREFILL_ROWS + sequences_max;
    let logits = (LOGITS_BYTES / (4 * architecture.vocab_size)).max(sequences_max).min(rows);
    let room = Room { rows, logits };
    let decoder = Decoder::pack(&mut backend, architecture, sources)?;
    let buffers = Buffers::new(&mut backend, architecture, room)?;
    let kv = backend.kv_cache(plan.shape)?;
    let info = ExecutorInfo {
        backend: "native",
        device: site.device,
        vocab_size: architecture.vocab_size,
        context_tokens: plan.context_tokens,
        sequences_max,
        paging: Some(plan.paging),
    };
    let notes = site.notes.into_iter().chain(plan.note).collect();
    let (embedded_tokens, energy) = (architecture.embedded_tokens, site.energy.join().ok().flatten());
    let parts = executor::Parts { backend, decoder, buffers, kv, room, embedded_tokens, energy };
    Ok(NativeExecutor::new(info, notes, parts))
}
