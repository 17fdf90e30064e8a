//! Where a page of results begins.

use capstan_common::refusal::Refusal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::str::FromStr;

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// By the order of ends: record, entry, and input within the entry.
    Ended(u64, u32, u64),
    /// By the order of inputs: the next index.
    Index(u64),
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(record, entry, within) => write!(f, "e{record}.{entry}.{within}"),
            Self::Index(index) => write!(f, "i{index}"),
        }
    }
}

impl FromStr for Cursor {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let parse = || {
            if let Some(index) = text.strip_prefix('i') {
                return index.parse().ok().map(Self::Index);
            }
            let mut parts = text.strip_prefix('e')?.splitn(3, '.');
            let (record, entry, within) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Self::Ended(record.parse().ok()?, entry.parse().ok()?, within.parse().ok()?))
        };
        parse().ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Refusal::field("after", format!("`{shown}` is not a cursor; use the `cursor` of a line"))
        })
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(|refusal: Refusal| D::Error::custom(refusal.detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_what_they_print() {
        for cursor in [Cursor::Ended(3, 4, 5), Cursor::Index(9)] {
            assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        }
        for bad in ["", "e1.2", "i", "x", "e1.2.3.4", "i-1"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }
}
