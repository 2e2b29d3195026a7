//! The server's state, and how it is started and ended.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::Semaphore;
use tokrun_ledger::Ledger;

use crate::descriptors;
use crate::embedders::{Embedders, ServedEmbedder};
use crate::error::ApiError;
use crate::links::Links;
use crate::listen;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::models::{Models, Rules, ServedModel};
use crate::sessions::Sessions;
use crate::signals;
use crate::telemetry::Telemetry;
use crate::tls::Tls;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The wallet that pays for requests without a key; without one every request needs a key.
    pub payer: Option<String>,
    /// What a client is told whose allowance is used up: 429, or 402.
    pub exhausted_status: StatusCode,
    /// Longest body of a request.
    pub body_bytes_max: usize,
    /// What the bodies that are being read may have together.
    pub bodies_bytes_max: usize,
    /// Connections at once; the next one waits to be accepted.
    pub connections_max: usize,
    /// How long the head of a request may take.
    pub head_timeout: Duration,
    /// How long its body may take.
    pub body_timeout: Duration,
    /// How long a connection may be open with nothing asked.
    pub idle_timeout: Duration,
    /// How long a client may leave unread what it was sent, before its request is ended.
    pub stall_timeout: Duration,
    /// So many people's balances may be in the metrics.
    pub metrics_users: usize,
    /// Speaks TLS.
    pub tls: Option<Arc<Tls>>,
    /// Tells a collector of OpenTelemetry's.
    pub telemetry: Option<Arc<Telemetry>>,
    /// Requests must have ended so long after they came; what was paid until then is their answer.
    pub request_timeout: Option<Duration>,
    /// What the models may take of each device together, bytes: one that is not in memory waits until there is room for it.
    /// Of a device that is not named they take what they need.
    pub memory_budget_bytes: BTreeMap<String, u64>,
    /// A model that nobody has used for so long is taken out of memory.
    pub keep_alive: Option<Duration>,
    /// How long requests may go on when the server is to end; what then still runs is cancelled and settled.
    pub drain: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            payer: None,
            exhausted_status: StatusCode::TOO_MANY_REQUESTS,
            body_bytes_max: 8 << 20,
            bodies_bytes_max: 32 << 20,
            connections_max: 4096,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(120),
            metrics_users: 0,
            tls: None,
            telemetry: None,
            request_timeout: None,
            memory_budget_bytes: BTreeMap::new(),
            keep_alive: None,
            drain: Duration::from_secs(30),
        }
    }
}

impl ServerOptions {
    /// When a request that came then must have ended.
    pub(crate) fn deadline(&self, came: Instant) -> Option<Instant> {
        came.checked_add(self.request_timeout?)
    }
}

/// What every request sees.
pub(crate) struct App {
    pub(crate) ledger: Ledger,
    /// The same, for reading what takes a while: nobody's request waits for it.
    pub(crate) books: Ledger,
    pub(crate) models: Models,
    pub(crate) embedders: Embedders,
    pub(crate) options: ServerOptions,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) live: Arc<Live>,
    pub(crate) sessions: Sessions,
    pub(crate) links: Links,
    pub(crate) begun: Instant,
    /// KiB of bodies that may still be read.
    pub(crate) bodies: Arc<Semaphore>,
    draining: AtomicBool,
    hook: Hook,
}

/// What whoever runs the server wants to hear of.
type Hook = Box<dyn Fn(Moment) + Send + Sync>;

/// A moment in a server's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A signal (SIGHUP) says to read again what is read once. Comes on a thread that may block.
    Reload,
    /// It takes no more requests, and ends when those that run have ended.
    Ending,
}

impl App {
    /// Whether the server takes no more requests.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Has read again what is read once: certificates, and what whoever runs the server knows of.
    pub(crate) fn reload(&self) {
        if let Some(Err(error)) = self.options.tls.as_ref().map(|tls| tls.reload()) {
            tracing::error!(%error, "the certificate stays as it was");
        }
        (self.hook)(Moment::Reload);
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.models.end();
        (self.hook)(Moment::Ending);
    }

