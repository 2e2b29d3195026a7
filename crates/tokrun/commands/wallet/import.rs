//! `tokrun wallet import`: a table of people and what they get, all of it or nothing.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use clap::ValueEnum;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokrun_ledger::{
    Credits, DrawTerms, GrantRequest, ImportGrant, ImportRow, ImportedRow, Ledger, LedgerError, RecurringGrant,
    WalletChange,
};

use super::{period, terms};
use crate::args::{self, Every, Format, ImportArgs, Kind, When};
use crate::failure::{Failure, Status};
use crate::output;

/// What a row may say of its wallet.
const TERMS: [&str; 6] = ["kind", "parent", "zone", "overdraft", "draw", "draw_every"];

/// What a row may say of what it gives.
const GRANT: [&str; 9] = ["amount", "expires", "effective", "priority", "every", "on", "until", "rollover", "memo"];

pub(super) fn run(ledger: &Ledger, args: &ImportArgs, format: Format) -> Result<(), Failure> {
    let rows = read(ledger, &args.file)?;
    let imported = ledger.import(rows, args.dry_run)?;
    if format == Format::Json {
        let rows: Value = imported.iter().map(json_row).collect();
        out!("{}", json!({ "dry_run": args.dry_run, "rows": rows, "changed": changed(&imported) }));
        return Ok(());
    }
    imported.iter().filter(|row| row.is_news()).for_each(|row| out!("{}", text_row(row)));
    let done = if args.dry_run { "would change" } else { "changed" };
    say!("{} of {} rows {done} something", changed(&imported), imported.len());
    Ok(())
}

fn changed(rows: &[ImportedRow]) -> usize {
    rows.iter().filter(|row| row.is_news()).count()
}

/// `+` for what is new, `~` for what is another.
fn text_row(row: &ImportedRow) -> String {
    let changes = row.changes.iter().map(|change| {
        let shown = |text: &str| if text.is_empty() { "nothing".to_owned() } else { output::plain(text) };
        format!("{} {} -> {}", change.column, shown(&change.before), shown(&change.after))
    });
    let granted = row.granted.filter(|_| !row.granted_before);
    let granted = granted.map(|amount| format!("+{} credits", output::credits(amount)));
    let what: Vec<String> = row.created.then(|| "new".to_owned()).into_iter().chain(changes).chain(granted).collect();
    format!("{} {}: {}", if row.created { "+" } else { "~" }, output::plain(&row.wallet), what.join(", "))
}

fn json_row(row: &ImportedRow) -> Value {
    json!({
        "wallet": row.wallet,
        "created": row.created,
        "changes": row.changes,
        "granted": row.granted.map(output::credits_json),
        "granted_before": row.granted_before,
    })
}

/// Reads a whole table. What is wrong with it names the row and the column.
fn read(ledger: &Ledger, file: &Path) -> Result<Vec<ImportRow>, Failure> {
    let failed = |error: io::Error| Failure::io(&format!("cannot read {}", file.display()), &error);
    let bytes: Box<dyn Read> = match file.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(file).map_err(failed)?),
    };
    let mut table = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let header = table.headers().map_err(|error| unreadable(file, 0, &error))?.clone();
    check_header(file, &header)?;
    // A date is one of the wallet's calendar, as it is before the row.
    let mut zones: HashMap<String, String> =
        ledger.wallets()?.into_iter().map(|wallet| (wallet.name, wallet.zone)).collect();
    let mut times = HashMap::new();
    let mut rows = Vec::new();
    for (index, record) in table.records().enumerate() {
        let record = record.map_err(|error| unreadable(file, index + 1, &error))?;
        let cells = header.iter().zip(&record).filter(|(_, cell)| !cell.is_empty()).collect();
        let row = Cells { row: index as u64 + 1, cells }.import_row(&mut zones, &mut times)?;
        rows.push(row);
    }
    Ok(rows)
}

fn unreadable(file: &Path, row: usize, error: &csv::Error) -> Failure {
    let what = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("row {row} of {} has {len} cells, the header has {expected_len}", file.display())
        }
        csv::ErrorKind::Utf8 { .. } => format!("row {row} of {} is no UTF-8", file.display()),
        _ => return Failure::new(Status::Failed, "io", format!("cannot read {}: {error}", file.display())),
    };
    Failure::new(Status::Usage, "usage", what).hint("save the table as CSV in UTF-8, with as many cells in every row")
}

fn check_header(file: &Path, header: &csv::StringRecord) -> Result<(), Failure> {
    let known: Vec<&str> = ["wallet"].into_iter().chain(TERMS).chain(GRANT).chain(["key"]).collect();
    let unknown = header.iter().find(|column| !known.contains(column));
    let twice =
        header.iter().enumerate().find(|(index, column)| header.iter().take(*index).any(|other| other == *column));
    let what = match (unknown, twice) {
        (Some(column), _) => {
            format!("{} has a column `{}` that means nothing here", file.display(), output::plain(column))
        }
        (_, Some((_, column))) => format!("{} has the column `{column}` twice", file.display()),
        _ if !header.iter().any(|column| column == "wallet") => format!("{} has no column `wallet`", file.display()),
        _ => return Ok(()),
    };
    Err(Failure::new(Status::Usage, "usage", what)
        .hint(format!("its first line names the columns: {}", known.join(", "))))
}

/// A row's cells that are not empty, by column.
struct Cells<'a> {
    row: u64,
    cells: HashMap<&'a str, &'a str>,
}

