//! `tokrun doctor`: what this machine has, and what to do about what is wrong.

use std::path::Path;

use serde_json::{Value, json};
use tokrun_kernels::cuda::{Bandwidth, CudaDevice, Device};
use tokrun_kernels::energy::EnergyMeter;
use tokrun_ledger::Ledger;
use tokrun_model::catalogue::{Catalogue, Entry};
use tokrun_model::store::{Resolved, Store};
use tokrun_model::{LoadOptions, ModelError, ModelFile, Processor};

use crate::args::{DoctorArgs, Format};
use crate::failure::{Failure, Status};
use crate::machine::Probe;
use crate::{home, output};

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Works, could be better.
    Note,
    Bad,
}

struct Finding {
    about: &'static str,
    verdict: Verdict,
    what: String,
    remedy: Option<String>,
}

impl Finding {
    fn good(about: &'static str, what: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Good, what: what.into(), remedy: None }
    }

    fn note(about: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Note, what: what.into(), remedy: Some(remedy.into()) }
    }

    fn bad(about: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Bad, what: what.into(), remedy: Some(remedy.into()) }
    }
}

pub(crate) fn run(args: &DoctorArgs, format: Format) -> Result<Status, Failure> {
    let home = home::directory()?;
    let mut findings = vec![processor(), engine(), gpu(), memory()];
    findings.push(storage(&home));
    findings.push(model(&home, args.model.as_deref()));
    findings.extend(ledger(&home));
    print(&findings, format);
    let healthy = findings.iter().all(|finding| finding.verdict != Verdict::Bad);
    Ok(if healthy { Status::Done } else { Status::Failed })
}

fn processor() -> Finding {
    let threads = tokrun_kernels::cpu::threads_available();
    let extensions = tokrun_kernels::cpu::simd_extensions();
    let what = format!(
        "{threads} threads, {}",
        if extensions.is_empty() { "no vector extensions".to_owned() } else { extensions.join(" ") }
    );
    if cfg!(target_arch = "x86_64") && !extensions.contains(&"avx2") {
        return Finding::note("processor", what, "generation is slow without AVX2; use a newer machine");
    }
    Finding::good("processor", what)
}

/// What the native engine makes of the processor, measured now.
fn engine() -> Finding {
    let measured = Probe::new(None, false).and_then(|mut probe| {
        let moment = probe.look(MEASURED_BYTES)?;
        Ok((probe.level(), probe.threads(), moment))
    });
    let (level, threads, moment) = match measured {
        Ok(measured) => measured,
        Err(failure) => return Finding::bad("engine", failure.message(), "close other programs, and try again"),
    };
    let what = format!(
        "{level}, {threads} threads read {:.1} GB/s together and wait {:.0} ns for each other",
        moment.bytes_per_s / 1e9,
        moment.barrier_ns
    );
    if moment.barrier_ns > SLOW_BARRIER_NS {
        return Finding::note("engine", what, "the processor is busy with something else; --threads can be lower");
    }
    Finding::good("engine", what)
}

/// More than the caches of most processors hold.
const MEASURED_BYTES: u64 = 256 << 20;
/// Threads that have a core each wait less than this.
const SLOW_BARRIER_NS: f64 = 10_000.0;

fn gpu() -> Finding {
    use tokrun_kernels::cuda::{CudaUnavailable, probe};
    match probe() {
        Ok(machine) => {
            let devices: Vec<String> = machine.devices.iter().map(card).collect();
            let (major, minor) = machine.driver_version;
            Finding::good("gpu", format!("{}; driver for CUDA {major}.{minor}", devices.join("; ")))
        }
        Err(CudaUnavailable::NoDriver) => {
            Finding::good("gpu", "no CUDA driver; the CPU is used. With an Nvidia card, install its driver")
        }
        Err(reason @ CudaUnavailable::NoDevice) => Finding::note(
            "gpu",
            reason.to_string(),
            "check that the card is visible: `nvidia-smi`, CUDA_VISIBLE_DEVICES",
        ),
        Err(reason @ CudaUnavailable::Broken(_)) => {
            Finding::note("gpu", reason.to_string(), "reinstall the driver, or reboot after an update of it")
        }
    }
}

/// What there is to say of a card; what could not be measured is left out or explained.
fn card(card: &CudaDevice) -> String {
    let (major, minor) = card.compute_capability;
    let mut what = format!(
        "cuda:{} {} (compute capability {major}.{minor}), {} of {} free",
        card.ordinal,
        card.name,
        output::bytes(card.memory_free_bytes as u64),
        output::bytes(card.memory_total_bytes as u64),
    );
    let mut meter = EnergyMeter::cuda(card.ordinal);
    match Device::open(card.ordinal).and_then(|device| device.bandwidth()) {
        Ok(Bandwidth { copy_bytes_per_second, read_bytes_per_second }) => {
            let (read, copy) = (read_bytes_per_second / 1e9, copy_bytes_per_second / 1e9);
            what += &format!(", reads {read:.0} GB/s and copies {copy:.0} GB/s of its memory");
        }
        Err(error) => what += &format!(", its memory could not be measured: {error}"),
    }
    if let Some(power_w) = meter.as_mut().and_then(EnergyMeter::power_w) {
        what += &format!(", draws {power_w:.0} W at that");
    }
    what
}

