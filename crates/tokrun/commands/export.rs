//! `tokrun ledger export`: the books for other programs, streamed row by row.

use std::fmt::Display;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

use jiff::tz::TimeZone;
use tokrun_ledger::{ExportedEntry, Ledger};

use crate::args::{ExportArgs, ExportFormat};
use crate::failure::{Failure, Status};
use crate::output;

mod focus;

pub(crate) fn run(ledger: &Ledger, args: &ExportArgs) -> Result<Status, Failure> {
    let span = args.span.instants(&TimeZone::UTC);
    let (from, to) = span.map_err(|what| Failure::new(Status::Usage, "usage", what))?;
    if args.credit_value.is_some() && args.format != ExportFormat::Focus {
        return Err(Failure::new(Status::Usage, "usage", "only --format focus tells what a credit is worth"));
    }
    let mut written: Outcome = Ok(());
    let mut step = |outcome: Outcome| match outcome {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            written = Err(error);
            ControlFlow::Break(())
        }
    };
    let stdout = BufWriter::new(io::stdout().lock());
    match args.format {
        ExportFormat::Csv => {
            let mut table = csv::Writer::from_writer(stdout);
            if step(table.write_record(HEADER).map_err(Error::from)).is_continue() {
                ledger.export_entries(from, to, |entry| step(csv_entry(&mut table, entry)))?;
            }
            let _ended = step(table.flush().map_err(Error::from));
        }
        ExportFormat::Json => {
            let mut list = JsonList { to: stdout, is_empty: true };
            ledger.export_entries(from, to, |entry| step(list.push(entry)))?;
            let _ended = step(list.end());
        }
        ExportFormat::Focus => {
            let mut table = focus::Table::new(stdout, &ledger.id()?, args.credit_value.clone());
            if step(table.header()).is_continue() {
                ledger.export_requests(from, to, |request| step(table.request(request)))?;
            }
            let _ended = step(table.flush());
        }
    }
    match written {
        Ok(()) => Ok(Status::Done),
        Err(Error::Io(error)) => Ok(output::cannot_write(&error)),
        Err(Error::Other(what)) => Err(Failure::new(Status::Failed, "export", what)),
    }
}

/// Why a row was not written.
enum Error {
    Io(io::Error),
    Other(String),
}

type Outcome = Result<(), Error>;

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

impl From<csv::Error> for Error {
    fn from(error: csv::Error) -> Error {
        match error.into_kind() {
            csv::ErrorKind::Io(error) => Error::Io(error),
            kind => Error::Other(format!("{kind:?}")),
        }
    }
}

const HEADER: [&str; 10] =
    ["entry", "kind", "created", "effective", "request_id", "account", "account_id", "grant_id", "amount", "hash"];

/// One row a posting; an entry without any (a free request) has one with no account.
fn csv_entry(table: &mut csv::Writer<impl Write>, entry: &ExportedEntry) -> Outcome {
    let text = |text: Option<&String>| text.map_or_else(String::new, |text| output::csv_text(text));
    let number = |number: &dyn Display| number.to_string();
    let row = |account: [String; 4]| {
        let [account, account_id, grant_id, amount] = account;
        let (created, effective) = (number(&entry.created), number(&entry.effective));
        let request = text(entry.request_id.as_ref());
        let kind = entry.kind.clone();
        [
            number(&entry.id),
            kind,
            created,
            effective,
            request,
            account,
            account_id,
            grant_id,
            amount,
            entry.hash.clone(),
        ]
    };
    if entry.postings.is_empty() {
        table.write_record(row(Default::default()))?;
    }
    for posting in &entry.postings {
        let grant = text(posting.grant_id.as_ref());
        let (account, amount) = (output::csv_text(&posting.account), number(&posting.amount));
        table.write_record(row([account, posting.account_id.clone(), grant, amount]))?;
    }
    Ok(())
}

/// One JSON array, an entry a line.
struct JsonList<W: Write> {
    to: W,
    is_empty: bool,
}

impl<W: Write> JsonList<W> {
    fn push(&mut self, entry: &ExportedEntry) -> Outcome {
        self.to.write_all(if self.is_empty { b"[\n" } else { b",\n" })?;
        self.is_empty = false;
        serde_json::to_writer(&mut self.to, entry).map_err(|error| Error::Io(error.into()))
    }

    fn end(&mut self) -> Outcome {
        self.to.write_all(if self.is_empty { b"[]\n" } else { b"\n]\n" })?;
        Ok(self.to.flush()?)
    }
}
