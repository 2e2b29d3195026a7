//! Random histories against the rules written down a second time, as plainly as possible: no SQL, no caches, no locks.

use std::collections::BTreeMap;
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
use crate::limited::{Limits, Load};

const WALLETS: [&str; 4] = ["ada", "bob", "eve", "team"];
const EVE: usize = 2;
const TEAM: usize = 3;
const SPECIAL: &str = "special-7b";

/// What each may draw from the team, in micro-credits; `None`: it stands alone.
const CAPS: [Option<i64>; 4] = [Some(15_000_000), Some(i64::MAX), None, None];

/// Agreed overdrafts in micro-credits.
const OVERDRAFTS: [i64; 4] = [0, 5_000_000, 0, 4_300_001];

fn name(wallet: usize) -> String {
    WALLETS.get(wallet).map_or_else(|| format!("agent-{wallet}"), |name| (*name).to_owned())
}

fn cap(wallet: usize) -> Option<i64> {
    CAPS.get(wallet).copied().flatten()
}

fn overdraft(wallet: usize) -> i64 {
    OVERDRAFTS.get(wallet).copied().unwrap_or(0)
}

fn limited_as(givers: &[usize], wallet: usize) -> usize {
    if wallet < WALLETS.len() { wallet } else { givers[wallet - WALLETS.len()] }
}

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
    /// Given to somebody else.
    moved: i64,
    /// The grant that it was moved from.
    source: Option<usize>,
    void: bool,
}

/// Where what is left of a closed wallet goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rest {
    Return,
    Team,
    Nobody,
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
    frozen: Vec<bool>,
    /// From the team.
    drawn: Vec<i64>,
    /// Whom each of the wallets after the first four is under.
    givers: Vec<usize>,
    closed: Vec<Option<Rest>>,
    limits: Limits,
    requests: Vec<Request>,
    /// To other grants than overdrafts.
    refunded: i64,
}

#[derive(Debug, PartialEq)]
enum Refusal {
    Closed,
    Frozen,
    Exhausted { needed: i64, balance: i64 },
    Limited,
}

impl Model {
    fn new(now_us: i64) -> Model {
        let (frozen, drawn, closed) = (vec![false; 4], vec![0; 4], vec![None; 4]);
        let mut model = Model { now_us, frozen, drawn, closed, ..Model::default() };
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
        let levels: &[usize] = if cap(wallet).is_some() { &[wallet, TEAM] } else { &[wallet] };
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
        cap(wallet).unwrap_or(0) - self.drawn[wallet]
    }

    fn spendable(&self, wallet: usize, special: Option<bool>) -> i64 {
        let (own, above): (Vec<_>, Vec<_>) =
            self.burning(wallet, special).into_iter().partition(|&index| self.grants[index].wallet == wallet);
        let sum = |indexes: Vec<usize>| indexes.into_iter().map(|index| self.grants[index].remaining).sum::<i64>();
        sum(own) + sum(above).min(self.cap_left(wallet))
    }

    fn balance(&self, wallet: usize) -> i64 {
        let own = self.burning(wallet, None).into_iter().filter(|&index| self.grants[index].wallet == wallet);
        own.map(|index| self.grants[index].remaining).sum::<i64>() - overdraft(wallet)
    }

    /// What it has that it could give away, as it burns.
    fn own(&self, wallet: usize) -> Vec<usize> {
        let mut own = self.burning(wallet, None);
        own.retain(|&index| self.grants[index].wallet == wallet && !self.grants[index].is_overdraft);
        own
    }

    /// Whose limits hold for it: those of whoever delegated it.
    fn limited_as(&self, wallet: usize) -> usize {
        limited_as(&self.givers, wallet)
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
        let due = |grant: &Grant| !grant.active && !grant.void && grant.effective_us <= self.now_us;
        let mut indexes: Vec<usize> = (0..self.grants.len()).filter(|&index| due(&self.grants[index])).collect();
        indexes.sort_by_key(|&index| (self.grants[index].effective_us, index));
        for index in indexes {
            self.repay(index);
        }
    }

