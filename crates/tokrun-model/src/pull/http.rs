//! The two questions put to a hub: what is this file, and give me the rest of it.
//!
//! hf-hub 0.5 knows the hub's addresses and its cache, but its own transfers have no time limits, append at the wrong
//! place when a retry follows a resume, and fail on a part that is already complete. So the requests are made here.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{Method, Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::HubOptions;
use super::error::SourceError;

/// An unreachable hub is given up after this.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const REDIRECTS_MAX: usize = 8;

/// Asks one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a hub says of a file.
pub(super) struct Head {
    /// The content's name: its sha256 for large files, something else for small ones.
    pub(super) etag: String,
    /// The commit that the revision stands for.
    pub(super) commit: Option<String>,
    /// Its length.
    pub(super) bytes: u64,
}

/// How a question went wrong.
pub(super) enum HttpError {
    /// No answer came.
    Unreachable(String),
    /// There is a server, but the connection broke or it is overloaded: asking again may help.
    Passing(String),
    /// The server refuses.
    Status(u16),
    /// The answer makes no sense.
    BadAnswer(String),
}

impl Client {
    pub(super) fn new(options: &HubOptions) -> Result<Self, SourceError> {
        let tls = match &options.certificates {
            Some(path) => TlsConfig::builder().root_certs(certificates(path)?).build(),
            None => TlsConfig::default(),
        };
        let agent = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("tokrun/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_LIMIT))
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(options.silence_limit))
            .timeout_per_read(Some(options.silence_limit))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Ok(Self { agent: agent.into(), endpoint: options.endpoint.clone(), token: options.token.clone() })
    }

    /// What the hub says of the file at `url`.
    pub(super) fn head(&self, url: &str) -> Result<Head, HttpError> {
        // The hub describes a large file on the redirect to its storage, which itself knows less.
        let response = self.follow(Method::HEAD, url, None, |response| header(response, "x-linked-etag").is_some())?;
        let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag"));
        let etag = etag.ok_or_else(|| HttpError::BadAnswer("it has no etag".to_owned()))?;
        let length = if response.status().is_redirection() { "x-linked-size" } else { "content-length" };
        let bytes = header(&response, length)
            .and_then(|bytes| bytes.parse().ok())
            .ok_or_else(|| HttpError::BadAnswer("it has no length".to_owned()))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        Ok(Head { etag, commit: header(&response, "x-repo-commit").map(str::to_owned), bytes })
    }

    /// The content at `url` from byte `from` on, and the byte that it really begins with: 0 where the server does
    /// not serve parts.
    pub(super) fn content(&self, url: &str, from: u64) -> Result<(u64, impl Read + use<>), HttpError> {
        let response = self.follow(Method::GET, url, (from > 0).then_some(from), |_| false)?;
        let begins = if response.status() == 206 { range_begin(&response)? } else { 0 };
        if begins != 0 && begins != from {
            return Err(HttpError::BadAnswer(format!("it begins at byte {begins} and not at {from}")));
        }
        Ok((begins, response.into_body().into_reader()))
    }

    /// Asks, and goes where redirects lead until `enough` is satisfied. The token is for the hub's own address only.
    fn follow(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
        enough: impl Fn(&Response<Body>) -> bool,
    ) -> Result<Response<Body>, HttpError> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS_MAX {
            let mut request = Request::builder().method(method.clone()).uri(&url).header("accept-encoding", "identity");
            if let Some(from) = from {
                request = request.header("range", format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|error| HttpError::BadAnswer(error.to_string()))?;
            let response = self.agent.run(request).map_err(network)?;
            let status = response.status();
            if status.is_success() || (status.is_redirection() && enough(&response)) {
                return Ok(response);
            }
            if status == 429 || status.is_server_error() {
                return Err(HttpError::Passing(format!("status {}", status.as_u16())));
            }
            let target = header(&response, "location").filter(|_| status.is_redirection());
            url = match target {
                Some(target) if target.starts_with('/') => format!("{}{target}", origin(&url)),
                Some(target) => target.to_owned(),
                None => return Err(HttpError::Status(status.as_u16())),
            };
        }
        Err(HttpError::BadAnswer("it redirects without end".to_owned()))
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The first byte that `content-range: bytes 5-9/10` speaks of.
fn range_begin(response: &Response<Body>) -> Result<u64, HttpError> {
    let range = header(response, "content-range").unwrap_or_default();
    let begin = range.strip_prefix("bytes ").and_then(|range| range.split_once('-')?.0.parse().ok());
    begin.ok_or_else(|| HttpError::BadAnswer(format!("its content-range is `{range}`")))
}

/// Scheme and host of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |colon| colon + 3);
    let end = url[host..].find('/').map_or(url.len(), |slash| host + slash);
    &url[..end]
}

fn network(error: ureq::Error) -> HttpError {
    HttpError::Unreachable(match error {
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    })
}

fn certificates(path: &Path) -> Result<RootCerts, SourceError> {
    let useless = |reason: String| SourceError::Certificates { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|error| useless(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| useless(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(useless("it holds none".to_owned()));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}
