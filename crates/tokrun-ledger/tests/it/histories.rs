//! Random histories of a ledger beside its model (`model.rs`): whatever is done to both, both must say the same.

use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokrun_ledger::{
    Admission, Admitted, Approval, Closing, Credits, Debit, Debited, Delegate, DrawTerms, FinishReason, GrantRequest,
    GrantTerms, Ledger, LedgerError, NewAsk, NewWallet, Price, PromptDebit, Refund, Settled, Settlement, WalletKind,
};

use crate::common::{Home, admission, at, verify};
use crate::limited::Load;
use crate::model::{CAPS, Model, OVERDRAFTS, Refusal, Rest, TEAM, WALLETS, name, overdraft};

mod past;

const EVE: usize = 2;
const SPECIAL: &str = "special-7b";

/// In micro-credits, of prompts, cached ones, output and reasoning: whole tokens, odd ones, dear ones, free ones.
const PRICES: [[i64; 4]; 4] = [
    [1_000_000, 1_000_000, 1_000_000, 1_000_000],
    [333, 100, 777_777, 1_111_111],
    [2, 0, 3_000_000, 1_250_000],
    [0, 0, 0, 0],
];

#[derive(Debug, Clone)]
enum Op {
    Grant {
        wallet: usize,
        micro: i64,
        priority: i32,
        delay_s: i64,
        life_s: Option<i64>,
        /// Good for one model alone.
        scoped: bool,
    },
    Admit {
        wallet: usize,
        prompt: u64,
        price: usize,
        /// On the model that scoped grants pay for.
        special: bool,
    },
    /// Of requests by their place among all admitted ones; `None` for the prompt where it is due.
    Debit(Vec<(usize, u32, u64)>),
    Settle(usize),
    /// Of a settled request, by its place; in hundredths of what is not refunded.
    Refund(usize, i64),
    Freeze {
        wallet: usize,
        frozen: bool,
    },
    /// Somebody asks, and is given it: out of the team's own grants, or new.
    Approve {
        wallet: usize,
        micro: i64,
        by_team: bool,
    },
    Delegate {
        wallet: usize,
        micro: i64,
    },
    /// Of delegated wallets, by place.
    Revoke(usize),
    /// Eve leaves, and the team gets the rest, or nobody.
    Close {
        to_team: bool,
    },
    /// The amount of one of the limits; `None` removes it.
    Limit {
        which: usize,
        amount: Option<i64>,
    },
    Pass(i64),
    /// Everybody dies, somebody else opens the ledger.
    Crash,
    /// Somebody else commits in between, so that nothing remembered is valid.
    Interfere,
}

fn op() -> impl Strategy<Value = Op> {
    let micro = prop_oneof![(1..40_i64).prop_map(|credits| credits * 1_000_000), 1..5_000_000_i64];
    let delay_s = prop_oneof![3 => Just(0), 1 => 1..20_i64];
    let grant = (0..4_usize, micro, -1..2_i32, delay_s, prop::option::of(1..60_i64), prop::bool::weighted(0.3))
        .prop_map(|(wallet, micro, priority, delay_s, life_s, scoped)| Op::Grant {
            wallet,
            micro,
            priority,
            delay_s,
            life_s,
            scoped,
        });
    let approve = (0..4_usize, 1..9_000_000_i64, any::<bool>()).prop_map(|(wallet, micro, by_team)| Op::Approve {
        wallet,
        micro,
        by_team,
    });
    let delegate = (0..3_usize, 1..20_000_000_i64).prop_map(|(wallet, micro)| Op::Delegate { wallet, micro });
    // Agents come after the others.
    let admit = (prop_oneof![2 => 0..4_usize, 1 => 4..7_usize], 0..12_u64, 0..4_usize, any::<bool>())
        .prop_map(|(wallet, prompt, price, special)| Op::Admit { wallet, prompt, price, special });
    let debit = prop::collection::vec((any::<prop::sample::Index>(), 0..9_u32, 0..12_u64), 1..5).prop_map(|debits| {
        Op::Debit(debits.into_iter().map(|(which, tokens, cached)| (which.index(1000), tokens, cached)).collect())
    });
    prop_oneof![
        4 => grant,
        6 => admit,
        12 => debit,
        4 => (0..1000_usize).prop_map(Op::Settle),
        2 => (0..1000_usize, 1..=100_i64).prop_map(|(which, percent)| Op::Refund(which, percent)),
        1 => (0..4_usize, any::<bool>()).prop_map(|(wallet, frozen)| Op::Freeze { wallet, frozen }),
        1 => approve,
        1 => delegate,
        1 => (0..1000_usize).prop_map(Op::Revoke),
        1 => prop::bool::ANY.prop_map(|to_team| Op::Close { to_team }),
        2 => (0..crate::limited::TERMS.len(), prop::option::weighted(0.8, 0..30_i64))
            .prop_map(|(which, amount)| Op::Limit { which, amount }),
        4 => (1..25_i64).prop_map(Op::Pass),
        1 => Just(Op::Crash),
        2 => Just(Op::Interfere),
    ]
}

