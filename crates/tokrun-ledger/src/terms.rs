//! What a grant is beside an amount: of which class, good for which models, and worth how much.

use std::fmt;
use std::str::FromStr;

use rusqlite::Row;
use serde::{Serialize, Serializer};

use crate::text::shown;
use crate::{Credits, LedgerError};

/// More models than anybody names in a grant.
const SCOPE_BYTES_MAX: usize = 4096;

/// Decimals of a credit's value in money.
const VALUE_DECIMALS: usize = 9;

/// The terms of a grant; by default it is paid, good for every model, and nobody said what it is worth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct GrantTerms {
    /// Paid for, or given away.
    pub class: GrantClass,
    /// The models it pays for; all if `None`.
    pub scope: Option<ModelScope>,
    /// What a credit of it is worth, for as long as it lasts.
    pub value: Option<CreditValue>,
}

/// Whether somebody owns what is granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantClass {
    /// Bought, or a part of somebody's pay.
    #[default]
    Paid,
    /// Given away.
    Promotional,
}

/// Models, by name or by class: `smollm2-135m`, `llama-*`. `Display` and `FromStr` separate them by commas.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelScope(String);

/// What a credit is worth in money, exactly: `0.002EUR`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CreditValue {
    /// In 10^-9 of the currency.
    nano: i64,
    currency: String,
}

impl GrantTerms {
    /// From the columns `class`, `scope`, `value_nano` and `currency`.
    pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<GrantTerms> {
        let class: Option<String> = row.get("class")?;
        Ok(GrantTerms {
            class: if class.is_some() { GrantClass::Promotional } else { GrantClass::Paid },
            scope: row.get::<_, Option<String>>("scope")?.map(ModelScope),
            value: CreditValue::from_row(row)?,
        })
    }

    /// As these columns.
    pub(crate) fn columns(&self) -> (Option<&'static str>, Option<&str>, Option<i64>, Option<&str>) {
        let (nano, currency) = self.value.as_ref().map(CreditValue::columns).unzip();
        (
            (self.class == GrantClass::Promotional).then_some("promotional"),
            self.scope.as_ref().map(|scope| scope.0.as_str()),
            nano,
            currency,
        )
    }

    /// Whether it pays for a model; `None`: for any.
    pub(crate) fn pays_for(&self, model: Option<&str>) -> bool {
        match (&self.scope, model) {
            (Some(scope), Some(model)) => scope.has(model),
            _ => true,
        }
    }

    /// What a key was used with.
    pub(crate) fn argument(&self) -> String {
        format!("{self:?}")
    }
}

impl ModelScope {
    /// Whether a model is one of them.
    pub fn has(&self, model: &str) -> bool {
        self.0.split(',').any(|name| match name.strip_suffix('*') {
            Some(prefix) => model.starts_with(prefix),
            None => model == name,
        })
    }
}

impl fmt::Display for ModelScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ModelScope {
    type Err = String;

    fn from_str(text: &str) -> Result<ModelScope, String> {
        let mut names: Vec<&str> = text.split(',').map(str::trim).collect();
        let is_name = |name: &str| {
            let stem = name.strip_suffix('*').unwrap_or(name);
            !name.is_empty() && !stem.contains('*') && !name.chars().any(|c| c.is_whitespace() || c.is_control())
        };
        if !names.iter().all(|name| is_name(name)) || text.len() > SCOPE_BYTES_MAX {
            return Err(format!(
                "`{}` names no models: give names, or beginnings and a `*`, as in llama-*,smollm2-135m",
                shown(text)
            ));
        }
        names.sort_unstable();
        names.dedup();
        Ok(ModelScope(names.join(",")))
    }
}

impl Serialize for ModelScope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl CreditValue {
    /// From the columns `value_nano` and `currency`.
    pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<Option<CreditValue>> {
        let (nano, currency): (Option<i64>, Option<String>) = (row.get("value_nano")?, row.get("currency")?);
        Ok(nano.zip(currency).map(|(nano, currency)| CreditValue { nano, currency }))
    }

    /// As these columns.
    pub(crate) fn columns(&self) -> (i64, &str) {
        (self.nano, &self.currency)
    }

    /// What so many credits are worth, as an exact decimal.
    pub fn of(&self, credits: Credits) -> String {
        // An i64 times an i64 always fits.
        decimal(i128::from(credits.micro()) * i128::from(self.nano), 6 + VALUE_DECIMALS)
    }

    /// The code of its currency, such as `EUR`.
    pub fn currency(&self) -> &str {
        &self.currency
    }
}

impl fmt::Display for CreditValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}", decimal(i128::from(self.nano), VALUE_DECIMALS), self.currency))
    }
}

impl FromStr for CreditValue {
    type Err = String;

