//! The FinOps Open Cost and Usage Specification (FOCUS): a row for each kind of token of each settled request.
//!
//! What a credit is worth in money is said by whoever exports, else by the ledger's price that a request was admitted at;
//! without either, costs are zero in `XXX`, which is ISO 4217 for "no currency". All costs are exact products. Credits stand in columns of our own: the specification would let
//! `PricingCurrency` name them, its validator (2.2.1) takes none but those of ISO 4217.

use std::io::Write;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::json;
use tokrun_ledger::{CreditValue, Credits, ExportedRequest};

use super::Outcome;
use crate::output;

/// The code for no currency at all.
const NO_CURRENCY: &str = "XXX";

/// A decimal with a point: readers that guess types from a column's values take one without any for integers.
fn pointed(decimal: impl ToString) -> String {
    let decimal = decimal.to_string();
    if decimal.contains('.') { decimal } else { decimal + ".0" }
}

/// The table as it is written.
pub(super) struct Table<W: Write> {
    table: csv::Writer<W>,
    ledger_id: String,
    value: Option<CreditValue>,
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
    pub(super) fn new(to: W, ledger_id: &str, value: Option<CreditValue>) -> Table<W> {
        Table { table: csv::Writer::from_writer(to), ledger_id: ledger_id.to_owned(), value }
    }

    pub(super) fn header(&mut self) -> Outcome {
        Ok(self.table.write_record(COLUMNS)?)
    }

    pub(super) fn flush(&mut self) -> Outcome {
        Ok(self.table.flush()?)
    }

    /// The rows of a request: of the prompt that was computed, of what was found in the cache, of the answer, and of the
    /// reasoning before it.
    pub(super) fn request(&mut self, request: &ExportedRequest) -> Outcome {
        let meter = |name, direction, cache, tokens, price| Meter { name, direction, cache, tokens, price };
        let (price, computed) = (&request.price, request.prompt_tokens.saturating_sub(request.cached_tokens));
        let answer = request.output_tokens.saturating_sub(request.reasoning_tokens);
        let meters = [
            meter("Input Tokens", "Input", None, computed, price.prompt),
            meter("Cached Input Tokens", "Input", Some("Read"), request.cached_tokens, price.cached_prompt),
            meter("Output Tokens", "Output", None, answer, price.output),
            meter("Reasoning Output Tokens", "Output", None, request.reasoning_tokens, price.reasoning),
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
        let value = self.value.as_ref().or(request.value.as_ref());
        let money = |credits| pointed(value.map_or_else(|| "0".into(), |value| value.of(credits)));
        let (cost, unit_price) = (money(credits), money(meter.price));
        let currency = value.map_or(NO_CURRENCY, CreditValue::currency).to_owned();
        let (month, next_month) = billing_period(request.ended);
        let kind = match (meter.direction, meter.cache) {
            (_, Some(_)) => "input-cached",
            ("Input", None) => "input",
            _ if meter.name.starts_with("Reasoning") => "reasoning",
            _ => "output",
        };
        let sku = format!("{}/{kind}", request.model);
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
            currency.clone(),
            next_month,
            month,
            "Usage".into(),
            String::new(),
            text(&format!("{} of {}", meter.name, request.model)),
            "Usage-Based".into(),
            instant(ending(request)),
            instant(request.started),
            String::new(),
            pointed(meter.tokens),
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
            currency,
            unit_price.clone(),
            cost.clone(),
            unit_price,
            pointed(meter.tokens),
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
            pointed(credits),
            pointed(meter.price),
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
