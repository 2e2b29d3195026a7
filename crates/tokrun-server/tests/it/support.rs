//! A service of its own for each test, and a small client.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokrun_engine::{ChatTemplate, Executor, TextEncoder, Tokenizer};
use tokrun_ledger::{GrantRequest, Ledger, NewKey, Price};
use tokrun_model::{LoadOptions, ModelFile};
use tokrun_runtime::{EmbeddingModel, Embeddings, EngineOptions, LedgerMeter, Runtime, SamplingParams, TextModel};
use tokrun_server::{Loaded, ServedEmbedder, ServedModel, Server, ServerOptions};

use crate::scripted::{self, Scripted};

pub(crate) const MODEL: &str = "tiny";
pub(crate) const EMBEDDER: &str = "tiny-embedder";

/// A running service, ended with the test. Its ledger is sound then, or the test fails.
pub(crate) struct Service {
    pub(crate) ledger: Ledger,
    pub(crate) address: SocketAddr,
    ends: Option<oneshot::Sender<()>>,
    now: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _home: TempDir,
}

/// What a test may choose.
pub(crate) struct Choices {
    pub(crate) balance: u64,
    pub(crate) context_tokens: usize,
    pub(crate) waiting_max: usize,
    pub(crate) running_max: usize,
    /// What happened in the ledger before; without it, `ada` has a new wallet with the balance.
    pub(crate) before: Option<fn(&Path)>,
    pub(crate) options: ServerOptions,
    /// What a model says that a test has written the answer of.
    pub(crate) says: Option<String>,
    pub(crate) price: Price,
    /// Whether there is an embedding model as well.
    pub(crate) embeds: bool,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            balance: 1_000_000,
            context_tokens: 128,
            waiting_max: 64,
            running_max: 8,
            before: None,
            options: ServerOptions { payer: Some("ada".to_owned()), ..ServerOptions::default() },
            says: None,
            price: Price::default(),
            embeds: false,
        }
    }
}

impl Service {
    pub(crate) fn new() -> Self {
        Self::with(Choices::default())
    }

    /// One whose model says this, and has room for what is asked.
    pub(crate) fn saying(text: &str) -> Self {
        Self::with(Choices { says: Some(text.to_owned()), context_tokens: 4096, ..Choices::default() })
    }

    pub(crate) fn with(choices: Choices) -> Self {
        Self::of(choices, |choices, ledger, home| vec![tiny_model(MODEL, choices, ledger, home)])
    }

