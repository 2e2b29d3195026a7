//! A wallet's grants and how they burn down: arithmetic alone, on what was read and will be written.

use rusqlite::{Connection, Row};

use crate::funds::Draw;
use crate::recurrence::Recurrence;
use crate::{GrantKind, GrantTerms, LedgerError, Result, WARN_PERCENT, events};

/// What is spent first, and what only when everything else is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Grants,
    /// `remaining` is what of it is not used.
    Overdraft,
}

/// One grant, as far as spending it is concerned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grant {
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) layer: Layer,
    pub(crate) kind: GrantKind,
    pub(crate) amount: i64,
    pub(crate) priority: i32,
    pub(crate) effective_us: i64,
    pub(crate) expires_us: Option<i64>,
    /// Whether its entry is written: it has been effective.
    pub(crate) active: bool,
    /// Net of what is in flight.
    pub(crate) remaining: i64,
    /// Of an overdraft: held by, or debited to, requests that are not settled.
    in_flight: i64,
    /// The recurring grant that gave it.
    pub(crate) recurrence: Option<i64>,
    pub(crate) voided: bool,
    pub(crate) terms: GrantTerms,
    /// The highest percentage of it that was warned of, if a recurring grant gave it.
    warned: u8,
    /// Changed since it was read.
    dirty: bool,
}

impl Grant {
    pub(crate) fn is_expired(&self, now_us: i64) -> bool {
        self.expires_us.is_some_and(|expires_us| expires_us <= now_us)
    }

    pub(crate) fn is_live(&self, now_us: i64) -> bool {
        self.active && !self.voided && self.effective_us <= now_us && !self.is_expired(now_us)
    }

    /// Notes the thresholds that spending has reached, each once, of what a recurring grant gives for a period.
    fn warn(&mut self, warnings: &mut Vec<(i64, u8)>) {
        if self.recurrence.is_none() || self.kind != GrantKind::Grant {
            return;
        }
        let used = i128::from(self.amount - self.remaining) * 100;
        for percent in WARN_PERCENT {
            if percent > self.warned && used >= i128::from(self.amount) * i128::from(percent) {
                self.warned = percent;
                warnings.push((self.seq, percent));
            }
        }
    }

    /// Orders grants by age: those that are not written are the youngest, and the youngest of them has the lowest number.
    fn age(&self) -> (bool, i64) {
        (self.seq < 0, self.seq.saturating_abs())
    }

    /// From [`GRANT_COLUMNS`].
    pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<Grant> {
        let kind = row.get_ref("kind")?.as_str()?;
        Ok(Grant {
            seq: row.get("seq")?,
            id: row.get("id")?,
            layer: if kind == "overdraft" { Layer::Overdraft } else { Layer::Grants },
            kind: match kind {
                "starter" => GrantKind::Starter,
                "rollover" => GrantKind::Rollover,
                "transfer" => GrantKind::Transfer,
                "refund" => GrantKind::Refund,
                _ => GrantKind::Grant,
            },
            amount: row.get("amount")?,
            priority: row.get("priority")?,
            effective_us: row.get("effective_us")?,
            expires_us: row.get("expires_us")?,
            active: row.get("active")?,
            remaining: row.get("remaining")?,
            in_flight: row.get("overdraft_in_flight")?,
            recurrence: row.get("recurrence")?,
            voided: row.get("voided")?,
            terms: GrantTerms::from_row(row)?,
            warned: row.get("warned")?,
            dirty: false,
        })
    }
}

/// What happened to a grant by time alone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) grant: i64,
    /// The grant of the same wallet to which it moves, if it does.
    pub(crate) to: Option<i64>,
    pub(crate) kind: EventKind,
    pub(crate) amount: i64,
    pub(crate) at_us: i64,
}

/// See [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EventKind {
    Activate,
    /// A grant pays back what settled requests overdrew, as soon as it is effective.
    Repay,
    /// What is left of a recurring grant goes on into its next period.
    Rollover,
    Expire,
    /// What a request gives back of a grant that was made void meanwhile.
    Void,
}

/// A part of a payment: which grant, how many micro-credits.
pub(crate) type Part = (i64, i64);

/// The grants of one wallet in burn-down order: priority, then expiry (soonest first, never last), then age; and last the
/// agreed overdraft.
#[derive(Debug, Clone)]
pub(crate) struct Purse {
    pub(crate) grants: Vec<Grant>,
    /// Whether, and how far, its wallet may draw on the parent's pool.
    pub(crate) draw: Option<Draw>,
    /// What will be given again.
    pub(crate) recurrences: Vec<Recurrence>,
    /// Grants, and percentages of them, that were spent since the last save, and that somebody should hear of.
    pub(crate) warnings: Vec<(i64, u8)>,
}

