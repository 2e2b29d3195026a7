//! Random histories against the rules written down a second time, as plainly as possible: no SQL, no caches, no locks.

use std::collections::BTreeMap;
use std::sync::mpsc;

use proptest::prelude::*;
use tokrun_ledger::{
    Admission, Admitted, Credits, Debit, Debited, DrawTerms, FinishReason, GrantRequest, GrantTerms, Ledger,
    LedgerError, NewWallet, Price, PromptDebit, Refund, Result, Settled, Settlement, WalletKind,
};

use crate::common::{Home, admission, at, verify};
use crate::limited::{Limits, Load};

const WALLETS: [&str; 4] = ["ada", "bob", "eve", "team"];
const TEAM: usize = 3;
const SPECIAL: &str = "special-7b";

/// What each may draw from the team, in micro-credits; `None`: it stands alone.
const CAPS: [Option<i64>; 4] = [Some(15_000_000), Some(i64::MAX), None, None];

/// Agreed overdrafts in micro-credits.
const OVERDRAFTS: [i64; 4] = [0, 5_000_000, 0, 4_300_001];

/// In micro-credits: whole tokens, odd ones, dear ones, free ones.
const PRICES: [(i64, i64, i64); 4] =
    [(1_000_000, 1_000_000, 1_000_000), (333, 100, 777_777), (2, 0, 3_000_000), (0, 0, 0)];

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
    let admit = (0..4_usize, 0..12_u64, 0..4_usize, any::<bool>())
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
        2 => (0..crate::limited::TERMS.len(), prop::option::weighted(0.8, 0..30_i64))
            .prop_map(|(which, amount)| Op::Limit { which, amount }),
        4 => (1..25_i64).prop_map(Op::Pass),
        1 => Just(Op::Crash),
        2 => Just(Op::Interfere),
    ]
}

/// What a request has taken of a grant.
#[derive(Debug, Clone, Default, PartialEq)]
struct Taken {
    held: i64,
    debited: i64,
}

#[derive(Debug)]
struct Grant {
    wallet: usize,
    amount: i64,
    remaining: i64,
    priority: i32,
    effective_us: i64,
    expires_us: i64,
    expired: i64,
    settled: i64,
    /// Moved to the overdraft as soon as it became effective; of an overdraft: what grants moved to it.
    repaid: i64,
    active: bool,
    is_overdraft: bool,
    scoped: bool,
}

#[derive(Debug)]
struct Request {
    wallet: usize,
    special: bool,
    prompt: u64,
    cached: u64,
    output: u64,
    price: Price,
    running: bool,
    started_us: i64,
    taken: BTreeMap<usize, Taken>,
    settled: Option<FinishReason>,
    /// Per grant.
    refunded: BTreeMap<usize, i64>,
}

#[derive(Debug, Default)]
struct Model {
    now_us: i64,
    grants: Vec<Grant>,
    frozen: [bool; 4],
    /// From the team.
    drawn: [i64; 4],
    limits: Limits,
    requests: Vec<Request>,
    /// To other grants than overdrafts.
    refunded: i64,
}

#[derive(Debug, PartialEq)]
enum Refusal {
    Frozen,
    Exhausted { needed: i64, balance: i64 },
    Limited,
}

impl Model {
    fn new(now_us: i64) -> Model {
        let mut model = Model { now_us, ..Model::default() };
        for (wallet, &amount) in OVERDRAFTS.iter().enumerate() {
            model.grant(wallet, amount, i32::MAX, now_us, i64::MAX, false);
            let line = model.grants.last_mut().unwrap();
            (line.is_overdraft, line.active) = (true, true);
        }
        model
    }

