//! HTTP as a client of a service has it: connections that are kept, one request on each at a time. It runs on one thread,
//! so that it takes as little as it can from a server on the same machine.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::stream::{Answered, Reading, said};
use crate::args::LoadArgs;
use crate::failure::{Failure, Status};

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// There is no connection.
    Unreachable(String),
    /// The server refused it.
    Refused(u16, String),
    /// It began and did not end.
    Broken(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(what) => write!(formatter, "cannot connect: {what}"),
            Self::Refused(status, what) => write!(formatter, "{status}: {what}"),
            Self::Broken(what) => formatter.write_str(what),
        }
    }
}

impl Trouble {
    /// Where nothing can be measured because of it.
    pub(super) fn failure(&self, url: &str) -> Failure {
        let failure = Failure::new(Status::Failed, "load", format!("{url}: {self}"));
        match self {
            Self::Unreachable(_) => {
                failure.hint("start a server there, with `tokrun serve` for example, or name another --url")
            }
            Self::Refused(401 | 403, _) => {
                failure.hint("--key, or OPENAI_API_KEY, is the access key that the server wants")
            }
            Self::Refused(404, _) => failure.hint("--url names the server, and --model a model that it has"),
            Self::Refused(400 | 422, _) => failure
                .hint("leave out what this server does not know: --ignore-eos, --extra-body, or the other --endpoint"),
            Self::Refused(..) => failure.hint("wait until the server is ready, or ask less of it"),
            Self::Broken(_) => failure.hint("the server's own log says more"),
        }
    }
}

type Connection = SendRequest<Full<Bytes>>;

/// A server of OpenAI's API.
pub(super) struct Client {
    host: String,
    port: u16,
    /// What the paths of the API begin with.
    base: String,
    authority: HeaderValue,
    key: Option<HeaderValue>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    idle: RefCell<Vec<Connection>>,
    /// When the load began.
    pub(super) begun: Instant,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(args: &LoadArgs) -> Result<Self, Failure> {
        let wrong = |what: &str| {
            Failure::new(Status::Usage, "usage", format!("{}: {what}", args.url))
                .hint("a URL is http://127.0.0.1:8080, for example")
        };
        let url: Uri = args.url.parse().map_err(|error| wrong(&format!("{error}")))?;
        let authority = url.authority().ok_or_else(|| wrong("it names no server"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let (port_usual, tls) = match url.scheme_str() {
            Some("http") => (80, None),
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|error| wrong(&error.to_string()))?;
                (443, Some((connector(args.ca.as_deref())?, name)))
            }
            _ => return Err(wrong("it is neither http nor https")),
        };
        let header = |text: &str, what: &str| {
            HeaderValue::from_str(text).map_err(|_| wrong(&format!("{what} has characters that no header may have")))
        };
        let key = args.key.as_deref().map(|key| header(&format!("Bearer {key}"), "the key")).transpose()?;
        let path = url.path().trim_end_matches('/');
        Ok(Self {
            port: authority.port_u16().unwrap_or(port_usual),
            base: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            authority: header(authority.as_str(), "the address")?,
            host,
            key,
            tls,
            idle: RefCell::default(),
            begun: Instant::now(),
            timeout: args.timeout,
        })
    }

    /// The first model that the server lists.
    pub(super) async fn first_model(&self) -> Result<String, Trouble> {
        let (response, connection) = self.send(Method::GET, "/v1/models", Bytes::new()).await?;
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        self.idle.borrow_mut().push(connection);
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        let id = list["data"][0]["id"].as_str();
        id.map(str::to_owned).ok_or_else(|| Trouble::Broken("it lists no model: name one with --model".to_owned()))
    }

    /// Asks, and reads the answer to its end.
    pub(super) async fn ask(&self, path: &str, body: Bytes) -> Result<Answered, Trouble> {
        let answered = tokio::time::timeout(self.timeout, self.ask_patiently(path, body));
        let too_late = || Trouble::Broken(format!("no answer within {} s", self.timeout.as_secs_f64()));
        answered.await.unwrap_or_else(|_| Err(too_late()))
    }

