//! An engine's keys in memory: where the value of each lies, and how many bytes are live.

use std::{collections::BTreeMap, ops::Bound};

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In which part of the log: a file, or an entry.
    pub part: u64,
    /// The value's first byte there.
    pub at: u64,
    /// How long it is.
    pub len: u32,
    /// Its checksum.
    pub crc: u32,
}

/// All keys.
#[derive(Debug, Default)]
pub struct Places {
    places: BTreeMap<Box<[u8]>, Place>,
    live: u64,
}

impl Places {
    /// A key's value lies there now, or nowhere.
    pub fn set(&mut self, key: &[u8], place: Option<Place>) {
        let before = match place {
            Some(place) => {
                self.live += u64::from(place.len) + key.len() as u64;
                self.places.insert(key.into(), place)
            }
            None => self.places.remove(key),
        };
        if let Some(before) = before {
            self.live -= u64::from(before.len) + key.len() as u64;
        }
    }

    /// Where a key's value lies.
    pub fn get(&self, key: &[u8]) -> Option<Place> {
        self.places.get(key).copied()
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Bytes of all keys and their values.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Up to `limit` keys with the prefix, in order, after `after` (or before it, in reverse).
    pub fn keys(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize, reverse: bool) -> Vec<Box<[u8]>> {
        let end = after_prefix(prefix);
        let mut low = Bound::Included(prefix);
        let mut high = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        match after {
            Some(after) if reverse => high = Bound::Excluded(after),
            Some(after) => low = Bound::Excluded(after),
            None => {}
        }
        let found = self.places.range::<[u8], _>((low, high)).map(|(key, _)| key.clone());
        if reverse { found.rev().take(limit).collect() } else { found.take(limit).collect() }
    }
}

/// The first key that is after all keys with the prefix.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}
