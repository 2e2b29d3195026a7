//! When requests come.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Gamma};

/// The times between one request and the next, as they are where many people ask who know nothing of each other: a
/// Poisson process, or a gamma process where they come more evenly or more in bursts than that.
pub(super) struct Arrivals {
    /// `None` if all come at once.
    gaps_s: Option<Gamma<f64>>,
    random: StdRng,
    at: Duration,
}

impl Arrivals {
    /// `rate` a second, from the arguments, so above zero.
    pub(super) fn new(rate: f64, burstiness: f64, seed: u64) -> Self {
        let gaps_s = rate.is_finite().then(|| {
            Gamma::new(burstiness, 1.0 / (rate * burstiness)).expect("the arguments are above zero and finite")
        });
        Self { gaps_s, random: StdRng::seed_from_u64(seed), at: Duration::ZERO }
    }

    /// How long after the beginning the next one comes. The first comes at once.
    pub(super) fn next(&mut self) -> Duration {
        let at = self.at;
        if let Some(gaps_s) = &self.gaps_s {
            // What is too long for a duration never comes.
            let gap = Duration::try_from_secs_f64(gaps_s.sample(&mut self.random)).unwrap_or(Duration::MAX);
            self.at = self.at.saturating_add(gap);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean gap and its coefficient of variation, over many.
    fn gaps(rate: f64, burstiness: f64) -> (f64, f64) {
        let mut arrivals = Arrivals::new(rate, burstiness, 1);
        let mut before = arrivals.next();
        assert_eq!(before, Duration::ZERO);
        let gaps: Vec<f64> = (0..20_000)
            .map(|_| {
                let at = arrivals.next();
                (at - std::mem::replace(&mut before, at)).as_secs_f64()
            })
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn they_come_at_the_rate_and_as_evenly_as_is_asked_for() {
        for (rate, burstiness) in [(10.0, 1.0), (0.5, 1.0), (10.0, 16.0), (10.0, 0.25)] {
            let (mean, variation) = gaps(rate, burstiness);
            assert!((mean * rate - 1.0).abs() < 0.05, "{rate}: {mean}");
            assert!((variation * f64::sqrt(burstiness) - 1.0).abs() < 0.05, "{burstiness}: {variation}");
        }
        let mut at_once = Arrivals::new(f64::INFINITY, 1.0, 1);
        assert!((0..100).all(|_| at_once.next() == Duration::ZERO));
    }
}
