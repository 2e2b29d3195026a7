//! Developer tasks. `cargo xtask ci` says the same words as the continuous integration.
#![expect(clippy::print_stderr, reason = "it talks to a terminal")]

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const HELP: &str = "\
cargo xtask ci         rustfmt, clippy and every test, as the continuous integration runs them
cargo xtask fixtures   make tests/fixtures anew (needs python3; installs the pinned packages into target/fixtures-venv)";

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    let done = match task.as_deref() {
        Some("ci") => ci(),
        Some("fixtures") => fixtures(),
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ci() -> Result<()> {
    run("cargo", &["fmt", "--all", "--check"])?;
    run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    run("cargo", &["test"])
}

fn fixtures() -> Result<()> {
    let venv = "target/fixtures-venv";
    let python = format!("{venv}/bin/python");
    if !std::path::Path::new(&python).exists() {
        run("python3", &["-m", "venv", venv])?;
    }
    run(&python, &["-m", "pip", "install", "--quiet", "-r", "crates/xtask/fixtures/requirements.txt"])?;
    run(&python, &["crates/xtask/fixtures/make_fixtures.py"])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    eprintln!("+ {program} {}", arguments.join(" "));
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}
