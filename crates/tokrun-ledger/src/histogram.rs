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
}