    async fn ask_patiently(&self, path: &str, body: Bytes) -> Result<Answered, Trouble> {
        let mut reading = Reading::new(self.begun.elapsed());
        let (mut response, connection) = self.send(Method::POST, path, body).await?;
        while let Some(frame) = response.frame().await {
            let at = self.begun.elapsed();
            if let Some(bytes) = frame.map_err(broken)?.data_ref() {
                reading.take(bytes, at).map_err(Trouble::Broken)?;
            }
        }
        self.idle.borrow_mut().push(connection);
        reading.end().map_err(Trouble::Broken)
    }

    /// Sends on a connection that is idle, or a new one. What comes back is good; the connection is too, once it is read.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<(Response<Incoming>, Connection), Trouble> {
        while let Some(mut connection) = self.kept() {
            match connection.send_request(self.request(method.clone(), path, body.clone())).await {
                Ok(response) => return Ok((good(response).await?, connection)),
                // The server gave it up while the request was on its way to it.
                Err(error) if error.is_canceled() || error.is_closed() || error.is_incomplete_message() => {}
                Err(error) => return Err(broken(error)),
            }
        }
        let mut connection = self.connect().await?;
        let response = connection.send_request(self.request(method, path, body)).await.map_err(broken)?;
        Ok((good(response).await?, connection))
    }

    /// A connection that nobody uses and that still stands.
    fn kept(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|connection| !connection.is_closed());
        let ready = idle.iter().rposition(SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Paths of ours, after one that came out of a URL.
        *request.uri_mut() = format!("{}{path}", self.base).parse().expect("it is a path");
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &self.key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        request
    }

    async fn connect(&self) -> Result<Connection, Trouble> {
        let unreachable = |error: std::io::Error| Trouble::Unreachable(error.to_string());
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        match &self.tls {
            None => handshake(stream).await,
            Some((connector, name)) => {
                handshake(connector.connect(name.clone(), stream).await.map_err(unreachable)?).await
            }
        }
    }
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Connection, Trouble> {
    let (connection, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Its errors are those of the request that is on it.
    tokio::task::spawn_local(driver);
    Ok(connection)
}

/// Only what a server answers gladly.
async fn good(response: Response<Incoming>) -> Result<Response<Incoming>, Trouble> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    let text = || String::from_utf8_lossy(&body).into_owned();
    let message = serde_json::from_slice(&body).map_or_else(|_| text(), |error: Value| said(&error));
    Err(Trouble::Refused(status.as_u16(), message))
}

fn broken(error: hyper::Error) -> Trouble {
    Trouble::Broken(tokrun_runtime::with_causes(&error))
}

fn connector(ca: Option<&Path>) -> Result<TlsConnector, Failure> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let wrong = |what: String| {
                Failure::new(Status::Failed, "bad_certificate", format!("{}: {what}", path.display()))
                    .hint("--ca takes certificates in PEM")
            };
            let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
            for certificate in CertificateDer::pem_reader_iter(file) {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it has no certificate".to_owned()));
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the usual versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{BenchCommand, Cli, Command};
    use clap::Parser;

    fn client(flags: &[&str]) -> Result<Client, Failure> {
        let cli = Cli::try_parse_from([&["tokrun", "bench", "serve"], flags].concat()).expect("they are known");
        match cli.command {
            Command::Bench(args) => match args.command {
                Some(BenchCommand::Serve(args)) => Client::new(&args),
                None => unreachable!("it is asked for"),
            },
            _ => unreachable!("it is a bench"),
        }
    }

    #[test]
    fn urls_name_a_server_with_or_without_the_version_of_its_api() {
        for (url, host, port, base) in [
            ("http://127.0.0.1:8080", "127.0.0.1", 8080, ""),
            ("http://127.0.0.1:8080/v1/", "127.0.0.1", 8080, ""),
            ("http://[::1]:81/models/v1", "::1", 81, "/models"),
            ("https://models.example", "models.example", 443, ""),
        ] {
            let client = client(&["--url", url, "--key", "k"]).expect("it is a URL");
            assert_eq!((client.host.as_str(), client.port, client.base.as_str()), (host, port, base), "{url}");
            let request = client.request(Method::POST, "/v1/completions", Bytes::new());
            assert_eq!(request.uri().path(), format!("{base}/v1/completions"));
            assert_eq!(request.headers()[AUTHORIZATION], "Bearer k");
        }
        for wrong in ["127.0.0.1:8080", "ftp://here", "http://", "/v1"] {
            assert!(client(&["--url", wrong]).is_err_and(|failure| failure.status == Status::Usage), "{wrong}");
        }
    }
}
