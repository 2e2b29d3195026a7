//! Lists the CUDA modules that the crate carries: the committed PTX of `kernels/ptx`, which needs no toolkit, or, with the
//! feature `build-kernels`, machine code that a local nvcc makes of `kernels/*.cu`. For each image the list tells its
//! kernels and the sizes of their parameters, so that launches can be checked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

use flate2::Compression;
use flate2::write::DeflateEncoder;

/// One file that the driver can load, and the PTX that tells of its kernels.
struct Image {
    module: String,
    /// 8.0 as 80.
    target: u32,
    /// Whether it runs on that very target only: `sm_90a`.
    exact: bool,
    file: PathBuf,
    ptx: String,
}

fn main() {
    let kernels = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../kernels");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    let images = if env::var_os("CARGO_FEATURE_BUILD_KERNELS").is_some() {
        println!("cargo::rerun-if-changed={}", kernels.display());
        built(&kernels, &out)
    } else {
        println!("cargo::rerun-if-changed={}", kernels.join("ptx").display());
        committed(&kernels.join("ptx"))
    };
    fs::write(out.join("modules.rs"), list(&images, &out)).expect("OUT_DIR is writable");
}

/// A deflated copy: PTX is text that repeats itself, a fifth is left of it.
fn compressed(file: &Path, out: &Path) -> PathBuf {
    let to = out.join(file.file_name().expect("a file")).with_added_extension("deflate");
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&fs::read(file).expect("readable")).expect("memory");
    fs::write(&to, encoder.finish().expect("memory")).expect("OUT_DIR is writable");
    to
}

fn committed(directory: &Path) -> Vec<Image> {
    let mut images: Vec<Image> = with_extension(directory, "ptx")
        .into_iter()
        .map(|file| {
            let name = file.file_name().expect("a file").to_string_lossy().into_owned();
            let (module, target) = name.trim_end_matches(".ptx").split_once(".sm_").expect("NAME.sm_80.ptx");
            let ptx = fs::read_to_string(&file).expect("PTX is text");
            let (number, exact) = target.strip_suffix('a').map_or((target, false), |number| (number, true));
            let target = number.parse().expect("a target is a number, and perhaps an a");
            Image { module: module.to_owned(), target, exact, file, ptx }
        })
        .collect();
    // What suits fewest devices first.
    images.sort_by(|a, b| (&a.module, b.target, b.exact).cmp(&(&b.module, a.target, a.exact)));
    images
}

/// What `modules.rs` holds: an array of `Module`s, whose types are in `src/cuda/modules.rs`.
fn list(images: &[Image], out: &Path) -> String {
    let mut modules: BTreeMap<&str, Vec<&Image>> = BTreeMap::new();
    for image in images {
        modules.entry(&image.module).or_default().push(image);
    }
    let mut text = String::from("&[\n");
    for (name, images) in modules {
        writeln!(text, "Module {{ name: {name:?}, images: &[").expect("memory");
        for Image { target, exact, file, ptx, .. } in images {
            let (signatures, file) = (signatures(ptx), compressed(file, out));
            writeln!(
                text,
                "Image {{ target: {target}, exact: {exact}, deflated: include_bytes!({file:?}), kernels: &{signatures} }},"
            )
            .expect("memory");
        }
        text.push_str("] },\n");
    }
    text.push(']');
    text
}

/// `[Signature { name: "x", parameter_bytes: &[8, 4] }]` of the entries in a PTX file, which look like
/// `.visible .entry x(` `.param .u64 x_param_0,` `.param .align 8 .b8 x_param_1[24]` `)`.
fn signatures(ptx: &str) -> String {
    let entries = ptx.split(".entry ").skip(1).map(|entry| {
        let (name, rest) = entry.split_once('(').expect("an entry has parameters");
        let parameters = rest.split_once(')').expect("parameters end").0;
        let sizes: Vec<usize> =
            parameters.lines().filter(|line| line.contains(".param")).map(parameter_bytes).collect();
        format!("Signature {{ name: {name:?}, parameter_bytes: &{sizes:?} }}")
    });
    format!("[{}]", entries.collect::<Vec<_>>().join(", "))
}

fn parameter_bytes(line: &str) -> usize {
    if let Some((_, length)) = line.split_once('[') {
        return length.split_once(']').expect("a length").0.parse().expect("a number of bytes");
    }
    let bits = line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(['.']))
        .find_map(|word| word.strip_prefix(['u', 's', 'f', 'b'])?.parse::<usize>().ok());
    bits.expect("a parameter has a type") / 8
}

// --- with a toolkit

const ARCHITECTURES: &str = "80,86,89,90,100,120";

/// One fat binary a file: machine code for the usual architectures, and PTX for later ones. `TOKRUN_CUDA_ARCHS` chooses
/// others: `TOKRUN_CUDA_ARCHS=90`.
fn built(kernels: &Path, out: &Path) -> Vec<Image> {
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "TOKRUN_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let nvcc = nvcc();
    let architectures = env::var("TOKRUN_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let sources = with_extension(kernels, "cu");
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let shares = sources.chunks(sources.len().div_ceil(workers).max(1));
        let build =
            |share: &[PathBuf]| share.iter().map(|source| fat_binary(&nvcc, &architectures, source, out)).collect();
        let workers: Vec<_> = shares.map(|share| scope.spawn(move || -> Vec<Image> { build(share) })).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("nvcc compiles the kernels")).collect()
    })
}

fn fat_binary(nvcc: &Path, architectures: &str, source: &Path, out: &Path) -> Image {
    let module = source.file_stem().expect("a file").to_string_lossy().into_owned();
    let lowest = architectures.split(',').next().expect("at least one");
    let file = out.join(&module).with_extension("fatbin");
    let mut fat = compiler(nvcc, source, &file);
    fat.arg("-fatbin");
    for number in architectures.split(',') {
        fat.arg(format!("-gencode=arch=compute_{number},code=sm_{number}"));
    }
    let newest = architectures.split(',').next_back().expect("at least one");
    fat.arg(format!("-gencode=arch=compute_{newest},code=compute_{newest}"));
    succeed(&mut fat, source);

    let ptx = out.join(&module).with_extension("ptx");
    succeed(compiler(nvcc, source, &ptx).arg("-ptx").arg(format!("-arch=compute_{lowest}")), source);
    let ptx = fs::read_to_string(ptx).expect("nvcc wrote it");
    let target = lowest.trim_end_matches('a').parse().expect("TOKRUN_CUDA_ARCHS are numbers: 80,90");
    Image { module, target, exact: false, file, ptx }
}

/// The options of `cargo xtask kernels`: results are the same whichever way kernels were built.
fn compiler(nvcc: &Path, source: &Path, to: &Path) -> Command {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fmad=false"]).arg(source).arg("-o").arg(to);
    command
}

fn succeed(command: &mut Command, source: &Path) {
    let status = command.status().unwrap_or_else(|error| panic!("{} does not start: {error}", program(command)));
    assert!(status.success(), "{} failed on {}", program(command), source.display());
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let installed = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("bin/nvcc"));
    installed.into_iter().find(|nvcc| nvcc.exists()).unwrap_or_else(|| "nvcc".into())
}

fn with_extension(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}
