//! The ledger's own prices: what a token of a model costs from when to when, and what a credit is worth then.
//!
//! Whoever admits a request brings a price, that of a catalogue; one that the ledger has for the model goes before it. It
//! is looked up in the transaction that admits the request and frozen into it, so that no price that is set or removed
//! later, and no front end that knows another, changes what a request costs.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use uuid::Uuid;

use crate::admin::{arguments_hash, earlier, remember};
use crate::record::{self, Kind};
use crate::text::is_invisible;
use crate::writer::Tx;
use crate::{CreditValue, Credits, LedgerError, Price, Result, query};

/// Names of models are no longer.
const NAME_CHARS_MAX: usize = 128;

/// A price to be set.
#[derive(Debug, Clone)]
pub struct NewPrice {
    /// The name of a model, as requests name it.
    pub model: String,
    /// What its tokens cost.
    pub price: Price,
    /// What a credit is worth, kept with each request that is admitted at this price.
    pub value: Option<CreditValue>,
    /// From when on; now if `None`. A price of the same model from the same instant is replaced.
    pub from: Option<Timestamp>,
    /// Until when; for good if `None`. Then whichever began before holds again.
    pub until: Option<Timestamp>,
    /// The same key with the same arguments sets it once, however often it is sent.
    pub idempotency_key: Option<String>,
}

impl NewPrice {
    /// A price from now on.
    pub fn new(model: impl Into<String>, price: Price) -> NewPrice {
        NewPrice { model: model.into(), price, value: None, from: None, until: None, idempotency_key: None }
    }
}

/// A price of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PriceView {
    /// Opaque; removing it takes it.
    pub id: String,
    /// The name of the model.
    pub model: String,
    /// What its tokens cost.
    pub price: Price,
    /// What a credit is worth.
    pub value: Option<CreditValue>,
    /// From when on.
    pub from: Timestamp,
    /// Until when.
    pub until: Option<Timestamp>,
}

/// What a request costs, frozen into it.
#[derive(Debug, Clone)]
pub(crate) struct Frozen {
    pub(crate) price: Price,
    pub(crate) value: Option<CreditValue>,
}

/// How prices are recorded.
pub(crate) const RECORDED: Kind = Kind {
    set: "price",
    ended: Some("price_end"),
    table: "price",
    bodies: "SELECT p.seq, p.entry, p.id, json_object('model', p.model, 'prompt', p.prompt_micro, 'cached', p.cached_micro, \
         'output', p.output_micro, 'reasoning', p.reasoning_micro, 'value', p.value_nano, 'currency', p.currency, \
         'from', p.from_us, 'until', p.until_us) AS body FROM price p",
};

/// Sets a price.
pub(crate) fn set(tx: &mut Tx<'_>, new: &NewPrice) -> Result<PriceView> {
    tx.check_good()?;
    let micros = |time: Option<Timestamp>| time.map(Timestamp::as_microsecond);
    let arguments = arguments_hash(&[
        "price",
        &new.model,
        &format!("{:?}", (new.price, &new.value)),
        &format!("{:?}", (micros(new.from), micros(new.until))),
    ]);
    let key = new.idempotency_key.as_deref();
    let id = match earlier(tx.conn, key, &arguments)? {
        Some(id) => id,
        None => {
            check(new, tx.now_us)?;
            let (seq, id) = write(tx, new)?;
            record::set(tx, &RECORDED, seq)?;
            remember(tx.conn, key, &arguments, &id)?;
            id
        }
    };
    let sql = "SELECT * FROM price WHERE id = ?1";
    let found = tx.conn.prepare_cached(sql)?.query_row([&id], view).optional()?;
    found.ok_or(LedgerError::UnknownPrice { id })
}

fn check(new: &NewPrice, now_us: i64) -> Result<()> {
    let invalid = |reason| Err(LedgerError::InvalidPrice { reason });
    let from_us = new.from.map_or(now_us, Timestamp::as_microsecond);
    if new.model.is_empty() || new.model.chars().count() > NAME_CHARS_MAX || new.model.chars().any(is_invisible) {
        return invalid("its model's name is empty, longer than 128 characters, or has some that cannot be seen");
    }
    if !new.price.is_sound() {
        return invalid("a part of it is less than nothing, or a cached prompt token dearer than one that is computed");
    }
    if from_us < now_us {
        return invalid("it begins in the past, where other prices were paid; let it begin now, or later");
    }
    if new.until.is_some_and(|until| until.as_microsecond() <= from_us) {
        return invalid("it would end before it begins; choose a later end");
    }
    Ok(())
}

