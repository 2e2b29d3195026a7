//! `tokrun wallet limit`: how much in how long.

use serde_json::{Value, json};
use tokrun_ledger::{Ledger, LimitScope, LimitSpan, LimitView, NewLimit, Quota, json};

use crate::args::{Format, LimitCommand, LimitSetArgs, Span};
use crate::failure::{Failure, Status};
use crate::output;

pub(crate) fn run(ledger: &Ledger, command: LimitCommand, format: Format) -> Result<(), Failure> {
    match command {
        LimitCommand::List { user } => {
            if let Some(user) = &user {
                ledger.wallet(user)?;
            }
            let limits = ledger.limits()?.into_iter().filter(|limit| user.is_none() || limit.scope.wallet == user);
            list(&limits.collect::<Vec<_>>(), format);
        }
        LimitCommand::Set(args) => {
            let limit = ledger.set_limit(new(args)?)?;
            match format {
                Format::Json => out!("{}", json::limit(&limit)),
                _ => out!("{} {} of {}", limit.quota, over(limit.span), scope(&limit.scope)),
            }
        }
        LimitCommand::Remove { id, idempotency_key } => {
            ledger.remove_limit(&id, idempotency_key)?;
            match format {
                Format::Json => out!("{}", json!({ "id": id })),
                _ => out!("removed"),
            }
        }
    }
    Ok(())
}

fn new(args: LimitSetArgs) -> Result<NewLimit, Failure> {
    let quota = match (args.quota.tokens, args.quota.credits, args.quota.requests) {
        (Some(tokens), _, _) => Quota::Tokens(tokens),
        (_, Some(credits), _) => Quota::Credits(credits),
        (_, _, requests) => Quota::Requests(requests.unwrap_or(0)),
    };
    let span = match args.per {
        Some(Span::Request) => LimitSpan::Request,
        Some(Span::Minute) => LimitSpan::Minute,
        Some(Span::Hour) => LimitSpan::Hour,
        Some(Span::Day) => LimitSpan::Day,
        Some(Span::Week) => LimitSpan::Week,
        Some(Span::Month) => LimitSpan::Month,
        None if matches!(quota, Quota::Requests(_)) => LimitSpan::Running,
        None => {
            let what = "a limit of tokens or credits is over something";
            return Err(
                Failure::new(Status::Usage, "usage", what).hint("add --per request, minute, hour, day, week or month")
            );
        }
    };
    let scope = LimitScope { wallet: args.user, key: args.key, project: args.project, model: args.model };
    Ok(NewLimit { warn: args.warn, idempotency_key: args.idempotency_key, ..NewLimit::new(scope, quota, span) })
}

fn list(limits: &[LimitView], format: Format) {
    if format == Format::Json {
        out!("{}", Value::from_iter(limits.iter().map(json::limit)));
        return;
    }
    let rows = limits.iter().map(|limit| {
        vec![
            scope(&limit.scope),
            limit.quota.to_string(),
            over(limit.span).to_owned(),
            limit.used.map_or_else(String::new, |used| used.to_string()),
            limit.resets.map_or_else(String::new, |resets| resets.to_string()),
            limit.id.clone(),
        ]
    });
    out!("{}", output::table(&["of", "limit", "", "used", "resets", "id"], &[1, 3], rows));
}

fn scope(scope: &LimitScope) -> String {
    let parts = [("", &scope.wallet), ("key ", &scope.key), ("project ", &scope.project), ("model ", &scope.model)];
    let named =
        parts.iter().filter_map(|(what, name)| name.as_ref().map(|name| format!("{what}{}", output::plain(name))));
    named.collect::<Vec<_>>().join(", ")
}

pub(crate) fn over(span: LimitSpan) -> &'static str {
    match span {
        LimitSpan::Request => "a request",
        LimitSpan::Running => "at once",
        LimitSpan::Minute => "a minute",
        LimitSpan::Hour => "an hour",
        LimitSpan::Day => "a day",
        LimitSpan::Week => "a week",
        LimitSpan::Month => "a month",
    }
}
