//! What a load came to: for people, and in the field names of `vllm bench serve`.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::client::Trouble;
use super::figures::{Figures, PERCENTILES, Spread};
use super::stream::Answered;
use crate::args::{Endpoint, LoadArgs, Objective};
use crate::output;

/// All that was asked and measured.
pub(super) struct Report<'a> {
    pub(super) args: &'a LoadArgs,
    pub(super) model: &'a str,
    pub(super) concurrency: Option<usize>,
    pub(super) rate: f64,
    pub(super) answered: &'a [Answered],
    /// Each failure, and how often it came.
    pub(super) failures: &'a BTreeMap<Trouble, usize>,
    pub(super) figures: Figures,
}

impl Report<'_> {
    fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// Whether the server said how many tokens it generated, each time.
    fn has_usage(&self) -> bool {
        self.answered.iter().all(|answer| answer.reported_tokens.is_some())
    }

    fn spreads(&self) -> [(&'static str, &Option<Spread>); 4] {
        let figures = &self.figures;
        [("ttft", &figures.ttft), ("tpot", &figures.tpot), ("itl", &figures.itl), ("e2el", &figures.e2el)]
    }

    pub(super) fn json(&self) -> Value {
        let (args, figures) = (self.args, &self.figures);
        let backend = match args.endpoint {
            Endpoint::Completions => "openai",
            Endpoint::Chat => "openai-chat",
        };
        let tokens = figures.output_tokens + figures.input_tokens;
        let mut object = json!({
            "date": Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string(),
            "backend": backend,
            "base_url": args.url,
            "model_id": self.model,
            "num_prompts": self.answered.len() + self.failed(),
            "request_rate": if self.rate.is_finite() { json!(self.rate) } else { json!("inf") },
            "burstiness": args.burstiness,
            "max_concurrency": self.concurrency,
            "seed": args.seed,
            "duration": figures.duration_s,
            "completed": figures.completed,
            "failed": self.failed(),
            "total_input_tokens": figures.input_tokens,
            "total_cached_tokens": figures.cached_tokens,
            "total_output_tokens": figures.output_tokens,
            "counted_by": if self.has_usage() { "usage" } else { "pieces" },
            "request_throughput": figures.per_s(figures.completed as f64),
            "request_goodput": figures.good.map(|good| figures.per_s(good as f64)),
            "output_throughput": figures.per_s(figures.output_tokens as f64),
            "total_token_throughput": figures.per_s(tokens as f64),
            "max_output_tokens_per_s": figures.peak_pieces_per_s,
            "max_concurrent_requests": figures.peak_requests,
        });
        let object_fields = object.as_object_mut().expect("it is one");
        for (name, spread) in self.spreads() {
            add_spread(object_fields, name, spread.as_ref());
        }
        let failures =
            self.failures.iter().map(|(trouble, count)| json!({ "error": trouble.to_string(), "count": count }));
        object_fields.insert("failures".to_owned(), failures.collect());
        if args.detailed {
            self.add_each(object_fields);
        }
        object
    }

    /// The figures of each request, in the order in which they were sent; times in seconds.
    fn add_each(&self, object: &mut Map<String, Value>) {
        let mut add = |name: &str, of: &dyn Fn(&Answered) -> Value| {
            object.insert(name.to_owned(), self.answered.iter().map(of).collect());
        };
        add("input_lens", &|answer| answer.input_tokens.into());
        add("output_lens", &|answer| answer.output_tokens().into());
        add("start_times", &|answer| answer.begun.as_secs_f64().into());
        add("ttfts", &|answer| answer.ttft().map(|ttft| ttft.as_secs_f64()).into());
        add("itls", &|answer| answer.gaps().map(|gap| gap.as_secs_f64()).collect());
        add("latencies", &|answer| answer.latency().as_secs_f64().into());
    }

    pub(super) fn text(&self) -> String {
        let figures = &self.figures;
        let cached = match figures.cached_tokens {
            0 => String::new(),
            cached => format!(" ({} of them cached)", output::grouped(cached)),
        };
        let per_s = |tokens: u64| figures.per_s(tokens as f64);
        let mut lines = vec![
            format!(
                "{} requests in {:.2} s: {:.2} a second, {} at once at most",
                output::grouped(figures.completed as u64),
                figures.duration_s,
                figures.per_s(figures.completed as f64),
                figures.peak_requests
            ),
            format!(
                "{} tokens in{cached}, {} out: {:.1} tokens/s out, {:.1} in and out",
                output::grouped(figures.input_tokens),
                output::grouped(figures.output_tokens),
                per_s(figures.output_tokens),
                per_s(figures.input_tokens + figures.output_tokens)
            ),
        ];
        if let Some(good) = figures.good {
            lines.push(format!(
                "{} requests were good ({}): {:.2} a second",
                output::grouped(good as u64),
                objectives(&self.args.goodput),
                figures.per_s(good as f64)
            ));
        }
        if !self.has_usage() {
            lines.push("the server reports no usage: pieces of text are counted as its tokens".to_owned());
        }
        for (trouble, count) in self.failures {
            lines.push(format!("{count} failed: {}", output::plain(&trouble.to_string())));
        }
        lines.push(String::new());
        lines.push(self.table().to_string());
        lines.join("\n")
    }

    fn table(&self) -> Table {
        let percentiles = PERCENTILES.map(|percent| format!("p{percent}"));
        let header: Vec<&str> =
            ["ms", "mean", "std"].into_iter().chain(percentiles.iter().map(String::as_str)).collect();
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header);
        for (name, spread) in self.spreads() {
            let what = match name {
                "ttft" => "to the first token (TTFT)",
                "tpot" => "a token after it (TPOT)",
                "itl" => "between pieces (ITL)",
                _ => "to the end (E2EL)",
            };
            let cells = match spread {
                Some(spread) => [spread.mean, spread.std]
                    .into_iter()
                    .chain(spread.percentiles)
                    .map(|ms| format!("{ms:.2}"))
                    .collect::<Vec<_>>(),
                None => vec!["-".to_owned(); 2 + PERCENTILES.len()],
            };
            table.add_row([vec![what.to_owned()], cells].concat());
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

fn add_spread(object: &mut Map<String, Value>, name: &str, spread: Option<&Spread>) {
    // Where nothing could be measured vLLM's tool says 0, which would read as a figure.
    let mut add = |what: String, value: Option<f64>| object.insert(format!("{what}_{name}_ms"), value.into());
    add("mean".to_owned(), spread.map(|spread| spread.mean));
    add("median".to_owned(), spread.map(|spread| spread.median));
    add("std".to_owned(), spread.map(|spread| spread.std));
    for (index, percent) in PERCENTILES.iter().enumerate() {
        add(format!("p{percent}"), spread.map(|spread| spread.percentiles[index]));
    }
}

fn objectives(objectives: &[Objective]) -> String {
    let texts = objectives.iter().map(|objective| format!("{} {} ms", objective.metric.name(), objective.limit_ms));
    texts.collect::<Vec<_>>().join(", ")
}
