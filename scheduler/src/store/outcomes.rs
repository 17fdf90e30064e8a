//! Outcomes on their way into the store: packed into records of some size, so that the number of keys does not grow with
//! the number of inputs, however slowly their ends trickle in. The last record of a live call is written again with what is
//! added, until it is full; the outcomes of a call that fit one record lie with the call itself once it has ended.

use super::{Change, layout, stored};
use bytes::Bytes;
use capstan_common::id::CallId;
use capstan_scheduler_core::record::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes after which a record takes no more.
const RECORD_BYTES: usize = 16 << 10;

/// A call's record that is not full.
#[derive(Debug, Default)]
struct Open {
    sequence: u64,
    count: u64,
    entries: Vec<u8>,
    /// The oldest version that can say them all.
    version: u8,
    /// Whether the store has it, perhaps with fewer entries.
    written: bool,
}

impl Open {
    fn value(&self) -> Bytes {
        let head = postcard::to_extend(&self.count, vec![self.version.max(1)]).unwrap_or_default();
        [head.as_slice(), &self.entries].concat().into()
    }
}

/// The open records of all live calls that have outcomes.
#[derive(Debug, Default)]
pub struct Outcomes {
    open: BTreeMap<CallId, Open>,
    /// Calls of which the store lacks entries.
    dirty: BTreeSet<CallId>,
}

impl Outcomes {
    /// Goes on behind the records that calls have already, by call.
    pub fn after(records: impl IntoIterator<Item = (CallId, u64)>) -> Self {
        let open = |sequence| Open { sequence, ..Open::default() };
        let begun = records.into_iter().filter(|(_, sequence)| *sequence > 0);
        Self { open: begun.map(|(call, sequence)| (call, open(sequence))).collect(), dirty: BTreeSet::new() }
    }

    /// Adds a call's outcomes; a record that is full thereby is written.
    pub fn add(&mut self, call: CallId, entries: &[Entry], out: &mut Vec<Change>) {
        let open = self.open.entry(call).or_default();
        for entry in entries {
            let before = std::mem::take(&mut open.entries);
            open.entries = postcard::to_extend(entry, before).unwrap_or_default();
            open.count += 1;
            open.version = open.version.max(stored::version_of(stored::output(entry)));
            if open.entries.len() >= RECORD_BYTES {
                out.push(Change::Put(layout::outcomes(call, open.sequence), open.value()));
                *open = Open { sequence: open.sequence + 1, ..Open::default() };
            }
        }
        if open.count > 0 {
            self.dirty.insert(call);
        }
    }

    /// Writes what the store lacks.
    pub fn flush(&mut self, out: &mut Vec<Change>) {
        for call in std::mem::take(&mut self.dirty) {
            if let Some(open) = self.open.get_mut(&call).filter(|open| open.count > 0) {
                out.push(Change::Put(layout::outcomes(call, open.sequence), open.value()));
                open.written = true;
            }
        }
    }

    /// The call has ended: its outcomes, if they fit one record and are to lie with the call; else the last record is written.
    pub fn end(&mut self, call: CallId, out: &mut Vec<Change>) -> Option<Bytes> {
        let open = self.open.remove(&call)?;
        let key = layout::outcomes(call, open.sequence);
        if open.sequence == 0 {
            self.dirty.remove(&call);
            if open.written {
                out.push(Change::Delete(key));
            }
            return Some(open.value());
        }
        if self.dirty.remove(&call) && open.count > 0 {
            out.push(Change::Put(key, open.value()));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capstan_common::{
        id::ContainerId,
        input::{Outcome, Payload},
        time::Time,
    };

    const CALL: CallId = CallId(1);

    fn entry(index: u64) -> Entry {
        Entry {
            index,
            count: 1,
            attempts: 1,
            container: ContainerId(1),
            submitted: Time(1),
            leased: Time(2),
            run_us: 3,
            finished: Time(4),
            outcome: Outcome::Succeeded(Payload::json(&b"null"[..])),
            tries: None,
        }
    }

    fn indexes(value: &[u8]) -> Vec<u64> {
        stored::decode::<Vec<Entry>>(value).unwrap().iter().map(|e| e.index).collect()
    }

    #[test]
    fn outcomes_that_trickle_in_share_records_and_none_is_left_out() {
        let mut outcomes = Outcomes::default();
        let mut stored: BTreeMap<Box<[u8]>, Bytes> = BTreeMap::new();
        for index in 0..5_000 {
            let mut out = Vec::new();
            outcomes.add(CALL, &[entry(index)], &mut out);
            outcomes.flush(&mut out);
            assert!(out.len() <= 2);
            for change in out {
                let Change::Put(key, value) = change else { panic!("nothing is removed") };
                stored.insert(key, value);
            }
        }
        assert!(stored.len() < 20, "{} records", stored.len());
        let all: Vec<u64> = stored.values().flat_map(|value| indexes(value)).collect();
        assert_eq!(all, (0..5_000).collect::<Vec<_>>());
        assert!(outcomes.end(CALL, &mut Vec::new()).is_none());
    }

    #[test]
    fn a_small_calls_outcomes_lie_with_the_call() {
        let mut outcomes = Outcomes::default();
        let mut out = Vec::new();
        outcomes.add(CALL, &[entry(0)], &mut out);
        assert_eq!(indexes(&outcomes.end(CALL, &mut out).unwrap()), [0]);
        assert!(out.is_empty(), "a record that was never written is not removed");
        outcomes.add(CALL, &[entry(0)], &mut out);
        outcomes.flush(&mut out);
        outcomes.add(CALL, &[entry(1)], &mut out);
        assert_eq!(indexes(&outcomes.end(CALL, &mut out).unwrap()), [0, 1]);
        assert!(matches!(out.last(), Some(Change::Delete(_))));
    }
}
