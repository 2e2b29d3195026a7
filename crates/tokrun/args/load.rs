//! What `bench serve` asks of a server, how often, and what counts as good.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::compute::positive;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure a server of OpenAI's API under load: this one's, llama.cpp's, vLLM's.
    Serve(Box<LoadArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Where the server is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
    /// The model to ask for; the first that the server lists if absent.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// The access key that the server wants.
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// Certificates in PEM that vouch for the server, instead of those that browsers trust.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// What is asked: texts to go on with, or conversations.
    #[arg(long, value_enum, value_name = "completions|chat", default_value_t = Endpoint::Completions)]
    pub(crate) endpoint: Endpoint,
    /// The prompts: `random:in=N,out=N[,prefix=N][,range=R]` of words, about a token each; a file of ShareGPT's form; or one
    /// with a line `{"prompt": TEXT, "output_tokens": N}` for each prompt. `prefix` words begin every prompt alike (in chats
    /// as the system message), and `range` spreads lengths by so much: 0.5 is half as long to half as long again.
    #[arg(long, value_name = "random:...|FILE", default_value = "random:in=100,out=128")]
    pub(crate) dataset: Dataset,
    /// Output tokens of each request, whatever the dataset says.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_tokens: Option<usize>,
    /// Requests to send; 100 if --duration does not end it. A file that has fewer prompts begins anew.
    #[arg(long, short = 'n', value_name = "N", value_parser = positive)]
    pub(crate) num_prompts: Option<usize>,
    /// Send requests for so many seconds. Those that run by then are waited for.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,
    /// Requests at once, at most: the next is sent when one has ended. 16 if there is no --rate.
    #[arg(long, short, value_name = "N", value_parser = positive)]
    pub(crate) concurrency: Option<usize>,
    /// Requests that come in a second, on average, however many run; `inf` sends all at once.
    #[arg(long, value_name = "R|inf", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// How evenly they come: 1 as by chance (a Poisson process), more is more even, less comes in bursts.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = above_zero)]
    pub(crate) burstiness: f64,
    /// Requests that are sent before, and not counted.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) warmup: usize,
    /// Count the requests that keep to this: `ttft`, `tpot` and `e2el`, in milliseconds.
    #[arg(long, value_name = "METRIC:MS", num_args = 1..)]
    pub(crate) goodput: Vec<Objective>,
    /// The same seed makes the same prompts, and the same times.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Have answers go on past the model's end token, where the server knows that.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// 0 takes the likeliest token; what the server would take if absent.
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// More parameters of the requests, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub(crate) extra_body: Option<serde_json::Map<String, serde_json::Value>>,
    /// A request that takes longer has failed.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Tell the figures of each request too (with `--output json`).
    #[arg(long)]
    pub(crate) detailed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Endpoint {
    Completions,
    Chat,
}

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Dataset {
    Random(RandomPrompts),
    File(PathBuf),
}

/// Prompts of words that chance puts together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RandomPrompts {
    pub(crate) input_words: usize,
    pub(crate) output_tokens: usize,
    /// Words that all of them begin with.
    pub(crate) prefix_words: usize,
    /// Lengths are between (1 - range) and (1 + range) times what they are on average.
    pub(crate) range: f64,
}

impl FromStr for Dataset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let settings = match text.strip_prefix("random") {
            Some("") => "",
            Some(rest) if rest.starts_with(':') => &rest[1..],
            _ => return Ok(Self::File(text.into())),
        };
        let mut random = RandomPrompts { input_words: 100, output_tokens: 128, prefix_words: 0, range: 0.0 };
        for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
            let (name, value) = setting.split_once('=').ok_or_else(|| format!("{setting:?} has no value"))?;
            match name {
                "in" => random.input_words = positive(value)?,
                "out" => random.output_tokens = positive(value)?,
                "prefix" => random.prefix_words = value.parse().map_err(|_| "expected a whole number".to_owned())?,
                "range" => random.range = share(value)?,
                _ => return Err(format!("{name:?} is none of in, out, prefix and range")),
            }
        }
        Ok(Self::Random(random))
    }
}

/// What a request must keep to, to be good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Objective {
    pub(crate) metric: ObjectiveMetric,
    pub(crate) limit_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectiveMetric {
    Ttft,
    Tpot,
    E2el,
}

impl ObjectiveMetric {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::E2el => "e2el",
        }
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a metric and milliseconds, such as ttft:200".to_owned();
        let (name, limit) = text.split_once(':').ok_or_else(expected)?;
        let metric = match name {
            "ttft" => ObjectiveMetric::Ttft,
            "tpot" => ObjectiveMetric::Tpot,
            "e2el" => ObjectiveMetric::E2el,
            _ => return Err(format!("{name:?} is none of ttft, tpot and e2el")),
        };
        Ok(Self { metric, limit_ms: above_zero(limit).map_err(|_| expected())? })
    }
}

fn above_zero(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    if text == "inf" { Ok(f64::INFINITY) } else { above_zero(text) }
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..1.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 on and below 1".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(above_zero(text)?).map_err(|error| error.to_string())
}

fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("no JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datasets_are_words_of_chance_or_files() {
        let random = |text: &str| match text.parse() {
            Ok(Dataset::Random(random)) => random,
            other => panic!("{text}: {other:?}"),
        };
        let usual = RandomPrompts { input_words: 100, output_tokens: 128, prefix_words: 0, range: 0.0 };
        assert_eq!(random("random"), usual);
        assert_eq!(random("random:out=8,range=0.5"), RandomPrompts { output_tokens: 8, range: 0.5, ..usual });
        assert_eq!(random("random:in=7,prefix=512"), RandomPrompts { input_words: 7, prefix_words: 512, ..usual });
        for file in ["random.json", "./random:x", "share.json"] {
            assert_eq!(file.parse(), Ok(Dataset::File(file.into())));
        }
        for wrong in ["random:in", "random:in=0", "random:input=3", "random:range=1", "random:out=-1"] {
            assert!(wrong.parse::<Dataset>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn objectives_name_a_metric_and_a_time() {
        assert_eq!("tpot:12.5".parse(), Ok(Objective { metric: ObjectiveMetric::Tpot, limit_ms: 12.5 }));
        for wrong in ["ttft", "ttft:", "ttft:0", "itl:3", "e2el:inf"] {
            assert!(wrong.parse::<Objective>().is_err(), "{wrong}");
        }
        assert_eq!((rate("inf"), rate("2.5")), (Ok(f64::INFINITY), Ok(2.5)));
        assert!(rate("-1").is_err() && rate("nan").is_err());
    }
}
