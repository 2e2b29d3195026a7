//! How long an allowance lasts at the pace of the last four weeks.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use rusqlite::Connection;
use serde::Serialize;

use crate::calendar::{date_at, midnight_us};
use crate::purse::{Layer, Purse};
use crate::query::timestamp;
use crate::{Credits, Result, admin, tree};

/// The pace is that of so many days, or of fewer if the wallet is younger.
const DAYS_SEEN_MAX: i32 = 28;

/// Fewer whole days tell nothing.
const DAYS_SEEN_MIN: i32 = 3;

/// From so many days on, each weekday has a pace of its own.
const DAYS_OF_WEEKS: i32 = 14;

/// What is farther ahead is not told.
const DAYS_AHEAD_MAX: i32 = 366;

/// Settled requests that are looked at, the newest first: enough for a pace, and soon read.
const REQUESTS_MAX: usize = 20_000;

/// How long a wallet's own grants last if it spends on as it did: those to come included, and what expires before it is
/// spent left out. Pools and overdrafts are not counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// What it spends on an average day.
    pub per_day: Credits,
    /// The whole days that this follows from.
    pub days_seen: u32,
    /// When nothing is left; `None` if that is more than a year away.
    pub until: Option<Timestamp>,
}

/// `None` if nothing was spent, or for too short a time to tell.
pub(crate) fn forecast(conn: &Connection, name: &str, now_us: i64) -> Result<Option<Forecast>> {
    let wallet = admin::require_wallet(conn, name)?.seq;
    let zone = tree::zone(&tree::path(conn, wallet)?)?;
    let Some(pace) = Pace::seen(conn, wallet, now_us, &zone)? else { return Ok(None) };
    let purse = Purse::load(conn, wallet)?;
    let until = pace.ends(purse, now_us, &zone).map(timestamp);
    Ok(Some(Forecast {
        per_day: Credits::from_micro(pace.sum / i64::from(pace.days)),
        days_seen: pace.days.unsigned_abs(),
        until,
    }))
}

/// What is spent on a day of each weekday, Monday first, in micro-credits.
struct Pace {
    by_weekday: [i64; 7],
    sum: i64,
    days: i32,
}

impl Pace {
    /// Of whole days, the last one of them being yesterday.
    fn seen(conn: &Connection, wallet: i64, now_us: i64, zone: &TimeZone) -> Result<Option<Pace>> {
        let today = date_at(now_us, zone);
        let created_us: i64 = conn
            .prepare_cached("SELECT created_us FROM wallet WHERE seq = ?1")?
            .query_row([wallet], |row| row.get(0))?;
        let mut first = date_at(created_us, zone).max(today.saturating_sub(Span::new().days(DAYS_SEEN_MAX)));
        let sql = "SELECT e.effective_us, p.amount FROM posting p JOIN entry e ON e.id = p.entry \
             WHERE p.account = ?1 AND e.kind = 'settle' ORDER BY p.entry DESC";
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query([wallet])?;
        let mut spent: Vec<(Date, i64)> = Vec::new();
        while let Some(row) = rows.next()? {
            let date = date_at(row.get(0)?, zone);
            if date < first {
                break;
            }
            if spent.len() == REQUESTS_MAX {
                // Of this day only a part was seen.
                first = date.saturating_add(Span::new().days(1));
                break;
            }
            spent.push((date, -row.get::<_, i64>(1)?));
        }
        Ok(Pace::of(&spent, first, today))
    }

    fn of(spent: &[(Date, i64)], first: Date, today: Date) -> Option<Pace> {
        let days = first.until(today).map_or(0, |span| span.get_days());
        let mut by_weekday = [0; 7];
        for (date, amount) in spent.iter().filter(|(date, _)| (first..today).contains(date)) {
            let weekday: &mut i64 = &mut by_weekday[weekday(*date)];
            *weekday = weekday.saturating_add(*amount);
        }
        let sum = by_weekday.iter().fold(0_i64, |sum, spent| sum.saturating_add(*spent));
        if days < DAYS_SEEN_MIN || sum <= 0 {
            return None;
        }
        for (index, spent) in by_weekday.iter_mut().enumerate() {
            let had = (0..days).filter(|&day| weekday(first.saturating_add(Span::new().days(day))) == index).count();
            *spent = match i64::try_from(had) {
                Ok(had) if days >= DAYS_OF_WEEKS && had > 0 => *spent / had,
                _ => sum / i64::from(days),
            };
        }
        Some(Pace { by_weekday, sum, days })
    }

    /// When a purse is empty.
    fn ends(&self, mut purse: Purse, now_us: i64, zone: &TimeZone) -> Option<i64> {
        let today = date_at(now_us, zone);
        for day in 0..DAYS_AHEAD_MAX {
            let date = today.saturating_add(Span::new().days(day));
            let (midnight, end) =
                (midnight_us(date, zone), midnight_us(date.saturating_add(Span::new().days(1)), zone));
            let (from, length) = (midnight.max(now_us), (end - midnight).max(1));
            // Of today, what is left of it.
            let share = |amount: i64| (i128::from(amount) * i128::from(end - from) / i128::from(length)) as i64;
            let needed = share(self.by_weekday[weekday(date)]);
            purse.pass_time(end - 1);
            let taken = purse.take(needed, None, Layer::Grants, end - 1, &mut Vec::new());
            if taken < needed {
                let part = i128::from(end - from) * i128::from(taken) / i128::from(needed);
                return Some(from + part as i64);
            }
        }
        None
    }
}

fn weekday(date: Date) -> usize {
    date.weekday().to_monday_zero_offset().unsigned_abs().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn weekdays_have_their_own_pace_once_there_are_two_of_each() {
        let (first, today) = (date("2026-11-02"), date("2026-11-30")); // four weeks from a Monday on
        let workdays = (0..28).map(|day| first.saturating_add(Span::new().days(day))).filter(|day| weekday(*day) < 5);
        let spent: Vec<_> = workdays.map(|day| (day, 70)).collect();
        let pace = Pace::of(&spent, first, today).unwrap();
        assert_eq!((pace.by_weekday, pace.days), ([70, 70, 70, 70, 70, 0, 0], 28));
        let week = Pace::of(&spent[..5], first, date("2026-11-09")).unwrap();
        assert_eq!(week.by_weekday, [50; 7], "of one week, nothing is known of weekdays");
    }

    #[test]
    fn too_little_is_no_pace() {
        let spent = [(date("2026-11-02"), 70), (date("2026-11-04"), 70)];
        assert!(Pace::of(&spent, date("2026-11-02"), date("2026-11-04")).is_none(), "two days");
        assert!(Pace::of(&[], date("2026-11-02"), date("2026-11-30")).is_none(), "nothing spent");
        let pace = Pace::of(&spent, date("2026-11-02"), date("2026-11-06")).unwrap();
        assert_eq!((pace.sum, pace.days), (140, 4));
    }
}
