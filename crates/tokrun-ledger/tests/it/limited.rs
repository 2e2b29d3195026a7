//! Limits of the rules in `model.rs`, written down a second time: token by token.

use tokrun_ledger::{Credits, Ledger, LimitScope, LimitSpan, NewLimit, Quota};

use crate::common::at;

/// Of whom, by number of the wallet (3 is the team that 0 and 1 stand under), what, and over what.
pub(crate) const TERMS: [(usize, Measure, LimitSpan); 6] = [
    (3, Measure::Tokens, LimitSpan::Minute),
    (0, Measure::Micro, LimitSpan::Minute),
    (2, Measure::Requests, LimitSpan::Running),
    (1, Measure::Tokens, LimitSpan::Request),
    (0, Measure::Micro, LimitSpan::Request),
    (3, Measure::Requests, LimitSpan::Minute),
];

const MINUTE_US: i64 = 60_000_000;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Measure {
    Tokens,
    Micro,
    Requests,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    pub(crate) tokens: i64,
    pub(crate) micro: i64,
    pub(crate) requests: i64,
}

impl Load {
    fn by(self, measure: Measure) -> i64 {
        match measure {
            Measure::Tokens => self.tokens,
            Measure::Micro => self.micro,
            Measure::Requests => self.requests,
        }
    }
}

#[derive(Debug)]
struct Limit {
    id: String,
    amount: i64,
    used: i64,
    from_us: i64,
    warned: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Limits {
    limits: [Option<Limit>; TERMS.len()],
    now_us: i64,
    warnings: usize,
}

/// Whether a limit is one of a wallet's requests.
pub(crate) fn holds(which: usize, wallet: usize) -> bool {
    TERMS[which].0 == wallet || TERMS[which].0 == 3 && wallet < 2
}

/// As the ledger is asked for it. Amounts of credits are odd ones.
pub(crate) fn new(which: usize, amount: i64, wallets: &[&str]) -> NewLimit {
    let (wallet, measure, span) = TERMS[which];
    let quota = match measure {
        Measure::Tokens => Quota::Tokens(amount as u64),
        Measure::Micro => Quota::Credits(Credits::from_micro(amount * 999_983)),
        Measure::Requests => Quota::Requests(amount as u64),
    };
    NewLimit::new(LimitScope { wallet: Some(wallets[wallet].into()), ..LimitScope::default() }, quota, span)
}

impl Limits {
    pub(crate) fn id(&self, which: usize) -> Option<String> {
        self.limits[which].as_ref().map(|limit| limit.id.clone())
    }

    pub(crate) fn remove(&mut self, which: usize) {
        self.limits[which] = None;
    }

    pub(crate) fn set(&mut self, which: usize, amount: i64, id: String, now_us: i64, in_flight: &[Load]) {
        self.pass_time(now_us);
        let measure = TERMS[which].1;
        let amount = if measure == Measure::Micro { amount * 999_983 } else { amount };
        let used = in_flight.iter().map(|load| load.by(measure)).sum();
        let from_us = now_us - now_us % MINUTE_US;
        let limit = self.limits[which].get_or_insert(Limit { id, amount, used, from_us, warned: 0 });
        limit.amount = amount;
        self.warn();
    }

    pub(crate) fn pass_time(&mut self, now_us: i64) {
        self.now_us = now_us;
        for limit in self.limits.iter_mut().flatten() {
            if now_us >= limit.from_us + MINUTE_US {
                (limit.used, limit.warned, limit.from_us) = (0, 0, now_us - now_us % MINUTE_US);
            }
        }
    }

