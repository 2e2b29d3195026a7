//! Results as llama-bench prints them: the same columns and field names, and some of ours.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokrun_model::{ExecutorInfo, ModelInfo};
use tokrun_runtime::Latency;

use super::test::{Measured, Test};
use super::{Conditions, model_type};
use crate::args::{BenchArgs, Format, Switch};
use crate::load::Loaded;
use crate::machine::Moment;

/// One result. Names and order are llama-bench's as far as it has them.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    build_version: &'static str,
    cpu_info: String,
    backends: &'static str,
    device: String,
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    n_batch: usize,
    n_threads: usize,
    type_k: &'static str,
    type_v: &'static str,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    /// Requests at once.
    concurrency: usize,
    test: String,
    test_time: String,
    /// Whether every token was debited durably.
    ledger: bool,
    fsync_us: Option<u64>,
    speculation: bool,
    /// The instruction set of the native engine.
    simd_level: &'static str,
    /// What the threads take to wait for each other, measured around the test: it tells a virtual machine's modes apart.
    barrier_ns: f64,
    /// What they read together from as much memory as the weights take, measured around the test.
    read_bandwidth_bytes_per_s: f64,
    /// Of decode tests: the share of that bandwidth that reading weights, keys and values once a step takes.
    roofline_share: Option<f64>,
    /// What the device drew on average, prompts and pauses between repetitions included; `null` where it does not tell.
    power_w: Option<f64>,
    #[serde(skip)]
    has_power: bool,
    /// That power over the rate of tokens.
    joules_per_token: Option<f64>,
    avg_ns: f64,
    stddev_ns: f64,
    /// Over all requests.
    avg_ts: f64,
    stddev_ts: f64,
    /// Of one request, from its first token to its last.
    request_avg_ts: Option<f64>,
    ttft_p50_ms: Option<f64>,
    ttft_p95_ms: Option<f64>,
    itl_p50_ms: Option<f64>,
    itl_p95_ms: Option<f64>,
    itl_p99_ms: Option<f64>,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
}

impl Row {
    pub(super) fn new(
        args: &BenchArgs,
        conditions: &Conditions<'_>,
        loaded: &Loaded,
        measured: &Measured,
        (simd_level, moment): (&'static str, Moment),
    ) -> Self {
        let Test { prompt, gen_tokens, depth, concurrency } = measured.test;
        let (info, executor) = (&loaded.info, loaded.runtime.info());
        let samples = &measured.samples;
        let samples_ns: Vec<u64> = samples.iter().map(|sample| sample.time.as_nanos() as u64).collect();
        let samples_ts: Vec<f64> =
            samples.iter().map(|sample| sample.tokens as f64 / sample.time.as_secs_f64().max(1e-9)).collect();
        let (avg_ns, stddev_ns) = mean_and_deviation(&samples_ns.iter().map(|ns| *ns as f64).collect::<Vec<_>>());
        let (avg_ts, stddev_ts) = mean_and_deviation(&samples_ts);
        let all = |part: fn(&super::test::Sample) -> &Vec<u64>| samples.iter().flat_map(part).copied().collect();
        let ttft = Latency::of(all(|sample| &sample.ttft_us));
        let itl = Latency::of(all(|sample| &sample.itl_us));
        let each: Vec<f64> = samples.iter().flat_map(|sample| sample.tokens_per_s.iter().copied()).collect();
        let kv_type = kv_type(args, executor, info.kv_bytes_per_token);
        Self {
            build_version: env!("CARGO_PKG_VERSION"),
            cpu_info: cpu_name(),
            backends: executor.backend,
            device: executor.device.clone(),
            model_filename: conditions.found.name.clone(),
            model_type: model_type(info),
            model_size: info.weight_bytes,
            model_n_params: info.parameters,
            n_batch: conditions.n_batch,
            n_threads: conditions.threads.map_or_else(tokrun_kernels::cpu::threads_available, usize::from),
            type_k: kv_type,
            type_v: kv_type,
            n_prompt: prompt,
            n_gen: gen_tokens,
            n_depth: depth,
            concurrency,
            test: measured.test.name(),
            test_time: Timestamp::now().to_string(),
            ledger: args.ledger == Switch::On,
            fsync_us: conditions.fsync_us,
            speculation: args.speculation,
            simd_level,
            barrier_ns: moment.barrier_ns,
            read_bandwidth_bytes_per_s: moment.bytes_per_s,
            roofline_share: bytes_per_token(&measured.test, info, executor)
                .filter(|_| !args.speculation)
                .map(|bytes| bytes * avg_ts / moment.bytes_per_s),
            power_w: measured.power_w,
            has_power: measured.has_power,
            joules_per_token: measured.power_w.map(|power_w| power_w / avg_ts),
            avg_ns,
            stddev_ns,
            avg_ts,
            stddev_ts,
            request_avg_ts: (!each.is_empty()).then(|| mean_and_deviation(&each).0),
            ttft_p50_ms: ttft.map(|ttft| ttft.p50_ms),
            ttft_p95_ms: ttft.map(|ttft| ttft.p95_ms),
            itl_p50_ms: itl.map(|itl| itl.p50_ms),
            itl_p95_ms: itl.map(|itl| itl.p95_ms),
            itl_p99_ms: itl.map(|itl| itl.p99_ms),
            samples_ns,
            samples_ts,
        }
    }
}

/// Bytes that decoding reads for each token: the weights once a step, which gives a token to each request, and each
/// request's keys and values. Nothing is said where requests choose experts of their own, or tokens are drafted.
fn bytes_per_token(test: &Test, info: &ModelInfo, executor: &ExecutorInfo) -> Option<f64> {
    let is_dense = info.weight_bytes_per_token >= info.weight_bytes || test.concurrency == 1;
    if test.prompt > 0 || !is_dense {
        return None;
    }
    let kv_bytes = match executor.paging {
        Some(paging) => paging.block_bytes as f64 / paging.block_tokens as f64,
        None => info.kv_bytes_per_token as f64,
    };
    let kv_tokens = test.depth as f64 + 1.0 + test.gen_tokens as f64 / 2.0;
    Some(info.weight_bytes_per_token as f64 / test.concurrency as f64 + kv_bytes * kv_tokens)
}

/// How keys and values are stored, by the bytes that they take.
fn kv_type(args: &BenchArgs, executor: &ExecutorInfo, f32_bytes_per_token: u64) -> &'static str {
    let Some(paging) = executor.paging else { return "f32" };
    match args.engine.kv_type {
        Some(kv_type) => kv_type.name(),
        None if (paging.block_bytes / paging.block_tokens) as u64 >= f32_bytes_per_token => "f32",
        None => "f16",
    }
}

