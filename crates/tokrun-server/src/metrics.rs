//! What the server counts, for Prometheus: under vLLM's names and buckets where it has them, under `tokrun_` what only a
//! metered server knows. No label names a person, unless the operator wants balances of people (`balances`).

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use serde_json::{Value, json};
use tokrun_ledger::FinishReason;
use tokrun_runtime::{Event, Outcome, Payer};

use crate::app::App;
use crate::balances;
use crate::embedders::Embedders;
use crate::models::{Model, Models, Seen};
use crate::routes::RequestTag;
use crate::telemetry::{Asked, Operation};

const TTFT_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const ITL_S: [f64; 18] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0];
const REQUEST_S: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const TOKENS: [f64; 16] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];
const COMMIT_S: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    model_name: String,
    engine: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEnd {
    model_name: String,
    engine: &'static str,
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    model_name: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfChange {
    model_name: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResponse {
    route: String,
    status: u16,
}

/// Histograms of one name have the same buckets.
#[derive(Clone, Copy)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms = Family<OfModel, Histogram, Buckets>;

/// All that is counted.
pub(crate) struct Metrics {
    registry: Registry,
    running: Family<OfModel, Gauge>,
    waiting: Family<OfModel, Gauge>,
    kv_cache_usage: Family<OfModel, Gauge<f64, AtomicU64>>,
    preemptions: Family<OfModel, Counter>,
    cache_queries: Family<OfModel, Counter>,
    cache_hits: Family<OfModel, Counter>,
    prompt_tokens: Family<OfModel, Counter>,
    generation_tokens: Family<OfModel, Counter>,
    success: Family<OfEnd, Counter>,
    prompt_sizes: Histograms,
    generation_sizes: Histograms,
    ttft: Histograms,
    itl: Histograms,
    e2e: Histograms,
    queue: Histograms,
    prefill: Histograms,
    decode: Histograms,
    debited_tokens: Family<OfKind, Counter>,
    debited_credits: Family<OfModel, Counter<f64, AtomicU64>>,
    discarded_tokens: Family<OfModel, Counter>,
    energy: Family<OfModel, Counter<f64, AtomicU64>>,
    commit_wait: Histograms,
    refusals: Family<OfReason, Counter>,
    places_taken: Family<OfModel, Gauge>,
    loaded: Family<OfModel, Gauge>,
    memory: Family<OfModel, Gauge>,
    loads: Family<OfChange, Counter>,
    unloads: Family<OfChange, Counter>,
    load_seconds: Family<OfModel, Counter<f64, AtomicU64>>,
    responses: Family<OfResponse, Counter>,
    scraping: Mutex<()>,
}

impl Metrics {
    pub(crate) fn new(models: &Models) -> Self {
        let mut registry = Registry::default();
        let histograms = |buckets| Histograms::new_with_constructor(Buckets(buckets));
        let metrics = Self {
            running: Family::default(),
            waiting: Family::default(),
            kv_cache_usage: Family::default(),
            preemptions: Family::default(),
            cache_queries: Family::default(),
            cache_hits: Family::default(),
            prompt_tokens: Family::default(),
            generation_tokens: Family::default(),
            success: Family::default(),
            prompt_sizes: histograms(&TOKENS),
            generation_sizes: histograms(&TOKENS),
            ttft: histograms(&TTFT_S),
            itl: histograms(&ITL_S),
            e2e: histograms(&REQUEST_S),
            queue: histograms(&REQUEST_S),
            prefill: histograms(&REQUEST_S),
            decode: histograms(&REQUEST_S),
            debited_tokens: Family::default(),
            debited_credits: Family::default(),
            discarded_tokens: Family::default(),
            energy: Family::default(),
            commit_wait: histograms(&COMMIT_S),
            refusals: Family::default(),
            places_taken: Family::default(),
            loaded: Family::default(),
            memory: Family::default(),
            loads: Family::default(),
            unloads: Family::default(),
            load_seconds: Family::default(),
            responses: Family::default(),
            scraping: Mutex::default(),
            registry: Registry::default(),
        };
        metrics.register(&mut registry);
        for model in models.iter() {
            // So that they are there, at zero, before the first request.
            let of_model = of_model(model.name());
            drop(metrics.prompt_tokens.get_or_create(&of_model));
            drop(metrics.generation_tokens.get_or_create(&of_model));
        }
        Self { registry, ..metrics }
    }

    fn register(&self, registry: &mut Registry) {
        register(registry, "vllm:num_requests_running", "Requests that run", &self.running);
        register(registry, "vllm:num_requests_waiting", "Requests that wait", &self.waiting);
        register(registry, "vllm:kv_cache_usage_perc", "Share of the KV cache in use, 1 is all", &self.kv_cache_usage);
        register(registry, "vllm:num_preemptions", "Requests that gave way to others", &self.preemptions);
        register(
            registry,
            "vllm:prefix_cache_queries",
            "Prompt tokens looked up in the prefix cache",
            &self.cache_queries,
        );
        register(registry, "vllm:prefix_cache_hits", "Prompt tokens found there", &self.cache_hits);
        register(registry, "vllm:prompt_tokens", "Prompt tokens", &self.prompt_tokens);
        register(registry, "vllm:generation_tokens", "Output tokens", &self.generation_tokens);
        register(registry, "vllm:request_success", "Requests that ended, by how", &self.success);
        register(registry, "vllm:request_prompt_tokens", "Prompt tokens of a request", &self.prompt_sizes);
        register(registry, "vllm:request_generation_tokens", "Output tokens of a request", &self.generation_sizes);
        register(registry, "vllm:time_to_first_token_seconds", "Until the first token was sent", &self.ttft);
        register(registry, "vllm:inter_token_latency_seconds", "Between two tokens", &self.itl);
        register(registry, "vllm:e2e_request_latency_seconds", "Whole requests", &self.e2e);
        register(registry, "vllm:request_queue_time_seconds", "Waiting for a place", &self.queue);
        register(registry, "vllm:request_prefill_time_seconds", "Computing the prompt", &self.prefill);
        register(registry, "vllm:request_decode_time_seconds", "From the first token to the last", &self.decode);
        register(registry, "tokrun_debited_tokens", "Tokens paid, by kind", &self.debited_tokens);
        register(registry, "tokrun_debited_credits", "Credits paid by settled requests", &self.debited_credits);
        register(registry, "tokrun_discarded_tokens", "Tokens computed past an end, uncharged", &self.discarded_tokens);
        register(registry, "tokrun_energy_joules", "Energy of settled requests, where it is measured", &self.energy);
        register(
            registry,
            "tokrun_commit_wait_seconds",
            "The longest wait of a request for a durable debit",
            &self.commit_wait,
        );
        register(registry, "tokrun_refusals", "Requests that were refused, by reason", &self.refusals);
        register(registry, "tokrun_places_taken", "Requests that have a place", &self.places_taken);
        register(registry, "tokrun_model_loaded", "Whether a model is in memory", &self.loaded);
        register(registry, "tokrun_model_memory_bytes", "What a model takes now, at most", &self.memory);
        register(registry, "tokrun_model_loads", "Loads of a model, by how they ended", &self.loads);
        register(registry, "tokrun_model_unloads", "Unloads of a model: idle, or for another's room", &self.unloads);
        register(registry, "tokrun_model_load_seconds", "Spent on loads that succeeded", &self.load_seconds);
        register(registry, "tokrun_http_responses", "Responses, by route and status", &self.responses);
    }

    /// A response went out.
    pub(crate) fn responded(&self, route: &str, status: u16, refused: Option<&'static str>) {
        self.responses.get_or_create(&OfResponse { route: route.to_owned(), status }).inc();
        if let Some(reason) = refused {
            self.refusals.get_or_create(&OfReason { reason }).inc();
        }
    }

    /// How busy a model is, for the dashboard.
    pub(crate) fn of(&self, model: &Model, seen: Seen) -> Value {
        let of_model = of_model(model.name());
        let Seen { state, bytes, device, context_tokens, sequences_max, metrics: step, counts, failure } = seen;
        json!({
            "model": model.name(),
            "state": state,
            "device": device,
            "memory_bytes": bytes,
            "memory_bytes_needed": model.memory_bytes(),
            "loads": counts.loads,
            "load_seconds": counts.load_time.as_secs_f64(),
            "failure": failure,
            "context_tokens": context_tokens.unwrap_or(model.served.context_tokens),
            "sequences_max": sequences_max,
            "running": step.running,
            "waiting": step.waiting,
            "places": model.served.places,
            "places_taken": model.places.taken(),
            "kv_blocks": step.blocks,
            "kv_blocks_used": step.blocks_used,
            "preemptions": step.preemptions,
            "prompt_tokens": self.prompt_tokens.get_or_create(&of_model).get(),
            "output_tokens": self.generation_tokens.get_or_create(&of_model).get(),
            "energy_joules": self.energy.get(&of_model).map(|energy| energy.get()),
        })
    }

    fn scrape(&self, models: &Models, embedders: &Embedders) {
        // What is counted elsewhere is caught up with, by one at a time.
        let _one = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        for embedder in embedders.iter() {
            let taken = i64::try_from(embedder.places.taken()).unwrap_or(i64::MAX);
            self.places_taken.get_or_create(&of_model(embedder.name())).set(taken);
        }
        for model in models.iter() {
            let of_model = of_model(model.name());
            let Seen { state, bytes, metrics: step, counts, .. } = models.see(model);
            let set = |gauge: &Family<OfModel, Gauge>, value: usize| {
                gauge.get_or_create(&of_model).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&self.running, step.running);
            set(&self.waiting, step.waiting);
            set(&self.places_taken, model.places.taken());
            let usage = step.blocks_used as f64 / step.blocks.max(1) as f64;
            self.kv_cache_usage.get_or_create(&of_model).set(usage);
            let preemptions = self.preemptions.get_or_create(&of_model);
            preemptions.inc_by(step.preemptions.saturating_sub(preemptions.get()));
            drop(preemptions);
            set(&self.loaded, usize::from(state == "loaded"));
            set(&self.memory, usize::try_from(bytes).unwrap_or(usize::MAX));
            let load_time = self.load_seconds.get_or_create(&of_model);
            load_time.inc_by((counts.load_time.as_secs_f64() - load_time.get()).max(0.0));
            let count = |family: &Family<OfChange, Counter>, result: &'static str, count: u64| {
                let counter = family.get_or_create(&OfChange { model_name: model.name().to_owned(), result });
                counter.inc_by(count.saturating_sub(counter.get()));
            };
            count(&self.loads, "ok", counts.loads);
            count(&self.loads, "failed", counts.failed_loads);
            count(&self.unloads, "idle", counts.unloads_idle);
            count(&self.unloads, "room", counts.unloads_room);
        }
    }
}

/// For Prometheus.
pub(crate) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    app.metrics.scrape(&app.models, &app.embedders);
    let balances = match balances::of(&app, &headers).await {
        Ok(balances) => balances,
        Err(error) => return error.into_response(),
    };
    let mut text = String::new();
    let encoded = [&app.metrics.registry, &balances].into_iter().try_for_each(|part| encode_registry(&mut text, part));
    if encoded.and_then(|()| encode_eof(&mut text)).is_err() {
        return crate::error::ApiError::panicked().into_response();
    }
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// Follows one request's events for the metrics and the log.
pub(crate) struct Observed {
    metrics: Arc<Metrics>,
    of_model: OfModel,
    generation_tokens: Counter,
    key: Option<String>,
    wallet: String,
    /// For traces, where there are any.
    asked: Option<Asked>,
}

impl Observed {
    pub(crate) fn new(app: &App, tag: &RequestTag, operation: Operation, model: &str, payer: &Payer) -> Self {
        let telemetry = app.options.telemetry.as_ref();
        let of_model = of_model(model);
        Self {
            generation_tokens: app.metrics.generation_tokens.get_or_create(&of_model).clone(),
            metrics: Arc::clone(&app.metrics),
            of_model,
            key: payer.key.clone(),
            wallet: payer.wallet.clone(),
            asked: telemetry.map(|telemetry| Asked::new(telemetry, &tag.1, operation, model)),
        }
    }

    pub(crate) fn see(&self, event: &Event) {
        match event {
            Event::Delta(delta) => drop(self.generation_tokens.inc_by(u64::from(delta.tokens))),
            Event::Finished(outcome) => self.finished(outcome),
        }
    }

    /// It has ended.
    pub(crate) fn finished(&self, outcome: &Outcome) {
        if let Some(asked) = &self.asked {
            asked.ended(outcome);
        }
        let (metrics, of_model) = (&self.metrics, &self.of_model);
        let (usage, timing) = (&outcome.usage, &outcome.timing);
        metrics.prompt_tokens.get_or_create(of_model).inc_by(usage.prompt_tokens);
        metrics.cache_queries.get_or_create(of_model).inc_by(usage.prompt_tokens);
        metrics.cache_hits.get_or_create(of_model).inc_by(usage.cached_tokens);
        metrics.discarded_tokens.get_or_create(of_model).inc_by(usage.discarded_tokens);
        let kinds = [
            ("prompt", usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens)),
            ("cached", usage.cached_tokens),
            ("output", usage.completion_tokens),
        ];
        for (kind, tokens) in kinds {
            let of_kind = OfKind { model_name: of_model.model_name.clone(), kind };
            metrics.debited_tokens.get_or_create(&of_kind).inc_by(tokens);
        }
        if let Some(allowance) = &outcome.allowance {
            let credits = allowance.debited.micro() as f64 / tokrun_ledger::MICRO as f64;
            metrics.debited_credits.get_or_create(of_model).inc_by(credits);
        }
        if let Some(energy_uj) = outcome.energy_uj {
            metrics.energy.get_or_create(of_model).inc_by(energy_uj as f64 / 1e6);
        }
        let finished_reason = reason(outcome.finish_reason);
        let of_end = OfEnd { model_name: of_model.model_name.clone(), engine: of_model.engine, finished_reason };
        metrics.success.get_or_create(&of_end).inc();
        let observe = |histograms: &Histograms, us: u64| histograms.get_or_create(of_model).observe(seconds(us));
        metrics.prompt_sizes.get_or_create(of_model).observe(usage.prompt_tokens as f64);
        metrics.generation_sizes.get_or_create(of_model).observe(usage.completion_tokens as f64);
        if let Some(ttft_us) = timing.ttft_us {
            observe(&metrics.ttft, ttft_us);
            observe(&metrics.prefill, timing.prefill_us);
            observe(&metrics.decode, timing.decode_us);
            observe(&metrics.commit_wait, timing.commit_wait_max_us);
        }
        observe(&metrics.queue, timing.queue_us);
        observe(&metrics.e2e, timing.total_us);
        let itl = metrics.itl.get_or_create(of_model);
        timing.itl_us.iter().for_each(|us| itl.observe(seconds(*us)));
        drop(itl);
        tracing::info!(
            request_id = outcome.request_id,
            model = of_model.model_name,
            wallet = self.wallet,
            key = self.key,
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            output_tokens = usage.completion_tokens,
            finish_reason = outcome.finish_reason.as_str(),
            queue_ms = timing.queue_us / 1000,
            ttft_ms = timing.ttft_us.map(|us| us / 1000),
            total_ms = timing.total_us / 1000,
            "answered"
        );
    }
}

fn register(registry: &mut Registry, name: &str, help: &str, metric: &(impl Metric + Clone)) {
    registry.register(name, help, metric.clone());
}

fn of_model(name: &str) -> OfModel {
    OfModel { model_name: name.to_owned(), engine: "0" }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// vLLM's words, and ours for what it does not know.
fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Cancelled => "abort",
        other => other.as_str(),
    }
}
