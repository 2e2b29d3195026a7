//! A wallet's grants and how they burn down: arithmetic alone, on what was read and will be written.

use rusqlite::{Connection, Row};

use crate::{GrantKind, LedgerError, Result};

/// One grant, as far as spending it is concerned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grant {
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) kind: GrantKind,
    pub(crate) amount: i64,
    pub(crate) priority: i32,
    pub(crate) effective_us: i64,
    pub(crate) expires_us: Option<i64>,
    /// Whether its entry is written: it has been effective.
    pub(crate) active: bool,
    /// Net of what is in flight.
    pub(crate) remaining: i64,
    /// Changed since it was read.
    dirty: bool,
}

impl Grant {
    pub(crate) fn is_expired(&self, now_us: i64) -> bool {
        self.expires_us.is_some_and(|expires_us| expires_us <= now_us)
    }

    fn is_live(&self, now_us: i64) -> bool {
        self.active && self.effective_us <= now_us && !self.is_expired(now_us)
    }

    /// From [`GRANT_COLUMNS`].
    pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<Grant> {
        Ok(Grant {
            seq: row.get("seq")?,
            id: row.get("id")?,
            kind: if row.get_ref("kind")?.as_str()? == "starter" { GrantKind::Starter } else { GrantKind::Grant },
            amount: row.get("amount")?,
            priority: row.get("priority")?,
            effective_us: row.get("effective_us")?,
            expires_us: row.get("expires_us")?,
            active: row.get("active")?,
            remaining: row.get("remaining")?,
            dirty: false,
        })
    }
}

/// What happened to a grant by time alone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) grant: usize,
    pub(crate) kind: EventKind,
    pub(crate) amount: i64,
    pub(crate) at_us: i64,
}

/// See [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EventKind {
    Activate,
    Expire,
}

/// A part of a payment: which grant, how many micro-credits.
pub(crate) type Part = (i64, i64);

/// The grants of one wallet in burn-down order: priority, then expiry (soonest first, never last), then age.
#[derive(Debug, Clone)]
pub(crate) struct Purse {
    pub(crate) grants: Vec<Grant>,
}

/// For [`Grant::from_row`].
pub(crate) const GRANT_COLUMNS: &str =
    "g.seq, g.id, g.kind, g.amount, g.priority, g.effective_us, g.expires_us, g.active, g.remaining";

/// Burn-down order in SQL.
pub(crate) const BURN_ORDER: &str = "ORDER BY g.priority, g.expires_us IS NULL, g.expires_us, g.seq";

impl Purse {
    /// Reads every grant of a wallet that can still change.
    pub(crate) fn load(conn: &Connection, wallet: i64) -> Result<Purse> {
        let sql = format!(
            "SELECT {GRANT_COLUMNS} FROM allowance g WHERE g.wallet = ?1 AND (g.remaining > 0 OR g.active = 0 \
             OR EXISTS (SELECT 1 FROM in_flight f WHERE f.allowance = g.seq)) {BURN_ORDER}"
        );
        let mut statement = conn.prepare_cached(&sql)?;
        let grants = statement.query_map([wallet], Grant::from_row)?.collect::<rusqlite::Result<_>>()?;
        Ok(Purse { grants })
    }

    /// Writes what changed.
    pub(crate) fn save(&mut self, conn: &Connection) -> Result<()> {
        for grant in self.grants.iter_mut().filter(|grant| grant.dirty) {
            conn.prepare_cached("UPDATE allowance SET remaining = ?2, active = ?3 WHERE seq = ?1")?.execute((
                grant.seq,
                grant.remaining,
                grant.active,
            ))?;
            grant.dirty = false;
        }
        Ok(())
    }

    /// What can be spent now.
    pub(crate) fn available(&self, now_us: i64) -> i64 {
        let live = self.grants.iter().filter(|grant| grant.is_live(now_us));
        // What was granted to one wallet can be counted, unless somebody forged it.
        live.fold(0, |sum: i64, grant| sum.saturating_add(grant.remaining))
    }

    /// Applies what time did, oldest first. Whoever calls this before anything else sees the same events, whenever.
    pub(crate) fn pass_time(&mut self, now_us: i64) -> Vec<Event> {
        let mut events = Vec::new();
        for (index, grant) in self.grants.iter_mut().enumerate() {
            if !grant.active && grant.effective_us <= now_us {
                (grant.active, grant.remaining, grant.dirty) = (true, grant.amount, true);
                let kind = EventKind::Activate;
                events.push(Event { grant: index, kind, amount: grant.amount, at_us: grant.effective_us });
            }
            if let Some(expires_us) = grant.expires_us.filter(|&expires_us| expires_us <= now_us)
                && grant.remaining > 0
            {
                let amount = std::mem::take(&mut grant.remaining);
                grant.dirty = true;
                events.push(Event { grant: index, kind: EventKind::Expire, amount, at_us: expires_us });
            }
        }
        events.sort_by_key(|event| (event.at_us, event.kind, self.grants[event.grant].seq));
        events
    }

