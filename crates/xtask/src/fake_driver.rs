//! `cargo xtask fake-driver`: every kernel, compiled for the processor, behind a `libcuda.so.1` for tests; and an NVML.

use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::{files, modified, parallel, root};

/// Builds what changed, and returns the directory to put on `LD_LIBRARY_PATH`. With `sanitize`, the address sanitizer
/// watches: programs that load it need its library preloaded.
pub(crate) fn build(sanitize: bool) -> Result<PathBuf> {
    let kernels = root().join("kernels");
    let directory = root().join(if sanitize { "target/fake-driver-sanitized" } else { "target/fake-driver" });
    let objects = directory.join("objects");
    std::fs::create_dir_all(&objects)?;

    let shim = kernels.join("shim");
    let headers: Vec<PathBuf> = [files(&kernels, "cuh")?, files(&shim, "h")?].concat();
    let newest_header = newest(&headers)?;
    let sources = [files(&kernels, "cu")?, files(&shim, "cpp")?].concat();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let units: Vec<Unit> = sources
        .iter()
        .map(|source| {
            let object = objects.join(source.file_name().expect("a file")).with_added_extension("o");
            let mut command = Command::new(&compiler);
            command.args(flags(sanitize)).arg("-I").arg(&shim);
            if source.extension().is_some_and(|extension| extension == "cu") {
                command.args(["-include", "cuda_shim.h", "-x", "c++"]);
            }
            command.arg("-c").arg(source).arg("-o").arg(&object);
            Unit { source: source.clone(), object, command }
        })
        .collect();

    let (driver, nvml): (Vec<PathBuf>, Vec<PathBuf>) =
        units.iter().map(|unit| unit.object.clone()).partition(|object| !object.ends_with("nvml.cpp.o"));
    let outdated = units.into_iter().filter(|unit| unit.is_outdated(newest_header)).collect();
    parallel::map(outdated, |mut unit: Unit| {
        succeed(&mut unit.command).with_context(|| format!("cannot compile {}", unit.source.display()))
    })?;

    for (library, objects) in [("libcuda.so.1", driver), ("libnvidia-ml.so.1", nvml)] {
        let (library, list) = (directory.join(library), directory.join(format!("{library}.objects")));
        // A kernel that is gone makes no object newer.
        let listed = format!("{objects:?}");
        let same = std::fs::read_to_string(&list).is_ok_and(|before| before == listed);
        if !same || modified(&library) < newest(&objects)? {
            let mut link = Command::new(&compiler);
            link.args(flags(sanitize)).arg("-shared").args(&objects).arg("-o").arg(&library);
            succeed(&mut link)?;
            std::fs::write(&list, listed)?;
        }
    }
    Ok(directory)
}

/// Runs the shim's own tests: what it must compute, and the faults of kernels that it must find.
pub(crate) fn test() -> Result<()> {
    let shim = root().join("kernels/shim");
    let program = root().join("target/shim-tests");
    let mut command = Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned()));
    command.args(flags(false)).arg("-I").arg(&shim);
    command.arg(shim.join("tests/tests.cpp")).arg(shim.join("execution.cpp")).arg("-o").arg(&program);
    succeed(&mut command)?;
    succeed(&mut Command::new(program))
}

struct Unit {
    source: PathBuf,
    object: PathBuf,
    command: Command,
}

impl Unit {
    fn is_outdated(&self, newest_header: SystemTime) -> bool {
        modified(&self.object) < modified(&self.source).max(newest_header)
    }
}

/// No contraction of products and sums: results are the same on every processor. The level is the one that the Rust code
/// is compiled for.
fn flags(sanitize: bool) -> Vec<&'static str> {
    let mut flags = vec!["-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-Wall", "-Wno-unknown-pragmas"];
    if cfg!(target_arch = "x86_64") {
        flags.push("-march=x86-64-v3");
    }
    if sanitize {
        flags.extend(["-g", "-fsanitize=address", "-fno-omit-frame-pointer"]);
    }
    flags
}

fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {program}: install g++, or set CXX"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}

fn newest(files: &[PathBuf]) -> Result<SystemTime> {
    files.iter().map(|file| modified(file)).max().context("no files")
}
