//! `/admin/v1/prices`: what tokens cost.

use axum::extract::{Path, Query};
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokrun_ledger::json::{self as shown, ShownPrice};
use tokrun_ledger::{Action, CreditValue, NewPrice, Price};

use super::fields::{Amount, Parsed, plain};
use super::{Admin, refusal};
use crate::app::App;
use crate::body::Payload;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Of one model.
    model: Option<String>,
    /// Those that hold then; with the catalogue's, now, of what is served and has no other. All of the ledger's if absent.
    at: Option<Timestamp>,
}

/// What tokens cost is no secret from those who pay for them.
pub(super) async fn list(admin: Admin, Query(Asked { model, at }): Query<Asked>) -> Response {
    admin
        .answer(move |admin| {
            let views = admin.app.books.prices(at).map_err(|error| refusal(&error))?;
            let mut prices: Vec<ShownPrice> = views.into_iter().map(ShownPrice::from).collect();
            if at.is_some() {
                for served in admin.app.models.iter() {
                    if !prices.iter().any(|price| price.model == served.name()) {
                        let (model, price) = (served.name().to_owned(), (served.served.price)());
                        prices.push(ShownPrice { id: None, model, price, value: None, from: None, until: None });
                    }
                }
                prices.sort_by(|left, right| left.model.cmp(&right.model));
            }
            if let Some(model) = model {
                let model = canonical(&admin.app, model);
                prices.retain(|price| price.model == model);
            }
            Ok(prices.iter().map(shown::price).collect())
        })
        .await
}

/// As `tokrun price set` has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    model: String,
    prompt: Amount,
    /// As `prompt`, if absent.
    cached_prompt: Option<Amount>,
    output: Amount,
    /// As `output`, if absent.
    reasoning: Option<Amount>,
    /// What a credit is worth.
    value: Option<Parsed<CreditValue>>,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
}

pub(super) async fn set(admin: Admin, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            admin.require(Action::Price)?;
            let new = payload.parse::<New>()?;
            let price = Price {
                prompt: new.prompt.0,
                cached_prompt: new.cached_prompt.unwrap_or(new.prompt).0,
                output: new.output.0,
                reasoning: new.reasoning.unwrap_or(new.output).0,
            };
            let set = admin.ledger().set_price(NewPrice {
                value: plain(new.value),
                from: new.from,
                until: new.until,
                idempotency_key: admin.idempotency_key(),
                ..NewPrice::new(canonical(&admin.app, new.model), price)
            });
            set.map(|set| shown::price(&set.into())).map_err(|error| refusal(&error))
        })
        .await
}

pub(super) async fn remove(admin: Admin, Path(id): Path<String>) -> Response {
    admin
        .answer(move |admin| {
            admin.require(Action::Price)?;
            admin.ledger().remove_price(&id, admin.idempotency_key()).map_err(|error| refusal(&error))?;
            Ok(json!({ "id": id }))
        })
        .await
}

/// The name that requests have, whichever of its names somebody gives. Models that are not served here have prices too.
fn canonical(app: &App, name: String) -> String {
    app.models.get(&name).map_or(name, |model| model.name().to_owned())
}
