//! `tokrun bench`: prefill and decode speed in the form of llama-bench; `bench serve` is beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokrun_kernels::energy::EnergyMeter;
use tokrun_ledger::{Credits, GrantRequest, Ledger};
use tokrun_model::ModelInfo;
use tokrun_model::catalogue::Catalogue;
use tokrun_runtime::{LedgerMeter, Meter, Unmetered};

use crate::args::{BenchArgs, BenchCommand, Device, Format, Switch};
use crate::failure::{Failure, Status};
use crate::load::{self, Found, Loaded};
use crate::machine::Probe;
use crate::{home, interrupt};

mod bare;
mod perplexity;
mod profile;
mod report;
mod serve;
mod test;

use report::{Printer, Row};
use test::Test;

pub(crate) fn run(args: &BenchArgs, format: Format) -> Result<Status, Failure> {
    if let Some(BenchCommand::Serve(args)) = &args.command {
        return serve::run(args, format);
    }
    let devices = load::devices(args.device)?;
    load::prepare_threads(&args.engine, args.threads.first().copied())?;
    interrupt::install(format)?;
    let home = home::directory()?;
    let found = match &args.synthetic {
        Some((shape, weight_type)) => Found::synthetic(shape, *weight_type),
        None => load::find(&home, Catalogue::load(&home)?, args.model.as_deref())?,
    };
    if let Some(file) = &args.perplexity {
        return perplexity::run(args, only(&devices)?, &found, file, format);
    }
    if args.profile {
        return profile::run(args, only(&devices)?, &found, format);
    }
    let fsync_us = match args.ledger {
        Switch::On => Some(tokrun_ledger::fsync_probe_us(&home)?),
        Switch::Off => None,
    };
    let mut printer = Printer::new(args, format, fsync_us);
    for device in devices {
        for threads in threads(args) {
            for &n_batch in &args.n_batch {
                let scratch = Scratch::new(&home)?;
                let conditions = Conditions { found: &found, device, threads, n_batch, fsync_us };
                measure_all(args, &conditions, &scratch, &mut printer)?;
            }
        }
    }
    printer.finish();
    Ok(Status::Done)
}

/// What the tests that one loaded model runs have in common.
struct Conditions<'a> {
    found: &'a Found,
    device: Device,
    threads: Option<u16>,
    n_batch: usize,
    /// Median time that one fsync takes where the ledger lies; `None` without a ledger.
    fsync_us: Option<u64>,
}

/// For what runs on one device.
fn only(devices: &[Device]) -> Result<Device, Failure> {
    match devices {
        [device] => Ok(*device),
        _ => Err(Failure::new(Status::Usage, "usage", "this runs on one device").hint("name one: --device cuda:0")),
    }
}

/// The thread counts to measure with; `None` is whatever the machine has.
fn threads(args: &BenchArgs) -> Vec<Option<u16>> {
    if args.threads.is_empty() { vec![None] } else { args.threads.iter().copied().map(Some).collect() }
}

/// Loads the model and runs every test on it.
fn measure_all(
    args: &BenchArgs,
    conditions: &Conditions<'_>,
    scratch: &Scratch,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let tests = Test::all(args);
    let meter: Arc<dyn Meter> = match args.ledger {
        Switch::On => Arc::new(LedgerMeter(scratch.ledger()?)),
        Switch::Off => Arc::new(Unmetered),
    };
    let loaded = load_for(args, conditions, meter, &tests)?;
    let executor = loaded.runtime.info();
    if executor.backend == "candle" && args.threads.len() > 1 {
        return Err(Failure::new(Status::Usage, "usage", "candle keeps its first thread count as long as it runs")
            .hint("run the bench once for each thread count, or use a model that the native engine knows"));
    }
    for test in &tests {
        test.check(executor)?;
    }
    let mut probe = Probe::new(conditions.threads, args.engine.pin)?;
    let card = card_bytes_per_s(&executor.device)?;
    let mut energy = energy_meter(&executor.device);
    for test in &tests {
        let before = probe.look(loaded.info.weight_bytes)?;
        let measured = test.measure(&loaded.runtime, loaded.info.vocab_size, args.repetitions, energy.as_mut())?;
        let mut moment = before.between(probe.look(loaded.info.weight_bytes)?);
        moment.bytes_per_s = card.unwrap_or(moment.bytes_per_s);
        printer.print(&Row::new(args, conditions, &loaded, &measured, (probe.level(), moment)));
    }
    Ok(())
}

/// What the card that computes reads of its memory, measured; `None` for the processor.
fn card_bytes_per_s(device: &str) -> Result<Option<f64>, Failure> {
    let Some(ordinal) = device.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()) else { return Ok(None) };
    let bandwidth = tokrun_kernels::cuda::Device::open(ordinal).and_then(|device| device.bandwidth());
    let bandwidth = bandwidth.map_err(|error| Failure::new(Status::Failed, "cuda", error.to_string()))?;
    Ok(Some(bandwidth.read_bytes_per_second))
}

/// Of the device that computes: `cpu`, or `cuda:0`.
fn energy_meter(device: &str) -> Option<EnergyMeter> {
    match device.strip_prefix("cuda:") {
        Some(ordinal) => EnergyMeter::cuda(ordinal.parse().ok()?),
        None => EnergyMeter::cpu(),
    }
}

fn load_for(
    args: &BenchArgs,
    conditions: &Conditions<'_>,
    meter: Arc<dyn Meter>,
    tests: &[Test],
) -> Result<Loaded, Failure> {
    let sequences_max = tests.iter().map(|test| test.concurrency).max().unwrap_or(1);
    let needed_tokens = tests.iter().map(Test::context_tokens).max().unwrap_or(1);
    let mut load = args.engine.load_options(conditions.device, conditions.threads, sequences_max);
    // No more than the tests need, so that the cache of a long context does not take their memory.
    load.context_tokens = load.context_tokens.or(Some(needed_tokens));
    let mut engine = args.engine.engine_options(sequences_max);
    engine.step_tokens_max = conditions.n_batch;
    engine.speculation = args.speculation;
    load::start(conditions.found, || Ok(meter), &load, engine)
}

/// A ledger of the bench's own, beside the real one so that its disk is the same; deleted afterwards.
/// The tokens of a bench are shown to nobody, so nobody pays for them.
struct Scratch(PathBuf);

impl Scratch {
    const WALLET: &'static str = "bench";

    fn new(home: &Path) -> Result<Self, Failure> {
        sweep(home);
        let directory = home.join(format!("bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)
            .map_err(|error| Failure::io(&format!("cannot create {}", directory.display()), &error))?;
        Ok(Self(directory))
    }

    fn ledger(&self) -> Result<Ledger, Failure> {
        let ledger = Ledger::open(&self.0.join("ledger.db"))?;
        ledger.create_wallet(Self::WALLET, None)?;
        ledger.grant(GrantRequest::new(Self::WALLET, Credits::from_micro(i64::MAX / 4)))?;
        Ok(ledger)
    }
}

/// Removes what benches that were killed left behind.
fn sweep(home: &Path) {
    for entry in std::fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("bench-")).and_then(|id| id.parse::<u32>().ok());
        if process.is_some_and(|id| Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{id}")).exists()) {
            // What cannot be removed is left for the next bench.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It holds nothing anybody needs; what cannot be deleted is left lying.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `llama 134.52M Q4_1`.
fn model_type(info: &ModelInfo) -> String {
    format!("{} {} {}", info.architecture, report::parameters(info.parameters), info.dtype)
}
