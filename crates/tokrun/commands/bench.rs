//! `tokrun bench`: prefill and decode speed in the form of llama-bench.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokrun_engine::{SamplingParams, TokenId};
use tokrun_ledger::{Credits, GrantRequest, Ledger, Price};
use tokrun_model::ModelInfo;
use tokrun_model::catalogue::Catalogue;
use tokrun_runtime::{GenerateRequest, LedgerMeter, Meter, Outcome, Payer, Prompt, Runtime, Unmetered};

use super::answer;
use crate::args::{BenchArgs, Format, Switch};
use crate::failure::{Failure, Status};
use crate::load::{self, Loaded};
use crate::{home, interrupt, output};

/// What one request of a test is and what of it is timed.
#[derive(Clone, Copy, Debug)]
enum Test {
    /// `pp512`: a prompt of so many tokens, until its first token.
    Prefill(usize),
    /// `tg128`: so many tokens after a prompt of one, from the first to the last.
    Decode(usize),
}

struct Measured {
    test: Test,
    /// Nanoseconds of each repetition.
    samples_ns: Vec<u64>,
}

/// The conditions all tests of a run share.
struct Setting {
    model: String,
    info: ModelInfo,
    threads: usize,
    backend: &'static str,
    device: String,
    metered: bool,
    /// Median time that one fsync takes where the ledger lies.
    fsync_us: Option<u64>,
}

