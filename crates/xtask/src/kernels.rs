//! `cargo xtask kernels`: the committed PTX, made of `kernels/*.cu` by a pinned nvcc, and what it needs on each target.

mod assembly;
mod toolchain;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::assembly::{ARCHITECTURES, Image, Usage};
use self::toolchain::Toolchain;
use crate::{files, parallel, root};

/// Targets of a file that names none by a line `// targets: sm_80 sm_90a`. What sm_90 adds is programmatic dependent launch.
const DEFAULT_TARGETS: &[&str] = &["sm_80", "sm_90"];

/// Makes `kernels/ptx` anew, or only the files of these modules. With `check` it changes nothing, and fails where the sources
/// say something else. Either way the assembler has to take all of it for every card, without spilling registers at sm_90.
pub(crate) fn run(check: bool, modules: &[&str]) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let directory = root().join("kernels/ptx");
    let mut sources = files(&root().join("kernels"), "cu")?;
    let is_asked =
        |file: &Path| modules.is_empty() || modules.iter().any(|module| module_of(file).as_deref() == Some(*module));
    sources.retain(|source| is_asked(source));
    if sources.is_empty() {
        bail!("there is no kernels/{}.cu", modules.join(".cu, kernels/"));
    }
    let images: Vec<Image> =
        parallel::map(sources, |source| compile(&toolchain, &source))?.into_iter().flatten().collect();
    let mut committed = files(&directory, "ptx")?;
    committed.retain(|file| is_asked(file));
    if check {
        compare(&images, &directory, committed)?;
    } else {
        write(&images, &directory, committed)?;
    }

    let jobs = ARCHITECTURES.iter().flat_map(|&architecture| assembly::chosen(&images, architecture)).collect();
    let usages = parallel::map(jobs, |(image, architecture)| assembly::assemble(&toolchain, image, architecture))?;
    let usages: Vec<Usage> = usages.into_iter().flatten().collect();
    print!("{}", table(&usages));
    let spilling: Vec<&str> = usages
        .iter()
        .filter(|usage| usage.architecture == 90 && usage.spilled_bytes > 0)
        .map(|usage| &*usage.kernel)
        .collect();
    if !spilling.is_empty() {
        bail!("these kernels spill registers at sm_90: {}", spilling.join(", "));
    }
    Ok(())
}

/// The images of one file: one for each of its targets, but none that only repeats a lower one.
fn compile(toolchain: &Toolchain, source: &Path) -> Result<Vec<Image>> {
    let text = fs::read_to_string(source)?;
    let named = text.lines().find_map(|line| line.strip_prefix("// targets: "));
    let targets = named.map_or(DEFAULT_TARGETS.to_vec(), |named| named.split_whitespace().collect());
    let module = module_of(source).context("a file")?;
    let mut images: Vec<Image> = Vec::new();
    for target in targets {
        let image = Image { module: module.clone(), target: target.to_owned(), ptx: toolchain.ptx(source, target)? };
        if images.iter().all(|lower| lower.body() != image.body()) {
            images.push(assembly::lower_version(toolchain, image)?);
        }
    }
    Ok(images)
}

/// `norm` of `norm.cu` and `norm.sm_80.ptx`.
fn module_of(file: &Path) -> Option<String> {
    Some(file.file_name()?.to_str()?.split('.').next()?.to_owned())
}

// --- the committed files

fn write(images: &[Image], directory: &Path, committed: Vec<PathBuf>) -> Result<()> {
    for stale in committed {
        fs::remove_file(stale)?;
    }
    for image in images {
        fs::write(directory.join(image.file_name()), &image.ptx)?;
    }
    Ok(())
}

fn compare(images: &[Image], directory: &Path, committed: Vec<PathBuf>) -> Result<()> {
    let mut wanted: BTreeMap<PathBuf, &str> =
        images.iter().map(|image| (directory.join(image.file_name()), &*image.ptx)).collect();
    let mut differing = Vec::new();
    for file in committed {
        if wanted.remove(&file).is_none_or(|ptx| fs::read_to_string(&file).ok().as_deref() != Some(ptx)) {
            differing.push(file);
        }
    }
    differing.extend(wanted.into_keys());
    if differing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = differing.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    bail!("kernels/ptx is not what kernels/*.cu say: run `cargo xtask kernels` and commit {}", names.join(", "));
}

// --- the report

/// A line a kernel: registers at each architecture, bytes of static shared memory, bytes that it spills in all.
fn table(usages: &[Usage]) -> String {
    let mut kernels: BTreeMap<(&str, &str), Vec<&Usage>> = BTreeMap::new();
    for usage in usages {
        kernels.entry((&usage.module, &usage.kernel)).or_default().push(usage);
    }
    let numbers = |numbers: Vec<String>| numbers.iter().map(|number| format!("{number:>5}")).collect::<String>();
    let heading = numbers(ARCHITECTURES.iter().map(|architecture| format!("{architecture}")).collect());
    let mut text = format!("{:52}{heading}{:>9}{:>9}\n", "kernel, registers at sm_", "shared", "spilled");
    for ((module, kernel), usages) in kernels {
        let registers = |&architecture: &u32| {
            let usage = usages.iter().find(|usage| usage.architecture == architecture);
            usage.map_or("-".to_owned(), |usage| usage.registers.to_string())
        };
        let registers = numbers(ARCHITECTURES.iter().map(registers).collect());
        let shared = usages.iter().map(|usage| usage.shared_bytes).max().unwrap_or(0);
        let spilled: u32 = usages.iter().map(|usage| usage.spilled_bytes).sum();
        text += &format!("{:52}{registers}{shared:>9}{spilled:>9}\n", format!("{module}::{kernel}"));
    }
    text
}
