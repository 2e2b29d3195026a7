//! The bodies of requests: of bounded length, in bounded time, and JSON.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::error::{ApiError, Dialect};

/// A body that was read. It counts against what bodies may have together until it is dropped.
pub(crate) struct Payload {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Payload {
    /// What it says.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let mut json = serde_json::Deserializer::from_slice(&self.bytes);
        let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            wrong(&path, error.inner())
        })?;
        json.end().map_err(|error| wrong(".", &error))?;
        Ok(parsed)
    }
}

impl Payload {
    /// As [`parse`](Self::parse); who says nothing wants what is usual.
    pub(crate) fn parse_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, ApiError> {
        if self.bytes.is_empty() { Ok(T::default()) } else { self.parse() }
    }
}

fn wrong(path: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    // serde also lists all fields that it knows.
    if let Some((name, _)) = text.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        return ApiError::invalid_param(name, format!("Unrecognized request argument supplied: {name}"));
    }
    if error.is_data() && path != "." {
        let text = text.split(" at line ").next().unwrap_or(&text);
        return ApiError::invalid_param(path, format!("Invalid value for '{path}': {text}."));
    }
    ApiError::invalid(format!("We could not parse the JSON body of your request: {text}."))
}

impl FromRequest<Arc<App>> for Payload {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let dialect = Dialect::of(request.uri().path());
        let (parts, body) = request.into_parts();
        let reading = tokio::time::timeout(app.options.body_timeout, read(app, &parts.headers, body));
        let read = reading.await.unwrap_or_else(|_| Err(ApiError::timeout()));
        read.map_err(|error| error.response(dialect))
    }
}

async fn read(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Payload, ApiError> {
    let bytes_max = app.options.body_bytes_max;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let expected = announced.unwrap_or(bytes_max);
    if expected > bytes_max {
        return Err(ApiError::too_large(bytes_max));
    }
    let room_kib = u32::try_from(expected.div_ceil(1 << 10)).unwrap_or(u32::MAX);
    let room = Arc::clone(&app.bodies).acquire_many_owned(room_kib).await;
    let room = room.map_err(|_| ApiError::overloaded("The server ends."))?;
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(Payload { bytes: collected.to_bytes(), _room: room }),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(bytes_max)),
        Err(_) => Err(ApiError::invalid("The request's body ended too early.")),
    }
}
