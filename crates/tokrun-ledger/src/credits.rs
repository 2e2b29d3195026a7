//! Amounts: integer micro-credits, checked arithmetic, exact text.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::text::shown;

/// Micro-credits in a credit.
pub const MICRO: i64 = 1_000_000;

/// An exact amount, kept in micro-credits. `Display` prints credits (`12`, `0.25`), `FromStr` reads them back.
///
/// JSON gets a number: whole credits as an integer, others as the nearest double (exact below 2^53 micro-credits).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credits(i64);

impl Credits {
    /// Nothing.
    pub const ZERO: Credits = Credits(0);
    /// One credit.
    pub const ONE: Credits = Credits(MICRO);

    /// An amount of micro-credits.
    pub const fn from_micro(micro: i64) -> Credits {
        Credits(micro)
    }

    /// A whole number of credits; `None` if it does not fit.
    pub const fn from_credits(credits: i64) -> Option<Credits> {
        match credits.checked_mul(MICRO) {
            Some(micro) => Some(Credits(micro)),
            None => None,
        }
    }

    /// This amount in micro-credits.
    pub const fn micro(self) -> i64 {
        self.0
    }

    /// `self + other`; `None` if it does not fit.
    pub const fn checked_add(self, other: Credits) -> Option<Credits> {
        match self.0.checked_add(other.0) {
            Some(micro) => Some(Credits(micro)),
            None => None,
        }
    }

    /// `self - other`; `None` if it does not fit.
    pub const fn checked_sub(self, other: Credits) -> Option<Credits> {
        match self.0.checked_sub(other.0) {
            Some(micro) => Some(Credits(micro)),
            None => None,
        }
    }

    /// The price of `tokens` at `self` each; `None` if it does not fit.
    pub fn checked_mul(self, tokens: u64) -> Option<Credits> {
        i64::try_from(tokens).ok().and_then(|tokens| self.0.checked_mul(tokens)).map(Credits)
    }
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micro = self.0.unsigned_abs();
        let (whole, fraction) = (micro / MICRO.unsigned_abs(), micro % MICRO.unsigned_abs());
        let digits = if fraction == 0 { String::new() } else { format!(".{fraction:06}") };
        let text = format!("{whole}{}", digits.trim_end_matches('0'));
        f.pad_integral(self.0 >= 0, "", &text)
    }
}

/// Text that is not an amount of credits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCreditsError {
    /// Not digits with at most one decimal point: signs, exponents, `NaN` and the like are refused.
    #[error("`{}` is not an amount of credits: write digits, such as 1000 or 0.25", shown(.0))]
    Malformed(String),
    /// Finer than a micro-credit.
    #[error("`{0}` is finer than a micro-credit: give at most 6 decimals")]
    TooFine(String),
    /// More than can be counted.
    #[error("`{0}` credits is too large: the most is {max}", max = Credits(i64::MAX))]
    TooLarge(String),
}

impl FromStr for Credits {
    type Err = ParseCreditsError;

    /// Reads an exact decimal that is not negative.
    fn from_str(text: &str) -> Result<Credits, ParseCreditsError> {
        let malformed = || ParseCreditsError::Malformed(text.to_owned());
        let too_large = || ParseCreditsError::TooLarge(text.to_owned());
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return Err(malformed()),
            Some(parts) => parts,
            None => (text, ""),
        };
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
            return Err(malformed());
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > 6 {
            return Err(ParseCreditsError::TooFine(text.to_owned()));
        }
        let whole: i64 = whole.parse().map_err(|_| too_large())?;
        let fraction: i64 = format!("{fraction:0<6}").parse().map_err(|_| malformed())?;
        let micro = whole.checked_mul(MICRO).and_then(|micro| micro.checked_add(fraction)).ok_or_else(too_large)?;
        Ok(Credits(micro))
    }
}

impl Serialize for Credits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 % MICRO == 0 {
            serializer.serialize_i64(self.0 / MICRO)
        } else {
            serializer.serialize_f64(self.0 as f64 / MICRO as f64)
        }
    }
}

/// What a token costs. Frozen into a request when it is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Price {
    /// A prompt token that had to be computed.
    pub prompt: Credits,
    /// A prompt token found in the prefix cache; at most `prompt`.
    pub cached_prompt: Credits,
    /// An output token.
    pub output: Credits,
    /// An output token that was reasoning.
    pub reasoning: Credits,
}

impl Default for Price {
    /// 1 credit = 1 token.
    fn default() -> Price {
        Price { prompt: Credits::ONE, cached_prompt: Credits::ONE, output: Credits::ONE, reasoning: Credits::ONE }
    }
}

impl Price {
    /// Tokens are counted and limited elsewhere, but cost nothing.
    pub const FREE: Price =
        Price { prompt: Credits::ZERO, cached_prompt: Credits::ZERO, output: Credits::ZERO, reasoning: Credits::ZERO };

