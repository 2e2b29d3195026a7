//! `/admin/v1/keys`: who acts for a wallet.

use std::time::Duration;

use axum::extract::{Path, Query};
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use tokrun_ledger::{Action, KeyView, ModelScope, NewKey, Role, json};

use super::fields::{OfWallet, Parsed, plain};
use super::{Admin, refusal};
use crate::body::Payload;
use crate::error::ApiError;

pub(super) async fn list(admin: Admin, Query(OfWallet { wallet }): Query<OfWallet>) -> Response {
    admin
        .answer(move |admin| {
            admin.require_read(wallet.as_deref())?;
            let keys = admin.app.books.keys(wallet.as_deref()).map_err(|error| refusal(&error))?;
            Ok(keys.iter().map(json::key).collect())
        })
        .await
}

pub(super) async fn show(admin: Admin, Path(id): Path<String>) -> Response {
    admin.answer(move |admin| find(admin, &id, Action::Read).map(|key| json::key(&key))).await
}

/// The key of this name or id. Whoever may not do this to every key does not learn which names there are.
fn find(admin: &Admin, id: &str, action: Action) -> Result<KeyView, ApiError> {
    let key = admin.ledger().key(id).map_err(|error| refusal(&error));
    let key = key.or_else(|unknown| admin.require(action).and(Err(unknown)))?;
    admin.require_of(action, &key.wallet)?;
    Ok(key)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    /// That of the key that is shown if absent.
    wallet: Option<String>,
    name: String,
    role: Option<Parsed<Role>>,
    models: Option<Parsed<ModelScope>>,
    project: Option<String>,
    expires: Option<Timestamp>,
}

impl New {
    /// The key, as one of a role that may not create every key is allowed to: it reaches no farther, in nothing.
    fn within(self, maker: &KeyView) -> Result<NewKey, ApiError> {
        let beyond = |param: &str| {
            let message = format!("'{param}' reaches farther than your own key.");
            Err(ApiError::forbidden("key_scope", message))
        };
        if self.role.as_ref().is_some_and(|role| role.0 != Role::Member) {
            return beyond("role");
        }
        let mut new = self.unbounded(maker);
        if let Some(models) = &maker.models
            && new.models.get_or_insert_with(|| models.clone()) != models
        {
            return beyond("models");
        }
        if let Some(project) = &maker.project
            && new.project.get_or_insert_with(|| project.clone()) != project
        {
            return beyond("project");
        }
        if let Some(expires) = maker.expires
            && *new.expires.get_or_insert(expires) > expires
        {
            return beyond("expires");
        }
        Ok(new)
    }

    fn unbounded(self, maker: &KeyView) -> NewKey {
        NewKey {
            role: self.role.map_or(Role::Member, |role| role.0),
            models: plain(self.models),
            project: self.project,
            expires: self.expires,
            ..NewKey::new(self.wallet.unwrap_or_else(|| maker.wallet.clone()), self.name)
        }
    }
}

pub(super) async fn create(admin: Admin, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let new: New = payload.parse()?;
            let wallet = new.wallet.as_deref().unwrap_or(&admin.key.wallet);
            let new = if admin.require_of(Action::IssueKey, wallet).is_ok() {
                new.unbounded(&admin.key)
            } else {
                admin.require_of(Action::CopyKey, wallet)?;
                new.within(&admin.key)?
            };
            let created = admin.ledger().create_key(NewKey { idempotency_key: admin.idempotency_key(), ..new });
            created.map(|created| json::created_key(&created)).map_err(|error| refusal(&error))
        })
        .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Rotation {
    /// How long the secret before is good for yet.
    grace_s: u64,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { grace_s: 86_400 }
    }
}

pub(super) async fn rotate(admin: Admin, Path(id): Path<String>, payload: Payload) -> Response {
    admin
        .answer(move |admin| {
            let key = may_renew(admin, &id)?;
            let Rotation { grace_s } = payload.parse_or_default()?;
            let grace = Duration::from_secs(grace_s);
            let rotated = admin.ledger().rotate_key(&key.id, grace, admin.idempotency_key());
            rotated.map(|rotated| json::created_key(&rotated)).map_err(|error| refusal(&error))
        })
        .await
}

pub(super) async fn revoke(admin: Admin, Path(id): Path<String>) -> Response {
    admin
        .answer(move |admin| {
            let key = find(admin, &id, Action::RenewKey)?;
            admin
                .ledger()
                .revoke_key(&key.id, admin.idempotency_key())
                .map(|key| json::key(&key))
                .map_err(|error| refusal(&error))
        })
        .await
}

/// A new secret of a key that may do more than one's own would be a way up.
fn may_renew(admin: &Admin, id: &str) -> Result<KeyView, ApiError> {
    let (own, key) = (&admin.key, find(admin, id, Action::RenewKey)?);
    let is_wider = ![own.role, Role::Member].contains(&key.role)
        || own.models.is_some() && key.models != own.models
        || own.project.is_some() && key.project != own.project
        || own.expires.is_some_and(|own| key.expires.is_none_or(|expires| expires > own));
    if is_wider && admin.require(Action::IssueKey).is_err() {
        return Err(ApiError::forbidden("key_scope", "That key reaches farther than your own."));
    }
    Ok(key)
}
