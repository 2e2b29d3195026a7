//! `tokrun serve`: models for programs that speak OpenAI's or Anthropic's API, every token paid before it is sent.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use sd_notify::NotifyState;
use serde_json::json;
use tokrun_ledger::{Ledger, Price};
use tokrun_model::catalogue::{Catalogue, Entry};
use tokrun_server::{Moment, Server, ServerOptions, StatusCode, Telemetry, Tls};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

mod models;

use super::answer;
use crate::args::{Format, ServeArgs};
use crate::failure::{Failure, Status};
use crate::load::{self, Found};
use crate::{home, output};

pub(crate) fn run(args: &ServeArgs, format: Format) -> Result<Status, Failure> {
    let devices = load::devices(args.device)?;
    load::prepare_threads(&args.engine, args.threads)?;
    let ledger = answer::ledger()?;
    let inherited = inherited()?;
    let address = match &inherited {
        Some(listener) => address_of(listener)?,
        None => SocketAddr::new(args.host, args.port),
    };
    let payer = payer(args, address.ip(), &ledger)?;
    let tls = tls(args)?;
    let telemetry = telemetry(args)?;
    let listener = inherited.map_or_else(|| listen(address), Ok)?;
    let catalogue = Said::read()?;
    let models::All { models, embedders, memory_budget_bytes } = models::all(args, &devices, &ledger, &catalogue)?;
    if !ledger.health()?.service {
        ledger.set_service(true)?;
    }
    log(args);
    let options = ServerOptions {
        payer,
        exhausted_status: StatusCode::from_u16(args.exhausted_status).expect("the arguments allow two"),
        body_bytes_max: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        metrics_users: args.metrics_users,
        tls,
        telemetry,
        memory_budget_bytes,
        request_timeout: some(args.request_timeout),
        keep_alive: some(args.keep_alive),
        drain: Duration::from_secs(args.drain),
        ..ServerOptions::default()
    };
    let embed = embedders.iter().map(|embedder| &embedder.name);
    let names: Vec<String> = models.iter().map(|model| &model.name).chain(embed).cloned().collect();
    say_where(&listener, &names, &options, format)?;
    let server =
        Server::with_hook(ledger, models, options, move |moment| hear(moment, &catalogue)).with_embedders(embedders);
    tell_manager(&[NotifyState::Ready]);
    server.run(listener).map_err(|error| Failure::io("cannot serve", &error))?;
    Ok(Status::Done)
}

fn some(time: Duration) -> Option<Duration> {
    Some(time).filter(|time| !time.is_zero())
}

/// Whose allowance pays for requests without a key; `None` where every request needs one: where there are keys, unless
/// somebody was named.
fn payer(args: &ServeArgs, host: IpAddr, ledger: &Ledger) -> Result<Option<String>, Failure> {
    let has_keys = ledger.keys(None)?.iter().any(|key| key.revoked.is_none());
    if !host.is_loopback() {
        return match (has_keys, &args.user) {
            (true, None) => Ok(None),
            (true, Some(user)) => Err(open_to_all(host, &format!("{user} would pay for whoever comes"))
                .hint("leave --user out: every request then needs a key")),
            (false, _) => Err(open_to_all(host, "no request would need a key")
                .hint("create a key first, with `tokrun key create`; or listen on 127.0.0.1")),
        };
    }
    let wallet = match &args.user {
        Some(user) => user.clone(),
        None if has_keys => return Ok(None),
        None => home::account()?,
    };
    // Nothing is created by itself once a ledger is a service's, so what is missing is better told now.
    Ok(Some(ledger.wallet(&wallet)?.name))
}

fn open_to_all(host: IpAddr, why: &str) -> Failure {
    Failure::new(Status::Usage, "no_keys", format!("{host} can be reached from elsewhere, and {why}"))
}

