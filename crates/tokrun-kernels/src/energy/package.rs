//! The energy counters of processors, as Linux shows them: `intel-rapl:0` is a package, `intel-rapl:0:0` a part of it, and
//! AMD's have the same names. Each counts microjoules up to a limit of its own and then begins anew.

use std::fs;
use std::path::{Path, PathBuf};

pub(super) struct Packages(Vec<Counter>);

struct Counter {
    file: PathBuf,
    /// Where it begins anew.
    range_uj: u64,
    last_uj: u64,
    total_uj: u64,
}

impl Packages {
    /// Of a directory like `/sys/class/powercap`. `None` where it has no counter that can be read.
    pub(super) fn open(directory: &Path) -> Option<Self> {
        let entries = fs::read_dir(directory).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let counters: Vec<Counter> =
            entries.filter(|zone| counts(zone)).filter_map(|zone| Counter::open(&zone)).collect();
        (!counters.is_empty()).then_some(Self(counters))
    }

    /// Of all packages, since they were opened.
    pub(super) fn read_uj(&mut self) -> Option<f64> {
        self.0.iter_mut().map(Counter::read_uj).sum::<Option<u64>>().map(|total| total as f64)
    }
}

/// Packages, and memory, which packages do not include. Not their other parts, nor the whole platform, nor the same
/// counters again by another way (`intel-rapl-mmio`).
fn counts(zone: &Path) -> bool {
    let name = zone.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Ok(label) = fs::read_to_string(zone.join("name")) else { return false };
    name.starts_with("intel-rapl:") && (label.starts_with("package") || label.trim() == "dram")
}

impl Counter {
    fn open(zone: &Path) -> Option<Self> {
        let file = zone.join("energy_uj");
        let range_uj = number(&zone.join("max_energy_range_uj"))?;
        let last_uj = number(&file)?;
        Some(Self { file, range_uj, last_uj, total_uj: 0 })
    }

    fn read_uj(&mut self) -> Option<u64> {
        let now = number(&self.file)?;
        self.total_uj += if now >= self.last_uj { now - self.last_uj } else { self.range_uj - self.last_uj + now };
        self.last_uj = now;
        Some(self.total_uj)
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(directory: &Path, name: &str, label: &str, energy: &str) -> PathBuf {
        let zone = directory.join(name);
        fs::create_dir_all(&zone).unwrap();
        fs::write(zone.join("name"), format!("{label}\n")).unwrap();
        fs::write(zone.join("max_energy_range_uj"), "1000\n").unwrap();
        fs::write(zone.join("energy_uj"), energy).unwrap();
        zone.join("energy_uj")
    }

    #[test]
    fn packages_and_memory_are_added_up_across_the_end_of_their_range() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Packages::open(directory.path()).is_none());
        let first = zone(directory.path(), "intel-rapl:0", "package-0", "900\n");
        let memory = zone(directory.path(), "intel-rapl:0:1", "dram", "5\n");
        let core = zone(directory.path(), "intel-rapl:0:0", "core", "1\n");
        let again = zone(directory.path(), "intel-rapl-mmio:0", "package-0", "1\n");
        let mut packages = Packages::open(directory.path()).unwrap();
        assert_eq!(packages.read_uj(), Some(0.0));
        fs::write(&first, "40\n").unwrap();
        fs::write(&memory, "12\n").unwrap();
        fs::write(core, "500\n").unwrap();
        fs::write(again, "500\n").unwrap();
        assert_eq!(packages.read_uj(), Some(140.0 + 7.0));
        fs::write(&first, "41\n").unwrap();
        assert_eq!(packages.read_uj(), Some(148.0));
        fs::remove_file(&first).unwrap();
        assert_eq!(packages.read_uj(), None, "a counter that cannot be read any more");
    }
}
