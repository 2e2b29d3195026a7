//! The energy that a device has used, where the machine tells: a card's own counter, or else its power, through NVML; the
//! counters of processor packages on Linux, where they may be read. Elsewhere there is no meter, and no figure.

mod gauge;
mod package;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use nvml_wrapper::{Device, Nvml};

use self::gauge::Gauge;
use self::package::Packages;
use crate::cuda;

/// Counts the energy of one device since it was opened.
pub struct EnergyMeter {
    source: Source,
    gauge: Gauge,
}

enum Source {
    /// A card that counts.
    Counter(Device<'static>),
    /// A card that tells its power only: energy is power times time.
    Power {
        card: Device<'static>,
        total_uj: f64,
        at: Option<Instant>,
    },
    Packages(Packages),
}

impl EnergyMeter {
    /// Of a card, by its number for CUDA. `None` without NVML, or where it tells nothing of the card.
    pub fn cuda(ordinal: usize) -> Option<Self> {
        let card = nvml()?.device_by_pci_bus_id(cuda::pci_bus_id(ordinal)?).ok()?;
        let source = if card.total_energy_consumption().is_ok() {
            Source::Counter(card)
        } else {
            card.power_usage().ok()?;
            Source::Power { card, total_uj: 0.0, at: None }
        };
        Some(Self::of(source, gauge::CARD_TICK))
    }

    /// Of all processor packages, memory included where it is counted apart. `None` where the counters are not there or
    /// not readable: since 2020 Linux lets only the superuser read them.
    pub fn cpu() -> Option<Self> {
        let packages = Packages::open(Path::new("/sys/class/powercap"))?;
        Some(Self::of(Source::Packages(packages), gauge::PACKAGE_TICK))
    }

    fn of(source: Source, tick: std::time::Duration) -> Self {
        let mut meter = Self { source, gauge: Gauge::new(tick) };
        meter.total_uj();
        meter
    }

    /// Microjoules since the meter was opened; never less than before. Counters tick a few times a second: between ticks
    /// it goes on with the power of the last one. Costs next to nothing between ticks, and at most half a percent of the
    /// time in all.
    pub fn total_uj(&mut self) -> u64 {
        let Self { source, gauge } = self;
        gauge.at(Instant::now(), |now| source.read_uj(now))
    }

    /// Watts, on average over the last tick; `None` before the second one.
    pub fn power_w(&mut self) -> Option<f64> {
        self.total_uj();
        self.gauge.power_w()
    }
}

impl Source {
    /// Microjoules since some time in the past.
    fn read_uj(&mut self, now: Instant) -> Option<f64> {
        match self {
            Self::Counter(card) => card.total_energy_consumption().ok().map(|mj| mj as f64 * 1e3),
            Self::Power { card, total_uj, at } => {
                let power_mw = f64::from(card.power_usage().ok()?);
                let before = at.replace(now).unwrap_or(now);
                *total_uj += power_mw * 1e3 * (now - before).as_secs_f64();
                Some(*total_uj)
            }
            Self::Packages(packages) => packages.read_uj(),
        }
    }
}

/// The library, opened once; its cards refer to it.
fn nvml() -> Option<&'static Nvml> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    NVML.get_or_init(|| Nvml::init().ok()).as_ref()
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    /// The NVML for tests counts 300 W.
    #[test]
    fn a_cuda_card_counts_its_energy() {
        let Some(device) = cuda::testing::device() else { return };
        let ordinal = device.facts().ordinal;
        let Some(mut meter) = EnergyMeter::cuda(ordinal) else {
            assert!(device.facts().name != "CPU shim", "the driver for tests has an NVML");
            return;
        };
        assert_eq!(meter.power_w(), None);
        sleep(Duration::from_millis(300));
        let joules = meter.total_uj() as f64 / 1e6;
        let power = meter.power_w().expect("it has ticked");
        if device.facts().name == "CPU shim" {
            // Wide enough for a machine that is busy between reading the clock and reading the counter, and far from
            // what a wrong unit would give.
            assert!((30.0..3_000.0).contains(&power), "{power} W");
            assert!((9.0..9_000.0).contains(&joules), "{joules} J in at least 0.3 s");
        } else {
            assert!(power > 1.0 && joules > 0.1, "{power} W, {joules} J");
        }
    }

    #[test]
    fn there_is_no_meter_for_a_card_that_is_not_there() {
        assert!(EnergyMeter::cuda(63).is_none());
    }

    #[test]
    fn the_processors_meter_never_runs_backwards() {
        let Some(mut meter) = EnergyMeter::cpu() else { return };
        let first = meter.total_uj();
        sleep(Duration::from_millis(20));
        assert!(meter.total_uj() >= first);
    }
}