    /// One of several models.
    pub(crate) fn of(choices: Choices, models: impl FnOnce(&Choices, &Ledger, &Path) -> Vec<ServedModel>) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let file = home.path().join("ledger.db");
        choices.before.inspect(|before| before(&file));
        let ledger = Ledger::open(&file).expect("a ledger can be made");
        if choices.before.is_none() {
            ledger.create_wallet("ada", None).expect("a wallet can be made");
        }
        if choices.balance > 0 {
            let amount = choices.balance.to_string().parse().expect("it is an amount");
            ledger.grant(GrantRequest::new("ada", amount)).expect("it can be filled");
        }
        let models = models(&choices, &ledger, home.path());
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it has an address");
        let embedders = choices.embeds.then(|| tiny_embedder(&ledger)).into_iter().collect();
        let server = Server::new(ledger.clone(), models, choices.options).with_embedders(embedders);
        let (ends, end) = oneshot::channel();
        let (now, at_once) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let ended = async { drop(end.await) };
            let ended_now = async {
                if at_once.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let threads = threads.expect("threads can be started");
            threads.block_on(server.serve(listener, ended, ended_now)).expect("it serves");
        });
        Self { ledger, address, ends: Some(ends), now: Some(now), thread: Some(thread), _home: home }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn balance(&self) -> i64 {
        self.ledger.wallet("ada").expect("there is a wallet").balance.micro() / tokrun_ledger::MICRO
    }

    /// Tokens of settled requests: prompts and answers.
    pub(crate) fn logged(&self) -> (u64, u64) {
        let mut logged = (0, 0);
        let visit = |request: &tokrun_ledger::ExportedRequest| {
            logged.0 += request.prompt_tokens;
            logged.1 += request.output_tokens;
            std::ops::ControlFlow::Continue(())
        };
        self.ledger.export_requests(None, None, visit).expect("the log can be read");
        logged
    }

    pub(crate) fn open_requests(&self) -> u64 {
        self.ledger.health().expect("it can be read").open_requests
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.get_with(path, &[])
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let request =
            headers.iter().fold(agent().get(self.url(path)), |request, (name, value)| request.header(*name, *value));
        Reply::of(request.call())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_with(path, body, &[])
    }

    pub(crate) fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Reply {
        let request =
            headers.iter().fold(agent().post(self.url(path)), |request, (name, value)| request.header(*name, *value));
        Reply::of(request.content_type("application/json").send(body.to_string().as_bytes()))
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        Reply::of(agent().post(self.url(path)).content_type("application/json").send(body))
    }

    /// A request of any method, with a key.
    pub(crate) fn with_key(&self, secret: &str, method: &str, path: &str, body: Option<&Value>) -> Reply {
        self.with_headers(method, path, body, &[("authorization", &format!("Bearer {secret}"))])
    }

    pub(crate) fn with_headers(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Reply {
        let request = ureq::http::Request::builder().method(method).uri(self.url(path));
        let request = request.header("content-type", "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let body = body.map(Value::to_string).unwrap_or_default();
        Reply::of(agent().run(request.body(body).expect("it is a request")))
    }

    /// The secret of a new key.
    pub(crate) fn key(&self, key: NewKey) -> String {
        self.ledger.create_key(key).expect("a key can be made").secret.expect("it is shown once")
    }

    /// The events of a stream, as they come.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Events {
        let response = agent().post(self.url(path)).content_type("application/json").send(body.to_string().as_bytes());
        let response = response.expect("the server answers");
        assert_eq!(response.status().as_u16(), 200);
        let content_type = response.headers()["content-type"].to_str().expect("it is text").to_owned();
        assert!(content_type.starts_with("text/event-stream"), "{content_type}");
        Events(BufReader::new(Box::new(response.into_body().into_reader())))
    }

    /// A figure of `/metrics`, over all labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text;
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number");
        text.lines().filter(is_it).map(value).sum()
    }

    /// Says that the server is to end, and lets requests go on for its drain time.
    pub(crate) fn end(&mut self) {
        drop(self.ends.take());
    }

    /// And that it is to end at once.
    pub(crate) fn end_now(&mut self) {
        if let Some(now) = self.now.take() {
            let _ = now.send(());
        }
    }

    /// Waits until it has ended.
    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
        self.end_now();
        self.join();
        if !std::thread::panicking() {
            assert_eq!(self.open_requests(), 0, "everything is settled when the server has ended");
            let report = self.ledger.verify().expect("it can be verified");
            assert!(report.passed(), "{report:?}");
        }
    }
}

