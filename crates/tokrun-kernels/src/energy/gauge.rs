//! From a counter that ticks now and then to energy at any moment.

use std::time::{Duration, Instant};

/// NVML's counters tick ten to fifty times a second.
pub(super) const CARD_TICK: Duration = Duration::from_millis(20);
/// Processors count a thousand times a second, and are read from a file.
pub(super) const PACKAGE_TICK: Duration = Duration::from_millis(5);
/// Asking takes some microseconds, or far more with some drivers: ticks are as much longer as it takes to keep it to half
/// a percent of the time.
const TICK_PER_COST: u32 = 200;

#[derive(Debug)]
pub(super) struct Gauge {
    tick: Duration,
    first_uj: Option<f64>,
    /// When the counter was last asked, and what it said.
    last: Option<(Instant, f64)>,
    /// Over the last tick.
    uj_per_s: Option<f64>,
    shown_uj: u64,
}

impl Gauge {
    pub(super) fn new(tick: Duration) -> Self {
        Self { tick, first_uj: None, last: None, uj_per_s: None, shown_uj: 0 }
    }

    /// Microjoules since the first call. Asks `read` once a tick; where it cannot answer, nothing is added.
    pub(super) fn at(&mut self, now: Instant, read: impl FnOnce(Instant) -> Option<f64>) -> u64 {
        let due = self.last.is_none_or(|(at, _)| now.saturating_duration_since(at) >= self.tick);
        if due && let Some(reading) = self.ask(now, read) {
            self.uj_per_s = self.last.map(|(at, before)| (reading - before).max(0.0) / (now - at).as_secs_f64());
            self.last = Some((now, reading));
            self.first_uj.get_or_insert(reading);
        }
        if let (Some((at, reading)), Some(first)) = (self.last, self.first_uj) {
            // No further than a tick, should the counter fall silent.
            let since = now.saturating_duration_since(at).min(self.tick).as_secs_f64();
            let total = reading - first + self.uj_per_s.unwrap_or(0.0) * since;
            self.shown_uj = self.shown_uj.max(total as u64);
        }
        self.shown_uj
    }

    fn ask(&mut self, now: Instant, read: impl FnOnce(Instant) -> Option<f64>) -> Option<f64> {
        let begin = Instant::now();
        let reading = read(now);
        self.tick = self.tick.max(begin.elapsed() * TICK_PER_COST);
        reading
    }

    pub(super) fn power_w(&self) -> Option<f64> {
        self.uj_per_s.map(|uj_per_s| uj_per_s / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_between_ticks_and_agrees_with_the_counter_at_each() {
        let (start, mut gauge) = (Instant::now(), Gauge::new(Duration::from_millis(100)));
        let at = |ms| start + Duration::from_millis(ms);
        let mut energy = |ms, reading| gauge.at(at(ms), |_| reading);
        assert_eq!(energy(0, Some(5_000_000.0)), 0);
        assert_eq!(energy(50, None), 0, "nothing is known of the power yet");
        assert_eq!(energy(100, Some(35_000_000.0)), 30_000_000);
        assert_eq!(energy(150, Some(f64::NAN)), 45_000_000, "300 W for 50 ms more, without asking");
        assert_eq!(energy(200, Some(45_000_000.0)), 45_000_000, "it was too much, and is not taken back");
        assert_eq!(energy(250, None), 45_000_000);
        assert_eq!(energy(300, Some(55_000_000.0)), 50_000_000, "from here on they agree again");
    }

    #[test]
    fn a_counter_that_falls_silent_adds_no_more_than_a_tick() {
        let tick = Duration::from_millis(100);
        let (start, mut gauge) = (Instant::now(), Gauge::new(tick));
        gauge.at(start, |_| Some(0.0));
        gauge.at(start + tick, |_| Some(1e6));
        assert_eq!(gauge.power_w(), Some(10.0));
        assert_eq!(gauge.at(start + 100 * tick, |_| None), 2_000_000);
    }

    #[test]
    fn what_is_slow_to_ask_is_asked_less_often() {
        let (start, mut gauge) = (Instant::now(), Gauge::new(PACKAGE_TICK));
        let slow = |_: Instant| {
            std::thread::sleep(Duration::from_millis(2));
            Some(0.0)
        };
        gauge.at(start, slow);
        gauge.at(start + Duration::from_millis(399), |_| panic!("a tick is 200 times what asking took"));
        gauge.at(start + Duration::from_secs(60), |_| Some(2e6));
        assert!(gauge.power_w().is_some());
    }
}
