//! A request for answers as it came: whose it is, what it is called, and what it says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::auth::Caller;
use crate::begin::{Begun, Wanted, begin, place};
use crate::body::Payload;
use crate::error::{ApiError, Dialect};
use crate::routes::RequestTag;

/// Nothing of it is read before it is known whose it is.
pub(crate) struct Asked {
    pub(crate) app: Arc<App>,
    pub(crate) tag: RequestTag,
    pub(crate) caller: Caller,
    pub(crate) payload: Payload,
    pub(crate) deadline: Option<Instant>,
}

/// A client says with this in how many milliseconds its request must have ended.
const DEADLINE: &str = "x-tokrun-deadline-ms";

/// When a request must have ended that comes now: the earlier one of what its client and what the operator says.
fn deadline(app: &App, headers: &HeaderMap) -> Result<Option<Instant>, ApiError> {
    let now = Instant::now();
    let Some(value) = headers.get(DEADLINE) else { return Ok(app.options.deadline(now)) };
    let wait_ms = value.to_str().ok().and_then(|text| text.parse().ok());
    let wait_ms = wait_ms.ok_or_else(|| {
        ApiError::invalid_param(DEADLINE, format!("The header {DEADLINE} is a whole number of milliseconds from now."))
    })?;
    let wanted = now.checked_add(Duration::from_millis(wait_ms));
    Ok([wanted, app.options.deadline(now)].into_iter().flatten().min())
}

impl FromRequest<Arc<App>> for Asked {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let deadline = deadline(app, &parts.headers).map_err(|error| error.response(Dialect::of(parts.uri.path())))?;
        let caller = Caller::from_request_parts(&mut parts, app).await?;
        let tag = parts.extensions.get::<RequestTag>().cloned().expect("every request is named on its way in");
        let payload = Payload::from_request(Request::from_parts(parts, body), app).await?;
        Ok(Self { app: Arc::clone(app), tag, caller, payload, deadline })
    }
}

impl Asked {
    /// Understands it, waits until its model is in memory, and has what it wants admitted. `understand` gives that, and what
    /// the response must know of it.
    pub(crate) async fn begin<R: DeserializeOwned, T: Send + 'static>(
        self,
        understand: impl FnOnce(R) -> Result<(Wanted, T), ApiError> + Send + 'static,
    ) -> Result<(Begun, T), ApiError> {
        let Self { app, tag, caller, payload, deadline } = self;
        let placed = app.blocking(move |app| {
            let (wanted, manner) = understand(payload.parse()?)?;
            let placed = place(app, &caller, &wanted)?;
            Ok((placed, wanted, manner, caller, payload))
        });
        let (placed, wanted, manner, caller, payload) = placed.await?;
        let model = app.models.lease(&placed.model, deadline).await?;
        let begun = app.blocking(move |app| begin(app, &caller, &tag, wanted, placed, model, deadline));
        let begun = begun.await?;
        // What it said was kept until now, and counted against what bodies may have.
        drop(payload);
        Ok((begun, manner))
    }
}