/// A model of this name that is in memory.
pub(crate) fn tiny_model(name: &str, choices: &Choices, ledger: &Ledger, home: &Path) -> ServedModel {
    let copy = home.join(name);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
    fs::create_dir(&copy).expect("it can be made");
    for entry in fs::read_dir(fixture).expect("the fixture is there") {
        let path = entry.expect("an entry can be read").path();
        fs::copy(&path, copy.join(path.file_name().expect("it has a name"))).expect("it can be copied");
    }
    let config = copy.join("config.json");
    let mut object: Value =
        serde_json::from_str(&fs::read_to_string(&config).expect("it is there")).expect("it is JSON");
    object["max_position_embeddings"] = choices.context_tokens.into();
    fs::write(&config, object.to_string()).expect("it can be written");

    if choices.says.is_some() {
        scripted::teach(&copy);
    }
    let (called, says, ledger) = (name.to_owned(), choices.says.clone(), ledger.clone());
    let (running_max, waiting_max, context_tokens) = (choices.running_max, choices.waiting_max, choices.context_tokens);
    let load = move || {
        let file = ModelFile::open(&copy).expect("the fixture opens");
        let load = LoadOptions { sequences_max: Some(running_max), threads: Some(1), ..LoadOptions::default() };
        let tokenizer = Arc::new(Tokenizer::from_assets(file.assets()).expect("its tokenizer works"));
        let executor: Box<dyn Executor> = match &says {
            None => file.load(&load).expect("it loads"),
            Some(text) => {
                let end = file.assets().end_token_ids[0];
                Box::new(Scripted::new(&tokenizer, text, end, context_tokens))
            }
        };
        let model = TextModel {
            name: called.clone(),
            executor,
            tokenizer,
            template: ChatTemplate::compile(file.assets()),
            end_tokens: file.assets().end_token_ids.clone(),
        };
        let engine = EngineOptions { waiting_max, sequences_max: Some(running_max), ..EngineOptions::default() };
        let meter = Arc::new(LedgerMeter(ledger.clone()));
        vec![Runtime::start(model, meter, engine).expect("it starts")]
    };
    ServedModel {
        name: name.to_owned(),
        aliases: if name == MODEL { vec!["alias".to_owned()] } else { Vec::new() },
        loaded: Some(Loaded { engines: load(), took: Duration::ZERO }),
        load: Box::new(move || Ok(load())),
        memory: Vec::new(),
        context_tokens: choices.context_tokens,
        places: choices.running_max + choices.waiting_max,
        price: {
            let price = choices.price;
            Box::new(move || price)
        },
        sampling: SamplingParams::default(),
    }
}

fn tiny_embedder(ledger: &Ledger) -> ServedEmbedder {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/embed-bert");
    let file = ModelFile::open(&fixture).expect("the fixture opens");
    let embedder = file.load_embedder(&LoadOptions::default()).expect("it loads");
    let encoder = TextEncoder::from_assets(file.assets()).expect("its tokenizer works");
    let model = EmbeddingModel { name: EMBEDDER.to_owned(), embedder, encoder };
    ServedEmbedder {
        name: EMBEDDER.to_owned(),
        aliases: Vec::new(),
        embeddings: Embeddings::start(model, Arc::new(LedgerMeter(ledger.clone()))).expect("it starts"),
        places: 64,
        price: Box::new(Price::default),
        memory_bytes: 0,
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::new_with_config(
        ureq::Agent::config_builder().http_status_as_error(false).allow_non_standard_methods(true).build(),
    )
}

/// A response.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: std::collections::BTreeMap<String, String>,
    pub(crate) text: String,
}

impl Reply {
    fn of(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let mut response = response.expect("the server answers");
        let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let status = response.status().as_u16();
        Self { status, headers, text: response.body_mut().read_to_string().expect("its body can be read") }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text))
    }

    /// The body of a response that says that all went well.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }
}

/// Server-sent events: the name, if there is one, and the data.
pub(crate) struct Events(BufReader<Box<dyn Read + Send>>);

impl Iterator for Events {
    type Item = (Option<String>, String);

    fn next(&mut self) -> Option<Self::Item> {
        let mut name = None;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("the stream can be read") == 0 {
                return None;
            }
            let line = line.trim_end_matches('\n');
            if let Some(data) = line.strip_prefix("data: ") {
                let data = data.to_owned();
                let mut blank = String::new();
                self.0.read_line(&mut blank).expect("the stream can be read");
                assert_eq!(blank, "\n", "an event ends with a blank line");
                return Some((name, data));
            }
            name = line.strip_prefix("event: ").map(str::to_owned).or(name);
        }
    }
}

/// A conversation of one turn, greedy, with what else a test wants in the request.
pub(crate) fn chat(extra: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "The light was" }]);
    with(json!({ "model": MODEL, "messages": messages, "temperature": 0, "ignore_eos": true, "max_tokens": 12 }), extra)
}

pub(crate) fn with(mut request: Value, extra: Value) -> Value {
    let object = request.as_object_mut().expect("it is an object");
    object.extend(extra.as_object().expect("it is an object").clone());
    object.retain(|_, value| !value.is_null());
    request
}
