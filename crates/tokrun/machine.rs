//! What this machine's processor can do at the moment: virtual machines change their mind about it.

use tokrun_kernels::cpu::{Cpu, CpuOptions};

use crate::failure::{Failure, Status};

/// A pool of threads like that of an engine, to measure with.
pub(crate) struct Probe(Cpu);

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// What all threads together read.
    pub(crate) bytes_per_s: f64,
    /// What it takes them to wait for each other.
    pub(crate) barrier_ns: f64,
}

impl Probe {
    pub(crate) fn new(threads: Option<u16>, pin: bool) -> Result<Self, Failure> {
        let usual = CpuOptions::default();
        let options = CpuOptions { threads: threads.map_or(usual.threads, usize::from), pin, ..usual };
        Cpu::new(options).map(Self).map_err(|error| Failure::new(Status::Failed, "processor", error.to_string()))
    }

    pub(crate) fn threads(&self) -> usize {
        self.0.threads()
    }

    /// The instruction set that the native engine uses.
    pub(crate) fn level(&self) -> &'static str {
        self.0.level().name()
    }

    /// Measures, reading as many bytes again and again, but no more than a gibibyte.
    pub(crate) fn look(&mut self, bytes: u64) -> Result<Moment, Failure> {
        let bytes = usize::try_from(bytes.min(1 << 30)).unwrap_or(1 << 30);
        let bytes_per_s = self.0.read_bandwidth(bytes);
        let bytes_per_s = bytes_per_s.map_err(|error| Failure::new(Status::Failed, "processor", error.to_string()))?;
        Ok(Moment { bytes_per_s, barrier_ns: self.0.barrier_ns() })
    }
}

impl Moment {
    /// The middle of two, taken before and after something.
    pub(crate) fn between(self, other: Self) -> Self {
        Self {
            bytes_per_s: (self.bytes_per_s + other.bytes_per_s) / 2.0,
            barrier_ns: (self.barrier_ns + other.barrier_ns) / 2.0,
        }
    }
}
