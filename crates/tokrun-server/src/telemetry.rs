//! OpenTelemetry: a trace of each request and the GenAI metrics, sent to a collector over OTLP (HTTP, protobuf), where the
//! operator names one.
//!
//! What is told follows the semantic conventions for GenAI: counts, durations and names of models. No text of prompts or
//! answers, and no name of a person or a key, is in it. All of it waits in bounded queues for threads of its own: a
//! collector that is slow or dead costs spans, and never a request any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::http::{HeaderMap, Method};
use opentelemetry::metrics::{Histogram, MeterProvider};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokrun_runtime::{Outcome, Prompt};

/// How long a collector may take to answer, and what is left may take to be sent at the end.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of a collector's answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

// The conventions' own buckets.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const REQUEST_S: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const TPOT_S: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const TTFT_S: [f64; 16] = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// What is told to a collector. Dropping it sends what is left.
pub struct Telemetry {
    traces: SdkTracerProvider,
    meters: SdkMeterProvider,
    tracer: SdkTracer,
    token_usage: Histogram<u64>,
    request_duration: Histogram<f64>,
    time_to_first_token: Histogram<f64>,
    time_per_output_token: Histogram<f64>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Telemetry")
    }
}

impl Telemetry {
    /// Tells the collector at this address, `http://localhost:4318`. Headers, the service's name, sampling and intervals are
    /// what OpenTelemetry's own variables (`OTEL_*`) say.
    ///
    /// # Errors
    /// When the address or a variable means nothing.
    pub fn start(endpoint: &str) -> Result<Self, String> {
        let client: Arc<dyn HttpClient> = Arc::new(Collector::new());
        let address = |variable: &str, path: &str| {
            std::env::var(variable).unwrap_or_else(|_| format!("{}/v1/{path}", endpoint.trim_end_matches('/')))
        };
        let spans = SpanExporter::builder()
            .with_http()
            .with_shared_http_client(Arc::clone(&client))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(address("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "traces"))
            .build();
        let metrics = MetricExporter::builder()
            .with_http()
            .with_shared_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(address("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "metrics"))
            .build();
        let (spans, metrics) = (spans.map_err(|error| error.to_string())?, metrics.map_err(|error| error.to_string())?);
        let resource = resource();
        let traces = SdkTracerProvider::builder().with_batch_exporter(spans).with_resource(resource.clone()).build();
        let meters = SdkMeterProvider::builder().with_periodic_exporter(metrics).with_resource(resource).build();
        let meter = meters.meter("tokrun");
        let seconds = |name: &'static str, buckets: &[f64]| {
            meter.f64_histogram(name).with_unit("s").with_boundaries(buckets.to_vec()).build()
        };
        let tokens = meter.u64_histogram("gen_ai.client.token.usage").with_unit("{token}");
        Ok(Self {
            tracer: traces.tracer("tokrun"),
            token_usage: tokens.with_boundaries(TOKENS.to_vec()).build(),
            request_duration: seconds("gen_ai.server.request.duration", &REQUEST_S),
            time_to_first_token: seconds("gen_ai.server.time_to_first_token", &TTFT_S),
            time_per_output_token: seconds("gen_ai.server.time_per_output_token", &TPOT_S),
            traces,
            meters,
        })
    }

    /// Begins the span of an HTTP request, under the one that the client names in `traceparent`.
    pub(crate) fn begin(&self, method: &Method, route: &str, headers: &HeaderMap) -> Context {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let span = self
            .tracer
            .span_builder(format!("{method} {route}"))
            .with_kind(SpanKind::Server)
            .with_attributes([text("http.request.method", method.as_str()), text("http.route", route)])
            .start_with_context(&self.tracer, &parent);
        parent.with_span(span)
    }

    /// The head of its response has gone out.
    pub(crate) fn responded(&self, context: &Context, status: u16, refused: Option<&'static str>) {
        let span = context.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if let Some(reason) = refused {
            span.set_attribute(text("error.type", reason));
        }
        if status >= 500 {
            span.set_status(Status::error(refused.unwrap_or_default()));
        }
        span.end();
    }

    /// A model's answer has ended.
    fn ended(&self, asked: &Asked, outcome: &Outcome) {
        let (usage, timing) = (&outcome.usage, &outcome.timing);
        let failed = outcome.error.is_some();
        let mut common = asked.common.clone();
        let counted = |kind: &'static str| {
            let mut attributes = asked.common.clone();
            attributes.push(text("gen_ai.token.type", kind));
            attributes
        };
        self.token_usage.record(usage.prompt_tokens, &counted("input"));
        if usage.completion_tokens > 0 {
            self.token_usage.record(usage.completion_tokens, &counted("output"));
        }
        if let Some(ttft_us) = timing.ttft_us {
            self.time_to_first_token.record(seconds(ttft_us), &common);
        }
        if usage.completion_tokens > 1 {
            let each_s = seconds(timing.decode_us) / (usage.completion_tokens - 1) as f64;
            self.time_per_output_token.record(each_s, &common);
        }
        if failed {
            common.push(text("error.type", "internal_error"));
        }
        self.request_duration.record(seconds(timing.total_us), &common);
        let mut span = self
            .tracer
            .span_builder(asked.name.clone())
            .with_kind(SpanKind::Internal)
            .with_start_time(asked.begun)
            .with_attributes(common.into_iter().chain(told(outcome)))
            .start_with_context(&self.tracer, &asked.context);
        if failed {
            span.set_status(Status::error("internal_error"));
        }
        span.end();
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        let (traces, meters) = (self.traces.clone(), self.meters.clone());
        let (sender, sent) = channel();
        // A collector that does not answer is waited for no longer than this.
        let send = move || {
            let _ = (traces.shutdown_with_timeout(END_TIMEOUT), meters.shutdown_with_timeout(END_TIMEOUT));
            let _ = sender.send(());
        };
        if std::thread::Builder::new().name("tokrun-otlp-end".to_owned()).spawn(send).is_ok() {
            let _ = sent.recv_timeout(END_TIMEOUT);
        }
    }
}

/// Who tells. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say more, or otherwise.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    let is_named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
    if is_named { builder.build() } else { builder.with_service_name("tokrun").build() }
}

/// What is said of an answer beside what all of its kind share.
fn told(outcome: &Outcome) -> Vec<KeyValue> {
    let (usage, timing) = (&outcome.usage, &outcome.timing);
    let count = |name: &'static str, count: u64| KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX));
    let duration = |name: &'static str, us: u64| KeyValue::new(name, seconds(us));
    let reasons = Value::Array(Array::String(vec![StringValue::from(outcome.finish_reason.as_str())]));
    let mut told = vec![
        text("gen_ai.response.id", &outcome.request_id),
        KeyValue::new("gen_ai.response.finish_reasons", reasons),
        count("gen_ai.usage.input_tokens", usage.prompt_tokens),
        count("gen_ai.usage.output_tokens", usage.completion_tokens),
        count("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens),
        // As vLLM calls them.
        duration("gen_ai.latency.time_in_queue", timing.queue_us),
        duration("gen_ai.latency.time_in_model_prefill", timing.prefill_us),
        duration("gen_ai.latency.time_in_model_decode", timing.decode_us),
        duration("gen_ai.latency.e2e", timing.total_us),
    ];
    if let Some(ttft_us) = timing.ttft_us {
        told.push(duration("gen_ai.latency.time_to_first_token", ttft_us));
    }
    if let Some(allowance) = &outcome.allowance {
        let credits = allowance.debited.micro() as f64 / tokrun_ledger::MICRO as f64;
        told.push(KeyValue::new("tokrun.debited_credits", credits));
    }
    told
}

/// What a model is asked for, for whoever hears how it ended.
pub(crate) struct Asked {
    telemetry: Arc<Telemetry>,
    context: Context,
    /// The span's.
    name: String,
    /// What every figure and the span say.
    common: Vec<KeyValue>,
    begun: SystemTime,
}

impl Asked {
    /// Begins now, under the span of an HTTP request.
    pub(crate) fn new(telemetry: &Arc<Telemetry>, context: &Context, operation: Operation, model: &str) -> Self {
        let operation = operation.name();
        let common = vec![
            text("gen_ai.operation.name", operation),
            text("gen_ai.provider.name", "tokrun"),
            text("gen_ai.request.model", model),
            text("gen_ai.response.model", model),
        ];
        let name = format!("{operation} {model}");
        Self { telemetry: Arc::clone(telemetry), context: context.clone(), name, common, begun: SystemTime::now() }
    }

    pub(crate) fn ended(&self, outcome: &Outcome) {
        self.telemetry.ended(self, outcome);
    }
}

/// What a model does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    Chat,
    Completion,
    Embeddings,
}

impl Operation {
    /// What is done with a prompt.
    pub(crate) fn of(prompt: &Prompt) -> Self {
        match prompt {
            Prompt::Chat(_) => Self::Chat,
            Prompt::Text(_) | Prompt::Tokens(_) => Self::Completion,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "text_completion",
            Self::Embeddings => "embeddings",
        }
    }
}

/// The way to the collector. It blocks the thread that it is called on, which is the exporter's own.
#[derive(Debug)]
struct Collector {
    agent: ureq::Agent,
    /// It did not answer the last time: that is told once.
    is_silent: AtomicBool,
}

impl Collector {
    fn new() -> Self {
        let config =
            ureq::Agent::config_builder().timeout_global(Some(SEND_TIMEOUT)).http_status_as_error(false).build();
        Self { agent: config.new_agent(), is_silent: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (parts, body) = request.into_parts();
        let (parts, mut body) = self.agent.run(Request::from_parts(parts, body.to_vec()))?.into_parts();
        let bytes = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(parts, Bytes::from(bytes)))
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.send(request);
        let problem = match &sent {
            Err(error) => Some(error.to_string()),
            Ok(response) if !response.status().is_success() => Some(format!("it answers {}", response.status())),
            Ok(_) => None,
        };
        let was_silent = self.is_silent.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !was_silent => tracing::warn!(problem, "the OpenTelemetry collector takes nothing"),
            None if was_silent => tracing::info!("the OpenTelemetry collector takes what it is sent again"),
            _ => {}
        }
        Ok(sent?)
    }
}

fn text(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, value.to_owned())
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
