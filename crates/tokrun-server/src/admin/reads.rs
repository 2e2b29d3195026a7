//! `/admin/v1/usage`, statements, and `/admin/v1/events`: what was served to whom, what came of allowances, and what somebody
//! should hear of.

use axum::extract::{Path, Query};
use axum::response::Response;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::json;
use tokrun_ledger::{Action, StatementQuery, UsageBy, UsageQuery, json as shown};

use super::{Admin, refusal};
use crate::error::ApiError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// `user` if absent.
    by: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// Only of this wallet; needed where others may not be seen.
    wallet: Option<String>,
    /// And of all that stand under it.
    #[serde(default)]
    subtree: bool,
}

pub(super) async fn usage(admin: Admin, Query(asked): Query<Asked>) -> Response {
    admin
        .answer(move |admin| {
            let Asked { by, since, until, wallet, subtree } = asked;
            admin.require_read(wallet.as_deref())?;
            let name = by.unwrap_or_else(|| "user".to_owned());
            let by = match name.as_str() {
                "user" => UsageBy::User,
                "model" => UsageBy::Model,
                "project" => UsageBy::Project,
                "key" => UsageBy::Key,
                "day" => UsageBy::Day { time_zone: TimeZone::UTC },
                _ => return Err(ApiError::invalid_param("by", "'by' is user, model, project, key or day.")),
            };
            let rows = admin.app.books.usage(&UsageQuery { by, since, until, wallet, subtree });
            let rows = rows.map_err(|error| refusal(&error))?;
            Ok(rows.iter().map(|row| shown::usage(&name, row)).collect())
        })
        .await
}

/// Days and months are those of the wallet's time zone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Span {
    /// A day, or an instant.
    from: Option<String>,
    /// The first day, or instant, after it.
    to: Option<String>,
    /// `2026-11`.
    month: Option<String>,
    /// Of the wallet and all under it, as if they were one.
    #[serde(default)]
    subtree: bool,
}

impl Span {
    /// Its first instant, and the first one after it.
    fn instants(&self, zone: &TimeZone) -> Result<(Option<Timestamp>, Option<Timestamp>), ApiError> {
        let Some(month) = &self.month else {
            let at =
                |name: &str, text: &Option<String>| text.as_deref().map(|text| instant(name, text, zone)).transpose();
            return Ok((at("from", &self.from)?, at("to", &self.to)?));
        };
        if self.from.is_some() || self.to.is_some() {
            return Err(ApiError::invalid_param("month", "'month' goes without 'from' and 'to'."));
        }
        let first: Option<Date> = (month.len() == 7).then(|| format!("{month}-01").parse().ok()).flatten();
        let wrong = || ApiError::invalid_param("month", "'month' is a month, such as 2026-11.");
        let first = first.ok_or_else(wrong)?;
        let next = first.checked_add(jiff::Span::new().months(1)).map_err(|_| wrong())?;
        let midnight = |day: Date| beginning(day, zone).map(Some).ok_or_else(wrong);
        Ok((midnight(first)?, midnight(next)?))
    }
}

/// The midnight that a day begins with.
fn beginning(day: Date, zone: &TimeZone) -> Option<Timestamp> {
    Some(day.to_zoned_datetime(zone.clone()).ok()?.timestamp())
}

/// An instant, or the beginning of a day.
fn instant(name: &str, text: &str, zone: &TimeZone) -> Result<Timestamp, ApiError> {
    let day = || beginning(text.parse().ok()?, zone);
    text.parse().ok().or_else(day).ok_or_else(|| {
        ApiError::invalid_param(
            name,
            format!("'{name}' is a day, such as 2026-11-30, or an instant: 2026-11-30T12:00:00Z."),
        )
    })
}

pub(super) async fn statement(admin: Admin, Path(wallet): Path<String>, Query(span): Query<Span>) -> Response {
    admin
        .answer(move |admin| {
            admin.require_of(Action::Read, &wallet)?;
            let books = &admin.app.books;
            let view = books.wallet(&wallet).map_err(|error| refusal(&error))?;
            let (from, to) = span.instants(&TimeZone::get(&view.zone).unwrap_or(TimeZone::UTC))?;
            let query = StatementQuery { subtree: span.subtree, from, to, ..StatementQuery::new(wallet.clone()) };
            let told = books.statement_of(&query).map_err(|error| refusal(&error))?;
            // Of one wallet, as it is now: on a statement of something else it would mislead.
            let tells = !span.subtree && to.is_none_or(|to| to > Timestamp::now());
            let forecast = books.forecast(&wallet).map_err(|error| refusal(&error))?;
            let mut statement = shown::statement(&told);
            statement["forecast"] = shown::forecast(forecast.as_ref().filter(|_| tells));
            Ok(statement)
        })
        .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    since: Option<Timestamp>,
}

pub(super) async fn events(admin: Admin, Query(Since { since }): Query<Since>) -> Response {
    admin
        .answer(move |admin| {
            admin.require(Action::Audit)?;
            admin.app.books.events(since, 0).map(|events| json!(events)).map_err(|error| refusal(&error))
        })
        .await
}
