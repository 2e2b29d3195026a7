//! `/admin/v1/usage` and `/admin/v1/events`: what was served to whom, and what somebody should hear of.

use axum::extract::Query;
use axum::response::Response;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::json;
use tokrun_ledger::{Action, UsageBy, UsageQuery, json as shown};

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