/// The socket that a service manager listens on for us, if it does.
fn inherited() -> Result<Option<TcpListener>, Failure> {
    let socket = listenfd::ListenFd::from_env().take_tcp_listener(0);
    socket.map_err(|error| Failure::io("the socket that was handed over is no TCP socket that listens", &error))
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(|error| Failure::io("cannot tell the address", &error))
}

fn tls(args: &ServeArgs) -> Result<Option<Arc<Tls>>, Failure> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let tls = Tls::load(certificate, key).map_err(|error| {
        Failure::io("cannot speak TLS", &error).hint("--tls-cert and --tls-key take files in PEM that belong together")
    })?;
    Ok(Some(Arc::new(tls)))
}

/// Where an empty address is none, as variables are switched off.
fn telemetry(args: &ServeArgs) -> Result<Option<Arc<Telemetry>>, Failure> {
    let Some(endpoint) = args.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else { return Ok(None) };
    let telemetry = Telemetry::start(endpoint).map_err(|reason| {
        Failure::new(Status::Usage, "usage", format!("cannot tell {endpoint}: {reason}"))
            .hint("--otlp-endpoint takes the address of a collector, such as http://localhost:4318")
    })?;
    Ok(Some(Arc::new(telemetry)))
}

/// Tells systemd, where it started us, how far we are. Nobody else hears it.
fn tell_manager(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

fn hear(moment: Moment, catalogue: &Said) {
    match moment {
        Moment::Ending => tell_manager(&[NotifyState::Stopping]),
        Moment::Reload => {
            if let Ok(now) = NotifyState::monotonic_usec_now() {
                tell_manager(&[NotifyState::Reloading, now]);
            }
            match catalogue.read_again() {
                Ok(()) => tracing::info!("the catalogue was read again"),
                Err(failure) => tracing::error!("the catalogue stays as it was: {}", failure.message()),
            }
            tell_manager(&[NotifyState::Ready]);
        }
    }
}

/// What the catalogue says, read again on SIGHUP. Limits, keys and the ledger's prices need no such word: they are looked
/// up with each request.
#[derive(Clone)]
struct Said(Arc<RwLock<Catalogue>>);

impl Said {
    fn read() -> Result<Self, Failure> {
        Ok(Self(Arc::new(RwLock::new(Catalogue::load(&home::directory()?)?))))
    }

    fn read_again(&self) -> Result<(), Failure> {
        let read = Catalogue::load(&home::directory()?)?;
        // One with a price that means nothing is not taken.
        read.entries().iter().try_for_each(|entry| load::price_of(entry, Timestamp::now()).map(drop))?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// What it says of a model now. One that is not in it any more is what it was when it was loaded.
    fn of(&self, loaded: &Found) -> Option<Entry> {
        let entry = loaded.entry.as_ref()?;
        let catalogue = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(catalogue.get(&entry.name).unwrap_or(entry).clone())
    }

    fn price(&self, loaded: &Found) -> Price {
        let entry = self.of(loaded);
        entry.and_then(|entry| load::price_of(&entry, Timestamp::now()).ok()).unwrap_or_default()
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| {
        Failure::io(&format!("cannot listen on {address}"), &error)
            .hint("choose another --port, or 0 for any that is free")
    })
}

fn log(args: &ServeArgs) {
    let ours = Targets::new().with_target("tokrun", args.log);
    let to_stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    tracing_subscriber::registry().with(to_stderr.with_filter(ours)).init();
}

fn say_where(
    listener: &TcpListener,
    models: &[String],
    options: &ServerOptions,
    format: Format,
) -> Result<(), Failure> {
    let address = address_of(listener)?;
    let url = format!("http{}://{address}", if options.tls.is_some() { "s" } else { "" });
    if format == Format::Json {
        out!("{}", json!({ "url": url, "models": models, "payer": options.payer }));
        return Ok(());
    }
    let payer = options.payer.as_ref().map_or("keys are needed".to_owned(), |payer| format!("{payer} pays"));
    say!("serving {} on {url} ({}); Ctrl-C ends", output::plain(&models.join(", ")), output::plain(&payer));
    Ok(())
}