fn cpu_name() -> String {
    let wanted = sysinfo::RefreshKind::nothing().with_cpu(sysinfo::CpuRefreshKind::nothing());
    let system = sysinfo::System::new_with_specifics(wanted);
    system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default()
}

/// Prints rows as they come; a JSON list at the end.
pub(super) struct Printer {
    format: Format,
    fsync_us: Option<u64>,
    shows_batch: bool,
    shows_requests: bool,
    printed: usize,
    rows: Vec<Value>,
}

impl Printer {
    pub(super) fn new(args: &BenchArgs, format: Format, fsync_us: Option<u64>) -> Self {
        Self {
            format,
            fsync_us,
            shows_batch: args.n_batch != [512],
            shows_requests: args.concurrency.iter().any(|concurrency| *concurrency > 1),
            printed: 0,
            rows: Vec::new(),
        }
    }

    pub(super) fn print(&mut self, row: &Row) {
        let value = serde_json::to_value(row).expect("numbers and strings are always valid JSON");
        match self.format {
            Format::Json => self.rows.push(value),
            Format::Jsonl => out!("{value}"),
            Format::Csv => self.print_csv(&value),
            Format::Text | Format::Md | Format::Html => self.print_md(row),
        }
        self.printed += 1;
    }

    pub(super) fn finish(self) {
        if self.format == Format::Json {
            out!("{}", Value::from(self.rows));
        }
    }

    /// The fields of the JSON without its lists.
    fn print_csv(&self, row: &Value) {
        let fields = row.as_object().into_iter().flatten().filter(|(_, value)| !value.is_array());
        let (names, values): (Vec<&str>, Vec<String>) =
            fields.map(|(name, value)| (name.as_str(), csv_field(value))).unzip();
        if self.printed == 0 {
            out!("{}", names.join(","));
        }
        out!("{}", values.join(","));
    }

    fn print_md(&self, row: &Row) {
        let columns = self.columns(row);
        if self.printed == 0 {
            let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
            let rules: Vec<&str> = columns.iter().map(|column| if column.numeric { "---:" } else { "---" }).collect();
            out!("| {} |", names.join(" | "));
            out!("| {} |", rules.join(" | "));
        }
        let cells: Vec<String> = columns.into_iter().map(|column| column.cell).collect();
        out!("| {} |", cells.join(" | "));
    }