    /// Whether what a request holds fits all limits; then it is counted.
    pub(crate) fn admit(&mut self, wallet: usize, hold: Load, at_once: impl Fn(usize) -> i64) -> bool {
        let fits = self.of(wallet).all(|(which, limit)| match TERMS[which].2 {
            LimitSpan::Running => at_once(which) < limit.amount,
            LimitSpan::Request => hold.by(TERMS[which].1) <= limit.amount,
            _ => limit.used + hold.by(TERMS[which].1) <= limit.amount || hold.by(TERMS[which].1) == 0,
        });
        if fits {
            self.count(wallet, hold, Load::default());
            self.warn();
        }
        fits
    }

    /// Whether one more token fits all limits; then it is counted, but for what is held of it.
    pub(crate) fn take(&mut self, wallet: usize, token: Load, held: Load, so_far: Load) -> bool {
        let fits = self.of(wallet).all(|(which, limit)| {
            let measure = TERMS[which].1;
            match TERMS[which].2 {
                LimitSpan::Running => true,
                _ if token.by(measure) == 0 => true,
                LimitSpan::Request => so_far.by(measure) + token.by(measure) <= limit.amount,
                _ => token.by(measure) - held.by(measure) <= (limit.amount - limit.used).max(0),
            }
        });
        if fits {
            self.count(wallet, token, held);
        }
        fits
    }

    /// What was held since `started_us` counts no longer, unless another minute has begun.
    pub(crate) fn release(&mut self, wallet: usize, hold: Load, started_us: i64) {
        for (measure, limit) in self.counted(wallet).filter(|(_, limit)| started_us >= limit.from_us) {
            limit.used -= hold.by(measure);
        }
    }

    fn count(&mut self, wallet: usize, cost: Load, held: Load) {
        for (measure, limit) in self.counted(wallet) {
            limit.used += cost.by(measure) - held.by(measure);
        }
    }

    /// Those of a wallet that add up over a minute.
    fn counted(&mut self, wallet: usize) -> impl Iterator<Item = (Measure, &mut Limit)> {
        let limits = self.limits.iter_mut().enumerate();
        let counted = limits.filter(move |&(which, _)| holds(which, wallet) && TERMS[which].2 == LimitSpan::Minute);
        counted.filter_map(|(which, limit)| Some((TERMS[which].1, limit.as_mut()?)))
    }

    /// At the end of a commit: each threshold once a minute.
    pub(crate) fn warn(&mut self) {
        let limits = self.limits.iter_mut().zip(TERMS).filter(|(_, terms)| terms.2 == LimitSpan::Minute);
        for limit in limits.filter_map(|(limit, _)| limit.as_mut()) {
            for percent in [50, 80, 100] {
                if percent > limit.warned && limit.used > 0 && limit.used * 100 >= limit.amount * percent {
                    limit.warned = percent;
                    self.warnings += 1;
                }
            }
        }
    }

    fn of(&self, wallet: usize) -> impl Iterator<Item = (usize, &Limit)> {
        let limits = self.limits.iter().enumerate();
        limits.filter_map(move |(which, limit)| Some((which, limit.as_ref().filter(|_| holds(which, wallet))?)))
    }

    /// What everybody can see is what the model has.
    pub(crate) fn compare(&self, ledger: &Ledger) {
        let views = ledger.limits().unwrap();
        assert_eq!(views.len(), self.limits.iter().flatten().count());
        let events = ledger.events(None, 0).unwrap();
        let warned = events.iter().filter(|event| event.kind == "limit_threshold").count();
        assert_eq!(warned, self.warnings, "each threshold once a window");
        for (which, limit) in self.limits.iter().enumerate() {
            let Some(limit) = limit else { continue };
            let view = views.iter().find(|view| view.id == limit.id).expect("it was set");
            if TERMS[which].2 == LimitSpan::Minute {
                let used = match view.used.unwrap() {
                    Quota::Tokens(count) | Quota::Requests(count) => count as i64,
                    Quota::Credits(credits) => credits.micro(),
                };
                assert_eq!(used, limit.used, "{view:?}");
                assert_eq!(view.resets, Some(at(limit.from_us + MINUTE_US)));
            }
        }
    }
}
