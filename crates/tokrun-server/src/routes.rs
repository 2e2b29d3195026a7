//! Which path goes where, and what every response has.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use opentelemetry::Context;

use crate::app::App;
use crate::error::{ApiError, Dialect, Refused};
use crate::{admin, anthropic, dashboard, health, metrics, openai, openapi, responses, tokens, usage};

/// What a request is called, in its response's headers and in the ledger; and the span that it is part of, where there are
/// traces.
#[derive(Clone, Debug)]
pub(crate) struct RequestTag(pub(crate) String, pub(crate) Context);

/// What a model is asked with, so that there is a trace of it.
const TRACED: &[&str] = &["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];

/// All that is served.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    router
        .merge(dashboard::router())
        .nest("/admin/v1", admin::router())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(app), every))
        .with_state(Arc::clone(app))
}

/// What is served where; `openapi.rs` describes it.
pub(crate) fn routes() -> Vec<(&'static str, MethodRouter<Arc<App>>)> {
    vec![
        ("/health", get(health::health)),
        ("/ready", get(health::ready)),
        ("/version", get(health::version)),
        ("/openapi.json", get(openapi::openapi)),
        ("/metrics", get(metrics::metrics)),
        ("/v1/models", get(openai::models::list)),
        ("/v1/models/{*name}", get(openai::models::show)),
        ("/v1/chat/completions", post(openai::create::<openai::chat::ChatRequest>)),
        ("/v1/completions", post(openai::create::<openai::completions::CompletionRequest>)),
        ("/v1/embeddings", post(openai::embeddings::create)),
        ("/v1/responses", post(responses::create)),
        ("/v1/messages", post(anthropic::create)),
        ("/v1/messages/count_tokens", post(anthropic::count_tokens)),
        ("/v1/usage/me", get(usage::me)),
        ("/v1/organization/usage/completions", get(usage::completions)),
        ("/v1/organization/costs", get(usage::costs)),
        ("/tokenize", post(tokens::tokenize)),
        ("/detokenize", post(tokens::detokenize)),
    ]
}

async fn unknown(method: Method, uri: Uri) -> Response {
    ApiError::unknown_url(method.as_str(), uri.path()).response(Dialect::of(uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    ApiError::method_not_allowed(method.as_str()).response(Dialect::of(uri.path()))
}

/// Names each request, and counts and logs how it was answered.
async fn every(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let tag = uuid::Uuid::now_v7().to_string();
    let method = request.method().clone();
    // A path that nobody asked for may be anything, and is no label.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let telemetry = app.options.telemetry.as_ref().filter(|_| TRACED.contains(&route.as_str()));
    let trace = telemetry.map(|telemetry| telemetry.begin(&method, &route, request.headers()));
    request.extensions_mut().insert(RequestTag(tag.clone(), trace.clone().unwrap_or_default()));
    let mut response = next.run(request).await;
    let header = HeaderValue::from_str(&tag).expect("a uuid is a header's value");
    // OpenAI's clients read the first, Anthropic's the second.
    response.headers_mut().insert("x-request-id", header.clone());
    response.headers_mut().insert("request-id", header);
    let status = response.status().as_u16();
    let refused = response.extensions().get::<Refused>().map(|refused| refused.0);
    app.metrics.responded(&route, status, refused);
    if let Some((telemetry, trace)) = telemetry.zip(trace) {
        telemetry.responded(&trace, status, refused);
    }
    let ms = begun.elapsed().as_millis();
    tracing::debug!(request_id = tag, %method, route, status, ms, "responded");
    response
}
