//! `tokrun price estimate`: what tokens cost on hardware of one's own.
//!
//! Everything is computed in exact fractions. What is shown is rounded up at the very end, so that a price never covers less
//! than the cost.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::ratio::{Money, Ratio};
use crate::args::{EstimateArgs, Format};
use crate::failure::{Failure, Status};
use crate::output;

/// A year of 365 days.
const HOURS_A_YEAR: u32 = 8760;

/// Decimals of an amount of money, and of credits.
const MONEY_PLACES: u32 = 9;
const CREDIT_PLACES: u32 = 6;

const CAPITAL: &str = "card_price * cards / (years * 8760 * utilisation)";
const ENERGY: &str = "cards * overhead * (power + idle_power * (1 - utilisation) / utilisation) / 1000 * electricity";
const PER_MILLION: &str = "(capital_per_busy_hour + energy_per_busy_hour) * 1000000 / (tokens_per_s * 3600)";

/// What an hour of computing costs.
struct Hour {
    capital: Ratio,
    energy: Ratio,
}

/// What tokens of one direction cost.
struct Direction {
    name: &'static str,
    /// `None` for those that are not computed.
    tokens_per_s: Option<Ratio>,
    /// In the currency.
    per_million: Ratio,
    /// In credits, if it is known what they are worth.
    credits_per_token: Option<Ratio>,
}

pub(super) fn run(args: &EstimateArgs, format: Format) -> Result<(), Failure> {
    let currency = &args.card_price.currency;
    let others = [Some(&args.electricity), args.value.as_ref()];
    if let Some(other) = others.into_iter().flatten().find(|money| money.currency != *currency) {
        let what = format!("the card is paid in {currency}, something else in {}", other.currency);
        return Err(usage(&what).hint("give all amounts in one currency"));
    }
    check(args)?;
    let [prompt, output] = speeds(args)?;
    let hour = hour(args).ok_or_else(too_large)?;
    let directions = directions(args, &hour, prompt, output).ok_or_else(too_large)?;
    match format {
        Format::Json => out!("{}", tell_json(args, &hour, &directions).ok_or_else(too_large)?),
        _ => tell(args, &hour, &directions).ok_or_else(too_large)?,
    }
    Ok(())
}

fn usage(what: &str) -> Failure {
    Failure::new(Status::Usage, "usage", what)
}

fn too_large() -> Failure {
    usage("these figures are more than can be computed exactly").hint("give fewer digits")
}

fn check(args: &EstimateArgs) -> Result<(), Failure> {
    if args.utilisation.is_zero() || !args.utilisation.is_at_most(Ratio::ONE) {
        return Err(usage("a utilisation is above 0 and at most 1"));
    }
    if !args.cached_share.is_at_most(Ratio::ONE) {
        return Err(usage("a cached prompt token costs at most as much as another: its share is at most 1"));
    }
    if [args.cards, args.years].into_iter().any(Ratio::is_zero) {
        return Err(usage("there is at least a card, for some time"));
    }
    if args.value.as_ref().is_some_and(|value| value.amount.is_zero()) {
        return Err(usage("a credit that is worth nothing pays for nothing").hint("leave --value out"));
    }
    Ok(())
}

/// Tokens a second of prompts and of output: as given, else as measured.
fn speeds(args: &EstimateArgs) -> Result<[Ratio; 2], Failure> {
    let measured = args.bench.as_deref().map(measured).transpose()?.unwrap_or_default();
    let [prompt, output] = [args.prompt_tokens_per_s.or(measured[0]), args.output_tokens_per_s.or(measured[1])];
    match (prompt, output) {
        (Some(prompt), Some(output)) if !prompt.is_zero() && !output.is_zero() => Ok([prompt, output]),
        _ => Err(usage("it takes the tokens a second of prompts and of output, more than none").hint(
            "give --prompt-tokens-per-s and --output-tokens-per-s, or --bench with what `tokrun bench --output json` printed",
        )),
    }
}

/// The highest speed of a test of prompts alone, and of one of answers alone.
fn measured(file: &Path) -> Result<[Option<Ratio>; 2], Failure> {
    let text =
        fs::read_to_string(file).map_err(|error| Failure::io(&format!("cannot read {}", file.display()), &error))?;
    let no_bench = || usage(&format!("{} is not what `tokrun bench --output json` prints", file.display()));
    let tests: Vec<Value> = serde_json::from_str(&text).map_err(|_| no_bench())?;
    let mut best = [None::<Ratio>; 2];
    for test in &tests {
        let count = |field: &str| test[field].as_u64().ok_or_else(no_bench);
        let place = match (count("n_prompt")?, count("n_gen")?) {
            (1.., 0) => 0,
            (0, 1..) => 1,
            _ => continue,
        };
        let speed = test["avg_ts"].as_f64().filter(|speed| *speed > 0.0).ok_or_else(no_bench)?;
        // A measurement is never that exact.
        let speed: Ratio = format!("{speed:.3}").parse().map_err(|_| no_bench())?;
        if best[place].is_none_or(|best| best.is_at_most(speed)) {
            best[place] = Some(speed);
        }
    }
    Ok(best)
}

