//! Time as the scheduler's shells stamp it and its answers print it.

pub use capstan_clock::now;
use capstan_common::time::Time;

/// A time as RFC 3339 in UTC with microseconds.
pub fn rfc3339(time: Time) -> String {
    chrono::DateTime::from_timestamp_micros(time.0 as i64)
        .map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
        .unwrap_or_default()
}
