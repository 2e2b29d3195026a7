//! Responses.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

/// A response of JSON.
pub(crate) fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    // What is serialised here are our own types: strings, numbers, lists and maps keyed by strings.
    let body = serde_json::to_vec(body).expect("our own types are always valid JSON");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response of JSON that says that all went well.
pub(crate) fn ok(body: &impl Serialize) -> Response {
    json_response(StatusCode::OK, body)
}