impl Cells<'_> {
    fn import_row(
        &self,
        zones: &mut HashMap<String, String>,
        times: &mut HashMap<String, u64>,
    ) -> Result<ImportRow, Failure> {
        let wallet = self.text("wallet").ok_or_else(|| self.refused("wallet", "it names no wallet"))?;
        let parents = self.text("parent").and_then(|parent| zones.get(&parent));
        let zone = self.text("zone").as_ref().or(zones.get(&wallet)).or(parents).cloned();
        let zone_name = zone.unwrap_or_else(|| "UTC".to_owned());
        let zone = TimeZone::get(&zone_name).map_err(|_| {
            self.refused(
                "zone",
                format!("there is no time zone `{zone_name}`; give an IANA name, such as Europe/Berlin"),
            )
        })?;
        let (change, grant) = (self.change()?, self.grant(&wallet, &zone, times)?);
        zones.insert(wallet.clone(), zone_name);
        Ok(ImportRow { wallet, change, grant })
    }

    fn change(&self) -> Result<WalletChange, Failure> {
        let choice = |column| self.parsed(column, |text| Kind::from_str(text, false));
        let draw = self.parsed("draw", args::cap)?;
        let every = self.every("draw_every")?;
        if every.is_some() && draw.is_none() {
            return Err(self.refused("draw_every", "it says how often, but `draw` does not say how much"));
        }
        Ok(WalletChange {
            kind: choice("kind")?.map(terms::kind),
            parent: self.text("parent").map(Some),
            zone: self.text("zone").map(Some),
            overdraft: self.number("overdraft")?,
            draw: draw.map(|cap| DrawTerms { cap: cap.0, every: every.map(period) }),
            idempotency_key: None,
        })
    }

    fn grant(
        &self,
        wallet: &str,
        zone: &TimeZone,
        times: &mut HashMap<String, u64>,
    ) -> Result<Option<ImportGrant>, Failure> {
        let Some(amount) = self.number::<Credits>("amount")? else {
            let idle = GRANT.into_iter().chain(["key"]).find(|column| self.cells.contains_key(column));
            return match idle {
                Some(column) => Err(self.refused(column, "it is about a grant, but `amount` does not say of how much")),
                None => Ok(None),
            };
        };
        let idempotency_key = Some(self.text("key").unwrap_or_else(|| self.own_key(wallet, amount, times)));
        let priority = self.number("priority")?.unwrap_or(100);
        let (effective, memo) = (self.time("effective", zone)?, self.text("memo"));
        let (once_only, every_only) = (["expires"], ["on", "until", "rollover"]);
        let every = self.every("every")?;
        let out_of_place: &[&str] = if every.is_some() { &once_only } else { &every_only };
        if let Some(column) = out_of_place.iter().find(|column| self.cells.contains_key(**column)) {
            let what = if every.is_some() { "what recurs is good until the next time" } else { "`every` is empty" };
            return Err(self.refused(column, what));
        }
        Ok(Some(match every {
            None => {
                let expires = self.time("expires", zone)?;
                let new = GrantRequest::new(wallet, amount);
                ImportGrant::Once(GrantRequest { priority, effective, expires, memo, idempotency_key, ..new })
            }
            Some(every) => ImportGrant::Every(RecurringGrant {
                priority,
                on: self.number("on")?,
                start: effective,
                until: self.time("until", zone)?,
                rollover: self.number("rollover")?.unwrap_or(Credits::ZERO),
                memo,
                idempotency_key,
                ..RecurringGrant::new(wallet, amount, period(every))
            }),
        }))
    }

    /// A key that the same row of the same table has again: all that it says of its grant, and how many rows above it say
    /// the same.
    fn own_key(&self, wallet: &str, amount: Credits, times: &mut HashMap<String, u64>) -> String {
        let said = GRANT.iter().skip(1).filter_map(|column| Some((column, self.cells.get(column)?)));
        let said: String = said.map(|(column, cell)| format!("\n{column}={cell}")).collect();
        let what = format!("import\n{wallet}\n{amount}{said}");
        let time = times.entry(what.clone()).or_insert(0);
        *time += 1;
        format!("{what}\n#{time}")
    }

    fn text(&self, column: &str) -> Option<String> {
        self.cells.get(column).map(|&cell| cell.to_owned())
    }

    fn number<T: FromStr<Err: Display>>(&self, column: &'static str) -> Result<Option<T>, Failure> {
        self.parsed(column, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    fn every(&self, column: &'static str) -> Result<Option<Every>, Failure> {
        self.parsed(column, |text| Every::from_str(text, false).map_err(|_| "give day, week or month".to_owned()))
    }

    /// A date or an instant. One counted from now would be another tomorrow, and the row with it.
    fn time(&self, column: &'static str, zone: &TimeZone) -> Result<Option<Timestamp>, Failure> {
        self.parsed(column, |text| {
            let no_span = "give a date (2026-12-31) or an instant (2026-12-31T18:00:00Z)".to_owned();
            match text.parse::<jiff::Span>() {
                Ok(_) => Err(no_span),
                Err(_) => When::parse(text, |now, _| Ok(now.clone())).map_err(|_| no_span)?.at(zone),
            }
        })
    }

    fn parsed<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let parsed = self.cells.get(column).map(|cell| parse(cell));
        parsed.transpose().map_err(|what| self.refused(column, what))
    }

    fn refused(&self, column: &'static str, what: impl Into<String>) -> Failure {
        LedgerError::Row { row: self.row, column, reason: what.into() }.into()
    }
}
