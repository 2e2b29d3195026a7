//! The FinOps Open Cost and Usage Specification (FOCUS): a row for each kind of token of each settled request.
//!
//! What a credit is worth in money is said by whoever exports; without that, costs are zero in `XXX`, which is ISO 4217 for
//! "no currency". All costs are exact products. Credits stand in columns of our own: the specification would let
//! `PricingCurrency` name them, its validator (2.2.1) takes none but those of ISO 4217.

use std::io::Write;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::json;
use tokrun_ledger::{Credits, ExportedRequest};

use super::Outcome;
use crate::output;

/// Decimals of a credit's value in money.
const VALUE_DECIMALS: usize = 9;

/// What a credit is worth: `0.002EUR`.
#[derive(Clone, Debug)]
pub(crate) struct CreditValue {
    /// In 10^-9 of the currency.
    nano: u64,
    currency: String,
}

impl Default for CreditValue {
    fn default() -> CreditValue {
        CreditValue { nano: 0, currency: "XXX".into() }
    }
}

impl FromStr for CreditValue {
    type Err = String;

    fn from_str(text: &str) -> Result<CreditValue, String> {
        let malformed = || format!("`{text}` is no amount of money: write it as 0.002EUR, with at most 9 decimals");
        let split = text.find(|character: char| character.is_ascii_alphabetic()).ok_or_else(malformed)?;
        let (amount, currency) = text.split_at(split);
        let (whole, fraction) = amount.trim_end().split_once('.').unwrap_or((amount.trim_end(), ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let is_currency = currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_uppercase());
        if whole.is_empty()
            || !all_digits(whole)
            || !all_digits(fraction)
            || fraction.len() > VALUE_DECIMALS
            || !is_currency
        {
            return Err(malformed());
        }
        let nano = format!("{whole}{fraction:0<VALUE_DECIMALS$}").parse().map_err(|_| malformed())?;
        Ok(CreditValue { nano, currency: currency.to_owned() })
    }
}

impl CreditValue {
    /// What so many credits are worth, exactly: an `i64` times a `u64` always fits.
    fn of(&self, credits: Credits) -> String {
        decimal(i128::from(credits.micro()) * i128::from(self.nano), 6 + VALUE_DECIMALS)
    }
}

/// A count, in the form of [`decimal`].
fn count(tokens: u64) -> String {
    decimal(i128::from(tokens), 0)
}

/// Credits, in the form of [`decimal`].
fn amount(credits: Credits) -> String {
    decimal(i128::from(credits.micro()), 6)
}

/// `units` of 10^-`decimals`.
fn decimal(units: i128, decimals: usize) -> String {
    let digits = format!("{:0>width$}", units.unsigned_abs(), width = decimals + 1);
    let (whole, fraction) = digits.split_at(digits.len() - decimals);
    let fraction = fraction.trim_end_matches('0');
    let sign = if units < 0 { "-" } else { "" };
    // Readers that guess types from a column's values take one without any point for integers.
    format!("{sign}{whole}.{}", if fraction.is_empty() { "0" } else { fraction })
}

/// The table as it is written.
pub(super) struct Table<W: Write> {
    table: csv::Writer<W>,
    ledger_id: String,
    value: CreditValue,
}

/// Tokens of one request that have one price.
struct Meter {
    name: &'static str,
    direction: &'static str,
    cache: Option<&'static str>,
    tokens: u64,
    price: Credits,
}

impl<W: Write> Table<W> {
    pub(super) fn new(to: W, ledger_id: &str, value: CreditValue) -> Table<W> {
        Table { table: csv::Writer::from_writer(to), ledger_id: ledger_id.to_owned(), value }
    }

    pub(super) fn header(&mut self) -> Outcome {
        Ok(self.table.write_record(COLUMNS)?)
    }

    pub(super) fn flush(&mut self) -> Outcome {
        Ok(self.table.flush()?)
    }

    /// The rows of a request: of the prompt that was computed, of what was found in the cache, and of the output.
    pub(super) fn request(&mut self, request: &ExportedRequest) -> Outcome {
        let meter = |name, direction, cache, tokens, price| Meter { name, direction, cache, tokens, price };
        let (price, computed) = (&request.price, request.prompt_tokens.saturating_sub(request.cached_tokens));
        let meters = [
            meter("Input Tokens", "Input", None, computed, price.prompt),
            meter("Cached Input Tokens", "Input", Some("Read"), request.cached_tokens, price.cached_prompt),
            meter("Output Tokens", "Output", None, request.output_tokens, price.output),
        ];
        for meter in meters.iter().filter(|meter| meter.tokens > 0) {
            let row = self.row(request, meter);
            self.table.write_record(row)?;
        }
        Ok(())
    }

