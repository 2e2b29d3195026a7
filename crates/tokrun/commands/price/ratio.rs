//! Exact fractions, for costs that no decimal holds.

use std::fmt;
use std::str::FromStr;

/// Decimals of a figure that somebody gives.
const DECIMALS_MAX: usize = 9;

/// A number that is not negative, exactly: a fraction in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ratio {
    over: i128,
    under: i128,
}

/// An amount of money, exactly: `0.30EUR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Money {
    pub(crate) amount: Ratio,
    pub(crate) currency: String,
}

impl Ratio {
    pub(super) const ONE: Ratio = Ratio { over: 1, under: 1 };

    pub(super) fn whole(number: u32) -> Ratio {
        Ratio { over: i128::from(number), under: 1 }
    }

    pub(super) fn is_zero(self) -> bool {
        self.over == 0
    }

    /// `None` where it does not fit; likewise below.
    pub(super) fn times(self, other: Ratio) -> Option<Ratio> {
        let (left, right) = (gcd(self.over, other.under), gcd(other.over, self.under));
        let over = (self.over / left).checked_mul(other.over / right)?;
        let under = (self.under / right).checked_mul(other.under / left)?;
        Some(Ratio { over, under })
    }

    /// `None` also where `other` is zero.
    pub(super) fn divided_by(self, other: Ratio) -> Option<Ratio> {
        let inverse = Ratio { over: other.under, under: other.over };
        if other.is_zero() { None } else { self.times(inverse) }
    }

    pub(super) fn plus(self, other: Ratio) -> Option<Ratio> {
        let common = gcd(self.under, other.under);
        let left = self.over.checked_mul(other.under / common)?;
        let over = left.checked_add(other.over.checked_mul(self.under / common)?)?;
        let under = (self.under / common).checked_mul(other.under)?;
        let shared = gcd(over, under);
        Some(Ratio { over: over / shared, under: under / shared })
    }

    /// `self - other`; `None` also where that is negative.
    pub(super) fn minus(self, other: Ratio) -> Option<Ratio> {
        let negative = Ratio { over: -other.over, under: other.under };
        self.plus(negative).filter(|difference| difference.over >= 0)
    }

    pub(super) fn is_at_most(self, other: Ratio) -> bool {
        other.minus(self).is_some()
    }

    /// The least decimal of so many places that is not below it.
    pub(super) fn rounded_up(self, places: u32) -> Option<String> {
        let scaled = self.times(Ratio { over: 10_i128.checked_pow(places)?, under: 1 })?;
        let units = scaled.over / scaled.under + i128::from(scaled.over % scaled.under > 0);
        let digits = format!("{units:0>width$}", width = places as usize + 1);
        let (whole, fraction) = digits.split_at(digits.len() - places as usize);
        let fraction = fraction.trim_end_matches('0');
        Some(if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") })
    }
}

/// Of numbers of which one is not zero, whatever their sign.
fn gcd(left: i128, right: i128) -> i128 {
    let (mut left, mut right) = (left.abs(), right.abs());
    while right != 0 {
        (left, right) = (right, left % right);
    }
    left.max(1)
}

/// `3/8`, or `3` where it is whole.
impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.under {
            1 => write!(f, "{}", self.over),
            under => write!(f, "{}/{under}", self.over),
        }
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Ratio, String> {
        let malformed = || format!("`{text}` is no number: write digits, such as 700 or 0.35, with at most 9 decimals");
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return Err(malformed()),
            Some(parts) => parts,
            None => (text, ""),
        };
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > DECIMALS_MAX {
            return Err(malformed());
        }
        let over = i64::from_str(&format!("{whole}{fraction}")).map_err(|_| malformed())?.into();
        let under = 10_i128.pow(fraction.len() as u32);
        let shared = gcd(over, under);
        Ok(Ratio { over: over / shared, under: under / shared })
    }
}

impl FromStr for Money {
    type Err = String;

    fn from_str(text: &str) -> Result<Money, String> {
        let malformed = || format!("`{text}` is no amount of money: write it as 0.30EUR, with at most 9 decimals");
        let split = text.find(|character: char| character.is_ascii_alphabetic()).ok_or_else(malformed)?;
        let (amount, currency) = text.split_at(split);
        if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(malformed());
        }
        Ok(Money { amount: amount.trim_end().parse().map_err(|_| malformed())?, currency: currency.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(text: &str) -> Ratio {
        text.parse().expect("a number")
    }

    #[test]
    fn fractions_are_exact_and_in_lowest_terms() {
        let third = Ratio::ONE.divided_by(ratio("3")).expect("it fits");
        assert_eq!(third.to_string(), "1/3");
        assert_eq!(third.plus(third).and_then(|sum| sum.plus(third)), Some(Ratio::ONE));
        assert_eq!(ratio("0.25").times(ratio("8")), Some(ratio("2")));
        assert_eq!(ratio("1").minus(ratio("0.4")), Some(ratio("0.6")));
        assert_eq!(ratio("1").minus(ratio("1.1")), None);
        assert_eq!(ratio("1").divided_by(ratio("0.0")), None);
        assert!(ratio("0.999999999").is_at_most(Ratio::ONE) && !ratio("1.000000001").is_at_most(Ratio::ONE));
        for (number, places, text) in [(third, 4, "0.3334"), (ratio("2"), 6, "2"), (ratio("0"), 3, "0")] {
            assert_eq!(number.rounded_up(places).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_number_or_too_large_is_refused() {
        for text in ["", "-1", "1.", ".5", "1e3", "0.0000000001", "99999999999999999999", "NaN"] {
            assert!(text.parse::<Ratio>().is_err(), "{text}");
        }
        for text in ["30000", "EUR", "-1EUR", "1eur", "1EURO"] {
            assert!(text.parse::<Money>().is_err(), "{text}");
        }
        let large = ratio("9223372036854775807");
        let square = large.times(large).expect("an i128 holds the product of two i64");
        assert_eq!((square.times(large), square.rounded_up(9)), (None, None));
    }
}
