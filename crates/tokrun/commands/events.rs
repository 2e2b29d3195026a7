//! `tokrun events`: what somebody should hear of, shown or delivered.
//!
//! Delivering is this command's work alone, so that nothing that is paid waits for it. What has arrived is kept in the
//! ledger: each event arrives at least once, under the same id, whoever delivers it and however often that one dies.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokrun_ledger::{EventView, Ledger};

use super::answer;
use crate::args::{EventsArgs, Format};
use crate::failure::{Failure, Status};
use crate::output;

/// How soon what is new is noticed.
const POLL: Duration = Duration::from_millis(500);

/// A receiver that takes longer is asked again later.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &EventsArgs, format: Format) -> Result<Status, Failure> {
    match sink(args) {
        Some(sink) => deliver(args, &sink, format),
        None => show(args, format),
    }
}

fn show(args: &EventsArgs, format: Format) -> Result<Status, Failure> {
    let ledger = answer::ledger_to_read()?;
    let mut events = ledger.events(args.since, 0)?;
    if !args.follow && format == Format::Json {
        out!("{}", Value::from_iter(events.iter().map(json_event)));
        return Ok(Status::Done);
    }
    let mut last = 0;
    loop {
        for event in &events {
            last = event.number;
            line(event, format);
        }
        if !args.follow {
            return Ok(Status::Done);
        }
        thread::sleep(POLL);
        events = ledger.events(args.since, last)?;
    }
}

fn line(event: &EventView, format: Format) {
    match format {
        Format::Json => out!("{}", json_event(event)),
        _ => out!("{}  {}", event.created, output::plain(&in_words(event))),
    }
}

/// `80 % of 1000 tokens a day of wallet ada`.
fn in_words(event: &EventView) -> String {
    let data = &event.data;
    let asked = &data["request"];
    if let Some(state) = asked["state"].as_str() {
        let wallet = data["wallet"].as_str().unwrap_or("a wallet");
        let amount = &asked["amount"];
        return match state {
            "open" => format!("{wallet} asks for {amount} credits: {}", asked["id"].as_str().unwrap_or_default()),
            "approved" => format!("{wallet} is given {} of {amount} credits", asked["given"]),
            _ => format!("{wallet} is denied {amount} credits"),
        };
    }
    let percent = &data["percent"];
    match data["limit"]["what"].as_str() {
        Some(what) => format!("{percent} % of {what}"),
        None => {
            let wallet = data["wallet"].as_str().unwrap_or("a wallet");
            format!("{percent} % of what {wallet} is given for this period, {} credits", data["grant"]["amount"])
        }
    }
}

fn json_event(event: &EventView) -> Value {
    json!({ "id": event.id, "kind": event.kind, "created": event.created, "data": event.data })
}

/// Where events go.
enum Sink {
    Webhook(String),
    Command(String),
}

fn sink(args: &EventsArgs) -> Option<Sink> {
    let webhook = args.webhook.clone().map(Sink::Webhook);
    webhook.or_else(|| args.command.clone().map(Sink::Command))
}

/// Tries each event that is due; one that fails keeps no other from being tried.
fn deliver(args: &EventsArgs, sink: &Sink, format: Format) -> Result<Status, Failure> {
    let ledger = answer::ledger()?;
    let (mut arrived, mut failed) = (0_usize, 0_usize);
    loop {
        for event in ledger.events_due(&sink.name(), args.since)? {
            match attempt(&ledger, sink, &event)? {
                None => {
                    arrived += 1;
                    if args.follow {
                        line(&event, format);
                    }
                }
                Some(reason) => {
                    failed += 1;
                    say!("event {} has not arrived, and is sent again later: {}", event.id, output::plain(&reason));
                }
            }
        }
        if !args.follow {
            break;
        }
        thread::sleep(POLL);
    }
    match format {
        Format::Json => out!("{}", json!({ "arrived": arrived, "failed": failed })),
        _ => out!("{arrived} arrived, {failed} did not"),
    }
    Ok(if failed == 0 { Status::Done } else { Status::Failed })
}

/// Why an event has not arrived, if it has not; kept in the ledger either way.
fn attempt(ledger: &Ledger, sink: &Sink, event: &EventView) -> Result<Option<String>, Failure> {
    let outcome = sink.send(&json_event(event).to_string());
    ledger.event_attempted(&sink.name(), &event.id, outcome.is_ok())?;
    Ok(outcome.err())
}

impl Sink {
    fn name(&self) -> String {
        match self {
            Sink::Webhook(url) => format!("webhook {url}"),
            Sink::Command(program) => format!("command {program}"),
        }
    }

    fn send(&self, body: &str) -> Result<(), String> {
        match self {
            Sink::Webhook(url) => {
                let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().new_agent();
                let posted = agent.post(url).header("content-type", "application/json").send(body);
                posted.map(drop).map_err(|error| error.to_string())
            }
            Sink::Command(program) => run_program(program, body).map_err(|error| format!("{program}: {error}")),
        }
    }
}

/// Its output goes to stderr, which is for people.
fn run_program(program: &str, body: &str) -> Result<(), String> {
    let started = Command::new(program).stdin(Stdio::piped()).stdout(std::io::stderr()).spawn();
    let mut child = started.map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input may still succeed.
        let _ = stdin.write_all(body.as_bytes());
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}
