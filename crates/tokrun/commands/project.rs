//! `tokrun project`: budgets that cut across wallets.
//!
//! A budget is a limit of the requests that name the project. Each is paid by its own wallet, so that no credits lie in a
//! pool that nobody may draw on.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokrun_ledger::{
    Credits, Ledger, LimitScope, LimitSpan, LimitView, NewLimit, Quota, UsageBy, UsageQuery, UsageRow, json,
};

use super::answer;
use super::wallet::limits::over;
use crate::args::{BudgetArgs, Every, Format, ProjectCommand};
use crate::failure::{Failure, Status};
use crate::output;

pub(crate) fn run(command: ProjectCommand, format: Format) -> Result<Status, Failure> {
    match command {
        ProjectCommand::Budget(args) => {
            let limit = answer::ledger()?.set_limit(budget(args))?;
            match format {
                Format::Json => out!("{}", json::limit(&limit)),
                _ => out!("{}", in_words(&limit)),
            }
        }
        ProjectCommand::List { since } => list(&answer::ledger_to_read()?, since, format)?,
    }
    Ok(Status::Done)
}

fn budget(args: BudgetArgs) -> NewLimit {
    let span = match args.every {
        Every::Day => LimitSpan::Day,
        Every::Week => LimitSpan::Week,
        Every::Month => LimitSpan::Month,
    };
    let scope = LimitScope { project: Some(args.project), ..LimitScope::default() };
    let limit = NewLimit::new(scope, Quota::Credits(args.amount), span);
    NewLimit { warn: args.warn, idempotency_key: args.idempotency_key, ..limit }
}

/// What a project used, and what it may.
#[derive(Default)]
struct Project {
    used: Option<UsageRow>,
    limits: Vec<LimitView>,
}

fn list(ledger: &Ledger, since: Option<jiff::Timestamp>, format: Format) -> Result<(), Failure> {
    let mut projects: BTreeMap<String, Project> = BTreeMap::new();
    for row in ledger.usage(&UsageQuery { since, ..UsageQuery::new(UsageBy::Project) })? {
        // Requests of no project.
        if !row.key.is_empty() {
            let project = projects.entry(row.key.clone()).or_default();
            project.used = Some(row);
        }
    }
    for limit in ledger.limits()? {
        // Those that hold for a part of its requests alone are no budget of the project.
        if let LimitScope { wallet: None, key: None, project: Some(name), model: None } = &limit.scope {
            projects.entry(name.clone()).or_default().limits.push(limit);
        }
    }
    if format == Format::Json {
        out!("{}", Value::from_iter(projects.iter().map(|(name, project)| json_project(name, project))));
        return Ok(());
    }
    let rows = projects.iter().map(|(name, Project { used, limits })| {
        let count = |count: fn(&UsageRow) -> u64| output::grouped(used.as_ref().map_or(0, count));
        let spent = used.as_ref().map_or(Credits::ZERO, |row| row.debited);
        let limits = limits.iter().map(in_words).collect::<Vec<_>>().join("; ");
        vec![
            output::plain(name),
            count(|row| row.requests),
            count(|row| row.total_tokens),
            output::credits(spent),
            limits,
        ]
    });
    out!("{}", output::table(&["project", "requests", "tokens", "spent", "budget"], &[1, 2, 3], rows));
    Ok(())
}

/// `1000 credits a month, 25 credits used`.
fn in_words(limit: &LimitView) -> String {
    let used = limit.used.map_or_else(String::new, |used| format!(", {used} used"));
    format!("{} {}{used}", limit.quota, over(limit.span))
}

fn json_project(name: &str, Project { used, limits }: &Project) -> Value {
    json!({
        "project": name,
        "requests": used.as_ref().map_or(0, |row| row.requests),
        "total_tokens": used.as_ref().map_or(0, |row| row.total_tokens),
        "debited": output::credits_json(used.as_ref().map_or(Credits::ZERO, |row| row.debited)),
        "unit": "credits",
        "budgets": limits.iter().map(json::limit).collect::<Value>(),
    })
}
