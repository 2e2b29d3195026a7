//! What `generate` and `chat` share: flags into requests, events into text, outcomes into figures.

use std::io::{self, Write};
use std::path::Path;

use tokrun_engine::{ChatMessage, Grammar, SamplingParams};
use tokrun_ledger::{FinishReason, Ledger, LedgerError};
use tokrun_model::catalogue::Catalogue;
use tokrun_runtime::{Event, GenerateRequest, Generation, Outcome, Payer, Prompt};

use crate::args::{AnswerArgs, FormArgs, PayerArgs, SamplingArgs};
use crate::failure::{Failure, Status};
use crate::load::{self, Found};
use crate::{home, interrupt, output};

/// The request that the flags describe.
pub(crate) fn request(
    prompt: Prompt,
    grammar: Option<Grammar>,
    args: &AnswerArgs,
    payer: &Payer,
    found: &Found,
) -> Result<GenerateRequest, Failure> {
    Ok(GenerateRequest {
        request_id: None,
        prompt,
        max_tokens: args.sampling.max_tokens,
        sampling: sampling(&args.sampling, args.compute.engine.deterministic, found.sampling_params())?,
        stop: args.sampling.stop.clone(),
        grammar,
        ignore_eos: args.sampling.ignore_eos,
        splits_reasoning: false,
        logprobs: args.sampling.logprobs,
        priority: 0,
        deadline: None,
        payer: payer.clone(),
        price: found.price()?,
    })
}

/// One turn of a conversation.
pub(crate) fn message(role: &str, content: impl Into<String>) -> ChatMessage {
    ChatMessage::new(role, content)
}

/// What can be refused without opening anything.
pub(crate) fn check(args: &AnswerArgs) -> Result<(), Failure> {
    if args.sampling.max_tokens == Some(0) {
        return Err(Failure::new(Status::Usage, "usage", "--max-tokens must be at least 1")
            .hint("leave it out to generate until the answer ends"));
    }
    load::check_device(args.compute.device)
}

/// The form that the answer must have.
pub(crate) fn grammar(args: &FormArgs) -> Result<Option<Grammar>, Failure> {
    let read = |file: &Path| {
        std::fs::read_to_string(file).map_err(|error| Failure::io(&format!("cannot read {}", file.display()), &error))
    };
    Ok(match (&args.json_schema, &args.regex, &args.grammar) {
        (Some(file), _, _) => Some(Grammar::JsonSchema(read(file)?)),
        (_, Some(expression), _) => Some(Grammar::Regex(expression.clone())),
        (_, _, Some(file)) => Some(Grammar::Lark(read(file)?)),
        (None, None, None) => None,
    })
}

