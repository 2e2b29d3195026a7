//! What was used: one's own, and an organisation's in OpenAI's form of pages and buckets.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokrun_ledger::{Action, Credits, ExportedRequest, Ledger, LedgerError, UsageBy, UsageQuery};

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::reply::ok;

/// What the caller has, and what was used of it.
pub(crate) async fn me(State(app): State<Arc<App>>, caller: Caller) -> Response {
    let usage = app.blocking(move |app| own(&app.books, &caller).map_err(|error| ApiError::from(&error)));
    usage.await.map_or_else(IntoResponse::into_response, |usage| ok(&usage))
}

fn own(ledger: &Ledger, caller: &Caller) -> Result<Value, LedgerError> {
    let wallet = ledger.wallet(&caller.wallet)?;
    let zone = TimeZone::get(&wallet.zone).unwrap_or(TimeZone::UTC);
    let today = zone.to_datetime(Timestamp::now()).date();
    let since = today.first_of_month().to_zoned_datetime(zone).ok().map(|month| month.timestamp());
    let used =
        ledger.usage(&UsageQuery { since, wallet: Some(caller.wallet.clone()), ..UsageQuery::new(UsageBy::User) })?;
    let refills = wallet.recurring.iter().map(|grant| json!({ "at": grant.next, "amount": grant.amount }));
    Ok(json!({
        "object": "usage.me",
        "wallet": wallet.name,
        "key": caller.key,
        "balance": wallet.balance,
        "drawable": wallet.drawable,
        "in_flight": wallet.in_flight,
        "unit": "credits",
        "frozen": wallet.frozen,
        "refills": refills.collect::<Vec<_>>(),
        "forecast": ledger.forecast(&caller.wallet)?,
        "this_month": used.into_iter().next(),
    }))
}

/// Tokens by time, as OpenAI's `organization/usage/completions`.
pub(crate) async fn completions(State(app): State<Arc<App>>, caller: Caller, RawQuery(query): RawQuery) -> Response {
    page(&app, caller, query, |group| {
        json!({
            "object": "organization.usage.completions.result",
            "input_tokens": group.sums.input_tokens,
            "output_tokens": group.sums.output_tokens,
            "input_cached_tokens": group.sums.cached_tokens,
            "input_audio_tokens": 0,
            "output_audio_tokens": 0,
            "num_model_requests": group.sums.requests,
            "project_id": group.key.project_id,
            "user_id": group.key.user_id,
            "api_key_id": group.key.api_key_id,
            "model": group.key.model,
            "batch": null,
            "service_tier": null,
        })
    })
    .await
}

/// Credits by time, as OpenAI's `organization/costs`.
pub(crate) async fn costs(State(app): State<Arc<App>>, caller: Caller, RawQuery(query): RawQuery) -> Response {
    page(&app, caller, query, |group| {
        json!({
            "object": "organization.costs.result",
            "amount": { "value": Credits::from_micro(group.sums.micro), "currency": "credits" },
            "line_item": group.key.model,
            "project_id": group.key.project_id,
            "user_id": group.key.user_id,
        })
    })
    .await
}

async fn page(app: &Arc<App>, caller: Caller, query: Option<String>, result: fn(&Group) -> Value) -> Response {
    let page = app.blocking(move |app| {
        let query = Query::parse(query.as_deref().unwrap_or_default())?;
        let sees_all = caller.require(Action::Read, false).is_ok();
        caller.require(Action::Read, true)?;
        let only = (!sees_all).then_some(caller.wallet.as_str());
        let buckets = query.buckets(app, only)?;
        Ok(query.page(&buckets, result))
    });
    page.await.map_or_else(IntoResponse::into_response, |page| ok(&page))
}

/// What is asked of a page.
#[derive(Debug)]
struct Query {
    start_s: i64,
    end_s: Option<i64>,
    width_s: i64,
    limit: i64,
    by: By,
    models: Vec<String>,
    user_ids: Vec<String>,
    project_ids: Vec<String>,
    api_key_ids: Vec<String>,
}

