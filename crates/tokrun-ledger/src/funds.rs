//! What a wallet can pay with: its own grants, then those of the pools above it as far as it may draw on them, then the
//! agreed overdrafts in the same order.

use std::sync::Arc;

use jiff::tz::TimeZone;
use rusqlite::{Connection, OptionalExtension};

use crate::calendar::Period;
use crate::purse::{Event, Layer, Part, Purse};
use crate::{LedgerError, Result, tree};

/// What a wallet may take from its parent's pool.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    pub(crate) parent: i64,
    pub(crate) cap: Option<i64>,
    /// `None`: the cap is for ever.
    pub(crate) every: Option<Period>,
    pub(crate) drawn: i64,
    from_us: i64,
    until_us: i64,
    zone: TimeZone,
    dirty: bool,
}

impl Draw {
    /// Of a wallet that draws on its parent.
    pub(crate) fn load(conn: &Connection, wallet: i64) -> Result<Option<Draw>> {
        let sql = "SELECT w.parent, d.cap, d.every, d.from_us, d.drawn FROM draw d JOIN wallet w ON w.seq = d.wallet \
             WHERE d.wallet = ?1 AND w.parent IS NOT NULL";
        let found = conn.prepare_cached(sql)?.query_row([wallet], |row| {
            let every = row.get_ref(2)?.as_str()?.parse().ok();
            Ok((row.get(0)?, row.get(1)?, every, row.get(3)?, row.get(4)?))
        });
        let Some((parent, cap, every, from_us, drawn)) = found.optional()? else { return Ok(None) };
        let zone = tree::zone(&tree::path(conn, wallet)?)?;
        let until_us = every.map_or(i64::MAX, |every: Period| every.around(from_us, &zone).1);
        Ok(Some(Draw { parent, cap, every, drawn, from_us, until_us, zone, dirty: false }))
    }

    /// Begins a new period if the last one is over.
    pub(crate) fn pass_time(&mut self, now_us: i64) {
        if let Some(every) = self.every.filter(|_| now_us >= self.until_us) {
            (self.from_us, self.until_us) = every.around(now_us, &self.zone);
            (self.drawn, self.dirty) = (0, true);
        }
    }

    /// Writes what changed.
    pub(crate) fn save(&mut self, conn: &Connection, wallet: i64) -> Result<()> {
        if std::mem::take(&mut self.dirty) {
            let sql = "UPDATE draw SET from_us = ?2, drawn = ?3 WHERE wallet = ?1";
            conn.prepare_cached(sql)?.execute((wallet, self.from_us, self.drawn))?;
        }
        Ok(())
    }

    /// What may still be taken in this period.
    pub(crate) fn left(&self) -> i64 {
        self.cap.map_or(i64::MAX, |cap| cap.saturating_sub(self.drawn).max(0))
    }

    fn take(&mut self, amount: i64) {
        self.drawn = self.drawn.saturating_add(amount);
        self.dirty |= amount > 0;
    }

    /// What was taken at `taken_us` comes back: it counts no longer, unless it was taken in an earlier period.
    fn give_back(&mut self, amount: i64, taken_us: i64) {
        if taken_us >= self.from_us {
            self.drawn = (self.drawn - amount).max(0);
            self.dirty = true;
        }
    }
}

/// A wallet and the pools that it draws on, the wallet first.
#[derive(Debug, Clone)]
pub(crate) struct Funds {
    pub(crate) levels: Vec<(i64, Purse)>,
    /// What it is spent on; `None`: anything.
    pub(crate) model: Option<Arc<str>>,
}

impl Funds {
    /// The wallet that pays first.
    pub(crate) fn own(&self) -> &Purse {
        &self.levels[0].1
    }

    /// What can be spent now.
    pub(crate) fn available(&self, now_us: i64) -> i64 {
        self.levels.iter().rev().fold(0, |above: i64, (_, purse)| {
            let drawable = purse.draw.as_ref().map_or(0, |draw| draw.left().min(above));
            purse.available(self.model.as_deref(), now_us).saturating_add(drawable)
        })
    }

    /// Takes `amount` in burn-down order; `None`, and nothing is taken, if there is less.
    pub(crate) fn pay(&mut self, amount: i64, now_us: i64) -> Option<Vec<Part>> {
        if amount > self.available(now_us) {
            return None;
        }
        let mut owed = amount;
        let mut parts = Vec::new();
        for layer in [Layer::Grants, Layer::Overdraft] {
            for level in 0..self.levels.len() {
                if owed == 0 {
                    break;
                }
                let (below, rest) = self.levels.split_at_mut(level);
                let draws = || below.iter().filter_map(|(_, purse)| purse.draw.as_ref());
                let most = draws().map(Draw::left).fold(owed, i64::min);
                let taken = rest[0].1.take(most, self.model.as_deref(), layer, now_us, &mut parts);
                for (_, purse) in below {
                    purse.draw.iter_mut().for_each(|draw| draw.take(taken));
                }
                owed -= taken;
            }
        }
        debug_assert_eq!(owed, 0, "what is available can be taken");
        Some(parts)
    }

    /// What a request took is settled: it is in flight no longer.
    pub(crate) fn settle(&mut self, part: Part) {
        self.levels.iter_mut().for_each(|(_, purse)| purse.settle(part));
    }

    /// Returns what was held since `taken_us`. `Some`, with the wallet, if its grant has expired in the meantime: the
    /// money is gone again.
    ///
    /// # Errors
    /// [`LedgerError::Bad`] if no level has such a grant, or more would be left of it than it was: nobody but a forger
    /// writes that.
    pub(crate) fn give_back(&mut self, part: Part, taken_us: i64, now_us: i64) -> Result<Option<(usize, Event)>> {
        let level = self.levels.iter().position(|(_, purse)| purse.has(part.0));
        let level = level
            .ok_or_else(|| LedgerError::Bad { reason: "a request in flight holds a grant of another wallet".into() })?;
        for (_, purse) in &mut self.levels[..level] {
            purse.draw.iter_mut().for_each(|draw| draw.give_back(part.1, taken_us));
        }
        Ok(self.levels[level].1.give_back(part, now_us)?.map(|event| (level, event)))
    }
}

#[cfg(test)]
mod tests;