    fn repay(&mut self, index: usize) {
        let line = self.grants[index].wallet;
        self.grants[index].active = true;
        if line < WALLETS.len() {
            let overdrawn = self.grants[line].settled - self.grants[line].repaid;
            let repaid = if self.grants[index].scoped { 0 } else { overdrawn.min(self.grants[index].amount) };
            let grant = &mut self.grants[index];
            grant.repaid = repaid;
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
            moved: 0,
            source: None,
            void: false,
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
        self.require_spendable(wallet).is_err()
    }

    /// The nearest one that is frozen says why.
    fn require_spendable(&self, wallet: usize) -> Result<(), Refusal> {
        let person = self.limited_as(wallet);
        let path = [Some(wallet), Some(person), cap(person).map(|_| TEAM)];
        match path.into_iter().flatten().find(|&wallet| self.frozen[wallet]) {
            Some(wallet) if self.closed[wallet].is_some() => Err(Refusal::Closed),
            Some(_) => Err(Refusal::Frozen),
            None => Ok(()),
        }
    }

    /// Moves an amount that is there, as grants with the terms of those that it comes from.
    fn transfer(&mut self, from: usize, to: usize, mut amount: i64) {
        let mut received = Vec::new();
        for index in self.own(from) {
            let part = amount.min(self.grants[index].remaining);
            let source = &mut self.grants[index];
            (source.remaining, source.moved, amount) = (source.remaining - part, source.moved + part, amount - part);
            if part > 0 {
                let (priority, expires_us, scoped) = (source.priority, source.expires_us, source.scoped);
                self.grant(to, part, priority, self.now_us + 1, expires_us, scoped);
                received.push(self.grants.len() - 1);
                self.grants.last_mut().unwrap().source = Some(index);
            }
        }
        assert_eq!(amount, 0);
        for index in received {
            self.grants[index].effective_us = self.now_us;
            self.repay(index);
        }
    }

    fn shut(&mut self, wallet: usize, rest: Rest) {
        for agent in WALLETS.len()..self.closed.len() {
            if self.limited_as(agent) == wallet && self.closed[agent].is_none() {
                self.shut(agent, Rest::Return);
            }
        }
        (self.closed[wallet], self.frozen[wallet]) = (Some(rest), true);
        for grant in self.grants.iter_mut().filter(|grant| grant.wallet == wallet && !grant.active) {
            grant.void = true;
            grant.expired += std::mem::take(&mut grant.remaining);
        }
        self.settle_up(wallet);
    }

    /// What is left of a closed wallet goes where it should.
    fn settle_up(&mut self, wallet: usize) {
        let left: Vec<usize> = self.own(wallet).into_iter().filter(|&index| self.grants[index].remaining > 0).collect();
        match self.closed[wallet] {
            None => {}
            Some(Rest::Team) => {
                self.transfer(wallet, TEAM, left.iter().map(|&index| self.grants[index].remaining).sum())
            }
            Some(Rest::Nobody) => left.iter().for_each(|&index| {
                self.grants[index].void = true;
                let left = std::mem::take(&mut self.grants[index].remaining);
                self.grants[index].expired += left;
            }),
            Some(Rest::Return) => {
                for index in left {
                    let left = std::mem::take(&mut self.grants[index].remaining);
                    self.grants[index].moved += left;
                    let source = self.grants[index].source.expect("agents have nothing but what they were given");
                    self.grants[source].moved -= left;
                    self.come_back(source, left);
                    self.settle_up(self.grants[source].wallet);
                }
            }
        }
    }

    /// What comes back to a grant that is no more is gone.
    fn come_back(&mut self, index: usize, amount: i64) {
        let grant = &mut self.grants[index];
        let gone = grant.expires_us <= self.now_us || grant.void;
        *(if gone { &mut grant.expired } else { &mut grant.remaining }) += amount;
    }

    fn admit(&mut self, wallet: usize, special: bool, prompt: u64, price: Price) -> Result<i64, Refusal> {
        let dearest = price.output.micro().max(price.reasoning.micro());
        let needed = price.prompt.micro() * prompt as i64 + dearest;
        self.require_spendable(wallet)?;
        let spendable = self.spendable(wallet, Some(special));
        if spendable < needed {
            return Err(Refusal::Exhausted { needed, balance: spendable });
        }
        let limited_as = |wallet| limited_as(&self.givers, wallet);
        let at_once = |limit: usize| {
            let others = self.requests.iter().filter(|other| other.settled.is_none());
            others.filter(|other| crate::limited::holds(limit, limited_as(other.wallet))).count() as i64
        };
        let hold = Load { tokens: prompt as i64 + 1, micro: needed, requests: 1 };
        if !self.limits.admit(limited_as(wallet), hold, at_once) {
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
    fn debit(&mut self, id: usize, asked: u32, reasoning: u32, cached: Option<u64>) -> u32 {
        if let Some(cached) = cached {
            let request = &mut self.requests[id];
            (request.running, request.cached) = (true, cached);
            let cost = request.price.of_prompt(request.prompt, cached).unwrap().micro();
            self.draw_hold(id, cost);
        }
        let mut granted = 0;
        while granted < asked && self.pay_token(id, granted < reasoning, cached.is_some() && granted == 0) {
            granted += 1;
        }
        if cached.is_some() {
            let (held, unused) = (self.held(id), i64::from(granted == 0));
            self.limits.release(
                limited_as(&self.givers, self.requests[id].wallet),
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

    fn pay_token(&mut self, id: usize, is_reasoning: bool, is_held: bool) -> bool {
        let Request { wallet, special, price, .. } = self.requests[id];
        let price = if is_reasoning { price.reasoning } else { price.output }.micro();
        let held = self.held(id);
        if held + self.spendable(wallet, Some(special)) < price {
            return false;
        }
        let request = &self.requests[id];
        let so_far = Load { tokens: (request.prompt + request.output) as i64, micro: self.debited(id), requests: 0 };
        let token = Load { tokens: 1, micro: price, requests: 0 };
        let held_of_it = Load { tokens: i64::from(is_held), micro: held.min(price), requests: 0 };
        if !self.limits.take(limited_as(&self.givers, wallet), token, held_of_it, so_far) {
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
            let gone = grant.expires_us <= self.now_us || grant.void;
            *(if gone { &mut grant.expired } else { &mut grant.remaining }) += held;
        }
    }

    fn settle(&mut self, id: usize, reason: FinishReason) {
        let request = &self.requests[id];
        if !request.running {
            let hold = Load { tokens: request.prompt as i64 + 1, micro: self.held(id), requests: 0 };
            self.limits.release(limited_as(&self.givers, request.wallet), hold, request.started_us);
        }
        self.release(id);
        for (index, taken) in std::mem::take(&mut self.requests[id].taken) {
            self.grants[index].settled += taken.debited;
            // Kept for the sum, with nothing in flight any more.
            self.requests[id].taken.insert(index, Taken { held: 0, debited: taken.debited });
        }
        self.requests[id].settled = Some(reason);
        self.settle_up(self.requests[id].wallet);
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
                self.come_back(index, part);
            }
        }
        for (wallet, part) in new.into_iter().filter(|&(_, part)| part > 0) {
            self.grant(wallet, part, 0, self.now_us, i64::MAX, false);
        }
        assert_eq!(amount, 0);
        self.settle_up(self.requests[id].wallet);
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
            self.ledger.revoke(&name(agent)).unwrap();
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
            Some(before) if before == rest => {}
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
            let statement = self.ledger.statement(name, None, None).unwrap();
            assert_eq!(statement.in_flight, view.in_flight);
            assert_eq!(statement.closing.micro() - statement.in_flight.micro(), view.balance.micro());
            assert!(statement.lines.iter().all(|line| line.balance_after.micro() >= -overdraft(wallet)));
        }
    }
}

/// How many operations, over all histories: 20,000 if it is not said, 100,000 where everything is tested, millions at night.
const STEPS: &str = "TOKRUN_MODEL_STEPS";

/// A ledger commits every 5 ms; so many histories wait for theirs at once.
const HISTORIES_AT_ONCE: usize = 48;

const STEPS_A_HISTORY: std::ops::Range<usize> = 20..60;

#[test]
fn any_history_agrees_with_the_rules() {
    let steps: usize = std::env::var(STEPS).map_or(20_000, |steps| steps.parse().expect("a number of steps"));
    let taken = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..HISTORIES_AT_ONCE {
            scope.spawn(|| {
                let enough = steps.div_ceil(STEPS_A_HISTORY.start);
                let config = ProptestConfig {
                    cases: u32::try_from(enough).unwrap_or(u32::MAX),
                    max_shrink_iters: 200,
                    source_file: Some(file!()),
                    ..ProptestConfig::default()
                };
                let histories = prop::collection::vec(op(), STEPS_A_HISTORY);
                let outcome = TestRunner::new(config).run(&histories, |ops| {
                    if taken.fetch_add(ops.len(), Ordering::Relaxed) < steps { live(&ops) } else { Ok(()) }
                });
                outcome.unwrap_or_else(|error| panic!("{error}"));
            });
        }
    });
}

/// Does the same to both, and looks at both from time to time.
fn live(ops: &[Op]) -> Result<(), TestCaseError> {
    let mut pair = Pair::new();
    for (step, op) in ops.iter().enumerate() {
        pair.apply(op);
        if step % 6 == 5 {
            pair.compare();
        }
    }
    pair.apply(&Op::Crash);
    pair.compare();
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