    /// What can be spent, in the order in which it burns: a wallet's grants, the team's, then their overdrafts. Ages are
    /// places in the list. `None`: on any model.
    fn burning(&self, wallet: usize, special: Option<bool>) -> Vec<usize> {
        let levels: &[usize] = if CAPS[wallet].is_some() { &[wallet, TEAM] } else { &[wallet] };
        let level = |grant: &Grant| levels.iter().position(|&wallet| wallet == grant.wallet);
        let live = |grant: &Grant| {
            let pays = !grant.scoped || special != Some(false);
            pays && level(grant).is_some() && grant.effective_us <= self.now_us && self.now_us < grant.expires_us
        };
        let mut order: Vec<usize> = (0..self.grants.len()).filter(|&index| live(&self.grants[index])).collect();
        order.sort_by_key(|&index| {
            let grant = &self.grants[index];
            (grant.is_overdraft, level(grant), grant.priority, grant.expires_us, index)
        });
        order
    }

    /// What of a grant a wallet may spend now.
    fn share(&self, wallet: usize, index: usize) -> i64 {
        let grant = &self.grants[index];
        if grant.wallet == wallet { grant.remaining } else { grant.remaining.min(self.cap_left(wallet)) }
    }

    fn cap_left(&self, wallet: usize) -> i64 {
        CAPS[wallet].unwrap_or(0) - self.drawn[wallet]
    }

    fn spendable(&self, wallet: usize, special: Option<bool>) -> i64 {
        let (own, above): (Vec<_>, Vec<_>) =
            self.burning(wallet, special).into_iter().partition(|&index| self.grants[index].wallet == wallet);
        let sum = |indexes: Vec<usize>| indexes.into_iter().map(|index| self.grants[index].remaining).sum::<i64>();
        sum(own) + sum(above).min(self.cap_left(wallet))
    }

    fn balance(&self, wallet: usize) -> i64 {
        let own = self.burning(wallet, None).into_iter().filter(|&index| self.grants[index].wallet == wallet);
        own.map(|index| self.grants[index].remaining).sum::<i64>() - OVERDRAFTS[wallet]
    }

    fn pass(&mut self, seconds: i64) {
        self.now_us += seconds * 1_000_000;
        self.limits.pass_time(self.now_us);
        self.activate();
        for grant in &mut self.grants {
            if grant.expires_us <= self.now_us {
                grant.expired += std::mem::take(&mut grant.remaining);
            }
        }
    }

    /// A grant that becomes effective repays first what settled requests overdrew.
    fn activate(&mut self) {
        let due = |grant: &Grant| !grant.active && grant.effective_us <= self.now_us;
        let mut indexes: Vec<usize> = (0..self.grants.len()).filter(|&index| due(&self.grants[index])).collect();
        indexes.sort_by_key(|&index| (self.grants[index].effective_us, index));
        for index in indexes {
            let line = self.grants[index].wallet;
            let overdrawn = self.grants[line].settled - self.grants[line].repaid;
            let repaid = if self.grants[index].scoped { 0 } else { overdrawn.min(self.grants[index].amount) };
            let grant = &mut self.grants[index];
            (grant.active, grant.repaid) = (true, repaid);
            grant.remaining -= repaid;
            self.grants[line].remaining += repaid;
            self.grants[line].repaid += repaid;
        }
    }

    fn grant(&mut self, wallet: usize, amount: i64, priority: i32, effective_us: i64, expires_us: i64, scoped: bool) {
        let (remaining, expired, settled, repaid, active, is_overdraft) = (amount, 0, 0, 0, false, false);
        let grant = Grant {
            wallet,
            amount,
            remaining,
            priority,
            effective_us,
            expires_us,
            expired,
            settled,
            repaid,
            active,
            is_overdraft,
            scoped,
        };
        self.grants.push(grant);
        if self.grants.len() > WALLETS.len() {
            self.activate();
        }
    }

    fn take(&mut self, wallet: usize, special: bool, mut amount: i64) -> Vec<(usize, i64)> {
        assert!(amount <= self.spendable(wallet, Some(special)));
        let mut parts = Vec::new();
        for index in self.burning(wallet, Some(special)) {
            let part = amount.min(self.share(wallet, index));
            self.grants[index].remaining -= part;
            self.drawn[wallet] += if self.grants[index].wallet == wallet { 0 } else { part };
            amount -= part;
            if part > 0 {
                parts.push((index, part));
            }
        }
        assert_eq!(amount, 0);
        parts
    }

