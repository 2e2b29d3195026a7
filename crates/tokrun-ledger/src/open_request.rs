//! A request in flight: what it holds and what it has debited, per grant.

use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension};

use crate::funds::Funds;
use crate::limits::{self, Counter, Guards, Load};
use crate::prices::Frozen;
use crate::purse::Part;
use crate::tree::ABOVE;
use crate::writer::Tx;
use crate::{Admission, CreditValue, Credits, Debit, LedgerError, LimitReached, Price, Result};

/// The order in which what was held of grants `g` is debited: that in which it was taken.
const PAY_ORDER: &str =
    "ORDER BY g.kind = 'overdraft', above.level, g.priority, g.expires_us IS NULL, g.expires_us, g.seq";

/// A request that is not settled, as far as money is concerned.
#[derive(Debug, Clone)]
pub(crate) struct OpenRequest {
    pub(crate) seq: i64,
    pub(crate) wallet: i64,
    pub(crate) model: Arc<str>,
    price: Price,
    pub(crate) prompt_tokens: u64,
    /// Its prompt is debited, and nothing is held any more.
    pub(crate) running: bool,
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    /// Of these, those that were reasoning.
    pub(crate) reasoning_tokens: u64,
    /// When its hold was taken.
    pub(crate) started_us: i64,
    /// The numbers of the limits that hold for it.
    pub(crate) limits: Vec<i64>,
    lots: Vec<Lot>,
    /// Its progress has changed since it was read.
    dirty: bool,
}

/// What a request has of one grant.
#[derive(Debug, Clone)]
struct Lot {
    grant: i64,
    held: i64,
    debited: i64,
    stored: bool,
    dirty: bool,
}

impl OpenRequest {
    /// Writes a new request that holds `parts`.
    pub(crate) fn create(
        tx: &Tx<'_>,
        admission: &Admission,
        wallet: i64,
        tags: &str,
        terms: &Frozen,
        parts: &[Part],
    ) -> Result<OpenRequest> {
        let price = terms.price;
        let (value_nano, currency) = terms.value.as_ref().map(CreditValue::columns).unzip();
        let sql = "INSERT INTO open_request (id, owner, wallet, prompt_micro, cached_micro, output_micro, prompt_tokens, \
             model, device, project, tags, started_us, access_key, reasoning_micro, value_nano, currency) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
        let seq = tx.conn.prepare_cached(sql)?.insert(rusqlite::params![
            &admission.request_id,
            tx.owner,
            wallet,
            price.prompt.micro(),
            price.cached_prompt.micro(),
            price.output.micro(),
            i64::try_from(admission.prompt_tokens).expect("checked at admission"),
            &admission.model,
            &admission.device,
            &admission.project,
            tags,
            tx.now_us,
            &admission.key,
            price.apart(),
            value_nano,
            currency,
        ])?;
        tx.conn.prepare_cached("INSERT INTO progress (request) VALUES (?1)")?.execute([seq])?;
        let held = |&(grant, held): &Part| Lot { grant, held, debited: 0, stored: false, dirty: true };
        let mut request = OpenRequest {
            seq,
            wallet,
            model: admission.model.as_str().into(),
            price,
            prompt_tokens: admission.prompt_tokens,
            running: false,
            cached_tokens: 0,
            output_tokens: 0,
            reasoning_tokens: 0,
            started_us: tx.now_us,
            limits: limits::of_request(tx, seq)?,
            lots: parts.iter().map(held).collect(),
            dirty: false,
        };
        Saver::new(tx.conn)?.save(&mut request)?;
        Ok(request)
    }

    /// The open request of this id, out of the cache or the file. Put it back into the cache once it is saved.
    pub(crate) fn take(tx: &mut Tx<'_>, id: &str) -> Result<Option<OpenRequest>> {
        match tx.cache.requests.remove(id) {
            Some(request) => Ok(Some(request)),
            None => OpenRequest::load(tx, id),
        }
    }

