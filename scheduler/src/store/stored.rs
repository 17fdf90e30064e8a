//! How a value is written, so that the version before and the version after can read it.
//!
//! Each value begins with the number of its type's version; the rest is `postcard`, which knows positions and no names. So a type
//! may only grow where an older reader does not look: enums at their end. A value carries the **oldest** version that can say
//! it: what an older scheduler could have written, it can read. Values that no older version could say carry a newer number, and an
//! older scheduler refuses them by that number instead of misreading them. `golden/` holds values of each release.

use super::StoreError;
use bytes::Bytes;
use capstan_common::{
    input::{Format, Outcome, Payload},
    time::Time,
};
use capstan_scheduler_core::{
    autoscaler::Policy,
    decision::Decision,
    record::{Entry, ScheduleState, Tries, UsedKey},
};
use serde::{Serialize, de::DeserializeOwned};

/// A type of which values lie in the store.
pub trait Stored: Serialize + DeserializeOwned {
    /// What errors call it.
    const NAME: &'static str;
    /// The newest version that is read.
    const VERSION: u8 = 1;

    /// The oldest version that can say this value.
    fn version(&self) -> u8 {
        1
    }

    /// Values that show all that the type can say.
    #[cfg(test)]
    fn samples() -> Vec<Self>;
}

/// Writes a value.
pub fn encode<T: Stored>(value: &T) -> Bytes {
    postcard::to_extend(value, vec![value.version()]).map(Bytes::from).unwrap_or_default()
}

/// Reads a value.
pub fn decode<T: Stored>(bytes: &[u8]) -> Result<T, StoreError> {
    decode_first(bytes).map(|(value, _)| value)
}

/// Reads the value at the beginning, and answers what follows it.
pub fn decode_first<T: Stored>(bytes: &[u8]) -> Result<(T, &[u8]), StoreError> {
    match bytes.split_first() {
        Some((version, rest)) if (1..=T::VERSION).contains(version) => {
            postcard::take_from_bytes(rest).map_err(|e| StoreError::Damaged(format!("{} cannot be read: {e}", T::NAME)))
        }
        Some((version, _)) => Err(StoreError::Newer(T::NAME.into(), u32::from(*version), u32::from(T::VERSION))),
        None => Err(StoreError::Damaged(format!("{} is empty", T::NAME))),
    }
}

/// Says of types that their values lie in the store: `type, "what errors call it", samples;`.
macro_rules! stored {
    ($($type:ty, $name:literal, $samples:expr;)*) => {$(
        impl $crate::store::stored::Stored for $type {
            const NAME: &'static str = $name;
            #[cfg(test)]
            fn samples() -> Vec<Self> {
                $samples
            }
        }
    )*};
}
pub(crate) use stored;

stored! {
    Time, "a time", vec![Time(1_764_000_000_000_000)];
    Vec<Decision>, "a function's scale decisions", samples::decisions();
    ScheduleState, "a schedule's state", samples::schedules();
    Box<Tries>, "an input's attempts", vec![samples::tries()];
    UsedKey, "an idempotency key", samples::used_keys();
    Policy, "a namespace's policy", samples::policies();
}

/// The version of values with payloads that are not JSON.
pub const WITH_FORMATS: u8 = 2;

/// The oldest version that can say these payloads.
pub fn version_of<'a>(payloads: impl IntoIterator<Item = &'a Payload>) -> u8 {
    let json = payloads.into_iter().all(|payload| payload.format == Format::Json);
    if json { 1 } else { WITH_FORMATS }
}

/// The output of an outcome, if it has one.
pub fn output(entry: &Entry) -> Option<&Payload> {
    match &entry.outcome {
        Outcome::Succeeded(output) => Some(output),
        Outcome::Failed(_) | Outcome::Cancelled => None,
    }
}

impl Stored for Vec<Payload> {
    const NAME: &'static str = "a segment of inputs";
    const VERSION: u8 = WITH_FORMATS;

    fn version(&self) -> u8 {
        version_of(self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Self> {
        vec![samples::payloads(), samples::formats()]
    }
}

impl Stored for Vec<Entry> {
    const NAME: &'static str = "a record of outcomes";
    const VERSION: u8 = WITH_FORMATS;

    fn version(&self) -> u8 {
        version_of(self.iter().filter_map(output))
    }

    #[cfg(test)]
    fn samples() -> Vec<Self> {
        vec![samples::entries(samples::payloads()), samples::entries(samples::formats())]
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
pub mod samples;
