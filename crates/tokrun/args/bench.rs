//! What `bench` measures. Options that take a list are combined: each test runs with each of them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tokrun_model::{ModelFile, WeightType};

use super::compute::{Device, EngineArgs, positive};
use super::load::BenchCommand;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    /// A name from the catalogue, a GGUF file, or a directory of safetensors.
    #[arg(long, short, value_name = "NAME|PATH", env = "TOKRUN_MODEL")]
    pub(crate) model: Option<String>,
    /// Made-up weights of a known shape instead of a model: `llama-3.2-1b:q8_0`; of Q4_0 if no type is named.
    #[arg(long, value_name = "SHAPE[:TYPE]", value_parser = synthetic, conflicts_with = "perplexity")]
    pub(crate) synthetic: Option<(String, WeightType)>,
    /// Prompt tokens of prefill tests; 0 leaves them out.
    #[arg(short = 'p', long = "n-prompt", value_name = "N,...", default_value = "512", value_delimiter = ',')]
    pub(crate) n_prompt: Vec<usize>,
    /// Tokens of decode tests; 0 leaves them out.
    #[arg(short = 'n', long = "n-gen", value_name = "N,...", default_value = "128", value_delimiter = ',')]
    pub(crate) n_gen: Vec<usize>,
    /// A test of both: so many prompt tokens, then so many more; as often as needed.
    #[arg(long = "pg", value_name = "P,N", value_parser = prompt_and_gen)]
    pub(crate) prompt_gen: Vec<(usize, usize)>,
    /// Tokens that are in the cache before what is timed.
    #[arg(short = 'd', long = "n-depth", value_name = "N,...", default_value = "0", value_delimiter = ',')]
    pub(crate) n_depth: Vec<usize>,
    /// Tokens that one step computes at most.
    #[arg(short = 'b', long = "batch-size", value_name = "N,...", default_value = "512", value_delimiter = ',', value_parser = positive)]
    pub(crate) n_batch: Vec<usize>,
    /// Requests at once, through the batched engine.
    #[arg(long, value_name = "N,...", default_value = "1", value_delimiter = ',', value_parser = positive)]
    pub(crate) concurrency: Vec<usize>,
    /// Processor threads; all cores if absent.
    #[arg(long, short, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Vec<u16>,
    /// Repetitions of each test, after one that is not counted.
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) repetitions: u16,
    /// Where to compute; `cuda:all` is each card in turn.
    #[arg(long, value_name = "auto|cpu|cuda[:N|:all]", default_value = "auto", value_parser = Devices::parse)]
    pub(crate) device: Devices,
    /// `on` debits every token durably, in a ledger of the bench's own on the same disk; `off` measures the bare engine.
    #[arg(long, value_enum, default_value_t = Switch::On, value_name = "on|off")]
    pub(crate) ledger: Switch,
    /// Draft tokens from the text so far, as `generate` does; made-up texts repeat themselves, which flatters it.
    #[arg(long)]
    pub(crate) speculation: bool,
    /// Measure how well the model predicts this text, instead of its speed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["n_prompt", "n_gen", "prompt_gen", "n_depth", "n_batch", "concurrency", "repetitions", "ledger", "speculation", "profile"])]
    pub(crate) perplexity: Option<PathBuf>,
    /// Show what share of the time each operation takes, instead of the speed.
    #[arg(long, conflicts_with_all = ["prompt_gen", "concurrency", "ledger", "speculation"])]
    pub(crate) profile: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// Where to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    One(Device),
    AllCuda,
}

impl Devices {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "cuda:all" { Ok(Self::AllCuda) } else { Device::parse(text).map(Self::One) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

fn synthetic(text: &str) -> Result<(String, WeightType), String> {
    let (shape, kind) = text.split_once(':').unwrap_or((text, "Q4_0"));
    if !ModelFile::synthetic_shapes().any(|known| known == shape) {
        let known: Vec<&str> = ModelFile::synthetic_shapes().collect();
        return Err(format!("there are {}", known.join(", ")));
    }
    let weight_type = WeightType::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(kind));
    let known = || WeightType::ALL.map(WeightType::name).join(", ");
    Ok((shape.to_owned(), weight_type.ok_or_else(|| format!("weight types are {}", known()))?))
}

fn prompt_and_gen(text: &str) -> Result<(usize, usize), String> {
    let pair = text.split_once(',').and_then(|(p, n)| Some((p.trim().parse().ok()?, n.trim().parse().ok()?)));
    pair.filter(|(p, n)| *p > 0 && *n > 0).ok_or_else(|| "expected two numbers from 1 on, such as 512,128".to_owned())
}
