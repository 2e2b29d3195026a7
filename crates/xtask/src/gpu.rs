//! `cargo xtask gpu`: one directory with all that it takes to check and measure tokrun on a machine with a card, where there is
//! neither Rust nor a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{fake_driver, root, succeed};

/// So much can be carried anywhere.
const BYTES_MAX: u64 = 60_000_000;
const FIXTURES: &[(&str, &str)] = &[
    ("gguf-llama/f32.gguf", "llama-f32.gguf"),
    ("gguf-llama/q8_0.gguf", "llama.gguf"),
    ("gguf-qwen3/f32.gguf", "qwen3.gguf"),
    ("gguf-qwen3-moe/f32.gguf", "qwen3-moe.gguf"),
    ("gguf-gemma3/f32.gguf", "gemma3.gguf"),
    ("gguf-types/bf16.gguf", "type-bf16.gguf"),
    ("gguf-types/q4_k.gguf", "type-q4_k.gguf"),
    ("gguf-types/q6_k.gguf", "type-q6_k.gguf"),
];

/// Makes `target/gpu`. With `try_it`, of the development profile, which builds sooner; and runs it on the driver for tests.
pub(crate) fn run(try_it: bool) -> Result<()> {
    let directory = root().join("target/gpu");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    for part in ["bin", "fixtures"] {
        fs::create_dir_all(directory.join(part))?;
    }
    for (name, program) in programs(if try_it { "dev" } else { "release" })? {
        pack(&program, &directory.join("bin").join(name).with_added_extension("gz"))?;
    }
    for (from, to) in FIXTURES {
        fs::copy(root().join("tests/fixtures").join(from), directory.join("fixtures").join(to))?;
    }
    for script in ["run.sh", "torch_decode.py"] {
        fs::copy(root().join("kernels/bundle").join(script), directory.join(script))?;
    }
    let bytes = size(&directory)?;
    println!("{}: {:.1} MB", directory.display(), bytes as f64 / 1e6);
    if bytes > BYTES_MAX {
        bail!("that is more than {BYTES_MAX} bytes: leave something out");
    }
    if try_it { try_out(&directory) } else { Ok(()) }
}

/// Runs the bundle on the driver for tests; it must pass, and say so.
fn try_out(directory: &Path) -> Result<()> {
    let (driver, results) = (fake_driver::build(false)?, root().join("target/gpu-results"));
    let mut script = Command::new(directory.join("run.sh"));
    succeed(script.arg(&results).env("LD_LIBRARY_PATH", driver).env("TOKRUN_GPU_TINY", "1"))?;
    let text = fs::read_to_string(results.join("results.json"))?;
    for wanted in [r#""agrees":true"#, r#""op":"linear""#, r#""op":"attention""#, r#""n_gen":4"#] {
        if !text.contains(wanted) {
            bail!("{} says nothing of {wanted}", results.join("results.json").display());
        }
    }
    Ok(())
}

/// The programs of the bundle, built; each with its name there. One call builds all, with the features that tests have.
fn programs(profile: &str) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "test",
        "--workspace",
        "--no-run",
        "--profile",
        profile,
        "--message-format",
        "json-render-diagnostics",
    ]);
    cargo.args(["--test", "it", "--test", "cuda", "--example", "cards", "--example", "agreement"]);
    let output = cargo.current_dir(root()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("the programs cannot be built: {}", output.status);
    }
    let messages = String::from_utf8(output.stdout)?;
    let built = |kind: &str, name: &str| -> Result<PathBuf> {
        let target = format!(r#""kind":["{kind}"],"crate_types":["bin"],"name":"{name}""#);
        let program = messages.lines().filter(|line| line.contains(&target)).find_map(|line| {
            let (_, rest) = line.split_once(r#""executable":""#)?;
            Some(rest.split_once('"')?.0)
        });
        program.map(PathBuf::from).with_context(|| format!("cargo built no {name}"))
    };
    Ok(vec![
        ("tokrun", built("bin", "tokrun")?),
        ("kernels", built("test", "cuda")?),
        ("cards", built("example", "cards")?),
        ("agreement", built("example", "agreement")?),
    ])
}

/// Strips and compresses a program.
fn pack(program: &Path, to: &Path) -> Result<()> {
    let stripped = to.with_extension("");
    succeed(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    succeed(Command::new("gzip").arg("--force").arg(&stripped))
}

fn size(path: &Path) -> Result<u64> {
    if path.is_file() {
        return Ok(path.metadata()?.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}