fn sampling(args: &SamplingArgs, deterministic: bool, usual: SamplingParams) -> Result<SamplingParams, Failure> {
    let params = SamplingParams {
        temperature: args.temperature.unwrap_or(usual.temperature),
        top_k: args.top_k.unwrap_or(usual.top_k),
        top_p: args.top_p.unwrap_or(usual.top_p),
        min_p: args.min_p.unwrap_or(usual.min_p),
        repeat_penalty: args.repeat_penalty.unwrap_or(usual.repeat_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(usual.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(usual.frequency_penalty),
        logit_bias: args.logit_bias.iter().copied().collect(),
        seed: args.seed.unwrap_or_else(|| if deterministic { 0 } else { random_seed() }),
        ..usual
    };
    params.validate()?;
    Ok(params)
}

/// Any number will do; it is reported, so that a run can be repeated.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Within 53 bits, so that every JSON reader keeps it.
    RandomState::new().hash_one(std::process::id()) >> 11
}

/// Who pays. Only the account's own name may open a wallet by generating.
pub(crate) fn payer(args: &PayerArgs, catalogue: &Catalogue) -> Result<Payer, Failure> {
    let account = home::account();
    let (wallet, is_own) = match (&args.user, account) {
        (Some(user), account) => (user.clone(), account.is_ok_and(|account| account == *user)),
        (None, account) => (account?, true),
    };
    let starter = is_own.then(|| load::credits(catalogue.starter_grant())).transpose()?;
    let tags = args.tags.iter().cloned().collect();
    Ok(Payer { wallet, starter, key: None, project: args.project.clone(), tags })
}

/// Opens the books.
pub(crate) fn ledger() -> Result<Ledger, Failure> {
    Ok(Ledger::open(&home::ledger_file()?)?)
}

/// Opens the books to look at them, on a disk that is full or cannot be written too.
pub(crate) fn ledger_to_read() -> Result<Ledger, Failure> {
    or_read_only(Ledger::open)
}

/// Opens the books to check them, before anything that a dead process left is booked.
pub(crate) fn ledger_to_check() -> Result<Ledger, Failure> {
    or_read_only(Ledger::open_unsettled)
}

fn or_read_only(open: impl Fn(&Path) -> Result<Ledger, LedgerError>) -> Result<Ledger, Failure> {
    let file = home::ledger_file()?;
    open(&file).or_else(|error| {
        use LedgerError as E;
        match error {
            E::ReadOnly { .. } | E::DiskFull | E::DiskFailed { .. } | E::Io { .. } => {
                // If it cannot even be read, the first reason is the better one.
                Ok(Ledger::open_read_only(&file).map_err(|_| error)?)
            }
            _ => Err(error.into()),
        }
    })
}

/// How a generation ended for the one who typed the command.
pub(crate) struct Answered {
    pub(crate) outcome: Outcome,
    pub(crate) interrupted: bool,
    /// The pipe that the text went to was closed.
    pub(crate) reader_left: bool,
}

/// Waits for the end of a generation, handing each paid piece of text to `show`. When it cannot be shown any more
/// (a closed pipe), the request is cancelled: what was paid stays paid.
pub(crate) fn follow(
    mut generation: Generation,
    mut show: impl FnMut(&str) -> io::Result<()>,
) -> Result<Answered, Failure> {
    let canceller = generation.canceller();
    interrupt::cancels(canceller.clone());
    let mut broken = None;
    let mut outcome = None;
    while let Some(event) = generation.next_event() {
        match event {
            Event::Delta(delta) if broken.is_none() && !delta.text.is_empty() => {
                if let Err(error) = show(&delta.text) {
                    canceller.cancel();
                    broken = Some(error);
                }
            }
            Event::Delta(_) => {}
            Event::Finished(ended) => outcome = Some(*ended),
        }
    }
    let interrupted = interrupt::done();
    let outcome = outcome.ok_or(tokrun_runtime::RuntimeError::Stopped)?;
    match broken {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::io("cannot write the answer", &error)),
        broken => Ok(Answered { outcome, interrupted, reader_left: broken.is_some() }),
    }
}

/// Writes text to stdout, all of it or an error, at once.
pub(crate) fn to_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

impl Answered {
    /// How the process ends.
    pub(crate) fn status(&self) -> Status {
        match self.outcome.finish_reason {
            _ if self.outcome.error.is_some() => Status::Failed,
            _ if self.interrupted => Status::Interrupted,
            FinishReason::Allowance | FinishReason::Limit => Status::Allowance,
            _ => Status::Done,
        }
    }
}

/// The line of figures after an answer.
pub(crate) fn figures(model: &str, device: &str, outcome: &Outcome) -> String {
    let usage = &outcome.usage;
    let mut parts = vec![
        format!("{model} on {device}"),
        format!("{} + {} tokens", output::grouped(usage.prompt_tokens), output::grouped(usage.completion_tokens)),
    ];
    if let Some(ttft_us) = outcome.timing.ttft_us {
        parts.push(format!("first after {:.0} ms", output::ms(ttft_us)));
    }
    if let Some(rate) = outcome.timing.decode_tokens_per_s() {
        parts.push(format!("{rate:.1} tokens/s"));
    }
    if let Some(itl) = outcome.timing.itl() {
        parts.push(format!("p95 {:.1} ms a token", itl.p95_ms));
    }
    if let Some(energy_uj) = outcome.energy_uj {
        parts.push(format!("{:.1} J", energy_uj as f64 / 1e6));
    }
    if let Some(allowance) = &outcome.allowance {
        parts.push(format!("paid {}, {} left", output::credits(allowance.debited), output::credits(allowance.balance)));
    }
    format!("[{}]", parts.join(" · "))
}

/// Says what ended the answer before its own end, and what to do: a limit, or the allowance.
pub(crate) fn cut_short(outcome: &Outcome, wallet: &str) -> Option<Failure> {
    match (&outcome.limited, outcome.finish_reason) {
        (Some(reached), FinishReason::Limit) => Some(
            Failure::new(Status::Allowance, "limit_reached", format!("a limit is reached: {}", reached.what))
                .hint("what is shown is paid; the ledger's owner can change it: tokrun wallet limit set")
                .until(reached),
        ),
        (_, FinishReason::Allowance) => Some(allowance_ended(wallet)),
        _ => None,
    }
}

fn allowance_ended(wallet: &str) -> Failure {
    Failure::new(
        Status::Allowance,
        "allowance_exhausted",
        format!("the allowance of {wallet} has ended; what is shown is paid"),
    )
    .hint(format!("the ledger's owner can add to it: tokrun wallet grant {wallet} AMOUNT"))
}
