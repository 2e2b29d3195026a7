//! The rules written down a second time, as plainly as possible: no SQL, no caches, no locks. `histories.rs` holds the ledger
//! against them.

use std::collections::BTreeMap;

use tokrun_ledger::{FinishReason, Price};

use crate::limited::{Limits, Load};

pub(crate) const WALLETS: [&str; 4] = ["ada", "bob", "eve", "team"];
pub(crate) const TEAM: usize = 3;

/// What each may draw from the team, in micro-credits; `None`: it stands alone.
pub(crate) const CAPS: [Option<i64>; 4] = [Some(15_000_000), Some(i64::MAX), None, None];

/// Agreed overdrafts in micro-credits.
pub(crate) const OVERDRAFTS: [i64; 4] = [0, 5_000_000, 0, 4_300_001];

pub(crate) fn name(wallet: usize) -> String {
    WALLETS.get(wallet).map_or_else(|| format!("agent-{wallet}"), |name| (*name).to_owned())
}

pub(crate) fn cap(wallet: usize) -> Option<i64> {
    CAPS.get(wallet).copied().flatten()
}

pub(crate) fn overdraft(wallet: usize) -> i64 {
    OVERDRAFTS.get(wallet).copied().unwrap_or(0)
}

pub(crate) fn limited_as(givers: &[usize], wallet: usize) -> usize {
    if wallet < WALLETS.len() { wallet } else { givers[wallet - WALLETS.len()] }
}

/// What a request has taken of a grant.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Taken {
    pub(crate) held: i64,
    pub(crate) debited: i64,
}

#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) wallet: usize,
    pub(crate) amount: i64,
    pub(crate) remaining: i64,
    pub(crate) priority: i32,
    pub(crate) effective_us: i64,
    pub(crate) expires_us: i64,
    pub(crate) expired: i64,
    pub(crate) settled: i64,
    /// Moved to the overdraft as soon as it became effective; of an overdraft: what grants moved to it.
    pub(crate) repaid: i64,
    pub(crate) active: bool,
    pub(crate) is_overdraft: bool,
    pub(crate) scoped: bool,
    /// Given to somebody else.
    pub(crate) moved: i64,
    /// The grant that it was moved from.
    pub(crate) source: Option<usize>,
    pub(crate) void: bool,
}

/// Where what is left of a closed wallet goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rest {
    Return,
    Team,
    Nobody,
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) wallet: usize,
    pub(crate) special: bool,
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
    pub(crate) price: Price,
    pub(crate) running: bool,
    pub(crate) started_us: i64,
    pub(crate) taken: BTreeMap<usize, Taken>,
    pub(crate) settled: Option<FinishReason>,
    /// Per grant.
    pub(crate) refunded: BTreeMap<usize, i64>,
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) now_us: i64,
    pub(crate) grants: Vec<Grant>,
    pub(crate) frozen: Vec<bool>,
    /// From the team.
    pub(crate) drawn: Vec<i64>,
    /// Whom each of the wallets after the first four is under.
    pub(crate) givers: Vec<usize>,
    pub(crate) closed: Vec<Option<Rest>>,
    pub(crate) limits: Limits,
    pub(crate) requests: Vec<Request>,
    /// To other grants than overdrafts.
    pub(crate) refunded: i64,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    Closed,
    Frozen,
    Exhausted { needed: i64, balance: i64 },
    Limited,
}

impl Model {
    pub(crate) fn new(now_us: i64) -> Model {
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

    pub(crate) fn spendable(&self, wallet: usize, special: Option<bool>) -> i64 {
        let (own, above): (Vec<_>, Vec<_>) =
            self.burning(wallet, special).into_iter().partition(|&index| self.grants[index].wallet == wallet);
        let sum = |indexes: Vec<usize>| indexes.into_iter().map(|index| self.grants[index].remaining).sum::<i64>();
        sum(own) + sum(above).min(self.cap_left(wallet))
    }

    pub(crate) fn balance(&self, wallet: usize) -> i64 {
        let own = self.burning(wallet, None).into_iter().filter(|&index| self.grants[index].wallet == wallet);
        own.map(|index| self.grants[index].remaining).sum::<i64>() - overdraft(wallet)
    }

    /// What it has that it could give away, as it burns.
    pub(crate) fn own(&self, wallet: usize) -> Vec<usize> {
        let mut own = self.burning(wallet, None);
        own.retain(|&index| self.grants[index].wallet == wallet && !self.grants[index].is_overdraft);
        own
    }

    /// Whose limits hold for it: those of whoever delegated it.
    pub(crate) fn limited_as(&self, wallet: usize) -> usize {
        limited_as(&self.givers, wallet)
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
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

    pub(crate) fn grant(
        &mut self,
        wallet: usize,
        amount: i64,
        priority: i32,
        effective_us: i64,
        expires_us: i64,
        scoped: bool,
    ) {
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

    pub(crate) fn is_frozen(&self, wallet: usize) -> bool {
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
    pub(crate) fn transfer(&mut self, from: usize, to: usize, mut amount: i64) {
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

    pub(crate) fn shut(&mut self, wallet: usize, rest: Rest) {
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
    pub(crate) fn settle_up(&mut self, wallet: usize) {
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

    pub(crate) fn admit(&mut self, wallet: usize, special: bool, prompt: u64, price: Price) -> Result<i64, Refusal> {
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
    pub(crate) fn debit(&mut self, id: usize, asked: u32, reasoning: u32, cached: Option<u64>) -> u32 {
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

    pub(crate) fn held(&self, id: usize) -> i64 {
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

    pub(crate) fn settle(&mut self, id: usize, reason: FinishReason) {
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
    pub(crate) fn refund(&mut self, id: usize, mut amount: i64) {
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

    pub(crate) fn not_refunded(&self, id: usize) -> i64 {
        self.debited(id) - self.requests[id].refunded.values().sum::<i64>()
    }

    pub(crate) fn in_flight(&self, grant: usize) -> i64 {
        let open = self.requests.iter().filter(|request| request.settled.is_none());
        open.filter_map(|request| request.taken.get(&grant)).map(|taken| taken.held + taken.debited).sum()
    }

    pub(crate) fn debited(&self, id: usize) -> i64 {
        self.requests[id].taken.values().map(|taken| taken.debited).sum()
    }
}
