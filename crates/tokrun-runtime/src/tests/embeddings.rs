//! Vectors through a tiny model, with the real ledger and with one that fails.

use std::sync::mpsc::{Receiver, channel};

use tokrun_engine::TextEncoder;
use tokrun_ledger::{GrantRequest, Ledger};
use tokrun_model::LoadOptions;

use super::*;
use crate::{EmbedInput, EmbedRequest, Embedded, EmbeddingModel, Embeddings, LedgerMeter};

fn embeddings(meter: Arc<dyn Meter>) -> Embeddings {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/embed-bert");
    let file = ModelFile::open(&fixture).expect("the fixture opens");
    let embedder = file.load_embedder(&LoadOptions::default()).expect("it loads");
    let encoder = TextEncoder::from_assets(file.assets()).expect("its tokenizer works");
    Embeddings::start(EmbeddingModel { name: "tiny".to_owned(), embedder, encoder }, meter).expect("it starts")
}

fn request(wallet: &str, texts: usize, tokens: usize) -> EmbedRequest {
    EmbedRequest {
        request_id: None,
        inputs: vec![EmbedInput::Tokens(vec![7; tokens]); texts],
        deadline: None,
        payer: Payer { wallet: wallet.to_owned(), ..Payer::default() },
        price: Price::default(),
    }
}

fn ask(embeddings: &Embeddings, request: EmbedRequest) -> (Receiver<Embedded>, crate::Canceller) {
    let (sender, receiver) = channel();
    let reply = move |embedded| drop(sender.send(embedded));
    (receiver, embeddings.embed(request, Box::new(reply)).expect("it is admitted"))
}

fn ledger(wallets: &[(&str, u64)]) -> (tempfile::TempDir, Ledger) {
    let home = tempfile::tempdir().expect("there is room");
    let ledger = Ledger::open(&home.path().join("ledger.db")).expect("a ledger can be made");
    for (name, balance) in wallets {
        ledger.create_wallet(name, None).expect("a wallet can be made");
        let amount = balance.to_string().parse().expect("an amount");
        ledger.grant(GrantRequest::new(*name, amount)).expect("it can be filled");
    }
    (home, ledger)
}

fn balance(ledger: &Ledger, wallet: &str) -> i64 {
    ledger.wallet(wallet).expect("there is one").balance.micro() / tokrun_ledger::MICRO
}

#[test]
fn what_is_computed_is_paid_and_what_is_cancelled_is_not() {
    let (_home, ledger) = ledger(&[("ada", 100_000)]);
    let embeddings = embeddings(Arc::new(LedgerMeter(ledger.clone())));
    let (receiver, _) = ask(&embeddings, request("ada", 10, 20));
    let embedded = receiver.recv().expect("it answers");
    assert_eq!((embedded.vectors.len(), embedded.outcome.usage.prompt_tokens), (10, 200));
    assert_eq!(embedded.outcome.finish_reason, FinishReason::Stop);
    assert_eq!(balance(&ledger, "ada"), 99_800);

    let (receiver, canceller) = ask(&embeddings, request("ada", 1500, 60));
    canceller.cancel();
    let embedded = receiver.recv().expect("it answers");
    assert_eq!((embedded.vectors.len(), embedded.outcome.usage.prompt_tokens), (0, 0));
    assert_eq!(embedded.outcome.finish_reason, FinishReason::Cancelled);
    assert_eq!(balance(&ledger, "ada"), 99_800);

    let hurried = |time_ms| {
        let deadline = Some(Instant::now() + Duration::from_millis(time_ms));
        EmbedRequest { deadline, ..request("ada", 1500, 60) }
    };
    let late = ask(&embeddings, hurried(50)).0.recv().expect("it answers");
    assert_eq!((late.vectors.len(), late.outcome.usage.prompt_tokens), (0, 0));
    assert_eq!((late.outcome.finish_reason, late.outcome.error.is_none()), (FinishReason::Deadline, true));
    let refused = embeddings.embed(hurried(0), Box::new(drop));
    assert!(matches!(refused, Err(crate::RuntimeError::TooLate)));
    assert_eq!(balance(&ledger, "ada"), 99_800);

    // What still runs when the model goes is settled without cost.
    let (receiver, _) = ask(&embeddings, request("ada", 1500, 60));
    drop(embeddings);
    assert_eq!(receiver.recv().expect("it answers").outcome.finish_reason, FinishReason::Cancelled);
    assert_eq!(balance(&ledger, "ada"), 99_800);
    assert!(ledger.verify().expect("it can be verified").passed());
}

#[test]
fn a_small_request_does_not_wait_for_a_large_one_of_another_wallet() {
    let (_home, ledger) = ledger(&[("ada", 1_000_000), ("bob", 1000)]);
    let embeddings = embeddings(Arc::new(LedgerMeter(ledger)));
    let (large, _) = ask(&embeddings, request("ada", 2000, 60));
    let (small, _) = ask(&embeddings, request("bob", 1, 60));
    assert_eq!(small.recv().expect("it answers").vectors.len(), 1);
    assert!(large.try_recv().is_err(), "the large one is not done yet");
    assert_eq!(large.recv().expect("it answers").vectors.len(), 2000);
}

#[test]
fn vectors_that_could_not_be_paid_are_not_delivered() {
    // No debit succeeds.
    let meter = SlowMeter::new(1000, 0, vec![0]);
    let books = Arc::clone(&meter.books);
    let embeddings = embeddings(Arc::new(meter));
    let (receiver, _) = ask(&embeddings, request("ada", 2, 5));
    let Embedded { vectors, outcome } = receiver.recv().expect("it answers");
    assert!(vectors.is_empty());
    assert!(matches!(outcome.error, Some(crate::RuntimeError::Unpaid(_))), "{:?}", outcome.error);
    assert_eq!((outcome.finish_reason, outcome.usage.prompt_tokens), (FinishReason::Error, 0));
    assert_eq!(books.lock().expect("no test thread panics").settled.len(), 1);
}

#[test]
fn a_request_that_cannot_be_served_leaves_the_ledger_alone() {
    let (_home, ledger) = ledger(&[("ada", 9)]);
    let embeddings = embeddings(Arc::new(LedgerMeter(ledger.clone())));
    let refused = |request| embeddings.embed(request, Box::new(|_| panic!("it never began"))).err();
    let error = refused(request("ada", 1, 65)).expect("it is too long");
    assert!(error.to_string().contains("input 0 has 65 tokens"), "{error}");
    assert!(refused(request("ada", 1, 0)).is_some());
    let error = refused(request("ada", 2, 5)).expect("it costs one too many");
    assert!(matches!(error, crate::RuntimeError::Ledger(LedgerError::Exhausted { .. })), "{error:?}");
    assert_eq!((balance(&ledger, "ada"), ledger.health().expect("it can be read").open_requests), (9, 0));
}
