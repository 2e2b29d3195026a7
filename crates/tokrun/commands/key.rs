//! `tokrun key`: who may act for a wallet over a service.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokrun_ledger::{CreatedKey, KeyView, NewKey, json as shown};
use tokrun_server::Links;

use super::answer;
use crate::args::{Format, KeyCommand, KeyCreateArgs};
use crate::failure::{Failure, Status};
use crate::output;

pub(crate) fn run(command: KeyCommand, format: Format) -> Result<Status, Failure> {
    match command {
        KeyCommand::Create(args) => tell(&answer::ledger()?.create_key(new(args))?, format),
        KeyCommand::List { wallet } => list(&answer::ledger_to_read()?.keys(wallet.as_deref())?, format),
        KeyCommand::Show { key } => show(&answer::ledger_to_read()?.key(&key)?, format),
        KeyCommand::Rotate { key, grace, idempotency_key } => {
            tell(&answer::ledger()?.rotate_key(&key, grace, idempotency_key)?, format);
        }
        KeyCommand::Link { key, expires, url } => link(&key, expires, &url, format)?,
        KeyCommand::Revoke { key, idempotency_key } => {
            show(&answer::ledger()?.revoke_key(&key, idempotency_key)?, format);
        }
    }
    Ok(Status::Done)
}

fn new(args: KeyCreateArgs) -> NewKey {
    NewKey {
        wallet: args.wallet,
        name: args.name,
        role: args.role,
        models: args.models,
        project: args.project,
        expires: args.expires,
        idempotency_key: args.idempotency_key,
    }
}

fn link(key: &str, life: Duration, url: &str, format: Format) -> Result<(), Failure> {
    let ledger = answer::ledger_to_read()?;
    let key = ledger.key(key)?;
    if key.state(Timestamp::now()) != "valid" {
        let what = format!("the key {} is {}", output::plain(&key.name), key.state(Timestamp::now()));
        return Err(
            Failure::new(Status::Failed, "key_refused", what).hint("create another one with `tokrun key create`")
        );
    }
    let code = Links::of(&ledger).create(&key, life);
    let code = code.map_err(|error| {
        Failure::io("cannot keep the link beside the ledger", &error).hint("only the ledger's owner lets people in")
    })?;
    let url = format!("{}/#link={code}", url.trim_end_matches('/'));
    match format {
        Format::Json => {
            out!("{}", json!({ "url": url, "key": key.name, "wallet": key.wallet, "life_s": life.as_secs() }))
        }
        _ => out!("{url}"),
    }
    Ok(())
}

/// In text, stdout has the secret and nothing else, for scripts to take.
fn tell(created: &CreatedKey, format: Format) {
    if format == Format::Json {
        out!("{}", shown::created_key(created));
        return;
    }
    match &created.secret {
        Some(secret) => {
            say!("the secret of {}, shown this once and kept nowhere:", output::plain(&created.view.name));
            out!("{secret}");
        }
        None => say!("{} is there already; its secret was shown when it was made", output::plain(&created.view.name)),
    }
}

fn list(keys: &[KeyView], format: Format) {
    if format == Format::Json {
        out!("{}", Value::from_iter(keys.iter().map(shown::key)));
        return;
    }
    let rows = keys.iter().map(|key| {
        vec![
            output::plain(&key.name),
            key.wallet.clone(),
            key.role.to_string(),
            scope(key),
            key.expires.map_or_else(|| "never".to_owned(), |expires| expires.to_string()),
            key.state(Timestamp::now()).to_owned(),
            key.id.clone(),
        ]
    });
    out!("{}", output::table(&["key", "wallet", "role", "for", "expires", "", "id"], &[], rows));
}

fn show(key: &KeyView, format: Format) {
    match format {
        Format::Json => out!("{}", shown::key(key)),
        _ => out!(
            "{}: {} of {}, for {}, {}; created {}, expires {}",
            output::plain(&key.name),
            key.role,
            key.wallet,
            scope(key),
            key.state(Timestamp::now()),
            key.created,
            key.expires.map_or_else(|| "never".to_owned(), |expires| expires.to_string())
        ),
    }
}

fn scope(key: &KeyView) -> String {
    let models = key.models.as_ref().map_or_else(|| "all models".to_owned(), ToString::to_string);
    key.project.as_ref().map_or_else(|| models.clone(), |project| format!("{models} in {}", output::plain(project)))
}
