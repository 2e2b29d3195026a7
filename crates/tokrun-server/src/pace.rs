//! When the parts of an answer are sent. Tokens are paid some at a time, by one commit for all who wait; a reader is shown
//! them one after another, spread over the time until the next ones may come, instead of in jerks.

use std::time::{Duration, Instant};

/// No commit is expected later than this after the one before it.
const INTERVAL_MAX: Duration = Duration::from_millis(100);
/// Parts that are due within this are sent together: timers are no finer.
const SLACK: Duration = Duration::from_micros(500);

/// Paces one stream.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When the newest parts were paid, and how long after those before them.
    paid: Option<Instant>,
    interval: Duration,
    sent: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { paid: None, interval: Duration::ZERO, sent: now }
    }

    /// When to send the next of `waiting` parts, the newest of which were paid at `paid`: so that all are sent, equally far
    /// apart, when more may come.
    pub(crate) fn due(&mut self, paid: Instant, waiting: usize) -> Instant {
        if let Some(before) = self.paid.replace(paid)
            && before != paid
        {
            self.interval = paid.duration_since(before).min(INTERVAL_MAX);
        }
        let left = (paid + self.interval).saturating_duration_since(self.sent);
        self.sent + left / (waiting as u32 + 1)
    }

    /// Whether that is now.
    pub(crate) fn is_due(due: Instant, now: Instant) -> bool {
        due <= now + SLACK
    }

    /// A part was sent.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.sent = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// When each of these parts is sent, in ms, if `batches` of so many come at such times.
    fn sent(batches: &[(u32, usize)]) -> Vec<u32> {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut queue, mut sent) = (std::collections::VecDeque::new(), Vec::new());
        for at in 0..1000 {
            let now = start + MS * at;
            for &(_, count) in batches.iter().filter(|(when, _)| *when == at) {
                queue.extend(std::iter::repeat_n(now, count));
            }
            while let Some(&newest) = queue.back() {
                let due = pace.due(newest, queue.len());
                if !Pace::is_due(due, now) {
                    break;
                }
                queue.pop_front();
                pace.sent(now);
                sent.push(at);
            }
        }
        sent
    }

    #[test]
    fn what_is_paid_at_once_is_spread_until_more_may_come() {
        assert_eq!(sent(&[(10, 1), (20, 5), (30, 5)]), [10, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38]);
    }

    #[test]
    fn the_first_is_sent_at_once_and_so_is_what_came_late() {
        assert_eq!(sent(&[(10, 3)]), [10, 10, 10]);
        assert_eq!(sent(&[(10, 1), (30, 2), (200, 2)]), [10, 30, 40, 200, 250]);
    }

    /// Parts that wait when more come do not wait for longer than those would.
    #[test]
    fn nothing_falls_behind() {
        let batches: Vec<(u32, usize)> = (0..20).map(|i| (10 + i * 16 + i % 3, 4 + (i % 4) as usize)).collect();
        let sent = sent(&batches);
        let due = batches.iter().flat_map(|(at, count)| std::iter::repeat_n(*at, *count));
        for (sent, paid) in sent.iter().zip(due) {
            assert!((paid..paid + 20).contains(sent), "paid at {paid}, sent at {sent}");
        }
        let gaps: Vec<u32> = sent.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.iter().filter(|gap| **gap > 6).count() <= 3, "{gaps:?}");
    }
}
