//! Days, weeks and months of a time zone, daylight saving included.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::Serialize;

/// A stretch of the calendar; it begins at midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From Monday on.
    Week,
    /// From the first of a month on.
    Month,
}

impl Period {
    /// The name used in the file, on the command line and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Period::Day => "day",
            Period::Week => "week",
            Period::Month => "month",
        }
    }

    /// So many of them.
    pub(crate) fn span(self, count: u32) -> Span {
        let count = i64::from(count);
        match self {
            Period::Day => Span::new().days(count),
            Period::Week => Span::new().weeks(count),
            Period::Month => Span::new().months(count),
        }
    }

    /// The period around an instant: where it begins and where the next one does.
    pub(crate) fn around(self, at_us: i64, zone: &TimeZone) -> (i64, i64) {
        let date = date_at(at_us, zone);
        let (first, length) = match self {
            Period::Day => (date, Span::new().days(1)),
            Period::Week => {
                let back = Span::new().days(date.weekday().to_monday_zero_offset());
                (date.saturating_sub(back), Span::new().days(7))
            }
            Period::Month => (date.first_of_month(), Span::new().months(1)),
        };
        (midnight_us(first, zone), midnight_us(first.saturating_add(length), zone))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Period {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Period, &'static str> {
        let known = [Period::Day, Period::Week, Period::Month];
        known.into_iter().find(|period| period.as_str() == text).ok_or("give day, week or month")
    }
}

/// When a date of this kind begins that is later than `after_us`: every day, every `on`th day of the week (Monday is 1),
/// or every `on`th of the month, the last day of a shorter one.
pub(crate) fn next_us(every: Period, on: u8, after_us: i64, zone: &TimeZone) -> i64 {
    let today = date_at(after_us, zone);
    let day = |count: i64| today.saturating_add(Span::new().days(count));
    let date = match every {
        Period::Day => day(1),
        Period::Week => {
            let ahead = i64::from(on) - i64::from(today.weekday().to_monday_one_offset());
            day(if ahead > 0 { ahead } else { ahead + 7 })
        }
        Period::Month => {
            let in_month =
                |first: Date| first.saturating_add(Span::new().days(on.min(first.days_in_month() as u8) - 1));
            let this = in_month(today.first_of_month());
            if this > today { this } else { in_month(today.first_of_month().saturating_add(Span::new().months(1))) }
        }
    };
    midnight_us(date, zone).max(after_us)
}

/// The date that a zone's calendar shows.
pub(crate) fn date_at(at_us: i64, zone: &TimeZone) -> Date {
    let at = Timestamp::from_microsecond(at_us).unwrap_or(if at_us < 0 { Timestamp::MIN } else { Timestamp::MAX });
    zone.to_datetime(at).date()
}

/// When a date begins: at midnight, or where daylight saving skips midnight, right after the gap. The first and the
/// last dates of the calendar have no instant in some zones.
pub(crate) fn midnight_us(date: Date, zone: &TimeZone) -> i64 {
    match date.to_zoned_datetime(zone.clone()) {
        Ok(zoned) => zoned.timestamp().as_microsecond(),
        Err(_) if date.year() < 0 => i64::MIN,
        Err(_) => i64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn periods_follow_the_calendar_of_their_zone() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let cases = [
            (Period::Day, "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"), // 23 hours
            (Period::Day, "2026-10-25T22:59:59Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"), // 25 hours
            (Period::Week, "2026-11-22T22:59:59Z", "2026-11-15T23:00:00Z", "2026-11-22T23:00:00Z"),
            (Period::Month, "2026-02-28T23:00:00Z", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"),
        ];
        for (period, at, from, until) in cases {
            assert_eq!(period.around(us(at), &berlin), (us(from), us(until)), "{period} around {at}");
        }
        // Midnight of 8 September 2024 does not exist in Chile.
        let chile = TimeZone::get("America/Santiago").unwrap();
        assert_eq!(Period::Day.around(us("2024-09-08T12:00:00Z"), &chile).0, us("2024-09-08T04:00:00Z"));
    }

    #[test]
    fn the_next_day_of_a_kind_is_found_over_short_months_and_clock_changes() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let run = |every, on, from: &str| {
            let mut at_us = us(from);
            let mut next = || {
                at_us = next_us(every, on, at_us, &berlin);
                Timestamp::from_microsecond(at_us).unwrap().to_string()
            };
            [next(), next(), next()]
        };
        assert_eq!(
            run(Period::Month, 31, "2027-12-31T12:00:00Z"),
            ["2028-01-30T23:00:00Z", "2028-02-28T23:00:00Z", "2028-03-30T22:00:00Z"],
            "the 31st, the 29th of a leap year, the 31st in summer time"
        );
        assert_eq!(
            run(Period::Month, 15, "2026-03-14T23:00:00Z"),
            ["2026-04-14T22:00:00Z", "2026-05-14T22:00:00Z", "2026-06-14T22:00:00Z"],
            "never the same midnight again"
        );
        assert_eq!(
            run(Period::Week, 1, "2026-10-23T10:00:00Z"),
            ["2026-10-25T23:00:00Z", "2026-11-01T23:00:00Z", "2026-11-08T23:00:00Z"]
        );
        assert_eq!(
            run(Period::Day, 1, "2026-03-28T10:00:00Z"),
            ["2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "2026-03-30T22:00:00Z"]
        );
    }

    #[test]
    fn the_ends_of_the_calendar_are_no_end_of_the_program() {
        for at_us in [i64::MIN, i64::MAX] {
            for period in [Period::Day, Period::Week, Period::Month] {
                let (from, until) = period.around(at_us, &TimeZone::UTC);
                assert!(from <= until);
                assert!(next_us(period, 31, at_us, &TimeZone::UTC) >= at_us);
            }
        }
    }
}
