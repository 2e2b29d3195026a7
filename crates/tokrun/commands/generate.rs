//! `tokrun generate`: one prompt, one answer, every token paid before it is shown.

use std::io::{self, IsTerminal, Read};
use std::sync::Arc;

use serde_json::json;
use tokrun_engine::TokenLogprob;
use tokrun_ledger::FinishReason;
use tokrun_model::catalogue::Catalogue;
use tokrun_runtime::{LedgerMeter, Meter, Outcome, Payer, Prompt};

use super::answer::{self, Answered};
use crate::args::{Format, GenerateArgs};
use crate::failure::{Failure, Status};
use crate::load::{self, Loaded};
use crate::{home, interrupt, output};

pub(crate) fn run(args: GenerateArgs, format: Format) -> Result<Status, Failure> {
    answer::check(&args.answer)?;
    load::prepare_threads(&args.answer.compute.engine, args.answer.compute.threads)?;
    interrupt::install(format)?;
    let text = prompt_text(&args)?;
    if text.trim().is_empty() {
        return Err(
            Failure::new(Status::Usage, "usage", "the prompt is empty").hint("give the model some text to answer")
        );
    }
    let prompt = prompt(text, &args);
    let grammar = answer::grammar(&args.answer.form)?;

    let home = home::directory()?;
    let catalogue = Catalogue::load(&home)?;
    let payer = answer::payer(&args.answer.payer, &catalogue)?;
    let found = load::find(&home, catalogue, args.answer.model.as_deref())?;
    let request = answer::request(prompt, grammar, &args.answer, &payer, &found)?;
    let seed = request.sampling.seed;
    let compute = &args.answer.compute;
    let meter = || Ok(Arc::new(LedgerMeter(answer::ledger()?)) as Arc<dyn Meter>);
    let loaded = load::start(&found, meter, &compute.load_options(), compute.engine_options())?;

    let generation = loaded.runtime.generate(request)?;
    let answered = answer::follow(generation, |text| match format {
        Format::Text => answer::to_stdout(text),
        _ => Ok(()),
    })?;
    Ok(report(&answered, &loaded, &found.name, &payer, seed, &args, format))
}

fn report(
    answered: &Answered,
    loaded: &Loaded,
    model: &str,
    payer: &Payer,
    seed: u64,
    args: &GenerateArgs,
    format: Format,
) -> Status {
    let outcome = &answered.outcome;
    let device = &loaded.runtime.info().device;
    let failure = failure(outcome, payer);
    if format == Format::Json {
        let mut object = json_outcome(outcome, model, device, payer, loaded.load_ms, seed);
        if let Some(failure) = &failure
            && outcome.error.is_some()
        {
            object["error"] = failure.json();
        }
        return shown(&format!("{object}\n"), answered.status());
    }
    let mut status = answered.status();
    if !outcome.text.is_empty() && !outcome.text.ends_with('\n') && !answered.reader_left {
        status = shown("\n", status);
    }
    if let Some(failure) = failure {
        failure.report(format);
    }
    if !args.no_stats {
        say!("{}", answer::figures(model, device, outcome));
    }
    status
}

/// Prints the end of the answer; one that cannot be printed is a failure, though it is paid and settled.
fn shown(text: &str, status: Status) -> Status {
    match answer::to_stdout(text).map_err(|error| output::cannot_write(&error)) {
        Err(Status::Failed) => Status::Failed,
        _ => status,
    }
}

fn failure(outcome: &Outcome, payer: &Payer) -> Option<Failure> {
    match &outcome.error {
        Some(error) => Some(Failure::from(error)),
        None => answer::cut_short(outcome, &payer.wallet),
    }
}

fn prompt_text(args: &GenerateArgs) -> Result<String, Failure> {
    if let Some(file) = &args.file {
        return std::fs::read_to_string(file)
            .map_err(|error| Failure::io(&format!("cannot read {}", file.display()), &error));
    }
    match args.prompt.as_deref() {
        Some(text) if text != "-" => return Ok(text.to_owned()),
        None if io::stdin().is_terminal() => {
            return Err(Failure::new(Status::Usage, "usage", "there is no prompt")
                .hint("give it as an argument, with --file, or on stdin"));
        }
        _ => {}
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|error| Failure::io("cannot read the prompt from stdin", &error))?;
    Ok(text)
}

fn prompt(text: String, args: &GenerateArgs) -> Prompt {
    if args.raw {
        return Prompt::Text(text);
    }
    let system = args.answer.system.iter().map(|system| answer::message("system", system));
    Prompt::Chat(system.chain([answer::message("user", text)]).collect::<Vec<_>>().into())
}

fn json_outcome(
    outcome: &Outcome,
    model: &str,
    device: &str,
    payer: &Payer,
    load_ms: f64,
    seed: u64,
) -> serde_json::Value {
    let usage = &outcome.usage;
    let timing = &outcome.timing;
    let itl = timing.itl();
    let computed = usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens);
    let mut object = json!({
        "request_id": outcome.request_id,
        "model": model,
        "device": device,
        "user": payer.wallet,
        "text": outcome.text,
        "finish_reason": finish_reason(outcome.finish_reason),
        "prompt_token_ids": outcome.prompt_token_ids,
        "token_ids": outcome.token_ids,
    });
    if let Some(logprobs) = &outcome.logprobs {
        let entries = outcome.token_ids.iter().zip(logprobs);
        object["logprobs"] = entries.map(|(id, logprob)| json_logprob(*id, logprob)).collect();
    }
    object["usage"] = json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": usage.reasoning_tokens },
    });
    if let Some(energy_uj) = outcome.energy_uj {
        object["energy_joules"] = (energy_uj as f64 / 1e6).into();
    }
    object["timing"] = json!({
        "load_ms": load_ms,
        "admit_ms": output::ms(timing.admit_us),
        "queue_ms": output::ms(timing.queue_us),
        "ttft_ms": timing.ttft_us.map(output::ms),
        "prefill_tokens_per_s": timing.prefill_tokens_per_s(computed),
        "decode_tokens_per_s": timing.decode_tokens_per_s(),
        "decode_ms": output::ms(timing.decode_us),
        "itl_ms": itl.map(|itl| json!({ "p50": itl.p50_ms, "p95": itl.p95_ms, "p99": itl.p99_ms })),
        "itl_us": timing.itl_us,
        "commit_wait_max_ms": output::ms(timing.commit_wait_max_us),
        "total_ms": output::ms(timing.total_us),
        "discarded_tokens": usage.discarded_tokens,
        "rejected_draft_tokens": usage.rejected_draft_tokens,
    });
    object["seed"] = seed.into();
    object["allowance"] = match &outcome.allowance {
        Some(allowance) => json!({
            "wallet": payer.wallet,
            "debited": output::credits_json(allowance.debited),
            "balance": output::credits_json(allowance.balance),
            "unit": "credits",
        }),
        None => serde_json::Value::Null,
    };
    if let Some(reached) = &outcome.limited {
        object["limit"] = tokrun_ledger::json::limit_reached(reached);
    }
    object
}

fn json_logprob(id: u32, logprob: &TokenLogprob) -> serde_json::Value {
    let top: Vec<_> = logprob.top.iter().map(|(id, logprob)| json!([id, logprob])).collect();
    json!({ "id": id, "logprob": logprob.logprob, "top": top })
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Allowance => "allowance",
        FinishReason::Limit => "limit",
        FinishReason::Deadline => "deadline",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Error | FinishReason::Crashed => "error",
    }
}