    /// As the file has it: without a price of their own, reasoning tokens cost what other output does.
    pub(crate) const fn from_micro([prompt, cached, output]: [i64; 3], reasoning: Option<i64>) -> Price {
        Price {
            prompt: Credits::from_micro(prompt),
            cached_prompt: Credits::from_micro(cached),
            output: Credits::from_micro(output),
            reasoning: Credits::from_micro(match reasoning {
                Some(reasoning) => reasoning,
                None => output,
            }),
        }
    }

    /// The price of reasoning tokens, if it is one of their own.
    pub(crate) fn apart(&self) -> Option<i64> {
        (self.reasoning != self.output).then_some(self.reasoning.micro())
    }

    /// What a prompt costs of which `cached_tokens` were found in the cache; `None` if it does not fit or
    /// `cached_tokens > prompt_tokens`.
    pub fn of_prompt(&self, prompt_tokens: u64, cached_tokens: u64) -> Option<Credits> {
        let fresh = self.prompt.checked_mul(prompt_tokens.checked_sub(cached_tokens)?)?;
        fresh.checked_add(self.cached_prompt.checked_mul(cached_tokens)?)
    }

    /// What output costs of which `reasoning_tokens` were reasoning; `None` if it does not fit or they are more than all.
    pub fn of_output(&self, output_tokens: u64, reasoning_tokens: u64) -> Option<Credits> {
        let answer = self.output.checked_mul(output_tokens.checked_sub(reasoning_tokens)?)?;
        answer.checked_add(self.reasoning.checked_mul(reasoning_tokens)?)
    }

    /// What a whole request costs; `None` as for [`Price::of_prompt`] and [`Price::of_output`].
    pub fn of_request(
        &self,
        prompt_tokens: u64,
        cached_tokens: u64,
        output_tokens: u64,
        reasoning_tokens: u64,
    ) -> Option<Credits> {
        self.of_prompt(prompt_tokens, cached_tokens)?.checked_add(self.of_output(output_tokens, reasoning_tokens)?)
    }

    /// What a request must be able to pay to begin: its prompt, and one output token of whichever kind costs more.
    pub fn to_begin(&self, prompt_tokens: u64) -> Option<Credits> {
        self.of_prompt(prompt_tokens, 0)?.checked_add(self.output.max(self.reasoning))
    }

    /// No negative part, and a cached token no dearer than another.
    pub(crate) fn is_sound(&self) -> bool {
        let least = self.cached_prompt.min(self.output).min(self.reasoning);
        least >= Credits::ZERO && self.prompt >= self.cached_prompt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_exact_both_ways() {
        for text in ["0", "12", "0.25", "0.000001", "1000000", "9223372036854.775807"] {
            assert_eq!(text.parse::<Credits>().unwrap().to_string(), text);
        }
        assert_eq!("1.50".parse::<Credits>().unwrap().to_string(), "1.5");
        assert_eq!("007".parse::<Credits>().unwrap(), Credits::from_micro(7 * MICRO));
        assert_eq!("0.2500000000".parse::<Credits>().unwrap(), Credits::from_micro(250_000));
        assert_eq!(Credits::from_micro(-250_000).to_string(), "-0.25");
        assert_eq!(Credits::from_micro(i64::MIN).to_string(), "-9223372036854.775808");
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "NaN", "inf", "1,000", "1_000", " 1", "1.2.3", "٣", "0x10"]
        {
            assert_eq!(text.parse::<Credits>(), Err(ParseCreditsError::Malformed(text.into())), "{text}");
        }
        assert!(matches!("0.0000001".parse::<Credits>(), Err(ParseCreditsError::TooFine(_))));
        for text in ["9223372036854.775808", "9223372036855", "99999999999999999999"] {
            let error = text.parse::<Credits>().unwrap_err();
            assert!(matches!(error, ParseCreditsError::TooLarge(_)), "{text}");
            assert!(error.to_string().contains("too large: the most is 9223372036854.775807"), "{error}");
        }
    }

    #[test]
    fn arithmetic_never_wraps() {
        let max = Credits::from_micro(i64::MAX);
        assert_eq!(max.checked_add(Credits::from_micro(1)), None);
        assert_eq!(Credits::ONE.checked_mul(u64::MAX), None);
        assert_eq!(Credits::ZERO.checked_mul(i64::MAX as u64), Some(Credits::ZERO));
        assert_eq!(Price::default().of_prompt(3, 4), None);
        let price = Price::from_micro([3, 1, MICRO], None);
        assert_eq!(price.of_request(10, 4, 2, 2), Some(Credits::from_micro(6 * 3 + 4 + 2 * MICRO)));
        let price = Price::from_micro([3, 1, 7], Some(11));
        assert_eq!((price.of_output(5, 2), price.of_output(5, 6)), (Some(Credits::from_micro(3 * 7 + 2 * 11)), None));
        assert_eq!(price.to_begin(2), Some(Credits::from_micro(2 * 3 + 11)));
    }

    #[test]
    fn json_is_a_number() {
        assert_eq!(serde_json::to_string(&Credits::from_micro(25 * MICRO)).unwrap(), "25");
        assert_eq!(serde_json::to_string(&Credits::from_micro(250_000)).unwrap(), "0.25");
    }
}