    /// Takes `amount` in burn-down order; `None`, and nothing is taken, if there is less.
    pub(crate) fn pay(&mut self, amount: i64, now_us: i64) -> Option<Vec<Part>> {
        if amount > self.available(now_us) {
            return None;
        }
        let mut owed = amount;
        let mut parts = Vec::new();
        for grant in self.grants.iter_mut().filter(|grant| grant.is_live(now_us)) {
            let part = owed.min(grant.remaining);
            if part > 0 {
                grant.remaining -= part;
                grant.dirty = true;
                owed -= part;
                parts.push((grant.seq, part));
            }
            if owed == 0 {
                break;
            }
        }
        Some(parts)
    }

    /// Returns what was held. `Some` if the grant has expired in the meantime: the money is gone again.
    ///
    /// # Errors
    /// [`LedgerError::Bad`] if this purse has no such grant, or more would be left of it than it was: nobody but a
    /// forger writes that.
    pub(crate) fn give_back(&mut self, (seq, amount): Part, now_us: i64) -> Result<Option<Event>> {
        let bad = |reason: &str| LedgerError::Bad { reason: format!("a request in flight {reason}") };
        let index = self.grants.iter().position(|grant| grant.seq == seq);
        let index = index.ok_or_else(|| bad("holds a grant of another wallet"))?;
        let grant = &mut self.grants[index];
        if grant.is_expired(now_us) {
            return Ok(Some(Event { grant: index, kind: EventKind::Expire, amount, at_us: now_us }));
        }
        let remaining = grant.remaining.checked_add(amount).filter(|&remaining| remaining <= grant.amount);
        grant.remaining = remaining.ok_or_else(|| bad("holds more of a grant than was given"))?;
        grant.dirty = true;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(seq: i64, priority: i32, expires_us: Option<i64>, remaining: i64) -> Grant {
        Grant {
            seq,
            id: format!("grant-{seq}"),
            kind: GrantKind::Grant,
            amount: 100,
            priority,
            effective_us: 0,
            expires_us,
            active: true,
            remaining,
            dirty: false,
        }
    }

    #[test]
    fn pays_in_order_over_several_grants_or_not_at_all() {
        let mut purse =
            Purse { grants: vec![grant(3, 0, Some(50), 10), grant(1, 0, None, 5), grant(2, 1, Some(9), 5)] };
        assert_eq!(purse.available(9), 15, "what expires at 9 is gone at 9");
        assert_eq!(purse.pay(16, 9), None);
        assert_eq!(purse.pay(12, 9), Some(vec![(3, 10), (1, 2)]));
        assert_eq!(purse.pay(0, 9), Some(vec![]));
        assert_eq!((purse.available(9), purse.available(8)), (3, 8));
    }

    #[test]
    fn time_activates_and_expires_in_its_own_order() {
        let mut late = grant(2, 0, Some(30), 0);
        (late.effective_us, late.active) = (10, false);
        let mut purse = Purse { grants: vec![grant(1, 0, Some(20), 7), late] };
        assert_eq!(purse.pass_time(9), vec![]);
        let events = purse.pass_time(40);
        let seen: Vec<_> = events.iter().map(|event| (event.at_us, event.kind, event.amount)).collect();
        assert_eq!(seen, [(10, EventKind::Activate, 100), (20, EventKind::Expire, 7), (30, EventKind::Expire, 100)]);
        assert_eq!(purse.pass_time(40), vec![], "once");
        assert_eq!(purse.available(40), 0);
    }

    #[test]
    fn what_comes_back_too_late_is_gone() {
        let mut purse = Purse { grants: vec![grant(1, 0, Some(20), 7)] };
        assert_eq!(purse.give_back((1, 3), 19).unwrap(), None);
        assert_eq!(purse.available(19), 10);
        let event = purse.give_back((1, 3), 25).unwrap().unwrap();
        assert_eq!((event.kind, event.amount, event.at_us), (EventKind::Expire, 3, 25));
    }

    #[test]
    fn what_a_forger_put_in_flight_is_refused() {
        let mut purse = Purse { grants: vec![grant(1, 0, None, 7)] };
        for part in [(2, 1), (1, 94), (1, i64::MAX)] {
            assert!(matches!(purse.give_back(part, 19), Err(LedgerError::Bad { .. })), "{part:?}");
        }
        assert_eq!(purse.available(19), 7);
    }
}
