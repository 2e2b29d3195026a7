//! What a key's secret looks like: `tkr-`, 256 random bits, and a checksum, by which typing errors and what leaked into a
//! file can be told without asking a ledger.

use sha2::{Digest, Sha256};

use crate::chain::Hash;
use crate::{LedgerError, Result};

const PREFIX: &str = "tkr-";

/// RFC 4648's alphabet in small letters: no character looks like another.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

const RANDOM_BYTES: usize = 32;
const RANDOM_CHARS: usize = (RANDOM_BYTES * 8).div_ceil(5);
const CHECK_BYTES: usize = 5;

/// A new secret.
pub(super) fn generate() -> Result<String> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|error| LedgerError::NoRandomness { reason: error.to_string() })?;
    Ok(with_checksum(&random))
}

/// What the ledger keeps of a secret. No salt is needed: nobody tries 2^256 of them.
pub(super) fn digest(secret: &str) -> Hash {
    Sha256::digest(secret).into()
}

/// Whether a text is the secret of an access key, of this or another ledger: `tkr-`, 60 letters and digits, the last
/// eight of which are a checksum. Scanners look for `tkr-[a-z2-7]{60}`.
pub fn is_key_secret(text: &str) -> bool {
    let Some((random, check)) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_at_checked(RANDOM_CHARS)) else {
        return false;
    };
    random.bytes().all(|byte| ALPHABET.contains(&byte)) && check == checksum(random)
}

fn with_checksum(random: &[u8]) -> String {
    let random = base32(random);
    format!("{PREFIX}{random}{}", checksum(&random))
}

fn checksum(random: &str) -> String {
    base32(&Sha256::digest(format!("{PREFIX}{random}"))[..CHECK_BYTES])
}

fn base32(bytes: &[u8]) -> String {
    let bit = |index: usize| bytes.get(index / 8).is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0);
    let character =
        |start: usize| ALPHABET[(start..start + 5).fold(0, |value, index| value << 1 | usize::from(bit(index)))];
    (0..bytes.len() * 8).step_by(5).map(|start| char::from(character(start))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_that_of_the_rfc() {
        for (plain, encoded) in [("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foobar", "mzxw6ytboi")] {
            assert_eq!(base32(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn every_typing_error_is_noticed() {
        let secret = generate().unwrap();
        assert_eq!(secret.len(), 64);
        assert!(is_key_secret(&secret));
        assert_ne!(secret, generate().unwrap());
        for place in 0..secret.len() {
            let mut other = secret.clone().into_bytes();
            other[place] = if other[place] == b'a' { b'b' } else { b'a' };
            assert!(!is_key_secret(std::str::from_utf8(&other).unwrap()), "{place}");
        }
        for nonsense in ["", "tkr-", "sk-abc", &secret[..63], &format!("{secret}a"), &secret.to_uppercase(), "tkr-ü"] {
            assert!(!is_key_secret(nonsense), "{nonsense}");
        }
    }
}
