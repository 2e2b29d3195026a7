//! `tokrun`: a metered local inference runtime.
//!
//! Data goes to stdout, everything else to stderr. Exit status: 0 done; 1 failure; 2 usage; 3 the allowance ended or refused
//! the request; 4 no such model or wallet; 130 interrupted.

#[macro_use]
mod output;

mod args;
mod commands;
mod failure;
mod home;
mod interrupt;
mod load;
mod machine;
mod progress;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Format};
use crate::failure::{Failure, Status};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return usage(&error);
        }
    };
    let format = cli.output;
    match commands::run(cli) {
        Ok(status) => status.into(),
        Err(failure) => {
            failure.report(format);
            failure.status.into()
        }
    }
}

/// clap's texts already name the remedy; help and version are no failure.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // The flags were not understood, so whether JSON is wanted can only be read off their spelling.
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let wants_json = arguments.iter().any(|argument| argument == "--output=json")
        || arguments.windows(2).any(|pair| pair == ["--output", "json"]);
    if wants_json {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let (message, help) = text.split_once("\n\n").unwrap_or((text, ""));
        Failure::new(Status::Usage, "usage", message.trim()).hint(help.trim()).report(Format::Json);
    } else {
        let _ = error.print();
    }
    Status::Usage.into()
}