/// How results are told apart.
#[derive(Debug, Default)]
struct By {
    model: bool,
    user: bool,
    project: bool,
    key: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    model: Option<String>,
    user_id: Option<String>,
    project_id: Option<String>,
    api_key_id: Option<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    requests: u64,
    micro: i64,
}

struct Group<'a> {
    key: &'a GroupKey,
    sums: Sums,
}

type Buckets = BTreeMap<i64, BTreeMap<GroupKey, Sums>>;

impl Query {
    /// Lists come as `name=a&name=b`, or with `name[]`.
    fn parse(text: &str) -> Result<Self, ApiError> {
        let pairs: Vec<(String, String)> = axum::extract::Query::try_from_uri(&uri(text)?)
            .map_err(|_| ApiError::invalid("The query cannot be read."))?
            .0;
        let mut query = Self {
            start_s: i64::MIN,
            end_s: None,
            width_s: 86_400,
            limit: 0,
            by: By::default(),
            models: Vec::new(),
            user_ids: Vec::new(),
            project_ids: Vec::new(),
            api_key_ids: Vec::new(),
        };
        let mut page = None;
        for (name, value) in pairs {
            let number =
                || value.parse().map_err(|_| ApiError::invalid_param(&name, format!("'{name}' is no whole number.")));
            match name.trim_end_matches("[]") {
                "start_time" => query.start_s = number()?,
                "end_time" => query.end_s = Some(number()?),
                "limit" => query.limit = number()?,
                "page" => page = Some(value),
                "bucket_width" => query.width_s = width(&value)?,
                "group_by" => query.by.add(&value)?,
                "models" => query.models.push(value),
                "user_ids" => query.user_ids.push(value),
                "project_ids" => query.project_ids.push(value),
                "api_key_ids" => query.api_key_ids.push(value),
                _ => return Err(ApiError::invalid_param(&name, format!("Unrecognized query parameter: {name}"))),
            }
        }
        query.check(page.as_deref())
    }

    fn check(mut self, page: Option<&str>) -> Result<Self, ApiError> {
        // From the year 1 to the year 9999, so that every time can be reckoned with.
        if !(0..=253_000_000_000).contains(&self.start_s) {
            return Err(ApiError::invalid_param("start_time", "'start_time' is required: seconds since 1970."));
        }
        if self.end_s.is_some_and(|end_s| end_s <= self.start_s) {
            return Err(ApiError::invalid_param("end_time", "'end_time' is not after 'start_time'."));
        }
        let (usual, most) = match self.width_s {
            60 => (60, 1440),
            3600 => (24, 168),
            _ => (7, 180),
        };
        match self.limit {
            0 => self.limit = usual,
            limit if (1..=most).contains(&limit) => {}
            _ => return Err(ApiError::invalid_param("limit", format!("'limit' is from 1 to {most}."))),
        }
        if let Some(page) = page {
            let start_s = page.strip_prefix("page_").and_then(|start_s| start_s.parse().ok());
            let start_s = start_s.filter(|start_s| *start_s >= self.start_s && *start_s <= 253_000_000_000);
            self.start_s = start_s.ok_or_else(|| ApiError::invalid_param("page", "There is no such page."))?;
        }
        Ok(self)
    }

    /// From where buckets are counted, and up to where this page goes.
    fn span(&self) -> (i64, i64) {
        let start_s = self.start_s.div_euclid(self.width_s) * self.width_s;
        let end_s = self.end_s.unwrap_or_else(|| Timestamp::now().as_second() + 1);
        (start_s, end_s.min(start_s + self.limit * self.width_s).max(start_s))
    }

