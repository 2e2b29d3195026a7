//! Connections: how many, for how long, and how they end.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::app::{App, ServerOptions};
use crate::routes;

/// After an accept that failed, for want of file descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// So often is looked for clients that read no more.
const STALL_CHECK: Duration = Duration::from_secs(1);

/// What is written and not on its way yet, of each connection.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Requests that one HTTP/2 connection may have under way.
const STREAMS_MAX: u32 = 128;

/// The connections that are open.
pub(crate) struct Connections {
    tasks: JoinSet<()>,
    ending: watch::Sender<bool>,
}

impl Connections {
    /// Closes those that are idle; the others close when what was asked is answered.
    pub(crate) fn end(&self) {
        self.ending.send_replace(true);
    }

    pub(crate) async fn all_closed(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Accepts connections until `ends`.
pub(crate) async fn accept(app: &Arc<App>, listener: TcpListener, ends: impl Future<Output = ()>) -> Connections {
    let router = routes::router(app);
    let places = Arc::new(Semaphore::new(app.options.connections_max));
    let mut connections = Connections { tasks: JoinSet::new(), ending: watch::Sender::new(false) };
    let mut ends = pin!(ends);
    let mut stall_check = tokio::time::interval(STALL_CHECK);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut ends => return connections,
            _ = stall_check.tick() => {
                app.live.cancel_stalled(app.options.stall_timeout);
                continue;
            }
            Some(_) = connections.tasks.join_next() => continue,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connect(Arc::clone(app), router.clone(), stream, connections.ending.subscribe());
                connections.tasks.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connect(app: Arc<App>, router: Router, stream: TcpStream, ending: watch::Receiver<bool>) {
    // Tokens are small and each is waited for. Whoever reads slowly soon holds its own answer back; the kernel would let
    // megabytes wait. Where neither can be set, all else still holds.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES);
    match app.options.tls.clone() {
        None => serve(app, router, stream, ending).await,
        Some(tls) => {
            if let Some(stream) = tls.accept(stream, app.options.head_timeout).await {
                serve(app, router, stream, ending).await;
            }
        }
    }
}

async fn serve(
    app: Arc<App>,
    router: Router,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut ending: watch::Receiver<bool>,
) {
    let activity = Activity::new();
    let answering = Arc::clone(&activity);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let busy = answering.begin();
        let answer = router.call(request);
        async move {
            let response: Response = answer.await?;
            Ok::<_, Infallible>(response.map(|body| Sending { body, _busy: busy }))
        }
    });
    let options = &app.options;
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.head_timeout);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut is_ending = false;
    loop {
        let idle_until = activity.idle_until(options);
        tokio::select! {
            // Errors are those of clients that left, or that spoke no HTTP.
            _ = connection.as_mut() => return,
            _ = ending.wait_for(|ending| *ending), if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(idle_until.into()) => {
                if activity.idle_until(options) <= Instant::now() {
                    return;
                }
            }
        }
    }
}

/// A response whose connection counts as busy until its body was sent.
struct Sending {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a connection is doing.
struct Activity {
    requests: AtomicUsize,
    has_spoken: AtomicBool,
    idle_since: Mutex<Instant>,
}

/// A request under way on a connection.
struct Busy(Arc<Activity>);

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicUsize::new(0),
            has_spoken: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
        })
    }

    fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.has_spoken.store(true, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// When it will have been idle for so long, if nothing comes. Whoever has not asked for anything yet has less time.
    fn idle_until(&self, options: &ServerOptions) -> Instant {
        let spoke = self.has_spoken.load(Ordering::Relaxed);
        let patience = if spoke { options.idle_timeout } else { options.head_timeout };
        let since = if self.requests.load(Ordering::Relaxed) > 0 { Instant::now() } else { *self.idle_since() };
        since + patience
    }

    fn idle_since(&self) -> MutexGuard<'_, Instant> {
        self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.idle_since() = Instant::now();
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
