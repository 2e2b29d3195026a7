//! nvcc, and the assemblers that stand for drivers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{root, run};

/// What writes the committed PTX.
const NVCC_VERSION: &str = "V13.0.88";
/// Older assemblers: what they take, drivers of their age take. The newest PTX version they know, and the pip package.
const OLDER: [((u32, u32), &str); 2] = [((8, 0), "12.0.140"), ((8, 8), "12.9.86")];

pub(crate) struct Toolchain {
    nvcc: PathBuf,
    ptxas: PathBuf,
    older_ptxas: Vec<((u32, u32), PathBuf)>,
    scratch: PathBuf,
}

impl Toolchain {
    /// The toolkit at `CUDA_HOME` where it is the pinned one; else that of the pip packages, which are installed into
    /// `target/cuda-venv`.
    pub(crate) fn find() -> Result<Self> {
        let venv = root().join("target/cuda-venv");
        let toolkit = match installed().filter(|toolkit| is_pinned(toolkit)) {
            Some(toolkit) => toolkit,
            None => from_pip(&venv)?,
        };
        let older = |(version, package): ((u32, u32), &str)| Ok((version, older_ptxas(&venv, package)?));
        let older_ptxas = OLDER.into_iter().map(older).collect::<Result<_>>()?;
        let scratch = root().join("target/kernels");
        fs::create_dir_all(&scratch)?;
        Ok(Self { nvcc: toolkit.join("bin/nvcc"), ptxas: toolkit.join("bin/ptxas"), older_ptxas, scratch })
    }

    /// A source compiled for a target: `sm_80`. Without contraction of products and sums, so that a result does not depend on
    /// how the compiler arranged one variant of a kernel; `fmaf` is a fused one where it is written.
    pub(crate) fn ptx(&self, source: &Path, target: &str) -> Result<String> {
        let file = self.scratch_file(source, target, "ptx");
        let architecture = target.replace("sm_", "compute_");
        let mut nvcc = Command::new(&self.nvcc);
        nvcc.args(["-std=c++17", "-O3", "-fmad=false", "-ptx", "-arch"])
            .arg(architecture)
            .arg(source)
            .arg("-o")
            .arg(&file);
        let output = nvcc.output().with_context(|| format!("cannot run {}", self.nvcc.display()))?;
        if !output.status.success() {
            bail!("nvcc failed on {}:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
        }
        fs::read_to_string(file).context("nvcc wrote no PTX")
    }

    /// What the assembler says of some PTX for an architecture, with full optimisation.
    pub(crate) fn assemble(&self, ptx: &str, name: &str, architecture: &str) -> Result<String> {
        let output = self.run_ptxas(&self.ptxas, ptx, name, architecture, &["-v"])?;
        output.map_err(|refusal| anyhow::anyhow!("ptxas refuses {name} for {architecture}:\n{refusal}"))
    }

    /// Whether the assembler takes some PTX, and so does one of the age of its version.
    pub(crate) fn takes(&self, ptx: &str, version: (u32, u32), name: &str, target: &str) -> Result<bool> {
        let older = self.older_ptxas.iter().find(|(newest, _)| version <= *newest).map(|(_, ptxas)| ptxas);
        for ptxas in std::iter::once(&self.ptxas).chain(older) {
            if self.run_ptxas(ptxas, ptx, name, target, &["-O0"])?.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What it says; as the error where it refuses.
    fn run_ptxas(
        &self,
        ptxas: &Path,
        ptx: &str,
        name: &str,
        architecture: &str,
        options: &[&str],
    ) -> Result<std::result::Result<String, String>> {
        let input = self.scratch_file(Path::new(name), architecture, "in.ptx");
        fs::write(&input, ptx)?;
        let cubin = input.with_extension("cubin");
        let mut command = Command::new(ptxas);
        command.args(options).arg(format!("-arch={architecture}")).arg(&input).arg("-o").arg(cubin);
        let output = command.output().with_context(|| format!("cannot run {}", ptxas.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(if output.status.success() { Ok(said) } else { Err(said) })
    }

    fn scratch_file(&self, of: &Path, target: &str, extension: &str) -> PathBuf {
        let stem = of.file_stem().unwrap_or_default().to_string_lossy();
        self.scratch.join(format!("{stem}.{target}.{extension}"))
    }
}

fn installed() -> Option<PathBuf> {
    ["CUDA_HOME", "CUDA_PATH"].into_iter().find_map(std::env::var_os).map(PathBuf::from)
}

fn is_pinned(toolkit: &Path) -> bool {
    let version = Command::new(toolkit.join("bin/nvcc")).arg("--version").stderr(Stdio::null()).output();
    version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(NVCC_VERSION))
}

fn from_pip(venv: &Path) -> Result<PathBuf> {
    if let Some(toolkit) = toolkit_in(venv).filter(|toolkit| is_pinned(toolkit)) {
        return Ok(toolkit);
    }
    pip(venv, &["-r", "crates/xtask/kernels/requirements.txt"])?;
    toolkit_in(venv).context("the pip packages brought no nvcc")
}

fn toolkit_in(venv: &Path) -> Option<PathBuf> {
    let pythons = fs::read_dir(venv.join("lib")).ok()?;
    let toolkits = pythons.filter_map(|python| Some(python.ok()?.path().join("site-packages/nvidia/cu13")));
    toolkits.into_iter().find(|toolkit| toolkit.join("bin/nvcc").exists())
}

fn older_ptxas(venv: &Path, version: &str) -> Result<PathBuf> {
    let directory = venv.join(format!("ptxas-{version}"));
    let ptxas = directory.join("nvidia/cuda_nvcc/bin/ptxas");
    if !ptxas.exists() {
        let target = directory.to_str().context("the path of the project is no UTF-8")?;
        pip(venv, &["--target", target, &format!("nvidia-cuda-nvcc-cu12=={version}")])?;
    }
    Ok(ptxas)
}

fn pip(venv: &Path, arguments: &[&str]) -> Result<()> {
    let python = venv.join("bin/python");
    let (venv, python) = (venv.to_str(), python.to_str());
    let (venv, python) = venv.zip(python).context("the path of the project is no UTF-8")?;
    if !Path::new(python).exists() {
        run("python3", &["-m", "venv", venv])?;
    }
    run(python, &[&["-m", "pip", "install", "--quiet", "--no-deps"], arguments].concat())
}