/// For [`Grant::from_row`].
pub(crate) const GRANT_COLUMNS: &str = "g.seq, g.id, g.kind, g.amount, g.priority, g.effective_us, g.expires_us, g.active, g.remaining, g.recurrence, g.warned, \
     g.class, g.scope, g.value_nano, g.currency, \
     g.voided_us IS NOT NULL AS voided, \
     CASE g.kind WHEN 'overdraft' THEN (SELECT coalesce(sum(held + debited), 0) FROM in_flight WHERE allowance = g.seq) \
     ELSE 0 END AS overdraft_in_flight";

/// Burn-down order in SQL.
pub(crate) const BURN_ORDER: &str =
    "ORDER BY g.kind = 'overdraft', g.priority, g.expires_us IS NULL, g.expires_us, g.seq";

impl Purse {
    /// Reads every grant of a wallet that can still change.
    pub(crate) fn load(conn: &Connection, wallet: i64) -> Result<Purse> {
        let sql = format!(
            "SELECT {GRANT_COLUMNS} FROM allowance g WHERE g.wallet = ?1 AND (g.remaining > 0 \
             OR g.active = 0 AND g.voided_us IS NULL \
             OR g.kind = 'overdraft' OR EXISTS (SELECT 1 FROM in_flight f WHERE f.allowance = g.seq)) {BURN_ORDER}"
        );
        let mut statement = conn.prepare_cached(&sql)?;
        let grants = statement.query_map([wallet], Grant::from_row)?.collect::<rusqlite::Result<_>>()?;
        Ok(Purse {
            grants,
            draw: Draw::load(conn, wallet)?,
            recurrences: Recurrence::load_all(conn, wallet)?,
            warnings: Vec::new(),
        })
    }

    /// Writes what changed, and the events of thresholds that were reached.
    pub(crate) fn save(&mut self, conn: &Connection, wallet: i64, now_us: i64) -> Result<()> {
        for grant in self.grants.iter_mut().filter(|grant| grant.dirty) {
            conn.prepare_cached("UPDATE allowance SET remaining = ?2, active = ?3, warned = ?4 WHERE seq = ?1")?
                .execute((grant.seq, grant.remaining, grant.active, grant.warned))?;
            grant.dirty = false;
        }
        for (grant, percent) in self.warnings.drain(..) {
            events::of_grant(conn, now_us, grant, percent)?;
        }
        self.recurrences.iter_mut().try_for_each(|recurrence| recurrence.save(conn))?;
        self.draw.as_mut().map_or(Ok(()), |draw| draw.save(conn, wallet))
    }

    /// What can be spent now, the overdraft included, on a model; `None`: on any.
    pub(crate) fn available(&self, model: Option<&str>, now_us: i64) -> i64 {
        let live = self.grants.iter().filter(|grant| grant.is_live(now_us) && grant.terms.pays_for(model));
        // What was granted to one wallet can be counted, unless somebody forged it.
        live.fold(0, |sum: i64, grant| sum.saturating_add(grant.remaining))
    }

    /// The live grants less what of the overdraft is used.
    pub(crate) fn balance(&self, now_us: i64) -> i64 {
        let line = self.overdraft().map_or(0, |line| line.amount);
        self.available(None, now_us).saturating_sub(line)
    }

    /// The agreed overdraft.
    pub(crate) fn overdraft(&self) -> Option<&Grant> {
        self.grants.last().filter(|grant| grant.layer == Layer::Overdraft && grant.active)
    }

    /// Whether a grant is one of this purse's.
    pub(crate) fn has(&self, seq: i64) -> bool {
        self.grants.iter().any(|grant| grant.seq == seq)
    }

    /// What a grant that is not written yet was given for.
    pub(crate) fn memo_of(&self, grant: &Grant) -> Option<String> {
        let given_by = |recurrence: &&Recurrence| Some(recurrence.seq) == grant.recurrence;
        let memo = || self.recurrences.iter().find(given_by).and_then(|recurrence| recurrence.view().memo);
        if grant.kind == GrantKind::Grant { memo() } else { None }
    }

