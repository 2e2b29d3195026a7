//! Many requests at once through a paged model and the real ledger: token-exact.

use tokrun_ledger::{GrantRequest, Ledger, NewWallet, UsageBy, UsageQuery, WalletKind};
use tokrun_model::{Paging, Wanted};

use super::*;

const BLOCK: usize = 16;
const REQUESTS: usize = 64;
/// Enough for about six of the longest requests.
const BLOCKS: usize = 400;
/// The last of them is poor.
const WALLETS: [&str; 4] = ["ada", "bob", "cyd", "dee"];

/// Knows of a sequence only what lies in its blocks.
struct PagedHashModel {
    info: ExecutorInfo,
    cache: Vec<TokenId>,
    created: u64,
}

impl PagedHashModel {
    fn new(vocab_size: usize) -> Self {
        let paging = Some(Paging { block_tokens: BLOCK, blocks: BLOCKS, block_bytes: 1 });
        let info = ExecutorInfo {
            backend: "test",
            device: "cpu".to_owned(),
            vocab_size,
            context_tokens: 1100,
            sequences_max: 16,
            paging,
        };
        Self { info, cache: vec![0; BLOCKS * BLOCK], created: 0 }
    }
}

/// What the model says after these tokens; often what it said before.
fn next_token(tokens: &[TokenId], vocab_size: usize) -> TokenId {
    let hash =
        |state: u64, token: &TokenId| (state ^ u64::from(*token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let state = tokens.iter().fold(1, hash);
    match tokens {
        [.., before, _, _, _] if state % 8 > 1 => *before,
        _ => (state % vocab_size as u64) as TokenId,
    }
}

impl Executor for PagedHashModel {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn create(&mut self) -> Result<SequenceHandle, ModelError> {
        self.created += 1;
        Ok(SequenceHandle::new(self.created))
    }

    fn extend(&mut self, batch: &[Extend<'_>]) -> Result<Logits<'_>, ModelError> {
        let vocab_size = self.info.vocab_size;
        let mut values = Vec::new();
        for extend in batch {
            let at = |position: usize| extend.place.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
            for (index, token) in extend.tokens.iter().enumerate() {
                self.cache[at(extend.place.start + index)] = *token;
            }
            let end = extend.place.start + extend.tokens.len();
            let row: Vec<TokenId> = (0..end).map(|position| self.cache[at(position)]).collect();
            let first = if extend.wanted == Wanted::All { extend.place.start + 1 } else { end };
            for end in (first..=end).filter(|_| extend.wanted != Wanted::Nothing) {
                let mut logits = vec![0.0; vocab_size];
                logits[next_token(&row[..end], vocab_size) as usize] = 10.0;
                values.extend(logits);
            }
        }
        Ok(Logits::new(values, vocab_size))
    }

    fn drop_sequence(&mut self, _: SequenceHandle) {}
}

/// Pseudo-random, the same in every run.
fn random(id: usize, salt: u64) -> usize {
    let mixed = (id as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed.wrapping_mul(0x94D0_49BB_1331_11EB) >> 33) as usize
}

fn prompt(id: usize) -> Vec<TokenId> {
    // Half of them begin alike; the shortest has one token, the longest 1,000.
    let common = if id.is_multiple_of(2) { 7 } else { 11 + id as TokenId };
    let length = match id {
        0 => 1,
        1 => 1000,
        _ => 1 + random(id, 1) % 1000,
    };
    (0..length).map(|index| (common + index as TokenId * 3) % 380).collect()
}

fn caller_of(id: usize) -> Caller {
    match random(id, 2) % 4 {
        0 => Caller::CancelsAfter(random(id, 3) % 4),
        1 => Caller::LeavesAfter(random(id, 3) % 4),
        _ => Caller::ReadsAll,
    }
}

/// A paged model behind the real ledger, and the size of its vocabulary.
fn serve(ledger: &Ledger) -> (Runtime, usize) {
    let tokenizer = tokenizer();
    let vocab_size = tokenizer.vocab_size();
    let model = TextModel {
        name: "hash".to_owned(),
        executor: Box::new(PagedHashModel::new(vocab_size)),
        tokenizer,
        template: Err(tokrun_engine::EngineError::NoChatTemplate),
        end_tokens: vec![0, 1, 2],
    };
    let meter = Arc::new(crate::LedgerMeter(ledger.clone()));
    (Runtime::start(model, meter, EngineOptions::default()).expect("it starts"), vocab_size)
}

#[test]
fn a_team_shares_prefixes_and_nobody_else_finds_them() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let ledger = Ledger::open(&home.path().join("ledger.db")).expect("it opens");
    for (name, kind, parent) in [
        ("acme", WalletKind::Organisation, None),
        ("red", WalletKind::Team, Some("acme")),
        ("blue", WalletKind::Team, Some("acme")),
        ("ada", WalletKind::Person, Some("red")),
        ("bob", WalletKind::Person, Some("red")),
        ("cyd", WalletKind::Person, Some("blue")),
        ("dee", WalletKind::Person, Some("acme")),
        ("eve", WalletKind::Person, None),
    ] {
        let wallet = NewWallet { kind, parent: parent.map(str::to_owned), ..NewWallet::new(name) };
        ledger.open_wallet(wallet).expect("it is new");
        ledger.grant(GrantRequest::new(name, Credits::from_micro(1_000_000_000))).expect("it can be granted");
    }
    let (runtime, _) = serve(&ledger);
    let callers = ["ada", "ada", "bob", "cyd", "dee", "eve", "red"];
    let cached = callers.iter().enumerate().map(|(id, wallet)| {
        let request = GenerateRequest {
            prompt: Prompt::Tokens(prompt(1)[..100].to_vec()),
            payer: Payer { wallet: (*wallet).to_owned(), ..Payer::default() },
            ..request(id, 2, Vec::new())
        };
        let seen = follow(&runtime, request, Caller::ReadsAll).expect("it is admitted");
        seen.outcome.expect("it is read to its end").usage.cached_tokens
    });
    // Whole blocks of 16 tokens, short of the last token.
    assert_eq!(cached.collect::<Vec<_>>(), [0, 96, 96, 0, 0, 0, 96]);
}

#[test]
fn sixty_four_requests_at_once_are_paid_to_the_token() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let ledger = Ledger::open(&home.path().join("ledger.db")).expect("it opens");
    for (wallet, credits) in WALLETS.into_iter().zip([100_000, 100_000, 100_000, 2_500]) {
        ledger.create_wallet(wallet, None).expect("it is new");
        ledger.grant(GrantRequest::new(wallet, Credits::from_micro(credits * 1_000_000))).expect("it can be granted");
    }
    let (runtime, vocab_size) = serve(&ledger);
    let price = Price {
        prompt: Credits::from_micro(1_000_000),
        cached_prompt: Credits::from_micro(100_000),
        output: Credits::from_micro(3_000_000),
        ..Price::default()
    };
    let request = |id: usize| GenerateRequest {
        prompt: Prompt::Tokens(prompt(id)),
        payer: Payer { wallet: WALLETS[id % 4].to_owned(), ..Payer::default() },
        price,
        priority: (id % 3) as i32,
        deadline: None,
        ..request(id, 1 + random(id, 4) % 90, Vec::new())
    };
    let seen: Vec<Option<Seen>> = std::thread::scope(|scope| {
        let call = |id| follow(&runtime, request(id), caller_of(id));
        let threads: Vec<_> = (0..REQUESTS).map(|id| scope.spawn(move || call(id))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no caller panics")).collect()
    });
    drop(runtime);

    assert!(ledger.verify().expect("it can be checked").passed());
    let (mut delivered, mut left, mut debited) = ([0; 4], [0; 4], [Credits::ZERO; 4]);
    let (mut cached, mut refused) = (0, 0);
    for (id, seen) in seen.iter().enumerate() {
        let Some(seen) = seen else {
            refused += 1;
            assert_eq!(id % 4, 3, "only the poor one is refused");
            continue;
        };
        delivered[id % 4] += seen.tokens;
        let Some(outcome) = &seen.outcome else {
            left[id % 4] += 1;
            continue;
        };
        assert!(outcome.error.is_none(), "{:?}", outcome.error);
        let usage = outcome.usage;
        assert_eq!((seen.tokens, outcome.token_ids.len() as u64), (usage.completion_tokens, usage.completion_tokens));
        let cost = price.of_request(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, 0);
        let paid = outcome.allowance.expect("it is settled").debited;
        assert_eq!(Some(paid), cost, "request {id}");
        debited[id % 4] = debited[id % 4].checked_add(paid).expect("it is little");
        cached += usage.cached_tokens;
        // It is what the model says to that prompt, whatever else was going on.
        let mut row = prompt(id);
        for token in &outcome.token_ids {
            assert_eq!(*token, next_token(&row, vocab_size), "request {id}");
            row.push(*token);
        }
    }
    let rows = ledger.usage(&UsageQuery::new(UsageBy::User)).expect("it can be read");
    assert_eq!(rows.iter().map(|row| row.requests).sum::<u64>(), (REQUESTS - refused) as u64, "each settled once");
    for (index, wallet) in WALLETS.into_iter().enumerate() {
        let row = rows.iter().find(|row| row.key == wallet).expect("it was used");
        // Those who left may have paid for a window more than they saw.
        let most = delivered[index] + left[index] * WINDOW;
        assert!((delivered[index]..=most).contains(&row.output_tokens), "{wallet}: {row:?}");
        assert!(if left[index] == 0 { row.debited == debited[index] } else { row.debited >= debited[index] });
        assert_eq!(ledger.wallet(wallet).expect("it is there").in_flight, Credits::ZERO);
    }
    assert!(cached > 0, "those that begin alike share what was computed");
    assert!(left.iter().sum::<u64>() > 0, "somebody left");
}