    fn load(tx: &Tx<'_>, id: &str) -> Result<Option<OpenRequest>> {
        let conn = tx.conn;
        let sql = "SELECT seq, wallet, prompt_micro, cached_micro, output_micro, prompt_tokens, running, cached_tokens, \
             output_tokens, started_us, model, reasoning_micro, reasoning_tokens FROM open_request JOIN progress ON request = seq WHERE id = ?1";
        let found = conn.prepare_cached(sql)?.query_row([id], |row| {
            Ok(OpenRequest {
                seq: row.get(0)?,
                wallet: row.get(1)?,
                price: Price::from_micro([row.get(2)?, row.get(3)?, row.get(4)?], row.get(11)?),
                prompt_tokens: row.get(5)?,
                running: row.get(6)?,
                cached_tokens: row.get(7)?,
                output_tokens: row.get(8)?,
                reasoning_tokens: row.get(12)?,
                started_us: row.get(9)?,
                model: row.get_ref(10)?.as_str()?.into(),
                limits: Vec::new(),
                lots: Vec::new(),
                dirty: false,
            })
        });
        let Some(mut request) = found.optional()? else { return Ok(None) };
        request.limits = limits::of_request(tx, request.seq)?;
        // In the order in which they were held, which is the order in which they are debited.
        let sql = format!(
            "WITH RECURSIVE {ABOVE} SELECT f.allowance, f.held, f.debited, above.level IS NOT NULL \
             FROM in_flight f JOIN allowance g ON g.seq = f.allowance LEFT JOIN above ON above.wallet = g.wallet \
             WHERE f.request = ?1 {PAY_ORDER}"
        );
        let mut lots = conn.prepare_cached(&sql)?;
        let lots = lots.query_map([request.seq, request.wallet], |row| {
            let lot = Lot { grant: row.get(0)?, held: row.get(1)?, debited: row.get(2)?, stored: true, dirty: false };
            Ok((lot, row.get::<_, bool>(3)?))
        })?;
        let mut is_own = true;
        for lot in lots {
            let (lot, is_above) = lot?;
            is_own &= is_above;
            request.lots.push(lot);
        }
        match is_own && request.is_sound() {
            true => Ok(Some(request)),
            false => Err(contradicts(id)),
        }
    }

    /// Whether what it holds and has debited follows from its tokens, as all that is done with it takes for granted.
    fn is_sound(&self) -> bool {
        let sum = |part: fn(&Lot) -> i64| self.lots.iter().map(|lot| i128::from(part(lot))).sum::<i128>();
        let (held, debited) = match self.running {
            true => {
                let (output, reasoning) = (self.output_tokens, self.reasoning_tokens);
                let cost = self.price.of_request(self.prompt_tokens, self.cached_tokens, output, reasoning);
                (Some(Credits::ZERO), cost)
            }
            false => (self.price.to_begin(self.prompt_tokens), Some(Credits::ZERO)),
        };
        let is = |credits: Option<Credits>, sum| credits.is_some_and(|credits| i128::from(credits.micro()) == sum);
        self.price.is_sound()
            && self.lots.iter().all(|lot| lot.held >= 0 && lot.debited >= 0)
            && is(held, sum(|lot| lot.held))
            && is(debited, sum(|lot| lot.debited))
    }

    /// Removes every trace, once it is settled.
    pub(crate) fn delete(&self, conn: &Connection) -> Result<()> {
        for sql in [
            "DELETE FROM in_flight WHERE request = ?1",
            "DELETE FROM progress WHERE request = ?1",
            "DELETE FROM open_request WHERE seq = ?1",
        ] {
            conn.prepare_cached(sql)?.execute([self.seq])?;
        }
        Ok(())
    }

