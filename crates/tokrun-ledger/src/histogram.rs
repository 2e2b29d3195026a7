//! Latencies as mergeable histograms, so that percentiles of a group come from all its requests.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};

/// A day: what is slower counts as this, so that a hostile value costs no memory.
const MAX_US: u64 = 24 * 60 * 60 * 1_000_000;

/// Three significant digits: a percentile is at most 0.1 % off.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Latencies in microseconds with three significant digits; stored as HdrHistogram V2 bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyHistogram(Histogram<u64>);

impl Default for LatencyHistogram {
    fn default() -> LatencyHistogram {
        let empty = Histogram::new(SIGNIFICANT_DIGITS).expect("three digits are within the library's bounds");
        LatencyHistogram(empty)
    }
}

impl LatencyHistogram {
    /// Nothing measured.
    pub fn new() -> LatencyHistogram {
        LatencyHistogram::default()
    }

    /// Adds one latency; below 1 µs counts as 1 µs, above a day as a day.
    pub fn record(&mut self, latency_us: u64) {
        // Not its saturating sibling, which does not resize.
        self.0.record(latency_us.clamp(1, MAX_US)).expect("it resizes itself");
    }

    /// Adds everything that `other` holds.
    pub fn merge(&mut self, other: &LatencyHistogram) {
        self.0.add(&other.0).expect("both resize themselves");
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency, in microseconds, that a share `quantile` of 0 to 1 does not exceed; `None` if nothing was recorded.
    pub fn quantile_us(&self, quantile: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile))
    }

    /// The HdrHistogram V2 encoding.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.0, &mut bytes).expect("a Vec takes any bytes");
        bytes
    }

    /// Reads [`LatencyHistogram::to_bytes`] back; `None` if they are something else.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<LatencyHistogram> {
        let stored: Histogram<u64> = Deserializer::new().deserialize(&mut bytes).ok()?;
        if stored.max() > 2 * MAX_US {
            return None;
        }
        let mut histogram = LatencyHistogram::default();
        histogram.0.add(&stored).ok()?;
        Some(histogram)
    }

    /// Whether [`LatencyHistogram::from_bytes`] can read these, without the memory that it takes.
    pub(crate) fn is_readable(bytes: &[u8]) -> bool {
        is_as_written(bytes).unwrap_or(false) || LatencyHistogram::from_bytes(bytes).is_some()
    }
}

/// The header of what we write: the cookie; the length of what follows; offset 0, three digits, from 1 on; the highest value,
/// which the reader only makes room for; ratio 1.
const COOKIE: [u8; 4] = [0x1c, 0x84, 0x93, 0x13];
const UNITS: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, SIGNIFICANT_DIGITS, 0, 0, 0, 0, 0, 0, 0, 1];
const RATIO: [u8; 8] = 1.0_f64.to_be_bytes();

/// Counts up to this place are of latencies that we keep.
const PLACES: u64 = places_up_to(MAX_US);

/// Whether bytes are what [`LatencyHistogram::to_bytes`] writes, of latencies that we keep: then they can be read. `None`
/// where they end too soon.
fn is_as_written(bytes: &[u8]) -> Option<bool> {
    let (cookie, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (units, rest) = rest.split_first_chunk::<16>()?;
    let (highest, rest) = rest.split_first_chunk::<8>()?;
    let (ratio, mut counts) = rest.split_first_chunk::<8>()?;
    let highest = u64::from_be_bytes(*highest);
    let is_header = (*cookie, *units, *ratio) == (COOKIE, UNITS, RATIO)
        && u32::from_be_bytes(*length) as usize == counts.len()
        && (2..=2 * MAX_US).contains(&highest);
    let places = places_up_to(highest).min(PLACES);
    let mut place = 0_u64;
    while is_header && !counts.is_empty() && place <= places {
        let number = zigzag(&mut counts)?;
        // Below zero: so many places without any.
        let skipped = u64::try_from(number.checked_neg()?);
        place = place.checked_add(skipped.unwrap_or(1).max(1))?;
    }
    Some(is_header && counts.is_empty() && place <= places)
}

/// How many counts a histogram up to this value has: one for each value below 2048, then 1024 for each doubling.
const fn places_up_to(highest: u64) -> u64 {
    match highest {
        ..2048 => 2048,
        _ => (highest.ilog2() as u64 - 8) * 1024,
    }
}

/// A number of seven bits a byte, the last of nine whole; its sign in the lowest bit.
fn zigzag(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for shift in 0..9 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let is_last = byte & 0x80 == 0;
        let bits = if shift == 8 { byte } else { byte & 0x7f };
        value |= u64::from(bits) << (7 * shift);
        if is_last {
            break;
        }
    }
    Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

impl FromIterator<u64> for LatencyHistogram {
    /// A histogram of latencies in microseconds.
    fn from_iter<I: IntoIterator<Item = u64>>(latencies_us: I) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::default();
        latencies_us.into_iter().for_each(|latency_us| histogram.record(latency_us));
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_merges_keep_percentiles() {
        let low = LatencyHistogram::from_iter(1..=500);
        let high = LatencyHistogram::from_iter(501..=1000);
        let mut merged = LatencyHistogram::from_bytes(&low.to_bytes()).unwrap();
        merged.merge(&high);
        assert_eq!(merged, LatencyHistogram::from_iter(1..=1000));
        assert_eq!((merged.count(), merged.quantile_us(0.5), merged.quantile_us(0.99)), (1000, Some(500), Some(990)));
        assert!(merged.to_bytes().len() < 4096);
    }

    #[test]
    fn slow_and_fast_are_told_apart() {
        let histogram = LatencyHistogram::from_iter([10, 20_000, 40_000_000]);
        for (quantile, us) in [(0.3, 10), (0.6, 20_000), (1.0, 40_000_000)] {
            let found: u64 = histogram.quantile_us(quantile).unwrap();
            assert!(found.abs_diff(us) <= us / 1000, "{found} for {us}");
        }
    }

    #[test]
    fn hostile_values_cost_nothing() {
        let mut histogram = LatencyHistogram::from_iter([0, u64::MAX]);
        histogram.merge(&LatencyHistogram::new());
        assert_eq!(histogram.count(), 2);
        assert!(histogram.quantile_us(1.0).is_some_and(|us| us.abs_diff(MAX_US) <= MAX_US / 1000));
        assert!(LatencyHistogram::from_bytes(&histogram.to_bytes()).is_some());
        assert_eq!(LatencyHistogram::new().quantile_us(0.5), None);
        for bytes in [&b""[..], b"not a histogram", &[0x1c; 64]] {
            assert!(LatencyHistogram::from_bytes(bytes).is_none());
        }
    }

    #[test]
    fn what_is_taken_for_readable_is() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut taken = 0;
        for _ in 0..20_000 {
            let highest = 1_u64 << rng.u32(0..38);
            let histogram = LatencyHistogram::from_iter((0..rng.usize(0..20)).map(|_| rng.u64(0..=highest)));
            let mut bytes = histogram.to_bytes();
            assert_eq!(is_as_written(&bytes), Some(true));
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = if rng.bool() { rng.u8(..) } else { bytes[at] ^ 1 << rng.u8(..8) };
            }
            bytes.truncate(if rng.u8(..4) == 0 { rng.usize(..bytes.len()) } else { bytes.len() });
            if is_as_written(&bytes) == Some(true) {
                taken += 1;
                assert!(LatencyHistogram::from_bytes(&bytes).is_some(), "{bytes:x?}");
            }
        }
        assert!(taken > 1000, "{taken}");
    }
}