/// The ledger and its model, side by side.
struct Pair {
    home: Home,
    ledger: Ledger,
    /// Another process, which commits in between.
    other: Option<Ledger>,
    model: Model,
}

/// A ledger with the wallets that every history begins with.
static BEGINNING: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let home = Home::in_memory();
    let ledger = home.open();
    for wallet in [TEAM, 0, 1, 2] {
        let draw = CAPS[wallet]
            .map(|cap| DrawTerms { cap: (cap < i64::MAX).then_some(Credits::from_micro(cap)), every: None });
        let new = NewWallet {
            kind: if wallet == TEAM { WalletKind::Team } else { WalletKind::Person },
            parent: draw.map(|_| WALLETS[TEAM].into()),
            overdraft: Credits::from_micro(OVERDRAFTS[wallet]),
            draw,
            ..NewWallet::new(WALLETS[wallet])
        };
        ledger.open_wallet(new).unwrap();
    }
    drop(ledger);
    fs::read(home.path()).unwrap()
});

impl Pair {
    fn new() -> Pair {
        let home = Home::in_memory();
        fs::write(home.path(), &*BEGINNING).unwrap();
        let ledger = home.open();
        let model = Model::new(home.now_us());
        Pair { home, ledger, other: None, model }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Grant { wallet, micro, priority, delay_s, life_s, scoped } => {
                self.grant(wallet, micro, priority, delay_s, life_s, scoped)
            }
            Op::Admit { wallet, prompt, price, special } => self.admit(wallet, special, prompt, price),
            Op::Debit(ref debits) => self.debit(debits),
            Op::Settle(which) => self.settle(which),
            Op::Refund(which, percent) => self.refund(which, percent),
            Op::Freeze { wallet, frozen } => {
                let name = WALLETS[wallet];
                let outcome = if frozen { self.ledger.freeze(name, None) } else { self.ledger.thaw(name, None) };
                match outcome {
                    Ok(_) => self.model.frozen[wallet] = frozen,
                    Err(error) => self.is_closed(wallet, &error),
                }
            }
            Op::Approve { wallet, micro, by_team } => self.approve(wallet, micro, by_team),
            Op::Delegate { wallet, micro } => self.delegate(wallet, micro),
            Op::Revoke(which) => self.revoke(which),
            Op::Close { to_team } => self.close(to_team),
            Op::Limit { which, amount } => self.limit(which, amount),
            Op::Pass(seconds) => {
                self.home.pass(seconds);
                self.model.pass(seconds);
            }
            Op::Crash => {
                self.home.bury_everybody();
                self.other = None;
                self.ledger = self.home.open();
                for id in self.open_requests() {
                    self.model.settle(id, FinishReason::Crashed);
                }
            }
            Op::Interfere => {
                let other = self.other.get_or_insert_with(|| self.home.open());
                other.grant(GrantRequest::new(WALLETS[0], Credits::from_micro(1_500_000))).unwrap();
                self.model.grant(0, 1_500_000, 0, self.model.now_us, i64::MAX, false);
            }
        }
    }

    fn limit(&mut self, which: usize, amount: Option<i64>) {
        let id = self.model.limits.id(which);
        let Some(amount) = amount else {
            if let Some(id) = id {
                self.ledger.remove_limit(&id, None).unwrap();
                self.model.limits.remove(which);
            }
            return;
        };
        let view = self.ledger.set_limit(crate::limited::new(which, amount, &WALLETS)).unwrap();
        assert!(id.is_none_or(|id| id == view.id), "another amount of the same limit");
        let open = self
            .open_requests()
            .into_iter()
            .filter(|&id| crate::limited::holds(which, self.model.limited_as(self.model.requests[id].wallet)));
        let in_flight: Vec<Load> = open
            .map(|id| {
                let request = &self.model.requests[id];
                let output = if request.running { request.output } else { 1 };
                let micro = self.model.held(id) + self.model.debited(id);
                Load { tokens: (request.prompt + output) as i64, micro, requests: 1 }
            })
            .collect();
        self.model.limits.set(which, amount, view.id, self.model.now_us, &in_flight);
    }

    fn open_requests(&self) -> Vec<usize> {
        let open = |id: &usize| self.model.requests[*id].settled.is_none();
        (0..self.model.requests.len()).filter(open).collect()
    }

    fn grant(&mut self, wallet: usize, micro: i64, priority: i32, delay_s: i64, life_s: Option<i64>, scoped: bool) {
        let scope = scoped.then(|| "special-*".parse().expect("a scope"));
        let effective_us = self.model.now_us + delay_s * 1_000_000;
        let expires_us = life_s.map(|life_s| effective_us + life_s * 1_000_000);
        let request = GrantRequest {
            priority,
            effective: (delay_s > 0).then(|| at(effective_us)),
            expires: expires_us.map(at),
            terms: GrantTerms { scope, ..GrantTerms::default() },
            ..GrantRequest::new(WALLETS[wallet], Credits::from_micro(micro))
        };
        if let Err(error) = self.ledger.grant(request) {
            return self.is_closed(wallet, &error);
        }
        self.model.grant(wallet, micro, priority, effective_us, expires_us.unwrap_or(i64::MAX), scoped);
    }

    #[track_caller]
    fn is_closed(&self, wallet: usize, error: &LedgerError) {
        let closed = self.model.closed[wallet].is_some();
        assert!(closed && matches!(error, LedgerError::WalletClosed { .. }), "{error}");
    }

    /// What of a wallet's own could be given away; nothing if it may not.
    fn can_give(&self, wallet: usize) -> i64 {
        if self.model.is_frozen(wallet) {
            return 0;
        }
        self.model.own(wallet).into_iter().map(|index| self.model.grants[index].remaining).sum()
    }

    fn approve(&mut self, wallet: usize, micro: i64, by_team: bool) {
        let (amount, reason, idempotency_key) = (Credits::from_micro(micro), None, None);
        let asked = self.ledger.ask(NewAsk { wallet: name(wallet), amount, reason, idempotency_key });
        let id = match asked {
            Ok(asked) => asked.id,
            Err(error) => return self.is_closed(wallet, &error),
        };
        let approval = Approval { from: by_team.then(|| WALLETS[TEAM].into()), ..Approval::new(&id) };
        match self.ledger.approve(approval.clone()) {
            Ok(_) if by_team => self.model.transfer(TEAM, wallet, micro),
            Ok(_) => self.model.grant(wallet, micro, 0, self.model.now_us, i64::MAX, false),
            Err(LedgerError::InvalidGrant { .. }) => return assert!(by_team && wallet == TEAM),
            Err(error) => {
                let refused = matches!(error, LedgerError::Exhausted { .. } | LedgerError::Frozen { .. });
                return assert!(refused && by_team && self.can_give(TEAM) < micro, "{error}");
            }
        }
        let again = self.ledger.approve(approval);
        assert!(matches!(again, Err(LedgerError::Answered { .. })), "{again:?}");
    }

    fn delegate(&mut self, wallet: usize, micro: i64) {
        let agent = self.model.closed.len();
        let possible = micro <= self.can_give(wallet);
        match self.ledger.delegate(Delegate::new(name(wallet), name(agent), Credits::from_micro(micro))) {
            Ok(_) => {
                assert!(possible);
                self.model.givers.push(wallet);
                self.model.frozen.push(false);
                self.model.drawn.push(0);
                self.model.closed.push(None);
                self.model.transfer(wallet, agent, micro);
            }
            Err(error) => {
                use LedgerError::{Exhausted, Frozen, WalletClosed};
                let refused = matches!(error, Exhausted { .. } | Frozen { .. } | WalletClosed { .. });
                assert!(refused && !possible, "{error}");
            }
        }
    }

    fn revoke(&mut self, which: usize) {
        let agents = self.model.givers.len();
        if agents > 0 {
            let agent = WALLETS.len() + which % agents;
            self.ledger.revoke(&name(agent), None).unwrap();
            match self.model.closed[agent] {
                Some(_) => self.model.settle_up(agent),
                None => self.model.shut(agent, Rest::Return),
            }
        }
    }

    fn close(&mut self, to_team: bool) {
        let rest = if to_team { Rest::Team } else { Rest::Nobody };
        let to = to_team.then(|| WALLETS[TEAM].to_owned());
        let closed = self.ledger.close(Closing { to, ..Closing::new(WALLETS[EVE]) });
        match self.model.closed[EVE] {
            None => self.model.shut(EVE, rest),
            Some(before) if before == rest => self.model.settle_up(EVE),
            Some(_) => return assert!(matches!(closed, Err(LedgerError::InvalidWallet { .. }))),
        }
        closed.unwrap();
    }

    fn admit(&mut self, wallet: usize, special: bool, prompt: u64, price: usize) {
        if wallet >= self.model.closed.len() {
            return;
        }
        let [prompt_token, cached_prompt, output, reasoning] = PRICES[price].map(Credits::from_micro);
        let price = Price { prompt: prompt_token, cached_prompt, output, reasoning };
        // Ids are places among the admitted.
        let id = format!("request-{}", self.model.requests.len());
        let model = if special { SPECIAL } else { "model" }.to_owned();
        let outcome = self.ledger.admit(Admission { price, model, ..admission(&id, &name(wallet), prompt) });
        let outcome = match outcome {
            Ok(Admitted { held, balance, .. }) => Ok((held.micro(), balance.micro())),
            Err(LedgerError::WalletClosed { .. }) => Err(Refusal::Closed),
            Err(LedgerError::Frozen { .. }) => Err(Refusal::Frozen),
            Err(LedgerError::Exhausted { needed, balance, .. }) => {
                Err(Refusal::Exhausted { needed: needed.micro(), balance: balance.micro() })
            }
            Err(LedgerError::Limited { .. }) => Err(Refusal::Limited),
            Err(other) => panic!("{other}"),
        };
        let expected = self.model.admit(wallet, special, prompt, price);
        assert_eq!(outcome, expected.map(|held| (held, self.model.balance(wallet))));
    }

    /// Debits and, in the same commit, whatever the queue holds: each of `debits` is a job of its own.
    fn debit(&mut self, debits: &[(usize, u32, u64)]) {
        if self.model.requests.is_empty() {
            return;
        }
        let (reply, answers) = mpsc::channel();
        let mut expected = Vec::new();
        for &(which, asked, cached) in debits {
            let id = which % self.model.requests.len();
            let request = &self.model.requests[id];
            let open = request.settled.is_none();
            let cached = (!request.running).then_some(cached.min(request.prompt));
            let prompt = cached.map(|cached_tokens| PromptDebit { cached_tokens });
            let reasoning_tokens = asked / 3;
            let debit = Debit { request_id: format!("request-{id}"), prompt, output_tokens: asked, reasoning_tokens };
            expected.push(open.then(|| self.model.debit(id, asked, reasoning_tokens, cached)));
            let reply = reply.clone();
            self.ledger.debit(vec![debit], move |debited| reply.send(debited).expect("the test waits"));
        }
        for (expected, &(_, asked, _)) in expected.into_iter().zip(debits) {
            let Debited { granted, exhausted, refused, .. } = answers.recv().unwrap().unwrap().remove(0);
            match expected {
                Some(expected) => assert_eq!((granted, exhausted), (expected, expected < asked)),
                None => assert!(matches!(refused, Some(LedgerError::UnknownRequest { .. }))),
            }
        }
    }

    fn settle(&mut self, which: usize) {
        if self.model.requests.is_empty() {
            return;
        }
        let id = which % self.model.requests.len();
        let settlement = Settlement::new(format!("request-{id}"), FinishReason::Stop);
        let Settled { debited, balance, prompt_tokens, cached_tokens, output_tokens, finish_reason } =
            self.ledger.settle(settlement).unwrap();
        if self.model.requests[id].settled.is_none() {
            self.model.settle(id, FinishReason::Stop);
        }
        let request = &self.model.requests[id];
        let prompt = if request.running { request.prompt } else { 0 };
        assert_eq!((prompt_tokens, cached_tokens, output_tokens), (prompt, request.cached, request.output));
        assert_eq!(Some(finish_reason), request.settled);
        assert_eq!(debited.micro(), self.model.debited(id));
        assert_eq!(balance.micro(), self.model.balance(request.wallet));
    }

    fn refund(&mut self, which: usize, percent: i64) {
        let settled = |id: &usize| self.model.requests[*id].settled.is_some();
        let ids: Vec<usize> = (0..self.model.requests.len()).filter(settled).collect();
        let Some(&id) = ids.get(which % ids.len().max(1)) else { return };
        let left = self.model.not_refunded(id);
        let amount = (left * percent / 100).max(1);
        let micro = Credits::from_micro;
        let refund = Refund { amount: Some(micro(amount)), ..Refund::new(format!("request-{id}")) };
        match self.ledger.refund(refund) {
            Ok(done) => {
                self.model.refund(id, amount);
                assert_eq!(done.reversed, micro(self.model.debited(id) - self.model.not_refunded(id)));
            }
            Err(LedgerError::InvalidReversal { .. }) => assert!(amount > left),
            Err(other) => panic!("{other}"),
        }
    }

    /// What everybody can see is what the model has.
    fn compare(&self) {
        self.model.limits.compare(&self.ledger);
        for wallet in 0..self.model.closed.len() {
            let name = &name(wallet);
            let view = self.ledger.wallet(name).unwrap();
            assert_eq!(view.balance.micro(), self.model.balance(wallet));
            assert_eq!(view.balance.micro().max(0) + view.drawable.micro(), self.model.spendable(wallet, None));
            assert_eq!(view.drawn.micro(), self.model.drawn[wallet]);
            assert_eq!(view.frozen, self.model.is_frozen(wallet));
            assert_eq!(view.closed.is_some(), self.model.closed[wallet].is_some());
            assert!(view.balance.micro() >= -overdraft(wallet));
            if wallet < WALLETS.len() {
                let line = &self.model.grants[wallet];
                let used = line.settled + self.model.in_flight(wallet) - line.repaid;
                assert_eq!(line.amount - line.remaining, used);
            }
            let mut of_wallet: Vec<usize> = (WALLETS.len()..self.model.grants.len())
                .filter(|&index| self.model.grants[index].wallet == wallet)
                .collect();
            of_wallet
                .sort_by_key(|&index| (self.model.grants[index].priority, self.model.grants[index].expires_us, index));
            assert_eq!(view.grants.len(), of_wallet.len());
            for (view, index) in view.grants.iter().zip(of_wallet) {
                let grant = &self.model.grants[index];
                let pending = self.model.now_us < grant.effective_us;
                assert_eq!(view.remaining.micro(), if pending { 0 } else { grant.remaining });
                assert_eq!(view.in_flight.micro(), self.model.in_flight(index));
                assert!(grant.remaining >= 0);
                let gone = grant.expired + grant.settled + grant.repaid + grant.moved;
                assert_eq!(
                    grant.remaining + gone + self.model.in_flight(index),
                    grant.amount,
                    "nothing is lost, nothing is made"
                );
            }
        }
    }

    /// The books of everybody add up to that.
    fn compare_statements(&self) {
        for wallet in 0..self.model.closed.len() {
            let name = &name(wallet);
            let view = self.ledger.wallet(name).unwrap();
            let statement = self.ledger.statement(name, None, None).unwrap();
            assert_eq!(statement.in_flight, view.in_flight);
            assert_eq!(statement.closing.micro() - statement.in_flight.micro(), view.balance.micro());
            assert!(statement.lines.iter().all(|line| line.balance_after.micro() >= -overdraft(wallet)));
        }
    }
}

