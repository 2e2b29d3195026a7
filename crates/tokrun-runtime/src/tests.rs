//! Whole requests through a made-up model and a made-up ledger that is slow, poor, or fails.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokrun_engine::{EngineOptions, Executor, ExecutorInfo, SamplingParams, TokenId, Tokenizer};
use tokrun_ledger::{
    Admission, Admitted, Credits, Debit, Debited, FinishReason, LedgerError, Price, Settled, Settlement,
};
use tokrun_model::{Extend, Logits, ModelError, ModelFile, SequenceHandle};

use crate::transcript::{Rules, Transcript};
use crate::{Event, GenerateRequest, Meter, Outcome, Payer, Prompt, Reply, Runtime, TextModel};

mod embeddings;
mod grammars;
mod load;

const WINDOW: u64 = 32;

/// Chooses by a hash of the tokens so far: deterministic, and different everywhere.
struct HashModel {
    info: ExecutorInfo,
    sequences: HashMap<SequenceHandle, u64>,
    next: u64,
    /// How long each step takes.
    pause: Duration,
}

impl HashModel {
    fn new(vocab_size: usize) -> Self {
        let info = ExecutorInfo {
            backend: "test",
            device: "cpu".to_owned(),
            vocab_size,
            context_tokens: 300,
            sequences_max: 4,
            paging: None,
        };
        Self { info, sequences: HashMap::new(), next: 0, pause: Duration::ZERO }
    }
}

impl Executor for HashModel {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn create(&mut self) -> Result<SequenceHandle, ModelError> {
        self.next += 1;
        let handle = SequenceHandle::new(self.next);
        self.sequences.insert(handle, 1);
        Ok(handle)
    }