fn hour(args: &EstimateArgs) -> Option<Hour> {
    let hours = args.years.times(Ratio::whole(HOURS_A_YEAR))?.times(args.utilisation)?;
    let idle = Ratio::ONE.minus(args.utilisation)?.divided_by(args.utilisation)?;
    let watts = args.power.plus(args.idle_power.times(idle)?)?.times(args.cards)?.times(args.overhead)?;
    Some(Hour {
        capital: args.card_price.amount.times(args.cards)?.divided_by(hours)?,
        energy: watts.divided_by(Ratio::whole(1000))?.times(args.electricity.amount)?,
    })
}

fn directions(args: &EstimateArgs, hour: &Hour, prompt: Ratio, output: Ratio) -> Option<[Direction; 4]> {
    let million = Ratio::whole(1_000_000);
    let at = |speed: Ratio| -> Option<Ratio> {
        hour.capital.plus(hour.energy)?.times(million)?.divided_by(speed.times(Ratio::whole(3600))?)
    };
    let direction = |name, tokens_per_s, per_million: Ratio| -> Option<Direction> {
        let in_credits = |value: &Money| per_million.divided_by(million)?.divided_by(value.amount);
        let credits_per_token = match &args.value {
            Some(value) => Some(in_credits(value)?),
            None => None,
        };
        Some(Direction { name, tokens_per_s, per_million, credits_per_token })
    };
    let of_prompt = at(prompt)?;
    Some([
        direction("prompt", Some(prompt), of_prompt)?,
        direction("cached_prompt", None, of_prompt.times(args.cached_share)?)?,
        direction("output", Some(output), at(output)?)?,
        direction("reasoning", Some(output), at(output)?)?,
    ])
}

impl Direction {
    /// Money and credits of a million tokens, and credits of one.
    fn shown(&self) -> Option<[Option<String>; 3]> {
        let credits = |credits: Ratio| credits.rounded_up(CREDIT_PLACES);
        let million = Ratio::whole(1_000_000);
        Some([
            Some(self.per_million.rounded_up(MONEY_PLACES)?),
            self.credits_per_token.map(|each| credits(each.times(million)?)).map_or(Some(None), |it| it.map(Some))?,
            self.credits_per_token.map(credits).map_or(Some(None), |it| it.map(Some))?,
        ])
    }
}

fn tell_json(args: &EstimateArgs, hour: &Hour, directions: &[Direction]) -> Option<Value> {
    let money = |amount: Ratio| -> Option<Value> {
        Some(json!({ "amount": amount.rounded_up(MONEY_PLACES)?, "exact": amount.to_string() }))
    };
    let mut prices = serde_json::Map::new();
    for direction in directions {
        let [per_million, credits_per_million, credits_per_token] = direction.shown()?;
        let price = json!({
            "tokens_per_s": direction.tokens_per_s.map(|speed| speed.to_string()),
            "per_million": per_million,
            "exact": direction.per_million.to_string(),
            "credits_per_million": credits_per_million,
            "credits_per_token": credits_per_token,
        });
        prices.insert(direction.name.into(), price);
    }
    Some(json!({
        "currency": args.card_price.currency,
        "credit_value": args.value.as_ref().map(|value| value.amount.to_string()),
        "inputs": {
            "card_price": args.card_price.amount.to_string(),
            "cards": args.cards.to_string(),
            "years": args.years.to_string(),
            "power": args.power.to_string(),
            "idle_power": args.idle_power.to_string(),
            "electricity": args.electricity.amount.to_string(),
            "overhead": args.overhead.to_string(),
            "utilisation": args.utilisation.to_string(),
            "cached_share": args.cached_share.to_string(),
        },
        "formulas": { "capital_per_busy_hour": CAPITAL, "energy_per_busy_hour": ENERGY, "per_million": PER_MILLION },
        "capital_per_busy_hour": money(hour.capital)?,
        "energy_per_busy_hour": money(hour.energy)?,
        "prices": prices,
    }))
}

fn tell(args: &EstimateArgs, hour: &Hour, directions: &[Direction]) -> Option<()> {
    let currency = &args.card_price.currency;
    for (what, amount, formula) in [("capital", hour.capital, CAPITAL), ("energy", hour.energy, ENERGY)] {
        out!("{what} {}{currency} a busy hour = {formula}", amount.rounded_up(MONEY_PLACES)?);
    }
    out!("a million tokens = {PER_MILLION}\n");
    let mut rows = Vec::new();
    for direction in directions {
        let [per_million, credits_per_million, credits_per_token] = direction.shown()?;
        rows.push(vec![
            direction.name.replace('_', " "),
            direction.tokens_per_s.map_or(Some(String::new()), |speed| speed.rounded_up(3))?,
            format!("{}{currency}", per_million?),
            credits_per_million.unwrap_or_default(),
            credits_per_token.unwrap_or_default(),
        ]);
    }
    let header = ["", "tokens/s", "a million", "credits a million", "credits a token"];
    out!("{}", output::table(&header, &[1, 2, 3, 4], rows));
    Some(())
}
