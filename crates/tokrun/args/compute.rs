//! Where and how models are computed.

use clap::{Args, ValueEnum};
use tokrun_engine::EngineOptions;
use tokrun_model::{BackendChoice, KvType, LoadOptions, Processor};

#[derive(Debug, Args)]
#[command(next_help_heading = "Computing")]
pub(crate) struct ComputeArgs {
    /// Where to compute.
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value = "auto", value_parser = Device::parse)]
    pub(crate) device: Device,
    /// Processor threads; all cores if absent.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Take one token a step, and do not draft what the text so far suggests. The text is the same.
    #[arg(long)]
    pub(crate) no_speculation: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// What everything that loads a model shares.
#[derive(Debug, Args)]
#[command(next_help_heading = "Computing")]
pub(crate) struct EngineArgs {
    /// What computes: `auto` is the native engine, and candle for models that it does not know.
    #[arg(long, value_enum, value_name = "auto|native|candle", default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,
    /// Longest sequence, prompt and answer together, in tokens; what the model allows if absent.
    #[arg(long, short = 'c', visible_alias = "ctx-size", value_name = "N", value_parser = positive)]
    pub(crate) context: Option<usize>,
    /// Memory for keys and values at most: 512M, 2GiB, 1.5GB.
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    pub(crate) kv_cache_bytes: Option<u64>,
    /// How keys and values are stored; f16 if absent, f32 where the weights are.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) kv_type: Option<KvStorage>,
    /// Round weights of 16-bit and 32-bit floats as they are loaded: half the bytes of bf16 for a little accuracy. Embeddings,
    /// the output matrix and routers stay as they are. (The CPU computes the same numbers, but keeps them as f32.)
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) dtype: Option<WeightStorage>,
    /// Compute every prompt anew, even where it begins as another did.
    #[arg(long)]
    pub(crate) no_prefix_cache: bool,
    /// Two runs give the same text, whatever else is computed beside them: without --seed, the seed is 0, and sums on a GPU
    /// keep one order, at a price in speed. (On the CPU they always do.)
    #[arg(long)]
    pub(crate) deterministic: bool,
    /// Keep each thread on one core.
    #[arg(long)]
    pub(crate) pin: bool,
}

impl ComputeArgs {
    pub(crate) fn load_options(&self) -> LoadOptions {
        self.engine.load_options(self.device, self.threads, 1)
    }

    pub(crate) fn engine_options(&self) -> EngineOptions {
        EngineOptions { speculation: !self.no_speculation, ..self.engine.engine_options(1) }
    }
}

impl EngineArgs {
    /// How to serve at most `sequences_max` sequences at once.
    pub(crate) fn engine_options(&self, sequences_max: usize) -> EngineOptions {
        EngineOptions {
            sequences_max: Some(sequences_max),
            prefix_cache: !self.no_prefix_cache,
            ..EngineOptions::default()
        }
    }

    /// How to load onto a device for at most `sequences_max` sequences at once.
    pub(crate) fn load_options(&self, device: Device, threads: Option<u16>, sequences_max: usize) -> LoadOptions {
        LoadOptions {
            backend: match self.backend {
                Backend::Auto => BackendChoice::Auto,
                Backend::Native => BackendChoice::Native,
                Backend::Candle => BackendChoice::Candle,
            },
            processor: device.processor(),
            sequences_max: Some(sequences_max),
            context_tokens: self.context,
            threads: threads.map(usize::from),
            pin: self.pin,
            fp8: self.dtype == Some(WeightStorage::Fp8),
            deterministic: self.deterministic,
            kv_cache_bytes: self.kv_cache_bytes,
            kv_type: self.kv_type.map(KvStorage::kv_type),
            ..LoadOptions::default()
        }
    }
}

/// Which executor computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    Auto,
    Native,
    Candle,
}

/// What weights are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightStorage {
    Fp8,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvStorage {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl KvStorage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    fn kv_type(self) -> KvType {
        match self {
            Self::F32 => KvType::F32,
            Self::F16 => KvType::F16,
            Self::Bf16 => KvType::BF16,
            Self::Q8_0 => KvType::Q8_0,
        }
    }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device.
    Cuda(usize),
}

impl Device {
    pub(crate) fn processor(self) -> Processor {
        match self {
            Self::Auto => Processor::Auto,
            Self::Cpu => Processor::Cpu,
            Self::Cuda(ordinal) => Processor::Cuda(ordinal),
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", ordinal)) => {
                ordinal.parse().map(Self::Cuda).map_err(|_| format!("`{ordinal}` is no device number"))
            }
            _ => Err("expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// A whole number from 1 on.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("expected a whole number".to_owned()),
    }
}

/// Bytes: a number alone, or with a unit. `K`, `M`, `G`, `T` and `KiB` ... count in 1024, `kB`, `MB` ... in 1000.
pub(super) fn size_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (letter, base) = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')) {
        Some(letter) if unit.ends_with("ib") || letter.is_empty() => (letter, 1024_f64),
        Some(letter) => (letter, 1000.0),
        None => (unit.as_str(), 1024.0),
    };
    let expected = || "expected bytes, such as 512M, 2GiB or 1.5GB".to_owned();
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == letter).ok_or_else(expected)?;
    let number: f64 = number.parse().map_err(|_| expected())?;
    let bytes = (number * base.powi(power as i32)).round();
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(expected()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let cases = [
            ("1", 1),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("2GiB", 2 << 30),
            ("2gib", 2 << 30),
            ("1.5GB", 1_500_000_000),
            ("1.5 MB", 1_500_000),
            ("3kB", 3000),
            ("7b", 7),
        ];
        for (text, bytes) in cases {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "-1", "M", "1X", "1..5G", "1e9", "0.1", "9999999999T", "ib"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
    }
}
