//! `tokrun model`: what there is to run.

use std::path::Path;

use serde_json::{Value, json};
use tokrun_model::catalogue::{Catalogue, Entry};
use tokrun_model::store::{Resolved, Store};
use tokrun_model::{LoadOptions, ModelFile, ModelInfo};

use crate::args::{FitArgs, Format, ModelCommand};
use crate::failure::{Failure, Status};
use crate::load;
use crate::progress::Bar;
use crate::{home, output};

pub(crate) fn run(command: ModelCommand, format: Format) -> Result<Status, Failure> {
    let home = home::directory()?;
    let catalogue = Catalogue::load(&home)?;
    let store = Store::new(&home, catalogue.clone());
    match command {
        ModelCommand::List => list(&catalogue, &store, format)?,
        ModelCommand::Pull { name } => pull(&store, &name, format)?,
        ModelCommand::Show { model, fit } if fit.fit => show_fit(&store, &model, &fit, format)?,
        ModelCommand::Show { model, .. } => show(&store, &model, format)?,
        ModelCommand::Verify { name } => verify(&catalogue, &store, name, format)?,
        ModelCommand::Remove { name } => {
            store.remove(&name, &Bar::new())?;
            match format {
                Format::Json => out!("{}", json!({ "removed": name })),
                _ => out!("removed {name}"),
            }
        }
    }
    Ok(Status::Done)
}

fn list(catalogue: &Catalogue, store: &Store, format: Format) -> Result<(), Failure> {
    let local = store.list()?;
    let here = |entry: &Entry| local.iter().any(|pulled| pulled.name == entry.name);
    if format == Format::Json {
        let models = catalogue.entries().iter().map(|entry| {
            let mut object = json_entry(entry);
            object["pulled"] = here(entry).into();
            object["default"] = (entry.name == catalogue.default_model().name).into();
            object
        });
        out!("{}", Value::from_iter(models));
        return Ok(());
    }
    let rows = catalogue.entries().iter().map(|entry| {
        vec![
            entry.name.clone(),
            entry.title.clone(),
            entry.dtype.clone(),
            entry.size_bytes().map_or_else(String::new, output::bytes),
            output::grouped(entry.context_tokens as u64),
            entry.licence.clone(),
            if here(entry) { "here" } else { "" }.to_owned(),
        ]
    });
    out!("{}", output::table(&["name", "model", "type", "size", "context", "licence", ""], &[3, 4], rows));
    Ok(())
}

fn pull(store: &Store, name: &str, format: Format) -> Result<(), Failure> {
    let path = match store.resolve(name)? {
        Resolved::Local { path } => {
            return Err(Failure::new(Status::Unknown, "unknown_model", format!("{} is a file here", path.display()))
                .hint("a model given by its path needs no pull: --model PATH"));
        }
        Resolved::Pulled { path, .. } => path,
        Resolved::NotPulled { entry } => load::pull(store, entry)?,
    };
    match format {
        Format::Json => out!("{}", json!({ "name": name, "path": path })),
        _ => out!("{}", path.display()),
    }
    Ok(())
}

fn show(store: &Store, model: &str, format: Format) -> Result<(), Failure> {
    let (entry, path) = match store.resolve(model)? {
        Resolved::Local { path } => (None, Some(path)),
        Resolved::Pulled { path, entry } => (Some(entry), Some(path)),
        Resolved::NotPulled { entry } => (Some(entry), None),
    };
    let file = path.as_deref().map(ModelFile::open).transpose()?;
    let file = file.as_ref().map(ModelFile::info);
    if format == Format::Json {
        let mut object = entry.map_or_else(|| json!({}), json_entry);
        object["path"] = json!(path);
        object["file"] = file.map_or(Value::Null, json_info);
        out!("{object}");
        return Ok(());
    }
    if let Some(entry) = entry {
        show_entry(entry);
    }
    match (&path, file) {
        (Some(path), Some(info)) => show_info(path, info),
        _ => out!("{:12} not here; `tokrun model pull {model}` fetches it", "file"),
    }
    Ok(())
}