    /// Whether a debit makes sense for this request.
    pub(crate) fn check(&self, debit: &Debit) -> Result<(), &'static str> {
        match &debit.prompt {
            Some(_) if self.running => Err("its prompt is debited already"),
            Some(prompt) if prompt.cached_tokens > self.prompt_tokens => {
                Err("more of its prompt is cached than it has")
            }
            None if !self.running => Err("its first debit lacks the prompt"),
            _ if debit.reasoning_tokens > debit.output_tokens => Err("more of its tokens are reasoning than there are"),
            _ => Ok(()),
        }
    }

    /// Debits the prompt out of the hold, which covers it at its full price.
    ///
    /// # Errors
    /// [`LedgerError::Bad`] if it does not.
    pub(crate) fn start(&mut self, cached_tokens: u64) -> Result<()> {
        let held = self.held();
        let cost = self.price.of_prompt(self.prompt_tokens, cached_tokens).filter(|cost| cost.micro() <= held);
        let cost = cost.ok_or_else(|| LedgerError::Bad { reason: "a request costs more than it holds".into() })?;
        (self.running, self.dirty) = (true, true);
        self.cached_tokens = cached_tokens;
        self.draw_hold(cost.micro());
        Ok(())
    }

    /// Debits as many of the output tokens asked for as can be paid whole and fit the limits: out of the hold, then in
    /// burn-down order. Returns how many, and the limit that is to blame if they are fewer.
    pub(crate) fn draw_output(
        &mut self,
        funds: &mut Funds,
        guards: &mut Guards,
        debit: &Debit,
        now_us: i64,
    ) -> (u32, Option<LimitReached>) {
        let reasoning = debit.reasoning_tokens;
        let kinds = [(true, reasoning), (false, debit.output_tokens - reasoning)];
        let mut counted = Load { tokens: i64::from(debit.prompt.is_some()), micro: self.held(), requests: 0 };
        let (mut granted, mut limited) = (0, None);
        for (is_reasoning, asked) in kinds.into_iter().filter(|&(_, asked)| asked > 0) {
            let price = if is_reasoning { self.price.reasoning } else { self.price.output };
            let drawn;
            (drawn, limited) = self.draw_tokens(funds, guards, (asked, price.micro()), &mut counted, now_us);
            granted += drawn;
            self.dirty |= drawn > 0;
            self.output_tokens += u64::from(drawn);
            self.reasoning_tokens += if is_reasoning { u64::from(drawn) } else { 0 };
            if drawn < asked {
                break;
            }
        }
        guards.charge(Load::default(), counted, self.started_us);
        (granted, limited)
    }

    /// As many of the tokens `asked` for, of one price, as can be paid and fit.
    fn draw_tokens(
        &mut self,
        funds: &mut Funds,
        guards: &mut Guards,
        (asked, price): (u32, i64),
        counted: &mut Load,
        now_us: i64,
    ) -> (u32, Option<LimitReached>) {
        let held = self.held();
        let paid = match price {
            0 => asked,
            _ => u32::try_from(held.saturating_add(funds.available(now_us)) / price).unwrap_or(u32::MAX).min(asked),
        };
        let (granted, limited) = self.fit(guards, (paid, price), counted);
        let cost = i64::from(granted) * price;
        let out_of_hold = cost.min(held);
        self.draw_hold(out_of_hold);
        let parts = funds.pay(cost - out_of_hold, now_us).expect("no more than was found available");
        for (grant, amount) in parts {
            self.add(grant, amount);
        }
        (granted, limited)
    }

    fn held(&self) -> i64 {
        self.lots.iter().map(|lot| lot.held).sum()
    }

    /// As many of `paid` output tokens as the limits let through, and counts them, but for what of them they have `counted`
    /// with the hold, maybe in an earlier window.
    fn fit(&self, guards: &mut Guards, (paid, price): (u32, i64), counted: &mut Load) -> (u32, Option<LimitReached>) {
        if guards.0.is_empty() {
            return (paid, None);
        }
        let tokens = self.prompt_tokens.saturating_add(self.output_tokens);
        let so_far = Load { tokens: tokens.cast_signed(), micro: self.debited(), requests: 0 };
        let (fit, limit) = guards.affords(Load { tokens: 1, micro: price, requests: 0 }, *counted, so_far);
        let granted = u32::try_from(fit).unwrap_or(u32::MAX).min(paid);
        let limited = limit.filter(|_| granted < paid).map(Counter::reached);
        let cost = Load { tokens: i64::from(granted), micro: i64::from(granted) * price, requests: 0 };
        guards.charge(cost, counted.take(cost), self.started_us);
        (granted, limited)
    }

    /// What it holds before its first debit, as limits count it.
    pub(crate) fn hold(&self) -> Load {
        Load { tokens: self.prompt_tokens.saturating_add(1).cast_signed(), micro: self.held(), requests: 0 }
    }

    /// Takes what is still held out of this request.
    pub(crate) fn release_hold(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        for lot in self.lots.iter_mut().filter(|lot| lot.held > 0) {
            parts.push((lot.grant, std::mem::take(&mut lot.held)));
            lot.dirty = true;
        }
        parts
    }

    /// How many of its output tokens the log calls reasoning: those that were debited as such; if that makes no difference,
    /// as many as whoever settles it says.
    pub(crate) fn reasoning_tokens(&self, said: u64) -> u64 {
        let free = if self.price.apart().is_some() { 0 } else { said.min(self.output_tokens) };
        self.reasoning_tokens.max(free)
    }

    /// What was debited of each grant.
    pub(crate) fn debits(&self) -> impl Iterator<Item = Part> {
        self.lots.iter().filter(|lot| lot.debited > 0).map(|lot| (lot.grant, lot.debited))
    }

    /// What was debited in all.
    pub(crate) fn debited(&self) -> i64 {
        self.debits().map(|(_, amount)| amount).sum()
    }

    /// Turns a part of the hold, which is large enough, into a debit.
    fn draw_hold(&mut self, amount: i64) {
        let mut owed = amount;
        for lot in self.lots.iter_mut().filter(|lot| lot.held > 0) {
            let part = owed.min(lot.held);
            lot.held -= part;
            lot.debited += part;
            lot.dirty |= part > 0;
            owed -= part;
        }
        debug_assert_eq!(owed, 0, "the hold covers what is drawn from it");
    }

    fn add(&mut self, grant: i64, amount: i64) {
        match self.lots.iter_mut().find(|lot| lot.grant == grant) {
            Some(lot) => {
                lot.debited += amount;
                lot.dirty = true;
            }
            None => self.lots.push(Lot { grant, held: 0, debited: amount, stored: false, dirty: true }),
        }
    }
}

