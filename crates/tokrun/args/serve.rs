//! What is served, where, and to whom.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Devices;
use super::compute::{EngineArgs, positive, size_bytes};
use super::people::span;

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// A model to serve: a name from the catalogue, a GGUF file, or a directory of safetensors. As often as needed; the first
    /// is loaded at once, the others with the first request for them.
    #[arg(long = "model", short, value_name = "NAME|PATH", env = "TOKRUN_MODEL")]
    pub(crate) models: Vec<String>,
    /// The address to listen on; other than of this machine alone only where keys are in use. A socket that systemd hands
    /// over goes before it.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = address)]
    pub(crate) host: IpAddr,
    /// The port to listen on; 0 for any that is free.
    #[arg(long, short, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Whose allowance pays for requests without a key; your account's name if absent.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Requests that run at once, of each model on each device.
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    pub(crate) max_running: usize,
    /// Requests that may wait, of each model; the next one is told to come back later.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_waiting: usize,
    /// Requests must have ended so long after they came: 30s, 5m; 0 for no bound. One that has no token yet by then is refused
    /// and pays nothing, any other ends with what it has.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time_or_none)]
    pub(crate) request_timeout: Duration,
    /// Load all models at once.
    #[arg(long)]
    pub(crate) preload: bool,
    /// Memory that all loaded models may take together, on each device: weights, caches and workspace. Where it is short, the
    /// idle model that was used least lately is unloaded. What is free if absent, on cards; on the CPU no bound.
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    pub(crate) memory_budget: Option<u64>,
    /// Unload models that nobody has used for so long: 10m, 1h; 0 for never.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time_or_none)]
    pub(crate) keep_alive: Duration,
    /// Longest body of a request.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = size_bytes)]
    pub(crate) max_body: u64,
    /// The HTTP status for whom the allowance is used up.
    #[arg(long, value_name = "429|402", default_value_t = 429, value_parser = exhausted_status)]
    pub(crate) exhausted_status: u16,
    /// A certificate in PEM, with those that vouch for it: HTTPS is spoken then. SIGHUP reads it again.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// A collector of OpenTelemetry's that is sent traces and GenAI metrics, over OTLP with HTTP: `http://localhost:4318`.
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,
    /// Tell the balances of so many people in /metrics, beside those of teams.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) metrics_users: usize,
    /// Seconds that requests may go on when the server is told to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) drain: u64,
    /// What is logged on stderr.
    #[arg(long, value_name = "off|error|warn|info|debug", default_value = "info")]
    pub(crate) log: tracing::level_filters::LevelFilter,
    /// Where to compute; with `cuda:all` each card runs an engine of its own, with all models, and a request goes to the one
    /// that has fewest.
    #[arg(long, value_name = "auto|cpu|cuda[:N|:all]", default_value = "auto", value_parser = Devices::parse, help_heading = "Computing")]
    pub(crate) device: Devices,
    /// Processor threads; all cores if absent.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Computing")]
    pub(crate) threads: Option<u16>,
    /// Take one token a step, and do not draft what the text so far suggests. The text is the same.
    #[arg(long, help_heading = "Computing")]
    pub(crate) no_speculation: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

fn address(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(std::net::Ipv4Addr::LOCALHOST.into());
    }
    text.parse().map_err(|_| "expected an address, such as 127.0.0.1, 0.0.0.0 or ::1".to_owned())
}

/// A time, or 0 for none.
fn time_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { span(text) }
}

fn exhausted_status(text: &str) -> Result<u16, String> {
    match text {
        "429" => Ok(429),
        "402" => Ok(402),
        _ => Err("it is 429, as OpenAI has it, or 402".to_owned()),
    }
}