fn write(tx: &Tx<'_>, new: &NewPrice) -> Result<(i64, String)> {
    let (nano, currency) = new.value.as_ref().map(CreditValue::columns).unzip();
    // The entry follows in the same transaction.
    let sql = "INSERT INTO price (id, entry, model, prompt_micro, cached_micro, output_micro, reasoning_micro, value_nano, \
         currency, from_us, until_us) VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
         ON CONFLICT (model, from_us) DO UPDATE SET prompt_micro = excluded.prompt_micro, \
         cached_micro = excluded.cached_micro, output_micro = excluded.output_micro, \
         reasoning_micro = excluded.reasoning_micro, value_nano = excluded.value_nano, currency = excluded.currency, \
         until_us = excluded.until_us RETURNING seq, id";
    let row = (
        Uuid::now_v7().to_string(),
        &new.model,
        new.price.prompt.micro(),
        new.price.cached_prompt.micro(),
        new.price.output.micro(),
        new.price.reasoning.micro(),
        nano,
        currency,
        new.from.map_or(tx.now_us, Timestamp::as_microsecond),
        new.until.map(Timestamp::as_microsecond),
    );
    Ok(tx.conn.prepare_cached(sql)?.query_row(row, |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Removes a price. Again, unless under the same key: there is none of this id.
pub(crate) fn remove(tx: &mut Tx<'_>, id: &str, key: Option<&str>) -> Result<()> {
    tx.check_good()?;
    let arguments = arguments_hash(&["price removal", id]);
    if earlier(tx.conn, key, &arguments)?.is_some() {
        return Ok(());
    }
    let seq = record::find(tx.conn, &RECORDED, id)?.ok_or_else(|| LedgerError::UnknownPrice { id: id.to_owned() })?;
    record::end(tx, &RECORDED, id)?;
    tx.conn.prepare_cached("DELETE FROM price WHERE seq = ?1")?.execute([seq])?;
    remember(tx.conn, key, &arguments, id)
}

/// All prices by model and beginning, or those that hold at an instant.
pub(crate) fn list(conn: &Connection, at: Option<Timestamp>) -> Result<Vec<PriceView>> {
    let sql = "SELECT * FROM price p WHERE ?1 IS NULL OR p.seq = (SELECT q.seq FROM price q WHERE q.model = p.model \
         AND q.from_us <= ?1 AND (q.until_us IS NULL OR q.until_us > ?1) ORDER BY q.from_us DESC LIMIT 1) \
         ORDER BY p.model, p.from_us";
    let mut statement = conn.prepare_cached(sql)?;
    let views = statement.query_map([at.map(Timestamp::as_microsecond)], view)?;
    Ok(views.collect::<rusqlite::Result<_>>()?)
}

/// What a request to a model costs now: the ledger's price if it has one, else the one that it came with.
pub(crate) fn in_force(conn: &Connection, model: &str, offered: Price, now_us: i64) -> Result<Frozen> {
    let sql = "SELECT * FROM price WHERE model = ?1 AND from_us <= ?2 AND (until_us IS NULL OR until_us > ?2) \
         ORDER BY from_us DESC LIMIT 1";
    let found = conn.prepare_cached(sql)?.query_row((model, now_us), view).optional()?;
    Ok(found.map_or(Frozen { price: offered, value: None }, |view| Frozen { price: view.price, value: view.value }))
}

fn view(row: &Row<'_>) -> rusqlite::Result<PriceView> {
    Ok(PriceView {
        id: row.get("id")?,
        model: row.get("model")?,
        price: Price {
            prompt: Credits::from_micro(row.get("prompt_micro")?),
            cached_prompt: Credits::from_micro(row.get("cached_micro")?),
            output: Credits::from_micro(row.get("output_micro")?),
            reasoning: Credits::from_micro(row.get("reasoning_micro")?),
        },
        value: CreditValue::from_row(row)?,
        from: query::timestamp(row.get("from_us")?),
        until: row.get::<_, Option<i64>>("until_us")?.map(query::timestamp),
    })
}