    fn columns(&self, row: &Row) -> Vec<Column> {
        let text = |name, cell: String| Column { name, numeric: false, cell };
        let number = |name, cell: String| Column { name, numeric: true, cell };
        let ledger = match self.fsync_us {
            Some(fsync_us) => format!("on (fsync {fsync_us} µs)"),
            None => "off".to_owned(),
        };
        let mut columns = vec![
            text("model", format!("{} ({})", row.model_type, row.model_filename)),
            number("size", size(row.model_size)),
            number("params", parameters(row.model_n_params)),
            text("backend", format!("{} {}", row.backends, row.device)),
            number("threads", row.n_threads.to_string()),
        ];
        if self.shows_batch {
            columns.push(number("n_batch", row.n_batch.to_string()));
        }
        columns.push(text("ledger", ledger));
        columns.push(text("test", row.test.clone()));
        columns.push(number("t/s", format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts)));
        columns.push(number("roofline", row.roofline_share.map_or_else(|| "-".to_owned(), percent)));
        if row.has_power {
            columns.push(number("J a token", fixed(row.joules_per_token, 3)));
        }
        if self.shows_requests {
            columns.push(number("t/s a request", fixed(row.request_avg_ts, 2)));
            columns.push(number("TTFT p50 / p95 ms", row.latencies(&[row.ttft_p50_ms, row.ttft_p95_ms])));
            columns.push(number(
                "ITL p50 / p95 / p99 ms",
                row.latencies(&[row.itl_p50_ms, row.itl_p95_ms, row.itl_p99_ms]),
            ));
        }
        columns
    }
}

impl Row {
    fn latencies(&self, ms: &[Option<f64>]) -> String {
        ms.iter().map(|ms| fixed(*ms, 1)).collect::<Vec<_>>().join(" / ")
    }
}

struct Column {
    name: &'static str,
    numeric: bool,
    cell: String,
}

fn fixed(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// `92.10 MiB`, as llama-bench prints it.
fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / (1 << 20) as f64;
    if mebibytes < 1024.0 { format!("{mebibytes:.2} MiB") } else { format!("{:.2} GiB", mebibytes / 1024.0) }
}

/// `134.52 M`, as llama-bench prints it.
pub(super) fn parameters(count: u64) -> String {
    let millions = count as f64 / 1e6;
    if millions < 1000.0 { format!("{millions:.2} M") } else { format!("{:.2} B", millions / 1e3) }
}

pub(super) fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        other => other.to_string(),
    }
}

/// Of a sample: the deviation is divided by one less than there are values.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_the_sample_deviation() {
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
        let (mean, deviation) = mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!(mean, 5.0);
        assert!((deviation - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn decoding_reads_the_weights_once_a_step_and_all_that_is_remembered() {
        let info = ModelInfo {
            architecture: "llama".to_owned(),
            name: None,
            dtype: "Q4_1".to_owned(),
            parameters: 0,
            weight_bytes: 1000,
            weight_bytes_per_token: 1000,
            context_tokens: 0,
            vocab_size: 0,
            layers: 0,
            kv_bytes_per_token: 8,
        };
        let paging = tokrun_model::Paging { block_tokens: 16, blocks: 1, block_bytes: 64 };
        let executor = |paging| ExecutorInfo {
            backend: "native",
            device: "cpu".to_owned(),
            vocab_size: 0,
            context_tokens: 0,
            sequences_max: 16,
            paging,
        };
        let bytes = |prompt, concurrency, paging| {
            let test = Test { prompt, gen_tokens: 20, depth: 89, concurrency };
            bytes_per_token(&test, &info, &executor(paging))
        };
        assert_eq!(bytes(0, 1, Some(paging)), Some(1000.0 + 4.0 * 100.0));
        assert_eq!(bytes(0, 1, None), Some(1000.0 + 8.0 * 100.0));
        assert_eq!(bytes(0, 4, Some(paging)), Some(250.0 + 4.0 * 100.0));
        assert_eq!(bytes(512, 1, Some(paging)), None, "a prompt is not bound by memory");
    }

    #[test]
    fn sizes_read_as_llama_bench_writes_them() {
        assert_eq!((size(96_576_768), size(3 << 30)), ("92.10 MiB".to_owned(), "3.00 GiB".to_owned()));
        assert_eq!((parameters(134_515_008), parameters(8_030_261_248)), ("134.52 M".to_owned(), "8.03 B".to_owned()));
    }

    #[test]
    fn fields_are_quoted_as_csv_wants_it() {
        assert_eq!(csv_field(&Value::from("a \"b\", c")), "\"a \"\"b\"\", c\"");
        assert_eq!((csv_field(&Value::Null), csv_field(&Value::from(1.5))), (String::new(), "1.5".to_owned()));
    }
}
