//! PTX images, and what the assembler makes of them.

use anyhow::{Context, Result, bail};

use super::toolchain::Toolchain;

/// The cards that are served: A100, RTX 30, RTX 40 and L4, H100 and H200, B200, RTX 50.
pub(crate) const ARCHITECTURES: &[u32] = &[80, 86, 89, 90, 100, 120];

/// PTX versions that came with something kernels use, and the CUDA whose driver first read them: 11.0, 11.4, 11.8, 12.0, 12.4,
/// 12.9, 13.0.
const VERSIONS: &[(u32, u32)] = &[(7, 0), (7, 4), (7, 8), (8, 0), (8, 4), (8, 8), (9, 0)];

/// One file of `kernels/ptx`.
pub(crate) struct Image {
    pub(crate) module: String,
    /// `sm_80`, `sm_90a`
    pub(crate) target: String,
    pub(crate) ptx: String,
}

/// What one kernel takes on one architecture.
pub(crate) struct Usage {
    pub(crate) module: String,
    pub(crate) kernel: String,
    pub(crate) architecture: u32,
    pub(crate) registers: u32,
    pub(crate) shared_bytes: u32,
    /// Stores and loads.
    pub(crate) spilled_bytes: u32,
}

impl Image {
    pub(crate) fn file_name(&self) -> String {
        format!("{}.{}.ptx", self.module, self.target)
    }

    /// Without what names version and target.
    pub(crate) fn body(&self) -> String {
        let lines = self.ptx.lines().filter(|line| !line.starts_with(".version") && !line.starts_with(".target"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The architecture number, and whether it runs on that one only.
    fn target(&self) -> Result<(u32, bool)> {
        let name = self.target.strip_prefix("sm_").context("a target is named sm_80 or sm_90a")?;
        let number = name.trim_end_matches('a').parse().with_context(|| format!("no target: {}", self.target))?;
        Ok((number, name.ends_with('a')))
    }
}

/// Declares the lowest PTX version that the code gets by with: a driver refuses whatever declares a newer one than its own.
pub(crate) fn lower_version(toolchain: &Toolchain, image: Image) -> Result<Image> {
    let (before, after) = image.ptx.split_once("\n.version ").context("PTX names its version")?;
    let (_, after) = after.split_once('\n').context("PTX has more than a version")?;
    for &(major, minor) in VERSIONS {
        let ptx = format!("{before}\n.version {major}.{minor}\n{after}");
        if toolchain.takes(&ptx, (major, minor), &image.module, &image.target)? {
            return Ok(Image { ptx, ..image });
        }
    }
    let reason = toolchain.assemble(&image.ptx, &image.module, &image.target).err();
    bail!("ptxas takes {} in no version: {}", image.file_name(), reason.unwrap_or_else(|| anyhow::anyhow!("")));
}

/// The image of each module that a device loads, by the rule of `tokrun-kernels/src/cuda/modules.rs`.
pub(crate) fn chosen(images: &[Image], architecture: u32) -> Vec<(&Image, u32)> {
    let mut modules: Vec<&str> = images.iter().map(|image| &*image.module).collect();
    modules.dedup();
    let fits = |image: &&Image| {
        image.target().is_ok_and(|(number, exact)| if exact { number == architecture } else { number <= architecture })
    };
    let best = |module: &str| {
        let images = images.iter().filter(|image| image.module == module).filter(fits);
        images.max_by_key(|image| image.target().unwrap_or_default()).map(|image| (image, architecture))
    };
    modules.into_iter().filter_map(best).collect()
}

/// Assembles an image for an architecture, as its driver will.
pub(crate) fn assemble(toolchain: &Toolchain, image: &Image, architecture: u32) -> Result<Vec<Usage>> {
    let target = if image.target()?.1 { image.target.clone() } else { format!("sm_{architecture}") };
    let said = toolchain.assemble(&image.ptx, &image.module, &target)?;
    let mut usages = Vec::new();
    let mut kernel = None;
    let mut spilled_bytes = 0;
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next();
        } else if line.contains("bytes spill stores") {
            spilled_bytes = number_before(line, "bytes spill stores") + number_before(line, "bytes spill loads");
        } else if line.contains("Used ") {
            usages.push(Usage {
                module: image.module.clone(),
                kernel: kernel.take().context("ptxas names the kernel first")?.to_owned(),
                architecture,
                registers: number_before(line, "registers"),
                shared_bytes: number_before(line, "bytes smem"),
                spilled_bytes,
            });
        }
    }
    Ok(usages)
}

/// The number before some words; 0 where they do not occur.
fn number_before(line: &str, words: &str) -> u32 {
    let number = line.split_once(words).and_then(|(before, _)| before.split_whitespace().next_back());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
