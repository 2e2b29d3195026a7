//! `/v1/embeddings`: a vector for each text.

use std::sync::Arc;
use std::time::Instant;

use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot::{self, Receiver};
use tokrun_ledger::Action;
use tokrun_runtime::{Canceller, EmbedInput, EmbedRequest, Embedded, Payer, RuntimeError, TokenId, normalise};

use super::request::tags;
use crate::answers::came_to_nothing;
use crate::app::App;
use crate::asked::Asked;
use crate::auth::Caller;
use crate::begin::{Summary, Tokrun};
use crate::embedders::Embedder;
use crate::error::ApiError;
use crate::limits::RateLimits;
use crate::live::Entry;
use crate::metrics::Observed;
use crate::reply::ok;
use crate::routes::RequestTag;
use crate::telemetry::Operation;

/// Texts of one request, as the reference service bounds them.
const INPUTS_MAX: usize = 2048;

/// What is to be embedded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingsRequest {
    /// Text or tokens, one or several.
    input: Input,
    /// The model's name.
    model: String,
    /// How vectors are written: as numbers, or as base64 of 32-bit floats, little endian.
    #[serde(default)]
    encoding_format: Format,
    /// Numbers in a vector, for models that were made to be cut short.
    dimensions: Option<usize>,
    /// Who it is for, in the client's words; a tag in the log.
    user: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string, a list of strings, a list of tokens, or a list of those")]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<TokenId>),
    SeveralTokens(Vec<Vec<TokenId>>),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Float,
    Base64,
}