    fn from_str(text: &str) -> Result<CreditValue, String> {
        let malformed =
            || format!("`{}` is no amount of money: write it as 0.002EUR, with at most 9 decimals", shown(text));
        let split = text.find(|character: char| character.is_ascii_alphabetic()).ok_or_else(malformed)?;
        let (amount, currency) = text.split_at(split);
        let (whole, fraction) = amount.trim_end().split_once('.').unwrap_or((amount.trim_end(), ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let is_currency = currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_uppercase());
        let is_amount = !whole.is_empty() && all_digits(whole) && all_digits(fraction);
        if !is_amount || !is_currency || fraction.len() > VALUE_DECIMALS {
            return Err(malformed());
        }
        let nano = format!("{whole}{fraction:0<VALUE_DECIMALS$}").parse().map_err(|_| malformed())?;
        Ok(CreditValue { nano, currency: currency.to_owned() })
    }
}

impl Serialize for CreditValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `units` of 10^-`decimals`, as short as it is exact.
fn decimal(units: i128, decimals: usize) -> String {
    let digits = format!("{:0>width$}", units.unsigned_abs(), width = decimals + 1);
    let (whole, fraction) = digits.split_at(digits.len() - decimals);
    let fraction = fraction.trim_end_matches('0');
    let sign = if units < 0 { "-" } else { "" };
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// A grant in equal parts with the calendar: so many periods, and nothing before the cliff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vesting {
    /// Of the wallet's time zone, from the day on which the grant is effective; each part comes at midnight.
    pub every: crate::Period,
    /// In how many of them all of it has vested.
    pub periods: u32,
    /// Nothing comes before so many of them have passed, and then all of theirs at once.
    pub cliff: u32,
}

impl Vesting {
    /// How many periods can be asked for: forty years of months.
    pub(crate) const PERIODS_MAX: u32 = 480;

    pub(crate) fn check(&self) -> Result<(), LedgerError> {
        let invalid = |reason| Err(LedgerError::InvalidGrant { reason });
        match self.periods {
            0 => invalid("it would vest in no time; leave vesting out"),
            periods if periods > Vesting::PERIODS_MAX => {
                invalid("it would vest in more than 480 parts; choose longer periods")
            }
            periods if self.cliff > periods => invalid("its cliff is behind its end; choose an earlier one"),
            _ => Ok(()),
        }
    }

    /// After how many periods which part of an amount vests: each time what makes the sum so far the part of the amount
    /// that has passed, rounded down.
    pub(crate) fn parts(&self, amount: i64) -> impl Iterator<Item = (u32, i64)> {
        let vested = move |periods: u32| (i128::from(amount) * i128::from(periods) / i128::from(self.periods)) as i64;
        let first = self.cliff.max(1);
        let part = move |period| vested(period) - if period == first { 0 } else { vested(period - 1) };
        (first..=self.periods).map(move |period| (period, part(period))).filter(|&(_, part)| part > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Period;

    #[test]
    fn scopes_have_names_and_beginnings() {
        let scope: ModelScope = "smollm2-135m, llama-*".parse().unwrap();
        assert_eq!(scope.to_string(), "llama-*,smollm2-135m");
        for (model, has) in [("llama-3.1-8b", true), ("smollm2-135m", true), ("smollm2-135", false), ("", false)] {
            assert_eq!(scope.has(model), has, "{model}");
        }
        for nonsense in ["", "a,,b", "*a", "a b", "a*b"] {
            assert!(nonsense.parse::<ModelScope>().is_err(), "{nonsense}");
        }
    }

    #[test]
    fn values_are_exact() {
        let value: CreditValue = "0.002EUR".parse().unwrap();
        assert_eq!((value.to_string().as_str(), value.currency()), ("0.002EUR", "EUR"));
        assert_eq!(value.of("1234.567891".parse().unwrap()), "2.469135782");
        let dear: CreditValue = "9223372036.854775807 USD".parse().unwrap();
        assert_eq!(dear.of(Credits::from_micro(i64::MAX)), "85070591730234615847396.907784232501249");
        for nonsense in ["0.002", "EUR", "0.0000000001EUR", "1eur", "-1EUR", "1.EURO", "9223372036.854775808USD"] {
            assert!(nonsense.parse::<CreditValue>().is_err(), "{nonsense}");
        }
    }

    #[test]
    fn parts_add_up_and_wait_for_the_cliff() {
        let vesting = |periods, cliff| Vesting { every: Period::Month, periods, cliff };
        assert_eq!(vesting(4, 0).parts(10).collect::<Vec<_>>(), [(1, 2), (2, 3), (3, 2), (4, 3)]);
        assert_eq!(vesting(4, 3).parts(10).collect::<Vec<_>>(), [(3, 7), (4, 3)]);
        assert_eq!(vesting(4, 4).parts(10).collect::<Vec<_>>(), [(4, 10)]);
        assert_eq!(vesting(4, 0).parts(1).collect::<Vec<_>>(), [(4, 1)]);
        for (periods, cliff) in [(480, 12), (7, 0), (1, 1)] {
            assert_eq!(vesting(periods, cliff).parts(i64::MAX).map(|(_, part)| part).sum::<i64>(), i64::MAX);
        }
    }
}
