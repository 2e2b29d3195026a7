//! One file a command.

mod answer;
mod bench;
mod chat;
mod doctor;
mod events;
mod export;
mod generate;
mod key;
mod ledger;
mod model;
mod price;
mod project;
mod serve;
mod usage;
mod wallet;

use std::path::Path;

use clap::CommandFactory;

pub(crate) use price::{Money, Ratio};

use crate::args::{Cli, Command, Format, WalletCommand};
use crate::failure::{Failure, Status};

/// Runs the command that was asked for.
pub(crate) fn run(cli: Cli) -> Result<Status, Failure> {
    let format = cli.output;
    if !prints(&cli.command, format) {
        let what = "only `bench` prints md and jsonl, only `wallet statement` html, and only these two csv";
        return Err(Failure::new(Status::Usage, "usage", what).hint("use text or json"));
    }
    match cli.command {
        Command::Generate(args) => generate::run(*args, format),
        Command::Chat(args) => chat::run(*args, format),
        Command::Serve(args) => serve::run(&args, format),
        Command::Bench(args) => bench::run(&args, format),
        Command::Model(command) => model::run(command, format),
        Command::Price(command) => price::run(command, format),
        Command::Wallet(command) => wallet::run(command, format),
        Command::Key(command) => key::run(command, format),
        Command::Project(command) => project::run(command, format),
        Command::Usage(args) => usage::run(&args, format),
        Command::Events(args) => events::run(&args, format),
        Command::Ledger(command) => ledger::run(command, format),
        Command::Doctor(args) => doctor::run(&args, format),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tokrun", &mut script);
            let script = String::from_utf8_lossy(&script);
            match format {
                Format::Json => out!("{}", serde_json::json!({ "shell": shell.to_string(), "script": script })),
                _ => out!("{}", script.trim_end()),
            }
            Ok(Status::Done)
        }
        Command::Man { directory } => man(&directory, format),
    }
}

/// Writes a page for each command, `tokrun-wallet-show.1` for example.
fn man(directory: &Path, format: Format) -> Result<Status, Failure> {
    let failed = |error| Failure::io(&format!("cannot write to {}", directory.display()), &error);
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed)?;
    match format {
        Format::Json => out!("{}", serde_json::json!({ "directory": directory })),
        _ => out!("wrote the pages to {0}; read one with `man -l {0}/tokrun.1`", directory.display()),
    }
    Ok(Status::Done)
}

/// Whether a command has a form for this format.
fn prints(command: &Command, format: Format) -> bool {
    match format {
        Format::Text | Format::Json => true,
        Format::Md | Format::Jsonl => is_table(command),
        Format::Csv => is_table(command) || matches!(command, Command::Wallet(WalletCommand::Statement(_))),
        Format::Html => matches!(command, Command::Wallet(WalletCommand::Statement(_))),
    }
}

/// `bench`, but not of a server.
fn is_table(command: &Command) -> bool {
    matches!(command, Command::Bench(args) if args.command.is_none())
}