    fn is_frozen(&self, wallet: usize) -> bool {
        self.frozen[wallet] || CAPS[wallet].is_some() && self.frozen[TEAM]
    }

    fn admit(&mut self, wallet: usize, special: bool, prompt: u64, price: Price) -> Result<i64, Refusal> {
        let needed = price.of_request(prompt, 0, 1).unwrap().micro();
        if self.is_frozen(wallet) {
            return Err(Refusal::Frozen);
        }
        let spendable = self.spendable(wallet, Some(special));
        if spendable < needed {
            return Err(Refusal::Exhausted { needed, balance: spendable });
        }
        let at_once = |limit: usize| {
            let others = self.requests.iter().filter(|other| other.settled.is_none());
            others.filter(|other| crate::limited::holds(limit, other.wallet)).count() as i64
        };
        let hold = Load { tokens: prompt as i64 + 1, micro: needed, requests: 1 };
        if !self.limits.admit(wallet, hold, at_once) {
            return Err(Refusal::Limited);
        }
        let mut taken: BTreeMap<usize, Taken> = BTreeMap::new();
        for (grant, held) in self.take(wallet, special, needed) {
            taken.insert(grant, Taken { held, debited: 0 });
        }
        let (cached, output, running, started_us, settled) = (0, 0, false, self.now_us, None);
        self.requests.push(Request {
            wallet,
            special,
            prompt,
            cached,
            output,
            price,
            running,
            started_us,
            taken,
            settled,
            refunded: BTreeMap::new(),
        });
        Ok(needed)
    }

    /// Tokens granted, one at a time.
    fn debit(&mut self, id: usize, asked: u32, cached: Option<u64>) -> u32 {
        if let Some(cached) = cached {
            let request = &mut self.requests[id];
            (request.running, request.cached) = (true, cached);
            let cost = request.price.of_prompt(request.prompt, cached).unwrap().micro();
            self.draw_hold(id, cost);
        }
        let mut granted = 0;
        while granted < asked && self.pay_token(id, cached.is_some() && granted == 0) {
            granted += 1;
        }
        if cached.is_some() {
            let (held, unused) = (self.held(id), i64::from(granted == 0));
            self.limits.release(
                self.requests[id].wallet,
                Load { tokens: unused, micro: held, requests: 0 },
                self.requests[id].started_us,
            );
            self.release(id);
        }
        self.limits.warn();
        granted
    }

    fn held(&self, id: usize) -> i64 {
        self.requests[id].taken.values().map(|taken| taken.held).sum()
    }

    fn pay_token(&mut self, id: usize, is_held: bool) -> bool {
        let Request { wallet, special, price, .. } = self.requests[id];
        let price = price.output.micro();
        let held = self.held(id);
        if held + self.spendable(wallet, Some(special)) < price {
            return false;
        }
        let request = &self.requests[id];
        let so_far = Load { tokens: (request.prompt + request.output) as i64, micro: self.debited(id), requests: 0 };
        let token = Load { tokens: 1, micro: price, requests: 0 };
        let held_of_it = Load { tokens: i64::from(is_held), micro: held.min(price), requests: 0 };
        if !self.limits.take(wallet, token, held_of_it, so_far) {
            return false;
        }
        let out_of_hold = held.min(price);
        self.draw_hold(id, out_of_hold);
        for (grant, part) in self.take(wallet, special, price - out_of_hold) {
            self.requests[id].taken.entry(grant).or_default().debited += part;
        }
        self.requests[id].output += 1;
        true
    }

    fn draw_hold(&mut self, id: usize, mut amount: i64) {
        let mut order: Vec<usize> = self.requests[id].taken.keys().copied().collect();
        let own = self.requests[id].wallet;
        order.sort_by_key(|&index| {
            let grant = &self.grants[index];
            (grant.is_overdraft, grant.wallet != own, grant.priority, grant.expires_us, index)
        });
        for index in order {
            let taken = self.requests[id].taken.get_mut(&index).unwrap();
            let part = amount.min(taken.held);
            taken.held -= part;
            taken.debited += part;
            amount -= part;
        }
        assert_eq!(amount, 0);
    }

