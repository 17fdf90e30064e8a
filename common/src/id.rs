//! Names and numbers that identify things.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// A text that is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id: it must look like `{example}`")]
pub struct BadId {
    text: String,
    kind: &'static str,
    example: &'static str,
}

/// A client's request. The high 48 bits are its time of birth in milliseconds (UUID version 7), so ids sort by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u128);

impl CallId {
    /// When the id was minted, in milliseconds since 1970; 0 for a number that no scheduler mints.
    pub fn born_ms(self) -> u64 {
        let (version, variant) = ((self.0 >> 76) & 0xf, (self.0 >> 62) & 0b11);
        if (version, variant) == (7, 0b10) { (self.0 >> 80) as u64 } else { 0 }
    }
}

impl CallId {
    /// The place of its function (see [`FunctionKey::place`]), for ids that were minted for one.
    pub fn place(self) -> u16 {
        self.0 as u16
    }

    /// The same id for a call of a function with this place.
    pub fn placed(self, place: u16) -> Self {
        Self(self.0 & !0xffff | u128::from(place))
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ca-{:032x}", self.0)
    }
}

impl FromStr for CallId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        text.strip_prefix("ca-")
            .filter(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u128::from_str_radix(hex, 16).ok())
            .map(CallId)
            .ok_or_else(|| BadId {
                text: text.chars().take(64).collect(),
                kind: "call",
                example: "ca-0192f0c1d2e37a4b8c5d6e7f80910a1b",
            })
    }
}

/// A running instance of a function. Minted by the scheduler: its epoch in the high bits, a counter in the low 40.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub u64);

impl ContainerId {
    /// The epoch of the scheduler's life that minted it.
    pub fn epoch(self) -> Epoch {
        Epoch(self.0 >> COUNTER_BITS)
    }

    /// Before the first of an epoch.
    pub fn first(epoch: Epoch) -> Self {
        Self(epoch.0 << COUNTER_BITS)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ct-{:016x}", self.0)
    }
}

impl FromStr for ContainerId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        text.strip_prefix("ct-")
            .filter(|hex| hex.len() == 16)
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .map(ContainerId)
            .ok_or_else(|| BadId {
                text: text.chars().take(64).collect(),
                kind: "container",
                example: "ct-0000010000000001",
            })
    }
}

/// Texts where people read, numbers in the store.
macro_rules! serde_as_text {
    ($($id:ident),*) => {$(
        impl Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if !d.is_human_readable() {
                    return Deserialize::deserialize(d).map($id);
                }
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(CallId, ContainerId);

/// A worker's name, unique in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(value_type = String))]
#[serde(transparent)]
pub struct WorkerId(pub Arc<str>);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A function's full name: `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FunctionKey {
    /// The namespace; `default` always exists.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub namespace: Arc<str>,
    /// The name, `[a-z0-9A-Z._-]{1,128}`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub name: Arc<str>,
}

impl FunctionKey {
    /// Joins the two parts without checking them; see [`crate::validate::function_key`].
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Where the function lies among all, for good: its shard is this number modulo the number of shards. Instances lie with
    /// their function. (FNV-1a, folded to 16 bits.)
    pub fn place(&self) -> u16 {
        let base = self.name.split(crate::parameter::SEPARATOR).next().unwrap_or_default();
        let bytes = self.namespace.bytes().chain([0]).chain(base.bytes());
        let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        (hash >> 16) as u16 ^ hash as u16
    }

    /// Its shard, where there are so many.
    pub fn shard(&self, shards: u16) -> Shard {
        Shard(self.place() % shards.max(1))
    }
}

impl fmt::Display for FunctionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A part of all functions that has one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Shard(pub u16);

/// One of a worker's links, each to another scheduler; numbered by the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// The number of a deployed version of a function, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Revision(pub u32);

/// An owner's fencing number: each start of a scheduler on a store has a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Container-holds-input. Minted by the function's owner: its epoch in the high bits, a counter in the low 40,
/// so that no two attempts ever share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

/// A request through `/web`, for as long as it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The low bits of a minted number that count inside an epoch.
pub const COUNTER_BITS: u32 = 40;

/// Mints numbers that no other epoch mints.
#[derive(Debug, Clone)]
pub struct Minter {
    next: u64,
}

impl Minter {
    /// Starts at the epoch's first number.
    pub fn new(epoch: Epoch) -> Self {
        Self { next: (epoch.0 << COUNTER_BITS) | 1 }
    }

    /// The next number.
    pub fn mint(&mut self) -> u64 {
        let minted = self.next;
        self.next += 1;
        minted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_what_they_print() {
        let call = CallId(0x0192_f0c1_d2e3_7a4b_8c5d_6e7f_8091_0a1b);
        assert_eq!(call.to_string().parse(), Ok(call));
        let container = ContainerId(7);
        assert_eq!(container.to_string().parse(), Ok(container));
    }

    #[test]
    fn calls_and_instances_lie_where_their_function_lies() {
        let function = FunctionKey::new("default", "my-app.model");
        let instance = FunctionKey::new("default", "my-app.model;version=3.5");
        assert_eq!(function.place(), instance.place());
        assert_ne!(function.place(), FunctionKey::new("other", "my-app.model").place());
        let call = CallId(0x0192_f0c1_d2e3_7a4b_8c5d_6e7f_8091_0a1b).placed(function.place());
        assert_eq!((call.place(), call.born_ms() > 0), (function.place(), true));
        // Names of a kind spread over all shards.
        let mut shards = [0; 16];
        (0..1600).for_each(|n| shards[FunctionKey::new("default", &format!("f{n}")).shard(16).0 as usize] += 1);
        assert!(shards.iter().all(|n| (50..200).contains(n)), "{shards:?}");
    }

    #[test]
    fn other_texts_are_refused_and_named() {
        for text in ["", "ca-", "ca-+192f0c1d2e37a4b8c5d6e7f80910a1b", "ct-1", "x"] {
            let error = text.parse::<CallId>().unwrap_err();
            assert!(error.to_string().contains(text));
        }
    }
}
