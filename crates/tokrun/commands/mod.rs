//! One file a command.

mod answer;
mod bench;
mod chat;
mod doctor;
mod export;
mod generate;
mod ledger;
mod model;
mod usage;
mod wallet;

use clap::CommandFactory;

pub(crate) use export::CreditValue;

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
        Command::Bench(args) => bench::run(&args, format),
        Command::Model(command) => model::run(command, format),
        Command::Wallet(command) => wallet::run(command, format),
        Command::Usage(args) => usage::run(&args, format),
        Command::Ledger(command) => ledger::run(command, format),
        Command::Doctor(args) => doctor::run(&args, format),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tokrun", &mut script);
            out!("{}", String::from_utf8_lossy(&script).trim_end());
            Ok(Status::Done)
        }
    }
}

/// Whether a command has a form for this format.
fn prints(command: &Command, format: Format) -> bool {
    match format {
        Format::Text | Format::Json => true,
        Format::Md | Format::Jsonl => matches!(command, Command::Bench(_)),
        Format::Csv => matches!(command, Command::Bench(_) | Command::Wallet(WalletCommand::Statement(_))),
        Format::Html => matches!(command, Command::Wallet(WalletCommand::Statement(_))),
    }
}
