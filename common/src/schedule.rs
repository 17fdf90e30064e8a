//! Set times: cron expressions in a time zone, and periods. Here is only arithmetic: given a point in time, which comes next.

use crate::time::{Seconds, Time};
use chrono::{DateTime, TimeZone, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds as CronSeconds, Year},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// When a function runs by itself (SPEC E).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// A cron expression of five fields; excludes `period_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(example = "0 8 * * 1-5"))]
    pub cron: Option<String>,
    /// The expression's time zone, by its IANA name; UTC without one (SPEC E05).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(example = "America/New_York"))]
    pub timezone: Option<String>,
    /// Every so many seconds from the deployment on; excludes `cron`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<f64>, minimum = 1))]
    pub period_s: Option<Seconds>,
    /// What each run gets as its input.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = serde_json::Value))]
    pub input: Json,
    /// What happens when a run is due while an earlier one has not ended.
    #[serde(default)]
    pub overlap: Overlap,
    /// What happens to runs that were due while no scheduler ran.
    #[serde(default)]
    pub missed: Missed,
}

/// A JSON value as it was written: numbers keep all their digits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Its text on one line.
    pub fn line(&self) -> String {
        self.0.get().replace(['\n', '\r'], " ")
    }

    /// Whether everything that shows it can: not so numbers past what a double holds, and halves of characters.
    pub fn is_plain(&self) -> bool {
        serde_json::from_str::<serde_json::Value>(self.0.get()).is_ok()
    }
}

impl Default for Json {
    fn default() -> Self {
        Self(RawValue::NULL.to_owned())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

/// A run is due while an earlier one has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// The latest of them is made up for.
    #[default]
    RunOnce,
    /// They are left out.
    Skip,
}

/// The longest cron expression.
const EXPRESSION_BYTES: usize = 256;
/// The year 4955. Searches end in the year 5000: from here one that never comes has been looked for through 45 years, in which
/// every day of the calendar comes on every day of the week, and not through three thousand.
const LATE: i64 = 94_197_513_600;

/// Reads a cron expression; the error says what is wrong with it.
pub fn cron(expression: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(CronSeconds::Disallowed).year(Year::Disallowed).build();
    let wrong = |error| format!("`{expression}` is not a cron expression of five fields: {error}");
    if expression.len() > EXPRESSION_BYTES {
        return Err(format!(
            "a cron expression has at most {EXPRESSION_BYTES} characters, this has {}",
            expression.len()
        ));
    }
    let cron = parser.parse(expression).map_err(wrong)?;
    let from = DateTime::<Utc>::from_timestamp(LATE, 0).unwrap_or(DateTime::<Utc>::UNIX_EPOCH);
    if cron.find_next_occurrence(&from, true).is_err() {
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
    /// Whether it names minutes and hours, and does not go by intervals.
    is_fixed: bool,
}

impl Times {
    /// Reads both.
    pub fn read(expression: &str, zone: Option<&str>) -> Result<Self, String> {
        let is_fixed = expression.split_whitespace().take(2).all(|field| !field.contains('*'));
        Ok(Self { cron: cron(expression)?, zone: timezone(zone)?, is_fixed })
    }

    /// The first set time after `at`. Across a change of the clock a time that does not exist is taken at the change, and
    /// one that comes twice runs once; what goes by intervals goes on.
    pub fn after(&self, at: Time) -> Option<Time> {
        let mut from = local(at, self.zone)?;
        loop {
            from = self.cron.find_next_occurrence(&from, false).ok()?;
            if !self.comes_again(&from) {
                return micros(from).filter(|found| *found > at);
            }
        }
    }

    /// The last set time at or before `at`.
    pub fn until(&self, at: Time) -> Option<Time> {
        let mut from = self.cron.find_previous_occurrence(&local(at, self.zone)?, true).ok()?;
        while self.comes_again(&from) {
            from = self.cron.find_previous_occurrence(&from, false).ok()?;
        }
        micros(from).filter(|found| *found <= at)
    }

    /// Whether it is a set time that the clock has shown an hour ago already.
    fn comes_again(&self, at: &DateTime<Tz>) -> bool {
        let earlier = self.zone.from_local_datetime(&at.naive_local()).earliest();
        self.is_fixed && earlier.is_some_and(|earlier| earlier < *at)
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
        let listed = runs("0,30 1 * * *", "America/New_York", "2026-11-01T00:00:00Z", 4);
        assert_eq!(listed, ["11-01T05:00", "11-01T05:30", "11-02T06:00", "11-02T06:30"]);
        // What goes by intervals goes on.
        let every = runs("*/30 1 * * *", "America/New_York", "2026-11-01T00:00:00Z", 4);
        assert_eq!(every, ["11-01T05:00", "11-01T05:30", "11-01T06:00", "11-01T06:30"]);
        let hours = runs("15 * * * *", "America/New_York", "2026-11-01T05:00:00Z", 3);
        assert_eq!(hours, ["11-01T05:15", "11-01T06:15", "11-01T07:15"]);
        let times = Times::read("0,30 1 * * *", Some("America/New_York")).unwrap();
        assert_eq!(times.until(at("2026-11-01T06:45:00Z")), Some(at("2026-11-01T05:30:00Z")));
    }

    #[test]
    fn an_input_keeps_its_digits() {
        let schedule: Schedule = serde_json::from_str(
            "{\"period_s\":1,\"input\":{\"id\":12345678901234567890123,\n\"f\":18446744073709551616}}",
        )
        .unwrap();
        assert_eq!(schedule.input.line(), "{\"id\":12345678901234567890123, \"f\":18446744073709551616}");
        assert!(serde_json::to_string(&schedule).unwrap().contains("12345678901234567890123"));
        assert_eq!(serde_json::from_str::<Schedule>("{\"period_s\":1}").unwrap().input.line(), "null");
    }

    #[test]
    fn what_was_last_is_found_too_and_nonsense_is_named() {
        // SPEC E05: without a zone it is UTC.
        let times = Times::read("0 6 * * 1-5", None).unwrap();
        assert_eq!(times.until(at("2026-03-08T12:00:00Z")), Some(at("2026-03-06T06:00:00Z")));
        assert_eq!(times.until(at("2026-03-06T06:00:00Z")), Some(at("2026-03-06T06:00:00Z")));
        assert!(Times::read("0 25 * * *", None).unwrap_err().contains("0 25"));
        assert!(Times::read("0 6 * * *", Some("Mars/Base")).unwrap_err().contains("Mars/Base"));
    }
}
