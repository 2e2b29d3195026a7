//! `tokrun bench serve`: any server of OpenAI's API under load, measured as `vllm bench serve` does, where its clients are.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::args::{Endpoint, Format, LoadArgs};
use crate::failure::{Failure, Status};
use crate::progress;

mod arrivals;
mod client;
mod dataset;
mod figures;
mod report;
mod stream;

use arrivals::Arrivals;
use client::{Client, Trouble};
use dataset::{Asked, Prompts};
use figures::Figures;
use report::Report;
use stream::Answered;

/// Where nothing says how many requests there are to be.
const PROMPTS_USUAL: usize = 100;
/// Where nothing says when they come.
const CONCURRENCY_USUAL: usize = 16;

pub(super) fn run(args: &LoadArgs, format: Format) -> Result<Status, Failure> {
    let plan = Plan::of(args)?;
    let prompts = Prompts::open(args)?;
    let client = Client::new(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::io("cannot wait for answers", &error))?;
    LocalSet::new().block_on(&runtime, load(args, &plan, prompts, client, format))
}

/// How many requests there are, and when they come.
struct Plan {
    prompts: Option<usize>,
    concurrency: Option<usize>,
    rate: f64,
}

impl Plan {
    fn of(args: &LoadArgs) -> Result<Self, Failure> {
        let concurrency = args.concurrency.or(args.rate.is_none().then_some(CONCURRENCY_USUAL));
        let rate = args.rate.unwrap_or(f64::INFINITY);
        let prompts = args.num_prompts.or(args.duration.is_none().then_some(PROMPTS_USUAL));
        if prompts.is_none() && concurrency.is_none() && rate.is_infinite() {
            return Err(Failure::new(Status::Usage, "usage", "there is no end to what would be sent at once")
                .hint("bound it: with --concurrency, --rate or --num-prompts"));
        }
        Ok(Self { prompts, concurrency, rate })
    }
}

async fn load(
    args: &LoadArgs,
    plan: &Plan,
    mut prompts: Prompts,
    mut client: Client,
    format: Format,
) -> Result<Status, Failure> {
    let failed = |trouble: Trouble| trouble.failure(&args.url);
    let model = match &args.model {
        Some(model) => model.clone(),
        None => client.first_model().await.map_err(failed)?,
    };
    let ask = Ask { args, model: &model };
    for _ in 0..args.warmup {
        client.ask(ask.path(), ask.body(&prompts.next())).await.map_err(failed)?;
    }
    client.begun = Instant::now();
    let Driven { outcomes, duration, is_interrupted } = drive(args, plan, &ask, prompts, client).await;

    let (mut answered, mut failures) = (Vec::new(), BTreeMap::new());
    for outcome in outcomes {
        match outcome {
            Ok(answer) => answered.push(answer),
            Err(trouble) => *failures.entry(trouble).or_default() += 1,
        }
    }
    if let (true, Some((trouble, _))) = (answered.is_empty(), failures.iter().max_by_key(|(_, count)| **count)) {
        return Err(trouble.failure(&args.url));
    }
    // In the order in which they were sent.
    answered.sort_by_key(|answer| answer.begun);
    let figures = Figures::of(&answered, duration, &args.goodput);
    let (concurrency, rate) = (plan.concurrency, plan.rate);
    let report = Report { args, model: &model, concurrency, rate, answered: &answered, failures: &failures, figures };
    match format {
        Format::Json => out!("{}", report.json()),
        _ => out!("{}", report.text()),
    }
    Ok(if is_interrupted { Status::Interrupted } else { Status::Done })
}

type Outcome = Result<Answered, Trouble>;

/// What came of the requests, how long that took, and whether Ctrl-C ended it.
struct Driven {
    outcomes: Vec<Outcome>,
    duration: Duration,
    is_interrupted: bool,
}

/// Sends requests when they come, until there are enough or Ctrl-C ends it; what runs then is dropped, and not counted.
async fn drive(args: &LoadArgs, plan: &Plan, ask: &Ask<'_>, mut prompts: Prompts, client: Client) -> Driven {
    let client = Rc::new(client);
    let (tell, mut told) = mpsc::unbounded_channel();
    let send = async {
        let mut arrivals = Arrivals::new(plan.rate, args.burstiness, args.seed);
        let places = Arc::new(Semaphore::new(plan.concurrency.unwrap_or(Semaphore::MAX_PERMITS)));
        let is_over = |at: Duration| args.duration.is_some_and(|duration| at >= duration);
        for _ in 0..plan.prompts.unwrap_or(usize::MAX) {
            let at = arrivals.next();
            if is_over(at) {
                break;
            }
            tokio::time::sleep_until(client.begun + at).await;
            let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
            if is_over(client.begun.elapsed()) {
                break;
            }
            let (client, tell, path, body) = (Rc::clone(&client), tell.clone(), ask.path(), ask.body(&prompts.next()));
            tokio::task::spawn_local(async move {
                let outcome = client.ask(path, body).await;
                drop(place);
                // Nobody listens any more after Ctrl-C.
                let _ = tell.send(outcome);
            });
        }
        drop(tell);
    };
    let bar = progress::requests(plan.prompts);
    let mut outcomes = Vec::new();
    let gather = async {
        while let Some(outcome) = told.recv().await {
            bar.inc(1);
            outcomes.push(outcome);
        }
    };
    let is_interrupted = tokio::select! {
        ((), ()) = async { tokio::join!(send, gather) } => false,
        _ = tokio::signal::ctrl_c() => true,
    };
    bar.finish_and_clear();
    Driven { outcomes, duration: client.begun.elapsed(), is_interrupted }
}

/// How requests are put.
struct Ask<'a> {
    args: &'a LoadArgs,
    model: &'a str,
}

impl Ask<'_> {
    fn path(&self) -> &'static str {
        match self.args.endpoint {
            Endpoint::Completions => "/v1/completions",
            Endpoint::Chat => "/v1/chat/completions",
        }
    }

    fn body(&self, asked: &Asked) -> Bytes {
        let args = self.args;
        let mut body = json!({
            "model": self.model,
            "max_tokens": args.max_tokens.unwrap_or(asked.output_tokens),
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        let prefix = asked.prefix.as_deref();
        match args.endpoint {
            Endpoint::Completions => {
                body["prompt"] = prefix.into_iter().chain([asked.prompt.as_str()]).collect::<Vec<_>>().join(" ").into();
            }
            Endpoint::Chat => {
                let system = prefix.map(|prefix| json!({ "role": "system", "content": prefix }));
                let user = json!({ "role": "user", "content": asked.prompt });
                body["messages"] = system.into_iter().chain([user]).collect();
            }
        }
        if args.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        if let Some(temperature) = args.temperature {
            body["temperature"] = temperature.into();
        }
        for (name, value) in args.extra_body.iter().flatten() {
            body[name] = value.clone();
        }
        body.to_string().into()
    }
}
