//! `tokrun price`: what tokens cost.

mod estimate;
mod ratio;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokrun_ledger::json::{self as ledger_json, ShownPrice};
use tokrun_ledger::{NewPrice, Price};
use tokrun_model::catalogue::Catalogue;

pub(crate) use ratio::{Money, Ratio};

use super::answer;
use crate::args::{Format, PriceCommand, PriceSetArgs};
use crate::failure::{Failure, Status};
use crate::{home, load, output};

pub(crate) fn run(command: PriceCommand, format: Format) -> Result<Status, Failure> {
    match command {
        PriceCommand::List { model, at } => list(model.as_deref(), at, format)?,
        PriceCommand::Set(args) => {
            let set = answer::ledger()?.set_price(new(args)?)?;
            match format {
                Format::Json => out!("{}", ledger_json::price(&set.into())),
                _ => out!("{} costs {} from {} on", set.model, described(&set.price), set.from),
            }
        }
        PriceCommand::Remove { id, idempotency_key } => {
            answer::ledger()?.remove_price(&id, idempotency_key)?;
            match format {
                Format::Json => out!("{}", json!({ "id": id })),
                _ => out!("removed"),
            }
        }
        PriceCommand::Estimate(args) => estimate::run(&args, format)?,
    }
    Ok(Status::Done)
}

fn new(args: PriceSetArgs) -> Result<NewPrice, Failure> {
    let price = Price {
        prompt: args.prompt,
        cached_prompt: args.cached_prompt.unwrap_or(args.prompt),
        output: args.output_token,
        reasoning: args.reasoning.unwrap_or(args.output_token),
    };
    Ok(NewPrice {
        value: args.value,
        from: args.from,
        until: args.until,
        idempotency_key: args.idempotency_key,
        ..NewPrice::new(canonical(&Catalogue::load(&home::directory()?)?, args.model), price)
    })
}

/// The name that requests have, whichever of its names somebody gives. A model that no catalogue has is named by its file.
fn canonical(catalogue: &Catalogue, name: String) -> String {
    catalogue.get(&name).map_or(name, |entry| entry.name.clone())
}

fn list(model: Option<&str>, at: Option<Timestamp>, format: Format) -> Result<(), Failure> {
    let catalogue = Catalogue::load(&home::directory()?)?;
    let views = answer::ledger_to_read()?.prices(at)?;
    let mut prices: Vec<ShownPrice> = views.into_iter().map(ShownPrice::from).collect();
    if let Some(at) = at {
        for entry in catalogue.entries() {
            if !prices.iter().any(|price| price.model == entry.name) {
                let (price, model) = (load::price_of(entry, at)?, entry.name.clone());
                let from = entry.price_at(at).from;
                prices.push(ShownPrice { id: None, model, price, value: None, from, until: None });
            }
        }
        prices.sort_by(|left, right| left.model.cmp(&right.model));
    }
    if let Some(model) = model {
        let model = canonical(&catalogue, model.to_owned());
        prices.retain(|price| price.model == model);
    }
    if format == Format::Json {
        out!("{}", Value::from_iter(prices.iter().map(ledger_json::price)));
        return Ok(());
    }
    let rows = prices.iter().map(|shown| {
        let instant = |time: Option<Timestamp>| time.map_or_else(String::new, |time| time.to_string());
        let Price { prompt, cached_prompt, output, reasoning } = shown.price;
        let mut row = vec![output::plain(&shown.model)];
        row.extend([prompt, cached_prompt, output, reasoning].map(output::credits));
        row.push(shown.value.as_ref().map(ToString::to_string).unwrap_or_default());
        row.extend([instant(shown.from), instant(shown.until)]);
        row.push(shown.id.clone().unwrap_or_else(|| "(catalogue)".into()));
        row
    });
    let header = ["model", "prompt", "cached", "output", "reasoning", "a credit is", "from", "until", "id"];
    out!("{}", output::table(&header, &[1, 2, 3, 4, 5], rows));
    Ok(())
}

fn described(price: &Price) -> String {
    let Price { prompt, cached_prompt, output, reasoning } = price;
    format!("{prompt} a prompt token, {cached_prompt} cached, {output} an output token, {reasoning} reasoning")
}