    /// The grant of a number.
    pub(crate) fn grant(&self, seq: i64) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.seq == seq)
    }

    /// Applies what time did, oldest first. Whoever calls this before anything else sees the same events, whenever. Grants
    /// that recurring ones gave are new: their numbers are negative until they are [written](Purse::number).
    pub(crate) fn pass_time(&mut self, now_us: i64) -> Vec<Event> {
        if let Some(draw) = &mut self.draw {
            draw.pass_time(now_us);
        }
        let mut events = Vec::new();
        while let Some((at_us, recurrence)) = self.due(now_us) {
            // What happened before comes first, and what is left at that instant rolls over before it expires.
            self.pass_grants(at_us - 1, &mut events);
            self.recur(recurrence, &mut events);
        }
        self.pass_grants(now_us, &mut events);
        events
    }

    /// Gives the grants that are new their numbers, oldest first, and these to their events.
    pub(crate) fn number(
        &mut self,
        events: &mut [Event],
        mut write: impl FnMut(&Grant, &Recurrence) -> Result<i64>,
    ) -> Result<()> {
        let mut new: Vec<i64> = self.grants.iter().map(|grant| grant.seq).filter(|&seq| seq < 0).collect();
        new.sort_unstable_by_key(|&seq| std::cmp::Reverse(seq));
        for temporary in new {
            let Some(grant) = self.grants.iter_mut().find(|grant| grant.seq == temporary) else { continue };
            let recurrence = self.recurrences.iter().find(|recurrence| Some(recurrence.seq) == grant.recurrence);
            let recurrence = recurrence.expect("a new grant is one of a recurring grant's");
            grant.seq = write(grant, recurrence)?;
            for event in events.iter_mut() {
                event.grant = if event.grant == temporary { grant.seq } else { event.grant };
                event.to = if event.to == Some(temporary) { Some(grant.seq) } else { event.to };
            }
        }
        Ok(())
    }

    /// The recurring grant that is due first, and when.
    fn due(&self, now_us: i64) -> Option<(i64, usize)> {
        let due = |(index, recurrence): (usize, &Recurrence)| Some((recurrence.due_us(now_us)?, index));
        self.recurrences.iter().enumerate().filter_map(due).min()
    }

    /// Gives a recurring grant once more, and lets go on what may of what is left of the last time.
    fn recur(&mut self, index: usize, events: &mut Vec<Event>) {
        let recurrence = &mut self.recurrences[index];
        let (from_us, until_us) = recurrence.advance();
        let (seq, number, most) = (recurrence.seq, recurrence.given, recurrence.rollover);
        let new = Grant {
            seq: self.grants.iter().map(|grant| grant.seq).min().unwrap_or(0).min(0) - 1,
            id: format!("{}.{number}r", recurrence.id),
            layer: Layer::Grants,
            kind: GrantKind::Rollover,
            amount: 0,
            priority: recurrence.priority,
            effective_us: from_us,
            // A calendar that ends gives it no end.
            expires_us: (until_us > from_us && until_us < i64::MAX).then_some(until_us),
            active: true,
            remaining: 0,
            in_flight: 0,
            recurrence: Some(seq),
            voided: false,
            terms: recurrence.terms.clone(),
            warned: 0,
            dirty: true,
        };
        let given = Grant {
            seq: new.seq - 1,
            id: format!("{}.{number}", recurrence.id),
            kind: GrantKind::Grant,
            amount: recurrence.amount,
            active: false,
            ..new.clone()
        };
        let mut rolled = 0;
        let ends = |grant: &&mut Grant| grant.recurrence == Some(seq) && grant.expires_us == Some(from_us);
        for last in self.grants.iter_mut().filter(ends).filter(|last| !last.voided) {
            let amount = last.remaining.min(most - rolled);
            if amount > 0 {
                (last.remaining, last.dirty) = (last.remaining - amount, true);
                rolled += amount;
                let (grant, to) = (last.seq, Some(new.seq));
                events.push(Event { grant, to, kind: EventKind::Rollover, amount, at_us: from_us });
            }
        }
        if rolled > 0 {
            self.grants.push(Grant { amount: rolled, remaining: rolled, ..new });
        }
        self.grants.push(given);
        self.grants.sort_by_key(|grant| {
            let expiry = grant.expires_us.map_or((1, 0), |expires_us| (0, expires_us));
            (grant.layer == Layer::Overdraft, grant.priority, expiry, grant.age())
        });
    }

    fn pass_grants(&mut self, now_us: i64, events: &mut Vec<Event>) {
        let before = events.len();
        for index in self.by_effect(now_us) {
            let grant = &mut self.grants[index];
            if !grant.active && grant.effective_us <= now_us {
                (grant.active, grant.remaining, grant.dirty) = (true, grant.amount, true);
                let at_us = grant.effective_us;
                let (seq, kind) = (grant.seq, EventKind::Activate);
                events.push(Event { grant: seq, to: None, kind, amount: grant.amount, at_us });
                events.extend(self.repay(seq, at_us));
            }
            let grant = &mut self.grants[index];
            if let Some(expires_us) = grant.expires_us.filter(|&expires_us| expires_us <= now_us)
                && grant.remaining > 0
            {
                let amount = std::mem::take(&mut grant.remaining);
                grant.dirty = true;
                events.push(Event { grant: grant.seq, to: None, kind: EventKind::Expire, amount, at_us: expires_us });
            }
        }
        events[before..].sort_by_key(|event| (event.at_us, event.kind));
    }

    /// Takes `most`, or what there is for a model, in burn-down order. Returns what it took.
    pub(crate) fn take(
        &mut self,
        most: i64,
        model: Option<&str>,
        layer: Layer,
        now_us: i64,
        parts: &mut Vec<Part>,
    ) -> i64 {
        let mut owed = most;
        let serves = |grant: &&mut Grant| grant.layer == layer && grant.is_live(now_us) && grant.terms.pays_for(model);
        for grant in self.grants.iter_mut().filter(serves) {
            let part = owed.min(grant.remaining);
            if part > 0 {
                grant.remaining -= part;
                grant.in_flight = grant.in_flight.saturating_add(part);
                grant.dirty = true;
                grant.warn(&mut self.warnings);
                owed -= part;
                parts.push((grant.seq, part));
            }
            if owed == 0 {
                break;
            }
        }
        most - owed
    }

    /// Moves to the overdraft, out of a grant that was just received, what settled requests overdrew. `Some` if they did.
    /// A grant for some models only repays nothing: who knows which of them overdrew.
    pub(crate) fn repay(&mut self, seq: i64, at_us: i64) -> Option<Event> {
        let overdrawn = self.overdraft().map(|line| line.amount - line.remaining - line.in_flight)?;
        let grant = self.grants.iter_mut().find(|grant| grant.seq == seq && grant.terms.scope.is_none())?;
        let amount = overdrawn.min(grant.remaining);
        if amount <= 0 {
            return None;
        }
        (grant.remaining, grant.dirty) = (grant.remaining - amount, true);
        let line = self.grants.last_mut()?;
        (line.remaining, line.dirty) = (line.remaining + amount, true);
        Some(Event { grant: seq, to: Some(line.seq), kind: EventKind::Repay, amount, at_us })
    }

    /// Takes an amount, which is left, out of one grant.
    pub(crate) fn take_out(&mut self, seq: i64, amount: i64) {
        for grant in self.grants.iter_mut().filter(|grant| grant.seq == seq) {
            (grant.remaining, grant.dirty) = (grant.remaining - amount, true);
        }
    }

    /// Makes a grant void. `Some` if something was left of it.
    pub(crate) fn void(&mut self, seq: i64, now_us: i64) -> Option<Event> {
        let grant = self.grants.iter_mut().find(|grant| grant.seq == seq)?;
        (grant.voided, grant.dirty) = (true, true);
        let amount = std::mem::take(&mut grant.remaining);
        (amount > 0).then_some(Event { grant: seq, to: None, kind: EventKind::Void, amount, at_us: now_us })
    }

    /// What was taken is settled: it is in flight no longer.
    pub(crate) fn settle(&mut self, (seq, amount): Part) {
        self.grants
            .iter_mut()
            .filter(|grant| grant.seq == seq)
            .for_each(|grant| grant.in_flight = grant.in_flight.saturating_sub(amount));
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
        grant.in_flight = grant.in_flight.saturating_sub(amount);
        if grant.is_expired(now_us) || grant.voided {
            let kind = if grant.voided { EventKind::Void } else { EventKind::Expire };
            return Ok(Some(Event { grant: seq, to: None, kind, amount, at_us: now_us }));
        }
        let remaining = grant.remaining.checked_add(amount).filter(|&remaining| remaining <= grant.amount);
        grant.remaining = remaining.ok_or_else(|| bad("holds more of a grant than was given"))?;
        grant.dirty = true;
        Ok(None)
    }

    /// Whatever became effective or expired, in the order in which it became effective.
    fn by_effect(&self, now_us: i64) -> Vec<usize> {
        let changes = |grant: &Grant| match grant.active {
            true => grant.remaining > 0 && grant.is_expired(now_us),
            false => grant.layer == Layer::Grants && !grant.voided && grant.effective_us <= now_us,
        };
        let mut changed: Vec<usize> = (0..self.grants.len()).filter(|&index| changes(&self.grants[index])).collect();
        changed.sort_by_key(|&index| (self.grants[index].effective_us, self.grants[index].age()));
        changed
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn grant(seq: i64, priority: i32, expires_us: Option<i64>, remaining: i64) -> Grant {
        Grant {
            seq,
            id: format!("grant-{seq}"),
            layer: Layer::Grants,
            kind: GrantKind::Grant,
            amount: 100,
            priority,
            effective_us: 0,
            expires_us,
            active: true,
            remaining,
            in_flight: 0,
            recurrence: None,
            voided: false,
            terms: GrantTerms::default(),
            warned: 0,
            dirty: false,
        }
    }

    pub(crate) fn overdraft(seq: i64, remaining: i64) -> Grant {
        Grant { layer: Layer::Overdraft, ..grant(seq, 0, None, remaining) }
    }

    fn purse(grants: Vec<Grant>) -> Purse {
        Purse { grants, draw: None, recurrences: Vec::new(), warnings: Vec::new() }
    }

    #[test]
    fn takes_in_order_over_several_grants() {
        let mut purse = purse(vec![grant(3, 0, Some(50), 10), grant(1, 0, None, 5), grant(2, 1, Some(9), 5)]);
        assert_eq!(purse.available(None, 9), 15, "what expires at 9 is gone at 9");
        let mut parts = Vec::new();
        assert_eq!(purse.take(12, None, Layer::Grants, 9, &mut parts), 12);
        assert_eq!(purse.take(0, None, Layer::Grants, 9, &mut parts), 0);
        assert_eq!(parts, [(3, 10), (1, 2)]);
        assert_eq!((purse.available(None, 9), purse.available(None, 8)), (3, 8));
    }

    #[test]
    fn time_activates_and_expires_in_its_own_order() {
        let mut late = grant(2, 0, Some(30), 0);
        (late.effective_us, late.active) = (10, false);
        let mut purse = purse(vec![grant(1, 0, Some(20), 7), late]);
        assert_eq!(purse.pass_time(9), vec![]);
        let events = purse.pass_time(40);
        let seen: Vec<_> = events.iter().map(|event| (event.at_us, event.kind, event.amount)).collect();
        assert_eq!(seen, [(10, EventKind::Activate, 100), (20, EventKind::Expire, 7), (30, EventKind::Expire, 100)]);
        assert_eq!(purse.pass_time(40), vec![], "once");
        assert_eq!(purse.available(None, 40), 0);
    }

    #[test]
    fn a_grant_repays_what_was_overdrawn_before_it_can_expire() {
        let mut late = grant(2, 0, Some(30), 0);
        (late.effective_us, late.active) = (10, false);
        let mut purse = purse(vec![late, overdraft(9, 40)]);
        let mut parts = Vec::new();
        assert_eq!(purse.take(50, None, Layer::Overdraft, 5, &mut parts), 40, "60 were used before, and are settled");
        assert_eq!((parts, purse.balance(5)), (vec![(9, 40)], -100));
        let events = purse.pass_time(40);
        let seen: Vec<_> = events.iter().map(|event| (event.at_us, event.kind, event.amount)).collect();
        assert_eq!(seen, [(10, EventKind::Activate, 100), (10, EventKind::Repay, 60), (30, EventKind::Expire, 40)]);
        assert_eq!(purse.balance(40), -40, "what is in flight is repaid by a later grant");
    }

    #[test]
    fn what_comes_back_too_late_is_gone() {
        let mut purse = purse(vec![grant(1, 0, Some(20), 7)]);
        assert_eq!(purse.give_back((1, 3), 19).unwrap(), None);
        assert_eq!(purse.available(None, 19), 10);
        let event = purse.give_back((1, 3), 25).unwrap().unwrap();
        assert_eq!((event.kind, event.amount, event.at_us), (EventKind::Expire, 3, 25));
    }

    #[test]
    fn what_a_forger_put_in_flight_is_refused() {
        let mut purse = purse(vec![grant(1, 0, None, 7)]);
        for part in [(2, 1), (1, 94), (1, i64::MAX)] {
            assert!(matches!(purse.give_back(part, 19), Err(LedgerError::Bad { .. })), "{part:?}");
        }
        assert_eq!(purse.available(None, 19), 7);
    }
}