impl Input {
    fn inputs(self) -> Result<Vec<EmbedInput>, ApiError> {
        let inputs: Vec<EmbedInput> = match self {
            Self::Text(text) => vec![EmbedInput::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(EmbedInput::Text).collect(),
            Self::Tokens(tokens) => vec![EmbedInput::Tokens(tokens)],
            Self::SeveralTokens(several) => several.into_iter().map(EmbedInput::Tokens).collect(),
        };
        let is_empty = |input: &EmbedInput| match input {
            EmbedInput::Text(text) => text.is_empty(),
            EmbedInput::Tokens(tokens) => tokens.is_empty(),
        };
        if inputs.is_empty() || inputs.iter().any(is_empty) {
            return Err(ApiError::invalid_param("input", "'input' is empty, or one of its parts is."));
        }
        if inputs.len() > INPUTS_MAX {
            let message = format!("'input' has {} parts; {INPUTS_MAX} are the most.", inputs.len());
            return Err(ApiError::invalid_param("input", message));
        }
        Ok(inputs)
    }
}

/// Vectors under way. Dropping this cancels what is not computed yet.
struct Begun {
    embedder: Arc<Embedder>,
    embedded: Receiver<Embedded>,
    canceller: Canceller,
    limits: RateLimits,
    id: String,
    /// How many numbers of each vector are wanted.
    dimensions: usize,
    format: Format,
    _entry: Entry,
}

impl Drop for Begun {
    fn drop(&mut self) {
        // It does nothing to a request that has ended.
        self.canceller.cancel();
    }
}

/// Answers a request.
pub(crate) async fn create(asked: Asked) -> Response {
    let Asked { app, tag, caller, payload, deadline } = asked;
    let begun = app.blocking(move |app| begin(app, &caller, &tag, payload.parse()?, deadline)).await;
    let answered = match begun {
        Ok(begun) => answer(begun).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// Has what a client wants admitted. May block.
fn begin(
    app: &Arc<App>,
    caller: &Caller,
    tag: &RequestTag,
    request: EmbeddingsRequest,
    deadline: Option<Instant>,
) -> Result<Begun, ApiError> {
    if app.is_draining() {
        return Err(ApiError::overloaded("The server is about to end; try again."));
    }
    caller.require(Action::Spend, true)?;
    let embedder = find(app, caller, &request.model)?;
    let dimensions = dimensions(&embedder, request.dimensions)?;
    let inputs = request.input.inputs()?;
    let tags = tags(request.user.as_deref(), None)?;
    let place = embedder.places.take(1)?;
    let (payer, price) = (Payer { tags, ..caller.payer() }, (embedder.served.price)());
    let observed = Observed::new(app, tag, Operation::Embeddings, embedder.name(), &payer);
    let (sender, embedded) = oneshot::channel();
    let reply = move |embedded: Embedded| {
        let _ = &place;
        observed.finished(&embedded.outcome);
        // A client that is gone needs no answer.
        let _ = sender.send(embedded);
    };
    let wanted = EmbedRequest { request_id: Some(tag.0.clone()), inputs, deadline, payer, price };
    let canceller = embedder.served.embeddings.embed(wanted, Box::new(reply)).map_err(|error| {
        ApiError::from(&error).with_refill(&app.ledger, &caller.wallet, app.options.exhausted_status)
    })?;
    let limits = RateLimits::of(&app.ledger, caller, embedder.name()).unwrap_or_default();
    let entry = app.live.enter(vec![canceller.clone()]);
    let (id, format) = (tag.0.clone(), request.encoding_format);
    Ok(Begun { embedder, embedded, canceller, limits, id, dimensions, format, _entry: entry })
}

fn find(app: &App, caller: &Caller, name: &str) -> Result<Arc<Embedder>, ApiError> {
    app.embedders.find(caller, name).ok_or_else(|| match app.models.get(name) {
        Ok(model) if caller.may_use(&model) => {
            ApiError::wrong_kind(format!("The model `{name}` gives text and no embeddings; ask another model."))
        }
        _ => ApiError::unknown_model(name),
    })
}

/// As many numbers of each vector as are wanted, if the model was made for that.
fn dimensions(embedder: &Embedder, wanted: Option<usize>) -> Result<usize, ApiError> {
    let info = embedder.served.embeddings.info();
    match wanted {
        None => Ok(info.dimensions),
        Some(wanted) if info.shortening.allows(wanted, info.dimensions) => Ok(wanted),
        Some(wanted) => {
            let message = format!(
                "This model's embeddings have {} dimensions and mean nothing at {wanted}; leave 'dimensions' out.",
                info.dimensions
            );
            Err(ApiError::invalid_param("dimensions", message))
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: EmbeddingUsage,
    tokrun: Tokrun,
}

#[derive(Serialize, JsonSchema)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, JsonSchema)]
struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

async fn answer(mut begun: Begun) -> Result<Response, ApiError> {
    let embedded = (&mut begun.embedded).await.map_err(|_| ApiError::from(&RuntimeError::Stopped))?;
    let Embedded { vectors, outcome } = embedded;
    if let Some(error) = &outcome.error {
        return Err(error.into());
    }
    if came_to_nothing(&outcome) {
        return Err(ApiError::too_late());
    }
    if vectors.is_empty() {
        return Err(ApiError::overloaded("The server ended before the embeddings were computed; try again."));
    }
    let mut summary = Summary::default();
    summary.add(&outcome);
    let embedding = |(index, vector)| Embedding { object: "embedding", index, embedding: begun.write(vector) };
    let prompt_tokens = outcome.usage.prompt_tokens;
    let mut response = ok(&EmbeddingList {
        object: "list",
        data: vectors.into_iter().enumerate().map(embedding).collect(),
        model: begun.embedder.name(),
        usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens },
        tokrun: summary.tokrun(&begun.id),
    });
    summary.tell(response.headers_mut());
    begun.limits.tell(response.headers_mut());
    Ok(response)
}

impl Begun {
    fn write(&self, mut vector: Vec<f32>) -> Vector {
        if self.dimensions < vector.len() {
            vector.truncate(self.dimensions);
            normalise(&mut vector);
        }
        match self.format {
            Format::Float => Vector::Numbers(vector),
            Format::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}