pub(crate) fn run(args: &BenchArgs, format: Format) -> Result<Status, Failure> {
    load::check_device(args.device)?;
    load::use_threads(args.threads)?;
    interrupt::install(format)?;
    let home = home::directory()?;
    let found = load::find(&home, Catalogue::load(&home)?, args.model.as_deref())?;
    let scratch = Scratch::new(&home)?;
    let (meter, fsync_us): (Arc<dyn Meter>, _) = match args.ledger {
        Switch::On => (Arc::new(LedgerMeter(scratch.ledger()?)), Some(tokrun_ledger::fsync_probe_us(&home)?)),
        Switch::Off => (Arc::new(Unmetered), None),
    };
    let Loaded { runtime, info, .. } = load::start(&found, meter, 1)?;
    let setting = Setting {
        model: found.name.clone(),
        threads: args.threads.map_or_else(tokrun_kernels::cpu::threads_available, usize::from),
        backend: runtime.info().backend,
        device: runtime.info().device.clone(),
        info,
        metered: args.ledger == Switch::On,
        fsync_us,
    };
    let tests = [Test::Prefill(args.n_prompt), Test::Decode(args.n_gen)];
    let mut results = Vec::new();
    for test in tests.into_iter().filter(|test| test.tokens() > 0) {
        test.check(runtime.info().context_tokens)?;
        results.push(measure(&runtime, &setting, test, args.repetitions)?);
    }
    drop(runtime);
    drop(scratch);
    print(&setting, &results, format);
    Ok(Status::Done)
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

impl Test {
    fn tokens(self) -> usize {
        match self {
            Self::Prefill(tokens) | Self::Decode(tokens) => tokens,
        }
    }

    fn check(self, context_tokens: usize) -> Result<(), Failure> {
        let needed = self.tokens() + 1;
        if needed < context_tokens {
            return Ok(());
        }
        let what = format!("{} needs {needed} tokens, and the context has {context_tokens}", self.name());
        Err(Failure::new(Status::Usage, "usage", what).hint("choose a smaller -p or -n"))
    }

    fn name(self) -> String {
        match self {
            Self::Prefill(tokens) => format!("pp{tokens}"),
            Self::Decode(tokens) => format!("tg{tokens}"),
        }
    }

    /// What is timed. Prompt processing: from the engine's start on it until its first token is delivered. Decoding of n
    /// tokens: from the moment the engine has the first token until the n after it are delivered.
    fn sample_ns(self, outcome: &Outcome) -> u64 {
        let timing = &outcome.timing;
        let last_us = timing.ttft_us.unwrap_or(0) + timing.decode_us;
        match self {
            Self::Prefill(_) => timing.ttft_us.unwrap_or(0).saturating_sub(timing.admit_us + timing.queue_us) * 1000,
            Self::Decode(_) => last_us.saturating_sub(timing.admit_us + timing.queue_us + timing.prefill_us) * 1000,
        }
    }

    fn request(self, vocab_size: usize) -> GenerateRequest {
        let (prompt_tokens, output_tokens) = match self {
            Self::Prefill(tokens) => (tokens, 1),
            Self::Decode(tokens) => (1, tokens + 1),
        };
        GenerateRequest {
            request_id: None,
            prompt: Prompt::Tokens(tokens(prompt_tokens, vocab_size)),
            max_tokens: Some(output_tokens),
            sampling: SamplingParams::greedy(),
            stop: Vec::new(),
            ignore_eos: true,
            logprobs: None,
            priority: 0,
            payer: Payer { wallet: Scratch::WALLET.to_owned(), ..Payer::default() },
            price: Price::default(),
        }
    }
}

/// Any tokens will do; a fixed sequence over the vocabulary makes runs alike.
fn tokens(count: usize, vocab_size: usize) -> Vec<TokenId> {
    (0..count).map(|index| ((index * 7919 + 17) % vocab_size) as TokenId).collect()
}

fn measure(runtime: &Runtime, setting: &Setting, test: Test, repetitions: u16) -> Result<Measured, Failure> {
    let vocab_size = setting.info.vocab_size;
    let mut samples_ns = Vec::new();
    for repetition in 0..=repetitions {
        let outcome = complete(runtime, test.request(vocab_size))?;
        // The first run pages the weights in and is not counted.
        if repetition > 0 {
            samples_ns.push(test.sample_ns(&outcome));
        }
    }
    Ok(Measured { test, samples_ns })
}

fn complete(runtime: &Runtime, request: GenerateRequest) -> Result<Outcome, Failure> {
    let answered = answer::follow(runtime.generate(request)?, |_| Ok(()))?;
    match &answered.outcome.error {
        _ if answered.interrupted => Err(Failure::interrupted()),
        Some(error) => Err(error.into()),
        None => Ok(answered.outcome),
    }
}

impl Measured {
    fn rates(&self) -> Vec<f64> {
        self.samples_ns.iter().map(|ns| self.test.tokens() as f64 * 1e9 / (*ns).max(1) as f64).collect()
    }
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}

fn print(setting: &Setting, results: &[Measured], format: Format) {
    let rows: Vec<Value> = results.iter().map(|result| json_row(setting, result)).collect();
    match format {
        Format::Json => out!("{}", Value::from(rows)),
        Format::Csv => print_csv(&rows),
        Format::Text | Format::Md => print_md(setting, results),
    }
}

fn print_md(setting: &Setting, results: &[Measured]) {
    let ledger = match setting.fsync_us {
        Some(fsync_us) => format!("on (fsync {fsync_us} µs)"),
        None => "off".to_owned(),
    };
    out!("| model | size | params | backend | threads | ledger | test | t/s |");
    out!("| --- | ---: | ---: | --- | ---: | --- | --- | ---: |");
    for result in results {
        let (mean, deviation) = mean_and_deviation(&result.rates());
        out!(
            "| {} {} {} | {} | {:.2} M | {} | {} | {ledger} | {} | {mean:.2} ± {deviation:.2} |",
            setting.info.architecture,
            setting.model,
            setting.info.dtype,
            output::bytes(setting.info.weight_bytes),
            setting.info.parameters as f64 / 1e6,
            setting.backend,
            setting.threads,
            result.test.name(),
        );
    }
}

/// llama-bench's field names, and ours for the ledger.
fn json_row(setting: &Setting, result: &Measured) -> Value {
    let rates = result.rates();
    let (avg_ts, stddev_ts) = mean_and_deviation(&rates);
    let times: Vec<f64> = result.samples_ns.iter().map(|ns| *ns as f64).collect();
    let (avg_ns, stddev_ns) = mean_and_deviation(&times);
    let (n_prompt, n_gen) = match result.test {
        Test::Prefill(tokens) => (tokens, 0),
        Test::Decode(tokens) => (0, tokens),
    };
    json!({
        "build_version": env!("CARGO_PKG_VERSION"),
        "backends": setting.backend,
        "device": setting.device,
        "model_filename": setting.model,
        "model_type": format!("{} {}", setting.info.architecture, setting.info.dtype),
        "model_size": setting.info.weight_bytes,
        "model_n_params": setting.info.parameters,
        "n_threads": setting.threads,
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": 0,
        "test": result.test.name(),
        "test_time": jiff::Timestamp::now().to_string(),
        "ledger": setting.metered,
        "fsync_us": setting.fsync_us,
        "avg_ns": avg_ns,
        "stddev_ns": stddev_ns,
        "avg_ts": avg_ts,
        "stddev_ts": stddev_ts,
        "samples_ns": result.samples_ns,
        "samples_ts": rates,
    })
}

/// The JSON rows without their lists.
fn print_csv(rows: &[Value]) {
    let mut out = std::io::stdout().lock();
    for (index, row) in rows.iter().enumerate() {
        let fields = row.as_object().expect("a row is an object").iter().filter(|(_, value)| !value.is_array());
        let (names, values): (Vec<&str>, Vec<String>) =
            fields.map(|(name, value)| (name.as_str(), csv_field(value))).unzip();
        // A closed pipe ends the table, nothing else.
        if index == 0 && writeln!(out, "{}", names.join(",")).is_err() {
            return;
        }
        if writeln!(out, "{}", values.join(",")).is_err() {
            return;
        }
    }
}

fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_the_sample_deviation() {
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
        let (mean, deviation) = mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!(mean, 5.0);
        assert!((deviation - 2.138_089_935).abs() < 1e-9);
    }

    #[test]
    fn prompts_stay_inside_the_vocabulary() {
        assert!(tokens(10_000, 300).iter().all(|token| *token < 300));
    }
}
