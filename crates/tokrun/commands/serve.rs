//! `tokrun serve`: models for programs that speak OpenAI's or Anthropic's API, every token paid before it is sent.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokrun_ledger::Ledger;
use tokrun_model::catalogue::Catalogue;
use tokrun_runtime::LedgerMeter;
use tokrun_server::{ServedModel, Server, ServerOptions, StatusCode};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use super::answer;
use crate::args::{Format, ServeArgs};
use crate::failure::{Failure, Status};
use crate::load::{self, Found};
use crate::{home, output};

pub(crate) fn run(args: &ServeArgs, format: Format) -> Result<Status, Failure> {
    load::check_device(args.compute.device)?;
    load::prepare_threads(&args.compute.engine, args.compute.threads)?;
    let ledger = answer::ledger()?;
    let payer = payer(args, &ledger)?;
    let listener = listen(args)?;
    let models = load_all(args, &ledger)?;
    if !ledger.health()?.service {
        ledger.set_service(true)?;
    }
    log(args);
    let options = ServerOptions {
        payer,
        exhausted_status: StatusCode::from_u16(args.exhausted_status).expect("the arguments allow two"),
        body_bytes_max: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        drain: Duration::from_secs(args.drain),
        ..ServerOptions::default()
    };
    let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    say_where(&listener, &names, &options, format)?;
    let server = Server::new(ledger, models, options);
    server.run(listener).map_err(|error| Failure::io("cannot serve", &error))?;
    Ok(Status::Done)
}

/// Whose allowance pays for requests without a key; `None` where every request needs one: where there are keys, unless
/// somebody was named.
fn payer(args: &ServeArgs, ledger: &Ledger) -> Result<Option<String>, Failure> {
    let has_keys = ledger.keys(None)?.iter().any(|key| key.revoked.is_none());
    if !args.host.is_loopback() {
        return match (has_keys, &args.user) {
            (true, None) => Ok(None),
            (true, Some(user)) => Err(open_to_all(args.host, &format!("{user} would pay for whoever comes"))
                .hint("leave --user out: every request then needs a key")),
            (false, _) => Err(open_to_all(args.host, "no request would need a key")
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

fn listen(args: &ServeArgs) -> Result<TcpListener, Failure> {
    let address = SocketAddr::new(args.host, args.port);
    TcpListener::bind(address).map_err(|error| {
        Failure::io(&format!("cannot listen on {address}"), &error)
            .hint("choose another --port, or 0 for any that is free")
    })
}

fn load_all(args: &ServeArgs, ledger: &Ledger) -> Result<Vec<ServedModel>, Failure> {
    let wanted: Vec<Option<&str>> =
        if args.models.is_empty() { vec![None] } else { args.models.iter().map(|name| Some(name.as_str())).collect() };
    let mut models: Vec<ServedModel> = Vec::new();
    for wanted in wanted {
        let home = home::directory()?;
        let found = load::find(&home, Catalogue::load(&home)?, wanted)?;
        if models.iter().any(|model| model.name == found.name) {
            return Err(Failure::new(Status::Usage, "usage", format!("two models are called {}", found.name))
                .hint("give each model once; a file is called by its name"));
        }
        models.push(load_one(args, ledger, found)?);
    }
    Ok(models)
}

fn load_one(args: &ServeArgs, ledger: &Ledger, found: Found) -> Result<ServedModel, Failure> {
    let engine = args.compute.engine.engine_options(args.max_running);
    let engine = tokrun_engine::EngineOptions {
        speculation: !args.compute.no_speculation,
        waiting_max: args.max_waiting,
        ..engine
    };
    let load = args.compute.engine.load_options(args.compute.device, args.compute.threads, args.max_running);
    let meter = Arc::new(LedgerMeter(ledger.clone()));
    let loaded = load::start(&found, || Ok(meter), &load, engine)?;
    let running_max = loaded.runtime.info().sequences_max.min(args.max_running);
    // It was read once, so that it can be read.
    found.price()?;
    Ok(ServedModel {
        name: found.name.clone(),
        aliases: found.entry.as_ref().map(|entry| entry.aliases.clone()).unwrap_or_default(),
        runtime: loaded.runtime,
        places: running_max.saturating_add(args.max_waiting),
        sampling: found.sampling_params(),
        loaded: Timestamp::now(),
        price: Box::new(move || found.price().unwrap_or_default()),
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
    let address = listener.local_addr().map_err(|error| Failure::io("cannot tell the address", &error))?;
    let url = format!("http://{address}");
    if format == Format::Json {
        out!("{}", json!({ "url": url, "models": models, "payer": options.payer }));
        return Ok(());
    }
    let payer = options.payer.as_ref().map_or("keys are needed".to_owned(), |payer| format!("{payer} pays"));
    say!("serving {} on {url} ({}); Ctrl-C ends", output::plain(&models.join(", ")), output::plain(&payer));
    Ok(())
}