    fn row(&self, request: &ExportedRequest, meter: &Meter) -> [String; COLUMNS.len()] {
        // What cannot be counted was not debited: the ledger admits no such request.
        let credits = meter.price.checked_mul(meter.tokens).unwrap_or_default();
        let (cost, unit_price) = (self.value.of(credits), self.value.of(meter.price));
        let (month, next_month) = billing_period(request.ended);
        let sku = format!("{}/{}", request.model, meter.direction.to_lowercase());
        let sku = meter.cache.map_or_else(|| sku.clone(), |_| format!("{sku}-cached"));
        let details = json!({
            "ModelId": request.model,
            "TokenDirection": meter.direction,
            "TokenCacheAction": meter.cache,
            "x_Device": request.device,
        });
        let text = output::csv_text;
        [
            cost.clone(),
            self.ledger_id.clone(),
            "tokrun ledger".into(),
            "Ledger".into(),
            self.value.currency.clone(),
            next_month,
            month,
            "Usage".into(),
            String::new(),
            text(&format!("{} of {}", meter.name, request.model)),
            "Usage-Based".into(),
            instant(ending(request)),
            instant(request.started),
            String::new(),
            count(meter.tokens),
            "Tokens".into(),
            cost.clone(),
            unit_price.clone(),
            cost.clone(),
            HOST.into(),
            String::new(),
            HOST.into(),
            cost.clone(),
            unit_price.clone(),
            "Standard".into(),
            self.value.currency.clone(),
            unit_price.clone(),
            cost.clone(),
            unit_price,
            count(meter.tokens),
            "Tokens".into(),
            HOST.into(),
            HOST.into(),
            text(&request.id),
            text(&request.model),
            "Request".into(),
            "AI and Machine Learning".into(),
            "tokrun".into(),
            HOST.into(),
            "Generative AI".into(),
            text(&sku),
            meter.name.into(),
            details.to_string(),
            text(&format!("{sku}@{}", meter.price)),
            request.wallet_id.clone(),
            text(&request.wallet),
            "Wallet".into(),
            request.tags.clone(),
            amount(credits),
            amount(meter.price),
            text(request.project.as_deref().unwrap_or_default()),
        ]
    }
}

/// Who provides what is computed on the own machines.
const HOST: &str = "tokrun";

/// As [`Table::row`] fills them.
const COLUMNS: [&str; 51] = [
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "CommitmentDiscountStatus",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
    "x_Credits",
    "x_CreditsPerToken",
    "x_Project",
];

/// A period ends after it begins, in whole seconds.
fn ending(request: &ExportedRequest) -> Timestamp {
    let started = Timestamp::from_second(request.started.as_second()).unwrap_or(request.started);
    let ended = Timestamp::from_second(request.ended.as_second()).unwrap_or(request.ended);
    ended.max(started).checked_add(jiff::SignedDuration::from_secs(1)).unwrap_or(ended)
}

fn instant(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The month, UTC, around an instant.
fn billing_period(time: Timestamp) -> (String, String) {
    let first: Date = TimeZone::UTC.to_datetime(time).date().first_of_month();
    let next = first.saturating_add(jiff::Span::new().months(1));
    (format!("{first}T00:00:00Z"), format!("{next}T00:00:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_the_exact_product() {
        let value: CreditValue = "0.000000001EUR".parse().expect("a value");
        assert_eq!(value.of(Credits::from_micro(1)), "0.000000000000001");
        assert_eq!(value.of(Credits::from_micro(i64::MAX)), "9223.372036854775807");
        let value: CreditValue = "2.5USD".parse().expect("a value");
        assert_eq!(value.of(Credits::from_micro(4_200_000)), "10.5");
        assert_eq!(CreditValue::default().of(Credits::ONE), "0.0");
        for text in ["", "EUR", "1", "1eur", "-1EUR", "1.0000000001EUR", "1.EURO", "1e3EUR", "99999999999999999999EUR"]
        {
            assert!(text.parse::<CreditValue>().is_err(), "{text}");
        }
    }
}