    fn release(&mut self, id: usize) {
        let wallet = self.requests[id].wallet;
        for (&index, taken) in &mut self.requests[id].taken {
            let held = std::mem::take(&mut taken.held);
            let grant = &mut self.grants[index];
            if grant.wallet != wallet {
                self.drawn[wallet] -= held;
            }
            if grant.expires_us <= self.now_us {
                grant.expired += held;
            } else {
                grant.remaining += held;
            }
        }
    }

    fn settle(&mut self, id: usize, reason: FinishReason) {
        let request = &self.requests[id];
        if !request.running {
            let hold = Load { tokens: request.prompt as i64 + 1, micro: self.held(id), requests: 0 };
            self.limits.release(request.wallet, hold, request.started_us);
        }
        self.release(id);
        for (index, taken) in std::mem::take(&mut self.requests[id].taken) {
            self.grants[index].settled += taken.debited;
            // Kept for the sum, with nothing in flight any more.
            self.requests[id].taken.insert(index, Taken { held: 0, debited: taken.debited });
        }
        self.requests[id].settled = Some(reason);
    }

    /// Gives back to the grants that paid, the one that burns last first. What an overdraft paid comes as a new grant.
    fn refund(&mut self, id: usize, mut amount: i64) {
        let request = &self.requests[id];
        let mut order: Vec<usize> = request.taken.keys().copied().collect();
        order.sort_by_key(|&index| {
            let grant = &self.grants[index];
            (grant.is_overdraft, grant.wallet != request.wallet, grant.priority, grant.expires_us, index)
        });
        let mut new = Vec::new();
        for index in order.into_iter().rev() {
            let request = &mut self.requests[id];
            let refunded = request.refunded.entry(index).or_default();
            let part = amount.min(request.taken[&index].debited - *refunded);
            (*refunded, amount) = (*refunded + part, amount - part);
            let grant = &mut self.grants[index];
            if grant.is_overdraft {
                new.push((grant.wallet, part));
            } else {
                grant.settled -= part;
                self.refunded += part;
                *(if grant.expires_us <= self.now_us { &mut grant.expired } else { &mut grant.remaining }) += part;
            }
        }
        for (wallet, part) in new.into_iter().filter(|&(_, part)| part > 0) {
            self.grant(wallet, part, 0, self.now_us, i64::MAX, false);
        }
        assert_eq!(amount, 0);
    }

    fn not_refunded(&self, id: usize) -> i64 {
        self.debited(id) - self.requests[id].refunded.values().sum::<i64>()
    }

    fn in_flight(&self, grant: usize) -> i64 {
        let open = self.requests.iter().filter(|request| request.settled.is_none());
        open.filter_map(|request| request.taken.get(&grant)).map(|taken| taken.held + taken.debited).sum()
    }

    fn debited(&self, id: usize) -> i64 {
        self.requests[id].taken.values().map(|taken| taken.debited).sum()
    }
}

/// The ledger and its model, side by side.
struct Pair {
    home: Home,
    ledger: Ledger,
    model: Model,
}