    fn extend(&mut self, batch: &[Extend<'_>]) -> Result<Logits<'_>, ModelError> {
        std::thread::sleep(self.pause);
        let vocab_size = self.info.vocab_size;
        let mut values = vec![0.0; batch.len() * vocab_size];
        for (row, extend) in values.chunks_mut(vocab_size).zip(batch) {
            let state = self.sequences.get_mut(&extend.sequence).expect("the engine knows its sequences");
            for token in extend.tokens {
                *state = (*state ^ u64::from(*token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
            }
            row[(*state % vocab_size as u64) as usize] = 10.0;
        }
        Ok(Logits::new(values, vocab_size))
    }

    fn drop_sequence(&mut self, sequence: SequenceHandle) {
        self.sequences.remove(&sequence);
    }
}

/// One wallet of whole tokens; answers on a thread of its own, late.
struct SlowMeter {
    books: Arc<Mutex<Books>>,
    jobs: Mutex<Sender<Box<dyn FnOnce() + Send>>>,
}

#[derive(Default)]
struct Books {
    balance: u64,
    /// Debits that still succeed before the disk is full.
    debits_left: usize,
    paid: HashMap<String, u64>,
    settled: HashMap<String, (u32, FinishReason)>,
}

impl SlowMeter {
    fn new(balance: u64, debits_left: usize, pauses_us: Vec<u64>) -> Self {
        let (jobs, inbox) = channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || {
            let mut pauses = pauses_us.into_iter().cycle();
            while let Ok(job) = inbox.recv() {
                std::thread::sleep(Duration::from_micros(pauses.next().unwrap_or(0)));
                job();
            }
        });
        let books = Books { balance, debits_left, ..Books::default() };
        Self { books: Arc::new(Mutex::new(books)), jobs: Mutex::new(jobs) }
    }

    fn later(&self, job: impl FnOnce(&mut Books) + Send + 'static) {
        let books = Arc::clone(&self.books);
        let job = Box::new(move || job(&mut books.lock().expect("no test thread panics")));
        self.jobs.lock().expect("no test thread panics").send(job).expect("the thread lives as long as the meter");
    }
}

impl Meter for SlowMeter {
    fn admit(&self, admission: Admission) -> Result<Admitted, LedgerError> {
        let mut books = self.books.lock().expect("no test thread panics");
        let held = admission.prompt_tokens + 1;
        let balance = Credits::ZERO;
        if books.balance < held {
            return Err(LedgerError::Exhausted { name: admission.wallet, needed: balance, balance });
        }
        books.balance -= held;
        books.paid.insert(admission.request_id, 0);
        Ok(Admitted {
            wallet_id: String::new(),
            team_id: String::new(),
            wallet_created: false,
            price: Price::default(),
            held: balance,
            balance,
        })
    }

    fn debit(&self, debits: Vec<Debit>, reply: Reply<Vec<Debited>>) {
        self.later(move |books| {
            if books.debits_left == 0 {
                return reply(Err(LedgerError::DiskFull));
            }
            books.debits_left -= 1;
            let debited = debits.into_iter().map(|debit| books.pay(debit)).collect();
            reply(Ok(debited));
        });
    }

    fn settle(&self, settlement: Settlement, reply: Reply<Settled>) {
        self.later(move |books| {
            let times = books.settled.get(&settlement.request_id).map_or(0, |settled| settled.0);
            books.settled.insert(settlement.request_id, (times + 1, settlement.finish_reason));
            reply(Ok(Settled {
                debited: Credits::ZERO,
                balance: Credits::ZERO,
                prompt_tokens: 0,
                cached_tokens: 0,
                output_tokens: 0,
                finish_reason: settlement.finish_reason,
            }));
        });
    }
}

impl Books {
    fn pay(&mut self, debit: Debit) -> Debited {
        let paid = self.paid.get_mut(&debit.request_id).expect("only admitted requests are debited");
        // The hold pays the first token.
        let held = u64::from(debit.prompt.is_some());
        assert_eq!(held == 1, *paid == 0, "the prompt comes with the first debit and with no other");
        let granted = u64::from(debit.output_tokens).min(self.balance + held);
        self.balance -= granted - held;
        *paid += granted;
        let exhausted = granted < u64::from(debit.output_tokens);
        Debited { request_id: debit.request_id, granted: granted as u32, exhausted, limited: None, refused: None }
    }
}

fn tokenizer() -> Arc<Tokenizer> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
    let file = ModelFile::open(&fixture).expect("the fixture opens");
    Arc::new(Tokenizer::from_assets(file.assets()).expect("its tokenizer works"))
}

fn start(tokenizer: &Arc<Tokenizer>, meter: Arc<SlowMeter>, end_tokens: Vec<TokenId>) -> Runtime {
    start_slow(tokenizer, meter, end_tokens, Duration::ZERO)
}

/// With a model each of whose steps takes a while.
fn start_slow(tokenizer: &Arc<Tokenizer>, meter: Arc<SlowMeter>, end_tokens: Vec<TokenId>, pause: Duration) -> Runtime {
    let model = TextModel {
        name: "hash".to_owned(),
        executor: Box::new(HashModel { pause, ..HashModel::new(tokenizer.vocab_size()) }),
        tokenizer: Arc::clone(tokenizer),
        template: Err(tokrun_engine::EngineError::NoChatTemplate),
        end_tokens,
    };
    Runtime::start(model, meter, EngineOptions { window_tokens: WINDOW as u32, ..EngineOptions::default() })
        .expect("it starts")
}

fn request(id: usize, max_tokens: usize, stop: Vec<String>) -> GenerateRequest {
    GenerateRequest {
        request_id: Some(format!("request-{id}")),
        prompt: Prompt::Tokens(vec![3, 5 + id as TokenId]),
        max_tokens: Some(max_tokens),
        sampling: SamplingParams::greedy(),
        stop,
        grammar: None,
        ignore_eos: false,
        splits_reasoning: false,
        logprobs: None,
        priority: 0,
        deadline: None,
        payer: Payer { wallet: "ada".to_owned(), ..Payer::default() },
        price: Price::default(),
    }
}

/// What a caller does with its request.
#[derive(Clone, Copy, Debug)]
enum Caller {
    ReadsAll,
    CancelsAfter(usize),
    LeavesAfter(usize),
    /// Reads all that comes within so many milliseconds.
    HasTime(u64),
}

fn caller() -> impl Strategy<Value = Caller> {
    prop_oneof![
        3 => Just(Caller::ReadsAll),
        1 => (0..20_usize).prop_map(Caller::CancelsAfter),
        1 => (0..20_usize).prop_map(Caller::LeavesAfter),
        1 => (0..6_u64).prop_map(Caller::HasTime),
    ]
}

/// What one caller saw.
struct Seen {
    text: String,
    tokens: u64,
    outcome: Option<Outcome>,
}

fn follow(runtime: &Runtime, request: GenerateRequest, caller: Caller) -> Option<Seen> {
    let mut request = request;
    if let Caller::HasTime(ms) = caller {
        request.deadline = Some(Instant::now() + Duration::from_millis(ms));
    }
    let mut generation = runtime.generate(request).ok()?;
    let mut seen = Seen { text: String::new(), tokens: 0, outcome: None };
    for count in 0.. {
        match caller {
            Caller::CancelsAfter(limit) if count == limit => generation.canceller().cancel(),
            Caller::LeavesAfter(limit) if count == limit => return Some(seen),
            _ => {}
        }
        match generation.next_event() {
            Some(Event::Delta(delta)) => {
                seen.text.push_str(&delta.text);
                seen.tokens += u64::from(delta.tokens);
            }
            Some(Event::Finished(outcome)) => seen.outcome = Some(*outcome),
            None => return Some(seen),
        }
    }
    unreachable!("the loop ends with the events")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn delivered_is_paid_whatever_happens(
        callers in prop::collection::vec((caller(), 1..120_usize, prop::option::of("[a-e ]{1,2}")), 1..7),
        balance in 0..600_u64,
        debits_left in prop_oneof![4 => Just(usize::MAX), 1 => 0..30_usize],
        pauses_us in prop::collection::vec(0..800_u64, 1..8),
        end_tokens in prop::collection::vec(0..384_u32, 0..12),
    ) {
        let tokenizer = tokenizer();
        let meter = Arc::new(SlowMeter::new(balance, debits_left, pauses_us));
        let runtime = start(&tokenizer, Arc::clone(&meter), end_tokens.clone());
        let seen: Vec<Option<Seen>> = std::thread::scope(|scope| {
            let runtime = &runtime;
            let threads: Vec<_> = callers
                .iter()
                .enumerate()
                .map(|(id, (caller, tokens, stop))| {
                    let request = request(id, *tokens, stop.iter().cloned().collect());
                    scope.spawn(move || follow(runtime, request, *caller))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no caller panics")).collect()
        });
        drop(runtime);
        let books = meter.books.lock().expect("no test thread panics");
        for (id, (seen, (_, tokens, stop))) in seen.iter().zip(&callers).enumerate() {
            let name = format!("request-{id}");
            let Some(seen) = seen else {
                prop_assert!(!books.paid.contains_key(&name), "a refused request was admitted");
                continue;
            };
            let paid = books.paid[&name];
            prop_assert_eq!(books.settled[&name].0, 1, "settled once");
            prop_assert!(seen.tokens <= paid && paid <= seen.tokens + WINDOW, "{} seen, {} paid", seen.tokens, paid);
            let Some(outcome) = &seen.outcome else { continue };
            check(&tokenizer, seen, outcome, paid, *tokens, stop, &end_tokens)?;
            prop_assert_eq!(books.settled[&name].1, outcome.finish_reason);
        }
        let asked: u64 = books.paid.values().sum();
        prop_assert!(asked <= balance, "overdrawn");
    }
}

fn check(
    tokenizer: &Arc<Tokenizer>,
    seen: &Seen,
    outcome: &Outcome,
    paid: u64,
    max_tokens: usize,
    stop: &Option<String>,
    end_tokens: &[TokenId],
) -> Result<(), TestCaseError> {
    prop_assert_eq!(seen.tokens, paid, "delivered = debited");
    prop_assert_eq!(outcome.token_ids.len() as u64, paid);
    prop_assert_eq!(outcome.usage.completion_tokens, paid);
    prop_assert_eq!(&outcome.text, &seen.text, "the pieces are the whole");
    prop_assert!(outcome.token_ids.len() <= max_tokens);
    let ended = outcome.token_ids.last().is_some_and(|token| end_tokens.contains(token));
    let visible = &outcome.token_ids[..outcome.token_ids.len() - usize::from(ended)];
    let rules = Rules { stop: stop.iter().cloned().collect(), continues: true, ..Rules::default() };
    let (_, whole) = Transcript::whole(tokenizer, &rules, visible).expect("its own tokens can be decoded");
    prop_assert_eq!(&outcome.text, &whole, "the text is that of the paid tokens");
    if let Some(stop) = stop {
        prop_assert!(!outcome.text.contains(stop.as_str()), "a stop string was shown");
    }
    match outcome.finish_reason {
        FinishReason::Length => prop_assert_eq!(outcome.token_ids.len(), max_tokens),
        FinishReason::Error => prop_assert!(outcome.error.is_some()),
        _ => prop_assert!(outcome.error.is_none()),
    }
    prop_assert_eq!(outcome.timing.itl_us.len() as u64, paid.saturating_sub(1));
    Ok(())
}

/// A caller that takes nothing holds the engine at its window, and nothing more is paid.
#[test]
fn a_caller_that_sleeps_is_not_charged_past_the_window() {
    let tokenizer = tokenizer();
    let meter = Arc::new(SlowMeter::new(10_000, usize::MAX, vec![0]));
    let runtime = start(&tokenizer, Arc::clone(&meter), Vec::new());
    let mut generation = runtime.generate(request(0, 250, Vec::new())).expect("it is admitted");
    let mut taken = 0;
    for _ in 0..3 {
        // Dealing with a piece takes the caller very long.
        if let Some(Event::Delta(delta)) = generation.next_event() {
            std::thread::sleep(Duration::from_millis(150));
            let paid = meter.books.lock().expect("no test thread panics").paid["request-0"];
            assert!(paid <= taken + WINDOW, "{paid} are paid when {taken} were taken");
            taken += u64::from(delta.tokens);
        }
    }
}

/// What comes too late is not paid; a request that has nothing by then pays nothing at all.
#[test]
fn a_request_ends_when_it_must() {
    let tokenizer = tokenizer();
    let meter = Arc::new(SlowMeter::new(10_000, usize::MAX, vec![0]));
    let runtime = start_slow(&tokenizer, Arc::clone(&meter), Vec::new(), Duration::from_millis(20));
    let ended = |id: usize, time_ms: u64| {
        let seen = follow(&runtime, request(id, 250, Vec::new()), Caller::HasTime(time_ms)).expect("it is admitted");
        let outcome = seen.outcome.expect("it ends");
        let books = meter.books.lock().expect("no test thread panics");
        let name = format!("request-{id}");
        assert_eq!(books.settled[&name], (1, FinishReason::Deadline));
        assert_eq!((outcome.finish_reason, outcome.error.is_none()), (FinishReason::Deadline, true));
        assert_eq!((seen.tokens, outcome.usage.completion_tokens), (books.paid[&name], books.paid[&name]));
        (outcome.usage.prompt_tokens, seen.tokens)
    };
    assert_eq!(ended(0, 5), (0, 0));
    let (prompt, output) = ended(1, 400);
    assert!(prompt == 2 && (1..=20).contains(&output), "{prompt} + {output} tokens");
    let late = GenerateRequest { deadline: Some(Instant::now()), ..request(2, 250, Vec::new()) };
    assert!(matches!(runtime.generate(late), Err(crate::RuntimeError::TooLate)));
    assert!(!meter.books.lock().expect("no test thread panics").paid.contains_key("request-2"));
}

#[test]
fn a_used_request_id_is_refused_before_anything_is_computed() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let ledger = tokrun_ledger::Ledger::open(&home.path().join("ledger.db")).expect("it opens");
    ledger.create_wallet("ada", None).expect("it is new");
    ledger
        .grant(tokrun_ledger::GrantRequest::new("ada", Credits::from_micro(1_000_000_000)))
        .expect("it can be granted");
    let tokenizer = tokenizer();
    let model = TextModel {
        name: "hash".to_owned(),
        executor: Box::new(HashModel::new(tokenizer.vocab_size())),
        tokenizer: Arc::clone(&tokenizer),
        template: Err(tokrun_engine::EngineError::NoChatTemplate),
        end_tokens: Vec::new(),
    };
    let meter = Arc::new(crate::LedgerMeter(ledger.clone()));
    let runtime = Runtime::start(model, meter, EngineOptions::default()).expect("it starts");
    let seen = follow(&runtime, request(0, 20, Vec::new()), Caller::ReadsAll).expect("it is admitted");
    let outcome = seen.outcome.expect("it ends");
    assert_eq!(outcome.allowance.expect("it is settled").debited, Credits::from_micro(22_000_000));
    assert!(matches!(
        runtime.generate(request(0, 20, Vec::new())),
        Err(crate::RuntimeError::Ledger(LedgerError::DuplicateRequest { .. }))
    ));
    assert!(ledger.verify().expect("it can be checked").passed());
}
