//! Points in time and durations. There is no `now` here: shells stamp, cores read.

use serde::{Deserialize, Serialize};

/// Microseconds since 1970, UTC. Stamped once, on arrival, by a shell; never runs backwards within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// This many milliseconds later.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Microseconds from `earlier` to here, 0 if it is later.
    pub fn since_us(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Milliseconds from `earlier` to here, rounded down, 0 if it is later.
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.since_us(earlier) / 1000
    }
}

/// A duration that users write in seconds, whole or with a fraction; kept in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds {
    /// The same in milliseconds.
    pub ms: u64,
}

impl Seconds {
    /// Whole seconds.
    pub const fn whole(seconds: u64) -> Self {
        Self { ms: seconds * 1000 }
    }
}

impl Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.ms.is_multiple_of(1000) {
            s.serialize_u64(self.ms / 1000)
        } else {
            s.serialize_f64(self.ms as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(d)?;
        if !(0.0..=1e9).contains(&seconds) {
            return Err(serde::de::Error::custom(format!(
                "{seconds} is not a number of seconds between 0 and 1000000000"
            )));
        }
        Ok(Self { ms: (seconds * 1000.0).round() as u64 })
    }
}