impl Pair {
    fn new() -> Pair {
        let home = Home::new();
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
        let model = Model::new(home.now_us());
        Pair { home, ledger, model }
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
                if frozen { self.ledger.freeze(name) } else { self.ledger.thaw(name) }.unwrap();
                self.model.frozen[wallet] = frozen;
            }
            Op::Limit { which, amount } => self.limit(which, amount),
            Op::Pass(seconds) => {
                self.home.pass(seconds);
                self.model.pass(seconds);
            }
            Op::Crash => {
                self.home.bury_everybody();
                self.ledger = self.home.open();
                for id in self.open_requests() {
                    self.model.settle(id, FinishReason::Crashed);
                }
            }
            Op::Interfere => {
                let other = self.home.open();
                other.grant(GrantRequest::new(WALLETS[0], Credits::from_micro(1_500_000))).unwrap();
                self.model.grant(0, 1_500_000, 0, self.model.now_us, i64::MAX, false);
            }
        }
    }

    fn limit(&mut self, which: usize, amount: Option<i64>) {
        let id = self.model.limits.id(which);
        let Some(amount) = amount else {
            if let Some(id) = id {
                self.ledger.remove_limit(&id).unwrap();
                self.model.limits.remove(which);
            }
            return;
        };
        let view = self.ledger.set_limit(crate::limited::new(which, amount, &WALLETS)).unwrap();
        assert!(id.is_none_or(|id| id == view.id), "another amount of the same limit");
        let open =
            self.open_requests().into_iter().filter(|&id| crate::limited::holds(which, self.model.requests[id].wallet));
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
        self.ledger.grant(request).unwrap();
        self.model.grant(wallet, micro, priority, effective_us, expires_us.unwrap_or(i64::MAX), scoped);
    }

    fn admit(&mut self, wallet: usize, special: bool, prompt: u64, price: usize) {
        let (fresh, cached, output) = PRICES[price];
        let [fresh, cached, output] = [fresh, cached, output].map(Credits::from_micro);
        let price = Price { prompt: fresh, cached_prompt: cached, output };
        // Ids are places among the admitted.
        let id = format!("request-{}", self.model.requests.len());
        let model = if special { SPECIAL } else { "model" }.to_owned();
        let outcome = self.ledger.admit(Admission { price, model, ..admission(&id, WALLETS[wallet], prompt) });
        let outcome = match outcome {
            Ok(Admitted { held, balance, .. }) => Ok((held.micro(), balance.micro())),
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
            let debit = Debit { request_id: format!("request-{id}"), prompt, output_tokens: asked };
            expected.push(open.then(|| self.model.debit(id, asked, cached)));
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
        for (wallet, name) in WALLETS.iter().enumerate() {
            let view = self.ledger.wallet(name).unwrap();
            assert_eq!(view.balance.micro(), self.model.balance(wallet));
            assert_eq!(view.balance.micro().max(0) + view.drawable.micro(), self.model.spendable(wallet, None));
            assert_eq!(view.drawn.micro(), self.model.drawn[wallet]);
            assert_eq!(view.frozen, self.model.is_frozen(wallet));
            assert!(view.balance.micro() >= -OVERDRAFTS[wallet]);
            let line = &self.model.grants[wallet];
            let used = line.settled + self.model.in_flight(wallet) - line.repaid;
            assert_eq!(line.amount - line.remaining, used);
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
                let parts =
                    grant.remaining + grant.expired + grant.settled + grant.repaid + self.model.in_flight(index);
                assert_eq!(parts, grant.amount, "nothing is lost, nothing is made");
            }
            let statement = self.ledger.statement(name, None, None).unwrap();
            assert_eq!(statement.in_flight, view.in_flight);
            assert_eq!(statement.closing.micro() - statement.in_flight.micro(), view.balance.micro());
            assert!(statement.lines.iter().all(|line| line.balance_after.micro() >= -OVERDRAFTS[wallet]));
        }
    }
}

proptest! {
    // Every operation is a durable commit: a few hundred of them a second.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_agrees_with_the_rules(ops in prop::collection::vec(op(), 20..60)) {
        let mut pair = Pair::new();
        for (step, op) in ops.iter().enumerate() {
            pair.apply(op);
            pair.compare();
            if step % 8 == 7 {
                verify(&pair.ledger);
            }
        }
        pair.apply(&Op::Crash);
        pair.compare();
        verify(&pair.ledger);
        let log: i64 = pair.ledger.usage(&tokrun_ledger::UsageQuery::new(tokrun_ledger::UsageBy::Model)).unwrap()
            .iter().map(|row| row.debited.micro()).sum();
        prop_assert_eq!(log - pair.model.refunded, pair.model.grants.iter().map(|grant| grant.settled).sum::<i64>());
    }
}
