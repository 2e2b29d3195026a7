//! Many wallets and grants at once, all of them or none: what a table of people says.

use serde::Serialize;

use crate::admin::{self, find_wallet};
use crate::writer::Tx;
use crate::{
    Credits, GrantRequest, LedgerError, NewWallet, RecurringGrant, Result, WalletChange, WalletView, query, recurrence,
    wallets,
};

/// What a row of a table wants. A wallet that does not exist is created; of one that does, the terms that are named are
/// brought to what the row says.
#[derive(Debug, Clone)]
pub struct ImportRow {
    /// Whose it is.
    pub wallet: String,
    /// Its terms, as far as they are named.
    pub change: WalletChange,
    /// What it is given: once under an idempotency key, however often it is imported; without one, each time.
    pub grant: Option<ImportGrant>,
}

/// What a row gives; its wallet is the row's.
#[derive(Debug, Clone)]
pub enum ImportGrant {
    /// Once.
    Once(GrantRequest),
    /// Again and again.
    Every(RecurringGrant),
}

/// What came of a row, or would.
#[derive(Debug, Clone, Serialize)]
pub struct ImportedRow {
    /// Whose it is.
    pub wallet: String,
    /// Whether it is new.
    pub created: bool,
    /// What of an existing wallet's terms is another now.
    pub changes: Vec<ImportedChange>,
    /// What it is given (each time).
    pub granted: Option<Credits>,
    /// Whether that was given by an earlier import already: then nothing more is.
    pub granted_before: bool,
}

/// One of a wallet's terms that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportedChange {
    /// The column.
    pub column: &'static str,
    /// What it was.
    pub before: String,
    /// What it is now.
    pub after: String,
}

impl ImportedRow {
    /// Whether the row changed anything.
    pub fn is_news(&self) -> bool {
        self.created || !self.changes.is_empty() || self.granted.is_some() && !self.granted_before
    }
}

/// Does what the rows want, or only finds out what that would be.
pub(crate) fn import(tx: &mut Tx<'_>, rows: &[ImportRow], dry_run: bool) -> Result<Vec<ImportedRow>> {
    tx.check_good()?;
    tx.conn.execute_batch("SAVEPOINT import")?;
    let mut outcomes = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        // A failure rolls all of it back, the job's savepoint being outside of this one.
        let failed = |(column, error)| LedgerError::Row { row: index as u64 + 1, column, reason: reason(&error) };
        outcomes.push(import_row(tx, row).map_err(failed)?);
    }
    if dry_run {
        tx.conn.execute_batch("ROLLBACK TO import")?;
        tx.cache.clear();
    }
    tx.conn.execute_batch("RELEASE import")?;
    Ok(outcomes)
}

fn reason(error: &LedgerError) -> String {
    match error {
        LedgerError::UnknownWallet { name } => {
            format!("there is no wallet `{}`; give it a row above this one", crate::text::shown(name))
        }
        error => error.to_string(),
    }
}

/// An error with the column that it is about.
type InColumn<T> = std::result::Result<T, (&'static str, LedgerError)>;

fn import_row(tx: &mut Tx<'_>, row: &ImportRow) -> InColumn<ImportedRow> {
    let in_wallet = |error| ("wallet", error);
    let created = find_wallet(tx.conn, &row.wallet).map_err(in_wallet)?.is_none();
    let before = match created {
        true => wallets::create(tx, &NewWallet::new(&row.wallet)),
        false => query::wallet(tx.conn, &row.wallet, tx.now_us),
    };
    let before = before.map_err(in_wallet)?;
    for (column, change) in by_column(&row.change) {
        wallets::change(tx, &row.wallet, &change).map_err(|error| (column, error))?;
    }
    let after = query::wallet(tx.conn, &row.wallet, tx.now_us).map_err(in_wallet)?;
    let changes = if created { Vec::new() } else { differences(&before, &after) };
    let mut outcome =
        ImportedRow { wallet: row.wallet.clone(), created, changes, granted: None, granted_before: false };
    if let Some(grant) = &row.grant {
        let (amount, before) = give(tx, &row.wallet, grant).map_err(|error| ("amount", error))?;
        (outcome.granted, outcome.granted_before) = (Some(amount), before);
    }
    Ok(outcome)
}

/// One change a column, so that what is refused names its column.
fn by_column(change: &WalletChange) -> Vec<(&'static str, WalletChange)> {
    let none = WalletChange::default;
    let place = change.kind.is_some() || change.parent.is_some();
    let parts = [
        ("parent", place, WalletChange { kind: change.kind, parent: change.parent.clone(), ..none() }),
        ("zone", change.zone.is_some(), WalletChange { zone: change.zone.clone(), ..none() }),
        ("overdraft", change.overdraft.is_some(), WalletChange { overdraft: change.overdraft, ..none() }),
        ("draw", change.draw.is_some(), WalletChange { draw: change.draw, ..none() }),
    ];
    parts.into_iter().filter(|(_, named, _)| *named).map(|(column, _, change)| (column, change)).collect()
}

fn differences(before: &WalletView, after: &WalletView) -> Vec<ImportedChange> {
    let draw = |wallet: &WalletView| {
        let cap = |cap: Option<Credits>| cap.map_or_else(|| "all".to_owned(), |cap| cap.to_string());
        let every = |draw: &crate::DrawTerms| draw.every.map_or_else(String::new, |every| format!(" a {every}"));
        wallet.draw.map_or_else(String::new, |draw| format!("{}{}", cap(draw.cap), every(&draw)))
    };
    let terms = |wallet: &WalletView| {
        [
            ("kind", wallet.kind.to_string()),
            ("parent", wallet.parent.clone().unwrap_or_default()),
            ("zone", wallet.zone.clone()),
            ("overdraft", wallet.overdraft.to_string()),
            ("draw", draw(wallet)),
        ]
    };
    let pairs = terms(before).into_iter().zip(terms(after));
    let changed = pairs.filter(|((_, before), (_, after))| before != after);
    changed.map(|((column, before), (_, after))| ImportedChange { column, before, after }).collect()
}

/// Gives what a row gives. Returns how much, and whether it had been given before.
fn give(tx: &mut Tx<'_>, wallet: &str, grant: &ImportGrant) -> Result<(Credits, bool)> {
    let wallet = wallet.to_owned();
    let key = match grant {
        ImportGrant::Once(once) => &once.idempotency_key,
        ImportGrant::Every(every) => &every.idempotency_key,
    };
    let before = key.as_deref().map_or(Ok(false), |key| admin::is_used(tx.conn, key))?;
    let amount = match grant {
        ImportGrant::Once(once) => {
            admin::grant(tx, &GrantRequest { wallet, ..once.clone() })?;
            once.amount
        }
        // One that has ended since is no reason to refuse the table that it came from.
        ImportGrant::Every(every) if before => every.amount,
        ImportGrant::Every(every) => {
            recurrence::grant_every(tx, &RecurringGrant { wallet, ..every.clone() })?;
            every.amount
        }
    };
    Ok((amount, before))
}
