//! Set times: cron expressions in a time zone, and periods. Here is only arithmetic: given a point in time, which comes next.

use crate::time::{Seconds, Time};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds as CronSeconds, Year},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// When a function runs by itself (SPEC E).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// A cron expression of five fields; excludes `period_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The expression's time zone, by its IANA name; UTC without one (SPEC E05).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Every so many seconds from the deployment on; excludes `cron`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period_s: Option<Seconds>,
    /// What each run gets as its input.
    #[serde(default)]
    pub input: Value,
    /// What happens when a run is due while an earlier one has not ended.
    #[serde(default)]
    pub overlap: Overlap,
    /// What happens to runs that were due while no scheduler ran.
    #[serde(default)]
    pub missed: Missed,
}

/// A run is due while an earlier one has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It runs beside it.
    #[default]
    Allow,
    /// It is left out.
    Skip,
    /// It runs when the earlier one has ended; of several that wait, all run, one after the other.
    Queue,
}

/// Runs were due while no scheduler ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// The latest of them is made up for.
    #[default]
    RunOnce,
    /// They are left out.
    Skip,
}

/// Reads a cron expression; the error says what is wrong with it.
pub fn cron(expression: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(CronSeconds::Disallowed).year(Year::Disallowed).build();
    let wrong = |error| format!("`{expression}` is not a cron expression of five fields: {error}");
    let cron = parser.parse(expression).map_err(wrong)?;
    if cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, true).is_err() {
        return Err(format!("`{expression}` never comes; no month has that day"));
    }
    Ok(cron)
}

/// Reads a time zone's name.
pub fn timezone(name: Option<&str>) -> Result<Tz, String> {
    let name = name.unwrap_or("UTC");
    name.parse().map_err(|_| format!("`{name}` is not a time zone; use an IANA name like America/New_York"))
}

/// Set times of one expression in one zone.
#[derive(Debug, Clone)]
pub struct Times {
    cron: Cron,
    zone: Tz,
}

impl Times {
    /// Reads both.
    pub fn read(expression: &str, zone: Option<&str>) -> Result<Self, String> {
        Ok(Self { cron: cron(expression)?, zone: timezone(zone)? })
    }

    /// The first set time after `at`. Across a change of the clock a time that does not exist is taken at the change, and
    /// one that comes twice runs once.
    pub fn after(&self, at: Time) -> Option<Time> {
        let found = self.cron.find_next_occurrence(&local(at, self.zone)?, false).ok()?;
        micros(found).filter(|found| *found > at)
    }

    /// The last set time at or before `at`.
    pub fn until(&self, at: Time) -> Option<Time> {
        let found = self.cron.find_previous_occurrence(&local(at, self.zone)?, true).ok()?;
        micros(found).filter(|found| *found <= at)
    }
}

fn local(at: Time, zone: Tz) -> Option<DateTime<Tz>> {
    let utc = DateTime::<Utc>::from_timestamp_micros(i64::try_from(at.0).ok()?)?;
    Some(utc.with_timezone(&zone))
}

fn micros(at: DateTime<Tz>) -> Option<Time> {
    u64::try_from(at.timestamp_micros()).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Time {
        Time(DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros() as u64)
    }

    fn runs(expression: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let times = Times::read(expression, Some(zone)).unwrap();
        let mut now = at(from);
        let next = std::iter::from_fn(|| {
            now = times.after(now)?;
            DateTime::<Utc>::from_timestamp_micros(now.0 as i64).map(|t| t.format("%m-%dT%H:%M").to_string())
        });
        next.take(count).collect()
    }

    #[test]
    fn weekdays_at_eight_and_daily_at_twenty() {
        // SPEC E01 E02 E05
        let week = runs("0 8 * * 1-5", "UTC", "2026-03-06T07:00:00Z", 3);
        assert_eq!(week, ["03-06T08:00", "03-09T08:00", "03-10T08:00"]);
        assert_eq!(runs("0 20 * * *", "UTC", "2026-03-06T20:00:00Z", 2), ["03-07T20:00", "03-08T20:00"]);
    }

    #[test]
    fn expressions_have_five_fields_and_a_day_that_comes() {
        for good in ["0 6 * * 1-5", "*/5 * * * *", "0 0 29 2 *", "0 8 * * MON"] {
            assert!(cron(good).is_ok(), "{good}");
        }
        for wrong in ["0 0 6 * * 1", "0 6 * *", "0 0 6 * * 1 2027", "61 * * * *", "0 0 30 2 *", ""] {
            assert!(cron(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn six_in_new_york_stays_six_when_the_clock_changes() {
        // SPEC E03 E04: spring forward on 8 March, back on 1 November 2026.
        let spring = runs("0 6 * * *", "America/New_York", "2026-03-07T00:00:00Z", 3);
        assert_eq!(spring, ["03-07T11:00", "03-08T10:00", "03-09T10:00"]);
        let autumn = runs("0 22 * * *", "America/New_York", "2026-10-31T12:00:00Z", 3);
        assert_eq!(autumn, ["11-01T02:00", "11-02T03:00", "11-03T03:00"]);
    }

    #[test]
    fn an_hour_that_is_missing_or_comes_twice_runs_once() {
        let missing = runs("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2);
        assert_eq!(missing.len(), 2);
        assert!(missing[0].starts_with("03-08") && missing[1].starts_with("03-09"), "{missing:?}");
        let twice = runs("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2);
        assert!(twice[0].starts_with("11-01") && twice[1].starts_with("11-02"), "{twice:?}");
    }

    #[test]
    fn what_was_last_is_found_too_and_nonsense_is_named() {
        let times = Times::read("0 6 * * 1-5", None).unwrap();
        assert_eq!(times.until(at("2026-03-08T12:00:00Z")), Some(at("2026-03-06T06:00:00Z")));
        assert_eq!(times.until(at("2026-03-06T06:00:00Z")), Some(at("2026-03-06T06:00:00Z")));
        assert!(Times::read("0 25 * * *", None).unwrap_err().contains("0 25"));
        assert!(Times::read("0 6 * * *", Some("Mars/Base")).unwrap_err().contains("Mars/Base"));
    }
}