fn memory() -> Finding {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let limits = system.cgroup_limits();
    let (free, total) = limits.map_or((u64::MAX, u64::MAX), |limits| (limits.free_memory, limits.total_memory));
    let (free_bytes, total_bytes) = (system.available_memory().min(free), system.total_memory().min(total));
    let what = format!("{} of {} available", output::bytes(free_bytes), output::bytes(total_bytes));
    if free_bytes < 500_000_000 {
        return Finding::note("memory", what, "close other programs; the default model needs about 0.5 GB");
    }
    Finding::good("memory", what)
}

fn storage(home: &Path) -> Finding {
    let remedy = "set TOKRUN_HOME to a directory you can write to";
    if let Err(error) = std::fs::create_dir_all(home) {
        return Finding::bad("home", format!("{}: {error}", home.display()), remedy);
    }
    match tokrun_ledger::fsync_probe_us(home) {
        Ok(fsync_us) => {
            let what = format!("{}, fsync {fsync_us} µs", home.display());
            if fsync_us > 20_000 {
                return Finding::note("home", what, "commits will be slow; put TOKRUN_HOME on a local SSD");
            }
            Finding::good("home", what)
        }
        Err(error) => Finding::bad("home", format!("{}: {error}", home.display()), remedy),
    }
}

fn model(home: &Path, wanted: Option<&str>) -> Finding {
    let resolved = Catalogue::load(home).map_err(Failure::from).and_then(|catalogue| {
        let wanted = wanted.unwrap_or(&catalogue.default_model().name).to_owned();
        let store = Store::new(home, catalogue);
        Ok(match store.resolve(&wanted)? {
            Resolved::Local { path } => Ok((path, wanted.clone())),
            Resolved::Pulled { path, entry } => Ok((path, entry.name.clone())),
            Resolved::NotPulled { entry } => Err(not_here(entry)),
        })
    });
    let (path, name) = match resolved {
        Ok(Ok(found)) => found,
        Ok(Err(finding)) => return finding,
        Err(failure) => {
            let remedy = failure.remedy().unwrap_or("tokrun model list shows the names").to_owned();
            return Finding::bad("model", failure.message(), remedy);
        }
    };
    match ModelFile::open(&path) {
        Ok(file) => fit(&name, &file),
        Err(error) => {
            Finding::bad("model", format!("{name}: {error}"), format!("tokrun model verify {name}, then pull it again"))
        }
    }
}

fn not_here(entry: &Entry) -> Finding {
    let size = entry.size_bytes().map_or_else(String::new, |size| format!(", {}", output::bytes(size)));
    Finding::note("model", format!("{} is not here{size}", entry.name), format!("tokrun model pull {}", entry.name))
}

/// Whether the model fits where it would be computed.
fn fit(name: &str, file: &ModelFile) -> Finding {
    let options = LoadOptions { processor: Processor::Auto, sequences_max: Some(1), ..LoadOptions::default() };
    let of_model = output::grouped(file.info().context_tokens as u64);
    match file.plan(&options) {
        Ok(plan) => Finding::good(
            "model",
            format!(
                "{name} fits on {}: {} of weights, and {} of {of_model} tokens of context",
                plan.device,
                output::bytes(plan.weight_bytes),
                output::grouped(plan.context_tokens as u64),
            ),
        ),
        Err(error @ ModelError::DoesNotFit { .. }) => {
            Finding::bad("model", format!("{name}: {error}"), "choose a smaller model: tokrun model list")
        }
        Err(ModelError::Unsupported { .. }) => {
            let weights = output::bytes(file.resident_bytes(&options));
            Finding::note("model", format!("{name}: candle computes it, {weights} of weights"), "it is slower that way")
        }
        Err(error) => {
            Finding::bad("model", format!("{name}: {error}"), format!("tokrun model verify {name}, then pull it again"))
        }
    }
}

fn ledger(home: &Path) -> Vec<Finding> {
    let file = home.join("ledger.db");
    match file.try_exists() {
        Ok(true) => {}
        Ok(false) => return vec![Finding::good("ledger", "none yet; the first `generate` creates it")],
        Err(error) => {
            let what = format!("{}: {error}", file.display());
            return vec![Finding::bad("ledger", what, "check who owns TOKRUN_HOME, and its permissions")];
        }
    }
    let health = match Ledger::open_unsettled(&file).and_then(|ledger| ledger.health()) {
        Ok(health) => health,
        Err(error) => {
            let failure = Failure::from(error);
            let remedy = failure.remedy().unwrap_or("restore a backup of ledger.db, or move it away").to_owned();
            return vec![Finding::bad("ledger", failure.message(), remedy)];
        }
    };
    let what = format!(
        "schema {}, SQLite {}, {} entries, {} requests under way",
        health.schema_version,
        health.sqlite_version,
        output::grouped(health.entries),
        output::grouped(health.open_requests)
    );
    match health.bad {
        Some(reason) => vec![Finding::bad(
            "ledger",
            format!("{what}; it is marked bad: {reason}"),
            "restore a backup; `tokrun ledger verify` clears the mark when all is well",
        )],
        None => vec![Finding::good("ledger", what)],
    }
}

fn print(findings: &[Finding], format: Format) {
    if format == Format::Json {
        let rows = findings.iter().map(|finding| {
            json!({
                "about": finding.about,
                "verdict": match finding.verdict { Verdict::Good => "good", Verdict::Note => "note", Verdict::Bad => "bad" },
                "what": finding.what,
                "remedy": finding.remedy,
            })
        });
        out!("{}", Value::from_iter(rows));
        return;
    }
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Note => "note",
            Verdict::Bad => "BAD ",
        };
        out!("{mark} {:10} {}", finding.about, finding.what);
        if let Some(remedy) = &finding.remedy {
            out!("     {:10} {remedy}", "");
        }
    }
}
