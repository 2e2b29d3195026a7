//! The models that are served: found, planned, and loaded now or when they are wanted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokrun_engine::EngineOptions;
use tokrun_ledger::Ledger;
use tokrun_model::ModelFile;
use tokrun_model::catalogue::Catalogue;
use tokrun_runtime::{LedgerMeter, Runtime};
use tokrun_server::{LoadError, Loaded, Memory, ServedEmbedder, ServedModel};

use super::Said;
use crate::args::{Device, ServeArgs};
use crate::failure::{Failure, OUT_OF_MEMORY, Status};
use crate::load::{self, Found, Planned};
use crate::{home, output};

/// What the models may take of each device together, bytes.
type Budget = BTreeMap<String, u64>;

/// All that were named.
pub(super) struct All {
    pub(super) models: Vec<ServedModel>,
    /// Those that give vectors of texts; they stay in memory.
    pub(super) embedders: Vec<ServedEmbedder>,
    /// What the others may take together.
    pub(super) memory_budget_bytes: Budget,
}

/// All that were named, and what they may take together. What can never be loaded is refused now.
pub(super) fn all(args: &ServeArgs, devices: &[Device], ledger: &Ledger, catalogue: &Said) -> Result<All, Failure> {
    let (mut speak, mut embedders) = (Vec::new(), Vec::new());
    for found in found(args)? {
        match found.embedder()? {
            Some(file) => embedders.push(embedder(args, ledger, found, &file, catalogue)?),
            None => speak.push(found),
        }
    }
    let planned = speak.into_iter().map(|found| Ok((plan(args, devices, &found)?, found)));
    let planned = planned.collect::<Result<Vec<(Vec<Planned>, Found)>, Failure>>()?;
    let mut budget = budget(args, planned.iter().flat_map(|(plans, _)| plans));
    if let Some(bytes) = budget.get_mut("cpu") {
        *bytes = bytes.saturating_sub(embedders.iter().map(|embedder| embedder.memory_bytes).sum());
    }
    for (plans, found) in &planned {
        check(&budget, &found.name, plans.iter())?;
    }
    if args.preload {
        check(&budget, "all models together", planned.iter().flat_map(|(plans, _)| plans))?;
    }
    let served = planned.into_iter().enumerate().map(|(index, (plans, found))| {
        let is_loaded_now = index == 0 || args.preload;
        one(args, plans, is_loaded_now, ledger, found, catalogue)
    });
    Ok(All { models: served.collect::<Result<_, _>>()?, embedders, memory_budget_bytes: budget })
}

fn found(args: &ServeArgs) -> Result<Vec<Found>, Failure> {
    let wanted: Vec<Option<&str>> =
        if args.models.is_empty() { vec![None] } else { args.models.iter().map(|name| Some(name.as_str())).collect() };
    let mut models: Vec<Found> = Vec::new();
    for wanted in wanted {
        let home = home::directory()?;
        let found = load::find(&home, Catalogue::load(&home)?, wanted)?;
        if models.iter().any(|model| model.name == found.name) {
            return Err(Failure::new(Status::Usage, "usage", format!("two models are called {}", found.name))
                .hint("give each model once; a file is called by its name"));
        }
        models.push(found);
    }
    Ok(models)
}

/// A model that gives vectors of texts, which the CPU computes.
fn embedder(
    args: &ServeArgs,
    ledger: &Ledger,
    found: Found,
    file: &ModelFile,
    catalogue: &Said,
) -> Result<ServedEmbedder, Failure> {
    found.price()?;
    let options = args.engine.load_options(Device::Cpu, args.threads, args.max_running);
    let embeddings = load::start_embedder(&found, file, Arc::new(LedgerMeter(ledger.clone())), &options)?;
    let said = catalogue.clone();
    Ok(ServedEmbedder {
        name: found.name.clone(),
        aliases: found.entry.as_ref().map(|entry| entry.aliases.clone()).unwrap_or_default(),
        embeddings,
        memory_bytes: file.resident_bytes(&options),
        places: args.max_running.saturating_add(args.max_waiting),
        price: Box::new(move || said.price(&found)),
    })
}

/// What a model takes on each device.
fn plan(args: &ServeArgs, devices: &[Device], found: &Found) -> Result<Vec<Planned>, Failure> {
    let plan = |device: &Device| {
        let mut options = args.engine.load_options(*device, args.threads, args.max_running);
        options.memory_bytes = args.memory_budget;
        load::plan(found, &options).map_err(|failure| match args.memory_budget {
            Some(_) if failure.is_out_of_memory() => failure.hint(REMEDY),
            _ => failure,
        })
    };
    devices.iter().map(plan).collect()
}