    /// Does what may block on a thread for that.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&app)).await.unwrap_or_else(|_| Err(ApiError::panicked()))
    }
}

/// A service over models and a ledger. Dropping it settles what is left of its requests.
pub struct Server {
    app: Arc<App>,
}

/// Threads that serve connections; the others compute.
const CONNECTION_THREADS: usize = 2;

/// Threads for what may block: as many admissions share a commit.
const BLOCKING_THREADS: usize = 64;

/// After the last request is cancelled, its client gets the end of its answer.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Server {
    /// A service that does not listen yet.
    pub fn new(ledger: Ledger, models: Vec<ServedModel>, options: ServerOptions) -> Self {
        Self::with_hook(ledger, models, options, |_| {})
    }

    /// As [`new`](Self::new); `hook` hears of the moments of its life.
    pub fn with_hook(
        ledger: Ledger,
        models: Vec<ServedModel>,
        options: ServerOptions,
        hook: impl Fn(Moment) + Send + Sync + 'static,
    ) -> Self {
        let rules = Rules { budget_bytes: options.memory_budget_bytes.clone(), keep_alive: options.keep_alive };
        let models = Models::new(models, rules);
        let metrics = Arc::new(Metrics::new(&models));
        let bodies = Arc::new(Semaphore::new(options.bodies_bytes_max >> 10));
        Self {
            app: Arc::new(App {
                books: Ledger::open_read_only(ledger.path()).unwrap_or_else(|_| ledger.clone()),
                links: Links::of(&ledger),
                ledger,
                models,
                embedders: Embedders::default(),
                metrics,
                live: Arc::default(),
                sessions: Sessions::default(),
                begun: Instant::now(),
                bodies,
                draining: AtomicBool::new(false),
                hook: Box::new(hook),
                options,
            }),
        }
    }

    /// Serves embedding models as well.
    #[must_use]
    pub fn with_embedders(mut self, served: Vec<ServedEmbedder>) -> Self {
        let app = Arc::get_mut(&mut self.app).expect("a server that does not listen yet shares nothing");
        app.embedders = Embedders::new(served);
        self
    }

    /// Serves until a signal says to end (SIGTERM or SIGINT; another one ends what still runs), and then until all is
    /// answered.
    ///
    /// # Errors
    /// When threads cannot be started, signals not be handled, or the socket cannot be used.
    pub fn run(self, listener: TcpListener) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONNECTION_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("tokrun-http")
            .enable_all()
            .build()?;
        let served = runtime.block_on(async {
            let signals = signals::to_end()?;
            signals::reload(&self.app)?;
            let mut again = signals.resubscribe();
            let mut first = signals;
            let first = async move { drop(first.recv().await) };
            let again = async move {
                drop(again.recv().await);
                drop(again.recv().await);
            };
            self.serve(listener, first, again).await
        });
        runtime.shutdown_timeout(LAST_WORDS);
        served
    }

    /// Serves on a listener until `ends`, and then until all is answered, or `now`.
    ///
    /// # Errors
    /// When a thread cannot be started, or the socket cannot be used.
    pub async fn serve(
        &self,
        listener: TcpListener,
        ends: impl Future<Output = ()>,
        now: impl Future<Output = ()>,
    ) -> io::Result<()> {
        descriptors::make_room(self.app.options.connections_max);
        self.app.models.start()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connections = listen::accept(&self.app, listener, ends).await;
        self.app.drain();
        connections.end();
        tracing::info!(requests = self.app.live.count(), "draining");
        tokio::select! {
            () = connections.all_closed() => return Ok(()),
            () = tokio::time::sleep(self.app.options.drain) => {}
            () = now => {}
        }
        self.app.live.cancel_all();
        // Clients that do not read their last words are left.
        let _ = tokio::time::timeout(LAST_WORDS, connections.all_closed()).await;
        Ok(())
    }
}