/// Writes what changed of requests: how far they are, and what that cost. A step changes every request that runs, so the
/// statements are looked up once for all of them.
pub(crate) struct Saver<'c> {
    progress: CachedStatement<'c>,
    new_lot: CachedStatement<'c>,
    lot: CachedStatement<'c>,
}

impl<'c> Saver<'c> {
    pub(crate) fn new(conn: &'c Connection) -> Result<Saver<'c>> {
        Ok(Saver {
            progress: conn.prepare_cached(
                "UPDATE progress SET running = ?2, cached_tokens = ?3, output_tokens = ?4, reasoning_tokens = ?5 \
                 WHERE request = ?1",
            )?,
            new_lot: conn
                .prepare_cached("INSERT INTO in_flight (request, allowance, held, debited) VALUES (?1, ?2, ?3, ?4)")?,
            lot: conn
                .prepare_cached("UPDATE in_flight SET held = ?3, debited = ?4 WHERE request = ?1 AND allowance = ?2")?,
        })
    }

    pub(crate) fn save(&mut self, request: &mut OpenRequest) -> Result<()> {
        if std::mem::take(&mut request.dirty) {
            self.progress.execute((
                request.seq,
                request.running,
                request.cached_tokens.cast_signed(),
                request.output_tokens.cast_signed(),
                request.reasoning_tokens.cast_signed(),
            ))?;
        }
        for lot in request.lots.iter_mut().filter(|lot| lot.dirty) {
            let statement = if lot.stored { &mut self.lot } else { &mut self.new_lot };
            statement.execute((request.seq, lot.grant, lot.held, lot.debited))?;
            (lot.stored, lot.dirty) = (true, false);
        }
        Ok(())
    }
}

fn contradicts(id: &str) -> LedgerError {
    let reason = format!("what the open request {id} holds and has debited does not follow from its tokens");
    LedgerError::Bad { reason }
}
