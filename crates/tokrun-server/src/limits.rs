//! The limits that hold for a caller, as the `x-ratelimit-*` headers of OpenAI's service have them.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use tokrun_ledger::{Ledger, LedgerError, LimitScope, LimitSpan, LimitView, Quota};

use crate::auth::Caller;

/// A limit on requests and one on tokens: of those that hold, the ones of which the least is left.
#[derive(Clone, Debug, Default)]
pub(crate) struct RateLimits {
    requests: Option<Rate>,
    tokens: Option<Rate>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    limit: u64,
    remaining: u64,
    resets: Option<Timestamp>,
}

impl RateLimits {
    /// As they are now.
    pub(crate) fn of(ledger: &Ledger, caller: &Caller, model: &str) -> Result<Self, LedgerError> {
        let limits = ledger.limits()?;
        if limits.is_empty() {
            return Ok(Self::default());
        }
        let path = path(ledger, &caller.wallet)?;
        let mut rates = Self::default();
        for limit in limits.iter().filter(|limit| holds(&limit.scope, &path, caller, model)) {
            if limit.span == LimitSpan::Request {
                continue;
            }
            let (place, rate) = match (limit.quota, limit.used) {
                (Quota::Requests(limited), Some(Quota::Requests(used))) => (&mut rates.requests, (limited, used)),
                (Quota::Tokens(limited), Some(Quota::Tokens(used))) => (&mut rates.tokens, (limited, used)),
                _ => continue,
            };
            let rate = rate_of(rate, limit);
            if place.is_none_or(|known: Rate| rate.remaining < known.remaining) {
                *place = Some(rate);
            }
        }
        Ok(rates)
    }

    /// Adds the headers.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        for (rate, [limit, remaining, reset]) in [(self.requests, &REQUESTS), (self.tokens, &TOKENS)] {
            let Some(rate) = rate else { continue };
            headers.insert(limit.clone(), HeaderValue::from(rate.limit));
            headers.insert(remaining.clone(), HeaderValue::from(rate.remaining));
            if let Some(resets) = rate.resets {
                let wait_s = resets.duration_since(Timestamp::now()).as_secs().max(0).cast_unsigned();
                let value = HeaderValue::from_str(&duration(wait_s));
                headers.insert(reset.clone(), value.expect("digits and letters are a header's value"));
            }
        }
    }
}

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];

const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

fn rate_of((limit, used): (u64, u64), view: &LimitView) -> Rate {
    Rate { limit, remaining: limit.saturating_sub(used), resets: view.resets }
}

/// Whether all that a limit names applies.
fn holds(scope: &LimitScope, path: &[String], caller: &Caller, model: &str) -> bool {
    let is = |named: &Option<String>, own: Option<&str>| named.as_deref().is_none_or(|named| Some(named) == own);
    scope.wallet.as_ref().is_none_or(|wallet| path.contains(wallet))
        && is(&scope.key, caller.key.as_deref())
        && is(&scope.project, caller.project.as_deref())
        && is(&scope.model, Some(model))
}

/// A wallet and those above it.
fn path(ledger: &Ledger, wallet: &str) -> Result<Vec<String>, LedgerError> {
    let mut path = vec![wallet.to_owned()];
    while let Some(parent) = ledger.wallet(&path[path.len() - 1])?.parent {
        path.push(parent);
    }
    Ok(path)
}

/// `6m0s`, as the reference service writes it.
fn duration(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_the_reference_service_does() {
        assert_eq!([duration(0), duration(59), duration(360), duration(86_399)], ["0s", "59s", "6m0s", "23h59m59s"]);
    }

    #[test]
    fn a_limit_holds_where_all_that_it_names_applies() {
        let mut caller = Caller::owner("ada");
        caller.key = Some("laptop".to_owned());
        let path = ["ada".to_owned(), "tools".to_owned()];
        let named = |wallet: Option<&str>, key: Option<&str>, model: Option<&str>| LimitScope {
            wallet: wallet.map(str::to_owned),
            key: key.map(str::to_owned),
            project: None,
            model: model.map(str::to_owned),
        };
        for (scope, expected) in [
            (named(Some("tools"), None, None), true),
            (named(Some("ada"), Some("laptop"), Some("m")), true),
            (named(Some("bob"), None, None), false),
            (named(None, Some("phone"), None), false),
            (named(None, None, Some("other")), false),
        ] {
            assert_eq!(holds(&scope, &path, &caller, "m"), expected, "{scope:?}");
        }
    }
}
