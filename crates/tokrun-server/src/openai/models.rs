//! `/v1/models`: what can be asked.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::App;
use crate::auth::Caller;
use crate::begin::find_model;
use crate::embedders::Embedder;
use crate::models::Model;
use crate::reply::ok;

#[derive(Serialize, JsonSchema)]
pub(crate) struct List {
    object: &'static str,
    data: Vec<Entry>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Entry {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    /// As vLLM has it.
    max_model_len: usize,
    tokrun: Residence,
}

/// Where a model is now.
#[derive(Serialize, JsonSchema)]
struct Residence {
    /// `loaded`, `loading` or `unloaded`: it is loaded with the first request for it.
    state: &'static str,
    /// What computes it, once it is loaded.
    device: Option<String>,
    /// What it takes when it is loaded.
    memory_bytes: u64,
}

fn entry(app: &App, model: &Model) -> Entry {
    let seen = app.models.see(model);
    Entry {
        id: model.name().to_owned(),
        object: "model",
        created: model.since.as_second(),
        owned_by: "tokrun",
        max_model_len: seen.context_tokens.unwrap_or(model.served.context_tokens),
        tokrun: Residence { state: seen.state, device: seen.device, memory_bytes: model.memory_bytes() },
    }
}

/// One that embeds, which is always in memory.
fn embedder_entry(embedder: &Embedder) -> Entry {
    let info = embedder.served.embeddings.info();
    let (device, memory_bytes) = (Some(info.device.clone()), embedder.served.memory_bytes);
    Entry {
        id: embedder.name().to_owned(),
        object: "model",
        created: embedder.since.as_second(),
        owned_by: "tokrun",
        max_model_len: info.context_tokens,
        tokrun: Residence { state: "loaded", device, memory_bytes },
    }
}

pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Response {
    let may_use = |model: &&Arc<Model>| caller.may_use(model);
    let may_embed = |embedder: &&Arc<Embedder>| caller.may_use_named(embedder.name());
    let models = app.models.iter().filter(may_use).map(|model| entry(&app, model));
    let embedders = app.embedders.iter().filter(may_embed).map(|embedder| embedder_entry(embedder));
    let data = models.chain(embedders).collect();
    ok(&List { object: "list", data })
}

pub(crate) async fn show(State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>) -> Response {
    if let Some(embedder) = app.embedders.find(&caller, &name) {
        return ok(&embedder_entry(&embedder));
    }
    match find_model(&app, &caller, &name) {
        Ok(model) => ok(&entry(&app, &model)),
        Err(error) => error.into_response(),
    }
}
