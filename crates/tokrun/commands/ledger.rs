//! `tokrun ledger`: whether the books are right, and a copy of them.

use serde_json::json;
use tokrun_ledger::VerifyReport;

use crate::args::{Format, LedgerCommand};
use crate::failure::{Failure, Status};
use crate::output;

pub(crate) fn run(command: LedgerCommand, format: Format) -> Result<Status, Failure> {
    match command {
        LedgerCommand::Verify => return Ok(tell(&super::answer::ledger_to_check()?.verify()?, format)),
        LedgerCommand::Anchor { check: Some(anchor) } => {
            return Ok(tell(&super::answer::ledger_to_check()?.check_anchor(&anchor)?, format));
        }
        LedgerCommand::Anchor { check: None } => {
            let anchor = super::answer::ledger_to_read()?.anchor()?;
            if format == Format::Json {
                out!("{}", json!({ "anchor": anchor.to_string(), "ledger": anchor.ledger, "entry": anchor.entry }));
            } else {
                out!("{anchor}");
            }
        }
        LedgerCommand::Export(args) => return super::export::run(&super::answer::ledger_to_read()?, &args),
        LedgerCommand::Backup { file: to } => {
            super::answer::ledger_to_read()?.backup(&to)?;
            if format == Format::Json {
                out!("{}", json!({ "file": to }));
            } else {
                out!("backed up to {}", to.display());
            }
        }
    }
    Ok(Status::Done)
}

/// A failed check names every problem, the first one first, and marks the ledger.
fn tell(report: &VerifyReport, format: Format) -> Status {
    if format == Format::Json {
        out!(
            "{}",
            json!({
                "ok": report.passed(),
                "entries": report.entries,
                "wallets": report.wallets,
                "requests": report.requests,
                "open_requests": report.open_requests,
                "head": report.head,
                "first_bad_entry": report.problems.iter().filter_map(|problem| problem.entry).min(),
                "problems": report.problems.iter().map(|problem| json!({ "entry": problem.entry, "what": problem.what })).collect::<Vec<_>>(),
            })
        );
    } else {
        for problem in &report.problems {
            match problem.entry {
                Some(entry) => say!("entry {entry}: {}", problem.what),
                None => say!("{}", problem.what),
            }
        }
    }
    if !report.passed() {
        if format != Format::Json {
            Failure::new(Status::Failed, "ledger_bad", "the ledger contradicts itself, or the anchor")
                .hint("it spends nothing while it contradicts itself: restore a backup; `tokrun ledger verify` clears the mark")
                .report(format);
        }
        return Status::Failed;
    }
    if format != Format::Json {
        out!(
            "the ledger is sound: {} entries, {} wallets, {} requests settled, {} open; head {}\n\
             (whoever can write the file could have rewritten all of it: only an anchor kept elsewhere, `tokrun ledger anchor`, shows that)",
            output::grouped(report.entries),
            output::grouped(report.wallets),
            output::grouped(report.requests),
            output::grouped(report.open_requests),
            report.head
        );
    }
    Status::Done
}