    fn buckets(&self, app: &App, only: Option<&str>) -> Result<Buckets, ApiError> {
        let (start_s, end_s) = self.span();
        let time = |second| Timestamp::from_second(second).map_err(|_| ApiError::invalid("A time is out of range."));
        let mut buckets = Buckets::new();
        let visit = |request: &ExportedRequest| {
            if self.counts(request, only) {
                let second = request.ended.as_second();
                let bucket = buckets.entry(second.div_euclid(self.width_s) * self.width_s).or_default();
                bucket.entry(self.by.key(request)).or_default().add(request);
            }
            ControlFlow::Continue(())
        };
        let from = time(self.start_s.max(start_s))?;
        app.books.export_requests(Some(from), Some(time(end_s)?), visit).map_err(|error| ApiError::from(&error))?;
        Ok(buckets)
    }

    fn counts(&self, request: &ExportedRequest, only: Option<&str>) -> bool {
        let named = |list: &[String], value: Option<&str>| {
            list.is_empty() || value.is_some_and(|value| list.iter().any(|named| named == value))
        };
        only.is_none_or(|wallet| wallet == request.wallet)
            && named(&self.models, Some(&request.model))
            && named(&self.user_ids, Some(&request.wallet))
            && named(&self.project_ids, request.project.as_deref())
            && named(&self.api_key_ids, request.key.as_deref())
    }

    fn page(&self, buckets: &Buckets, result: fn(&Group) -> Value) -> Value {
        let (start_s, end_s) = self.span();
        let none = BTreeMap::new();
        let data: Vec<Value> = (start_s..end_s)
            .step_by(usize::try_from(self.width_s).expect("it is one of three"))
            .map(|bucket_s| {
                let groups = buckets.get(&bucket_s).unwrap_or(&none);
                let results = groups.iter().map(|(key, sums)| result(&Group { key, sums: *sums }));
                json!({
                    "object": "bucket",
                    "start_time": bucket_s,
                    "end_time": bucket_s + self.width_s,
                    "results": results.collect::<Vec<_>>(),
                })
            })
            .collect();
        let last_s = self.end_s.unwrap_or_else(|| Timestamp::now().as_second());
        let next_s = start_s + self.limit * self.width_s;
        let has_more = next_s < last_s;
        let next_page = has_more.then(|| format!("page_{next_s}"));
        json!({ "object": "page", "data": data, "has_more": has_more, "next_page": next_page })
    }
}

fn uri(query: &str) -> Result<axum::http::Uri, ApiError> {
    format!("/?{query}").parse().map_err(|_| ApiError::invalid("The query cannot be read."))
}

fn width(text: &str) -> Result<i64, ApiError> {
    match text {
        "1m" => Ok(60),
        "1h" => Ok(3600),
        "1d" => Ok(86_400),
        _ => Err(ApiError::invalid_param("bucket_width", "'bucket_width' is 1m, 1h or 1d.")),
    }
}

impl By {
    fn add(&mut self, names: &str) -> Result<(), ApiError> {
        for name in names.split(',') {
            match name {
                "model" | "line_item" => self.model = true,
                "user_id" => self.user = true,
                "project_id" => self.project = true,
                "api_key_id" => self.key = true,
                _ => {
                    let message = "'group_by' takes model, line_item, user_id, project_id and api_key_id.";
                    return Err(ApiError::invalid_param("group_by", message));
                }
            }
        }
        Ok(())
    }

    fn key(&self, request: &ExportedRequest) -> GroupKey {
        GroupKey {
            model: self.model.then(|| request.model.clone()),
            user_id: self.user.then(|| request.wallet.clone()),
            project_id: if self.project { request.project.clone() } else { None },
            api_key_id: if self.key { request.key.clone() } else { None },
        }
    }
}

impl Sums {
    fn add(&mut self, request: &ExportedRequest) {
        self.input_tokens = self.input_tokens.saturating_add(request.prompt_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(request.cached_tokens);
        self.output_tokens = self.output_tokens.saturating_add(request.output_tokens);
        self.requests += 1;
        self.micro = self.micro.saturating_add(request.debited.micro());
    }
}