/// What loading the model would take.
fn show_fit(store: &Store, model: &str, args: &FitArgs, format: Format) -> Result<(), Failure> {
    let path = match store.resolve(model)? {
        Resolved::Local { path } | Resolved::Pulled { path, .. } => path,
        Resolved::NotPulled { entry } => {
            return Err(Failure::new(Status::Unknown, "unknown_model", format!("{} is not here", entry.name))
                .hint(format!("tokrun model pull {}", entry.name)));
        }
    };
    load::check_device(args.device)?;
    let file = ModelFile::open(&path)?;
    let plan = file.plan(&LoadOptions {
        processor: args.device.processor(),
        context_tokens: args.context,
        sequences_max: Some(args.sequences),
        fp8: args.dtype.is_some(),
        ..LoadOptions::default()
    })?;
    let model_context_tokens = file.info().context_tokens;
    if format == Format::Json {
        out!(
            "{}",
            json!({
                "model": model,
                "device": plan.device,
                "free_bytes": plan.free_bytes,
                "total_bytes": plan.total_bytes,
                "weight_bytes": plan.weight_bytes,
                "workspace_bytes": plan.workspace_bytes,
                "kv_cache_bytes": plan.kv_cache_bytes,
                "kv_type": format!("{:?}", plan.kv_type).to_lowercase(),
                "cache_tokens": plan.cache_tokens,
                "context_tokens": plan.context_tokens,
                "model_context_tokens": model_context_tokens,
            })
        );
        return Ok(());
    }
    let (free, total) = (output::bytes(plan.free_bytes), output::bytes(plan.total_bytes));
    out!("{:12} {}, {free} of {total} free", "device", plan.device);
    out!("{:12} {}", "weights", output::bytes(plan.weight_bytes));
    out!("{:12} {} at most", "workspace", output::bytes(plan.workspace_bytes));
    let cache_tokens = output::grouped(plan.cache_tokens as u64);
    out!("{:12} {} for {cache_tokens} tokens", "KV cache", output::bytes(plan.kv_cache_bytes));
    let fits = output::grouped(plan.context_tokens as u64);
    out!("{:12} {fits} of the model's {} tokens fit", "context", output::grouped(model_context_tokens as u64));
    Ok(())
}

fn show_entry(entry: &Entry) {
    out!("{:12} {} ({})", "model", entry.title, entry.name);
    out!("{:12} {}", "licence", entry.licence);
    out!("{:12} {}", "context", output::grouped(entry.context_tokens as u64));
    let price = entry.price_at(jiff::Timestamp::now());
    out!(
        "{:12} {} a prompt token, {} cached, {} an output token, {} a reasoning one",
        "credits",
        price.prompt.as_str(),
        price.cached_prompt.as_str(),
        price.output.as_str(),
        price.reasoning.as_str()
    );
    for source in &entry.sources {
        out!("{:12} {source}", "source");
    }
}

fn show_info(path: &Path, info: &ModelInfo) {
    out!("{:12} {}", "file", path.display());
    out!("{:12} {}", "family", info.architecture);
    out!(
        "{:12} {}, {:.2} M weights, {}",
        "weights",
        info.dtype,
        info.parameters as f64 / 1e6,
        output::bytes(info.weight_bytes)
    );
    out!("{:12} {} layers, {} tokens of vocabulary", "shape", info.layers, output::grouped(info.vocab_size as u64));
    out!("{:12} {} a token", "KV cache", output::bytes(info.kv_bytes_per_token));
}

fn verify(catalogue: &Catalogue, store: &Store, name: Option<String>, format: Format) -> Result<(), Failure> {
    let names = match name {
        Some(name) => vec![catalogue.get(&name).map_or(name, |entry| entry.name.clone())],
        None => store.list()?.into_iter().map(|pulled| pulled.name).collect(),
    };
    for name in &names {
        let manifest = store.verify(name, &Bar::new())?;
        if format != Format::Json {
            out!("{name}: as it was pulled, {}", output::bytes(manifest.bytes()));
        }
    }
    if format == Format::Json {
        out!("{}", json!({ "verified": names }));
    } else if names.is_empty() {
        out!("no models are here");
    }
    Ok(())
}

fn json_entry(entry: &Entry) -> Value {
    let price = entry.price_at(jiff::Timestamp::now());
    json!({
        "name": entry.name,
        "title": entry.title,
        "dtype": entry.dtype,
        "size_bytes": entry.size_bytes(),
        "licence": entry.licence,
        "context_tokens": entry.context_tokens,
        "sources": entry.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "price": {
            "prompt": price.prompt.as_str(),
            "cached_prompt": price.cached_prompt.as_str(),
            "output": price.output.as_str(),
            "reasoning": price.reasoning.as_str(),
        },
    })
}

fn json_info(info: &ModelInfo) -> Value {
    json!({
        "architecture": info.architecture,
        "name": info.name,
        "dtype": info.dtype,
        "parameters": info.parameters,
        "weight_bytes": info.weight_bytes,
        "context_tokens": info.context_tokens,
        "vocab_size": info.vocab_size,
        "layers": info.layers,
        "kv_bytes_per_token": info.kv_bytes_per_token,
    })
}
