//! Developer tasks. `cargo xtask ci` says the same words as the continuous integration.
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "it talks to a terminal")]

mod fake_driver;
mod gpu;
mod kernels;
mod parallel;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

const HELP: &str = "\
cargo xtask ci                        rustfmt, clippy and every test, as the continuous integration runs them
cargo xtask fake-driver [--sanitize | --test]
                                      build a CUDA driver that runs the kernels on the processor, for tests; prints its
                                      directory: LD_LIBRARY_PATH=$(cargo xtask fake-driver) cargo test;
                                      --sanitize: with the address sanitizer; --test: test the driver itself
cargo xtask kernels [--check] [NAME...]
                                      make kernels/ptx anew, or fail if it is not what kernels/*.cu say, of all files or of these;
                                      shows what each kernel takes on each card (needs python3; installs the compiler into
                                      target/cuda-venv)
cargo xtask gpu [--try]               make target/gpu, which checks and measures tokrun on a machine with a card: target/gpu/run.sh;
                                      --try: of the development profile, and run it once on the driver for tests
cargo xtask fixtures                  make tests/fixtures anew (needs python3; installs the pinned packages into target/fixtures-venv)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["ci"] => ci(),
        ["fake-driver"] => fake_driver(false),
        ["fake-driver", "--sanitize"] => fake_driver(true),
        ["fake-driver", "--test"] => fake_driver::test(),
        ["kernels", "--check", ref modules @ ..] => kernels::run(true, modules),
        ["kernels", ref modules @ ..] => kernels::run(false, modules),
        ["gpu"] => gpu::run(false),
        ["gpu", "--try"] => gpu::run(true),
        ["fixtures"] => fixtures(),
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
    run("cargo", &["test"])?;
    kernels::run(true, &[])?;
    fake_driver::test()?;
    let driver = fake_driver::build(false)?;
    // The tests of whatever crate that say so in their names, and all of the backend's.
    for arguments in [&["test", "--lib", "--tests", "cuda"][..], &["test", "--test", "cuda"]] {
        let mut tests = Command::new("cargo");
        succeed(tests.args(arguments).env("LD_LIBRARY_PATH", &driver).env("TOKRUN_REQUIRE_CUDA", "1"))?;
    }
    Ok(())
}

fn fake_driver(sanitize: bool) -> Result<()> {
    println!("{}", fake_driver::build(sanitize)?.display());
    Ok(())
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
    succeed(Command::new(program).args(arguments))
}

/// Runs a command in the root of the project, and says so.
fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    let line = format!("{program} {}", arguments.join(" "));
    eprintln!("+ {line}");
    let status = command.current_dir(root()).status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{line} failed: {status}");
    }
    Ok(())
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("crates/xtask is two below the root").to_owned()
}

/// The files of a directory with this extension, by name.
fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    Ok(files)
}

/// When a file was written; the beginning of time where there is none.
fn modified(file: &Path) -> SystemTime {
    std::fs::metadata(file).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}
