//! What fields of bodies hold.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use tokrun_ledger::{CreditValue, Credits, GrantClass, GrantTerms, ModelScope};

/// A query for what is of one wallet, or of all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfWallet {
    pub(super) wallet: Option<String>,
}

/// Credits: `12.5` or `"12.5"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amount(pub(super) Credits);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected an amount of credits, such as 12.5")]
enum Raw {
    Whole(i64),
    Fraction(f64),
    Text(String),
}

impl Raw {
    /// As its sender wrote it, as far as JSON's numbers let that be known.
    fn text(self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer)?.text().parse().map(Self).map_err(D::Error::custom)
    }
}

/// At most so much, or `"all"` there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cap(pub(super) Option<Credits>);

impl<'de> Deserialize<'de> for Cap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Raw::deserialize(deserializer)?.text().as_str() {
            "all" => Ok(Self(None)),
            amount => amount.parse().map(|amount| Self(Some(amount))).map_err(D::Error::custom),
        }
    }
}

/// Whatever is read from a text.
#[derive(Clone, Debug)]
pub(super) struct Parsed<T>(pub(super) T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// The text that is within.
pub(super) fn plain<T>(parsed: Option<Parsed<T>>) -> Option<T> {
    parsed.map(|parsed| parsed.0)
}

/// `null` says something else than nothing.
pub(super) fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// What credits are good for, and what they are worth.
pub(super) fn terms(
    models: Option<Parsed<ModelScope>>,
    promotional: bool,
    value: Option<Parsed<CreditValue>>,
) -> GrantTerms {
    let class = if promotional { GrantClass::Promotional } else { GrantClass::Paid };
    GrantTerms { class, scope: plain(models), value: plain(value) }
}

/// Lower is spent first; what is given usually leaves room on both sides.
pub(super) fn usual_priority() -> i32 {
    100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_numbers_or_texts() {
        let micro = |json: &str| serde_json::from_str::<Amount>(json).map(|amount| amount.0.micro()).ok();
        assert_eq!([micro("12"), micro("0.25"), micro("\"0.000001\"")], [Some(12_000_000), Some(250_000), Some(1)]);
        for nonsense in ["null", "\"\"", "true", "1e300", "0.0000001", "[1]", "\"1 000\""] {
            assert_eq!(micro(nonsense), None, "{nonsense}");
        }
        assert!(serde_json::from_str::<Cap>("\"all\"").expect("it is one").0.is_none());
    }
}