/// How many operations, over all histories: 100,000 if it is not said, millions at night.
const STEPS: &str = "TOKRUN_MODEL_STEPS";

/// A ledger commits every 5 ms; so many histories wait for theirs at once.
const HISTORIES_AT_ONCE: usize = 24;

const STEPS_A_HISTORY: std::ops::Range<usize> = 40..120;

#[test]
fn any_history_agrees_with_the_rules() {
    let steps: usize = std::env::var(STEPS).map_or(100_000, |steps| steps.parse().expect("a number of steps"));
    let taken = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..HISTORIES_AT_ONCE {
            scope.spawn(|| {
                let config = ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::default() };
                let mut runner = TestRunner::new(config);
                let histories = prop::collection::vec(op(), STEPS_A_HISTORY);
                while taken.load(Ordering::Relaxed) < steps {
                    let history = histories.new_tree(&mut runner).expect("nothing is filtered out");
                    // The history that it names belongs into `past`: a seed means another one as soon as `Op` changes.
                    let outcome = runner.run_one(history, |ops| {
                        taken.fetch_add(ops.len(), Ordering::Relaxed);
                        live(&ops, 6)
                    });
                    outcome.unwrap_or_else(|error| panic!("{error}"));
                }
            });
        }
    });
}

#[test]
fn histories_that_failed_once_agree_now() {
    for history in past::failures() {
        live(&history, 1).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Does the same to both, and looks at both after so many steps each.
fn live(ops: &[Op], between: usize) -> Result<(), TestCaseError> {
    let mut pair = Pair::new();
    for (step, op) in ops.iter().enumerate() {
        pair.apply(op);
        if step % between == between - 1 {
            pair.compare();
        }
        if step % (4 * between) == between {
            pair.compare_statements();
        }
    }
    pair.apply(&Op::Crash);
    pair.compare();
    pair.compare_statements();
    verify(&pair.ledger);
    let log: i64 = pair
        .ledger
        .usage(&tokrun_ledger::UsageQuery::new(tokrun_ledger::UsageBy::Model))
        .unwrap()
        .iter()
        .map(|row| row.debited.micro())
        .sum();
    prop_assert_eq!(log - pair.model.refunded, pair.model.grants.iter().map(|grant| grant.settled).sum::<i64>());
    Ok(())
}