const REMEDY: &str = "raise --memory-budget, or have the models take less: --kv-cache-bytes, --context, --max-running";

/// As it was given; else what is free, of cards. The host's memory is taken as it is written to, so that no bound is known
/// there.
fn budget<'a>(args: &ServeArgs, plans: impl Iterator<Item = &'a Planned>) -> Budget {
    let bytes = |plan: &Planned| match args.memory_budget {
        Some(bytes) => Some(bytes),
        None => plan.device.starts_with("cuda").then_some(plan.free_bytes),
    };
    plans.filter_map(|plan| Some((plan.device.clone(), bytes(plan)?))).collect()
}

/// Refuses what is more than the budget.
fn check<'a>(budget: &Budget, what: &str, plans: impl Iterator<Item = &'a Planned>) -> Result<(), Failure> {
    let mut taken = Budget::new();
    for plan in plans {
        let sum = taken.entry(plan.device.clone()).or_default();
        *sum = sum.saturating_add(plan.bytes);
    }
    let over = |(device, bytes): (&String, &u64)| {
        let most = *budget.get(device)?;
        (*bytes > most).then(|| {
            let (bytes, most) = (output::bytes(*bytes), output::bytes(most));
            format!("{what}: {bytes} of {device} are needed, and the models may take {most}")
        })
    };
    match taken.iter().find_map(over) {
        Some(message) => Err(Failure::new(Status::Failed, OUT_OF_MEMORY, message).hint(REMEDY)),
        None => Ok(()),
    }
}

/// A model, with an engine on each device once it is loaded.
fn one(
    args: &ServeArgs,
    plans: Vec<Planned>,
    is_loaded_now: bool,
    ledger: &Ledger,
    found: Found,
    catalogue: &Said,
) -> Result<ServedModel, Failure> {
    // It was read once, so that it can be read.
    found.price()?;
    let found = Arc::new(found);
    let memory = plans.iter().map(|plan| Memory { device: plan.device.clone(), bytes: plan.bytes }).collect();
    let context_tokens = plans.iter().map(|plan| plan.context_tokens).min().unwrap_or(0);
    let running_max = plans.len().saturating_mul(args.max_running);
    let load = loader(args, plans, ledger, &found);
    let begun = Instant::now();
    let loaded = is_loaded_now.then(&load).transpose()?;
    let loaded = loaded.map(|engines| Loaded { engines, took: begun.elapsed() });
    let sequences =
        |loaded: &Loaded| loaded.engines.iter().map(|engine| engine.info().sequences_max.min(args.max_running)).sum();
    let running_max: usize = loaded.as_ref().map_or(running_max, sequences);
    let (said, priced) = (catalogue.clone(), Arc::clone(&found));
    Ok(ServedModel {
        name: found.name.clone(),
        aliases: found.entry.as_ref().map(|entry| entry.aliases.clone()).unwrap_or_default(),
        load: Box::new(move || load().map_err(|failure| load_error(&failure))),
        loaded,
        memory,
        context_tokens,
        places: running_max.saturating_add(args.max_waiting),
        sampling: found.sampling_params(),
        price: Box::new(move || said.price(&priced)),
    })
}

/// Loads a model as it was planned, as often as needed.
fn loader(
    args: &ServeArgs,
    plans: Vec<Planned>,
    ledger: &Ledger,
    found: &Arc<Found>,
) -> impl Fn() -> Result<Vec<Runtime>, Failure> + Send + Sync + use<> {
    let options = EngineOptions {
        speculation: !args.no_speculation,
        waiting_max: args.max_waiting,
        ..args.engine.engine_options(args.max_running)
    };
    let (ledger, found) = (ledger.clone(), Arc::clone(found));
    move || {
        let engine = |plan: &Planned| -> Result<Runtime, Failure> {
            let meter = Arc::new(LedgerMeter(ledger.clone()));
            Ok(load::start(&found, || Ok(meter), &plan.options, options.clone())?.runtime)
        };
        plans.iter().map(engine).collect()
    }
}

fn load_error(failure: &Failure) -> LoadError {
    let reason = failure.message().to_owned();
    if failure.is_out_of_memory() { LoadError::NoRoom(reason) } else { LoadError::Failed(reason) }
}
