//! What lies under which key, and how values are written.
//!
//! | key | value |
//! | --- | --- |
//! | `E` | epoch, u64 |
//! | `F` ns `\0` name | the live revision and its overrides |
//! | `C` call | a live call's record, and its inputs if they are few |
//! | `D` call | an ended call's record, and its outcomes if they are few |
//! | `S` call segment | packed inputs |
//! | `O` call sequence | packed outcomes |
//! | `A` call index | attempts so far |
//! | `G` ns `\0` name | the latest scale decisions |
//! | `K` ns `\0` name `\0` key | an idempotency key in use |
//! | `L` ns `\0` name | the revision that serves, while the one that was deployed last is still to take over |
//! | `M` ns `\0` name `\0` revision | a revision that was deployed |
//! | `N` ns | a namespace's weight and quota |
//! | `P` ns `\0` name | where the schedule stands |
//! | `T` ns `\0` name | the last revision of a function that was removed |
//! | `H` | when the store was last known to be in use |
//! | `X` | the cluster's authority: its certificate and key |
//! | `Y` | the key that functions' tokens are signed with |
//! | `J` token id | a join token that was not used yet |
//! | `Q` ns `\0` name | a secret's variables |
//! | `R` worker | a worker whose certificate is not good any more |
//! | `U` token id | an API token's role, namespaces and hash |
//! | `W` worker | a worker that has joined, and whether it drains |
//! | `Z` | the scale-to-zero configuration |
//!
//! How a value is written is told in `stored.rs`. A worker's value is flags in a row, to which more may be added.

use super::{
    Change, StoreError,
    outcomes::Outcomes,
    stored::{self, Stored, decode, decode_first, encode, stored},
};
use bytes::Bytes;
use capstan_common::{
    function::Overrides,
    id::{CallId, FunctionKey, Revision},
    input::Payload,
    parameter,
    time::Time,
};
use capstan_scheduler_core::record::{CallRecord, Deployment, Entry, Record};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The epoch's key.
pub const EPOCH: &[u8] = b"E";
/// Prefix of functions.
pub const FUNCTIONS: &[u8] = b"F";
/// Prefix of calls that have not ended.
pub const LIVE: &[u8] = b"C";
/// Prefix of calls that have ended.
pub const ENDED: &[u8] = b"D";
/// Prefix of workers.
pub const WORKERS: &[u8] = b"W";
/// What the folder of large payloads is known by.
pub const PAYLOADS: &[u8] = b"B";
/// Prefix of namespaces.
pub const NAMESPACES: &[u8] = b"N";
/// The key of the cluster's authority.
pub const AUTHORITY: &[u8] = b"X";
/// The key that functions' tokens are signed with.
pub const FUNCTION_KEY: &[u8] = b"Y";
/// Prefix of secrets.
pub const SECRETS: &[u8] = b"Q";
/// Prefix of join tokens.
pub const JOINS: &[u8] = b"J";
/// Prefix of API tokens.
pub const TOKENS: &[u8] = b"U";
/// Written with each revoking of a token: nobody sees that a key is gone.
pub const REVOKED: &[u8] = b"V";
/// The key of the scale-to-zero configuration.
pub const ZERO: &[u8] = b"Z";
/// The key of the last time that a scheduler was known to run.
pub const LAST: &[u8] = b"H";

/// What is stored of a function.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredFunction {
    /// The live revision.
    pub revision: u32,
    /// When it was deployed.
    pub at: Time,
    /// Its spec, as JSON.
    pub spec: String,
    /// The dynamic settings.
    pub overrides: [Option<u32>; 4],
}

impl StoredFunction {
    /// From what the core holds.
    pub fn new(deployed: &Deployment, overrides: &Overrides) -> Self {
        Self {
            revision: deployed.revision.0,
            at: deployed.at,
            spec: serde_json::to_string(&*deployed.spec).unwrap_or_default(),
            overrides: [
                overrides.min_containers,
                overrides.max_containers,
                overrides.buffer_containers,
                overrides.scaledown_window,
            ],
        }
    }

    /// Back to what the core holds.
    pub fn read(&self) -> Result<(Deployment, Overrides), StoreError> {
        let spec = serde_json::from_str(&self.spec)
            .map_err(|e| StoreError::Damaged(format!("a function's spec cannot be read: {e}")))?;
        let [min_containers, max_containers, buffer_containers, scaledown_window] = self.overrides;
        let overrides = Overrides { min_containers, max_containers, buffer_containers, scaledown_window };
        let deployed = Deployment { revision: Revision(self.revision), spec: Arc::new(spec), at: self.at };
        Ok((deployed, overrides))
    }
}

/// What is stored of a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredCall {
    /// Whose it is.
    pub function: FunctionKey,
    /// Its record.
    pub record: CallRecord,
    /// Its inputs, where they are few.
    pub here: Vec<Payload>,
}

/// The last revision of a function that was removed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Tombstone(pub u32);

stored! {
    StoredFunction, "a function", vec![
        StoredFunction::new(&super::stored::samples::deployment(), &Overrides::default()),
        StoredFunction::new(&super::stored::samples::deployment(), &Overrides {
            min_containers: Some(1), max_containers: Some(2), buffer_containers: Some(3), scaledown_window: Some(4),
        }),
    ];
    Tombstone, "a removed function", vec![Tombstone(300)];
}

impl Stored for StoredCall {
    const NAME: &'static str = "a call";
    const VERSION: u8 = stored::WITH_FORMATS;

    fn version(&self) -> u8 {
        stored::version_of(&self.here)
    }

    #[cfg(test)]
    fn samples() -> Vec<Self> {
        let call = |record, here| Self { function: super::stored::samples::function(), record, here };
        let json = super::stored::samples::call_records()
            .into_iter()
            .map(|record| call(record, super::stored::samples::payloads()));
        json.chain(
            super::stored::samples::call_records()
                .into_iter()
                .map(|record| call(record, super::stored::samples::formats())),
        )
        .collect()
    }
}

fn key(parts: &[&[u8]]) -> Box<[u8]> {
    parts.concat().into_boxed_slice()
}

/// The key of a function.
pub fn function(function: &FunctionKey) -> Box<[u8]> {
    key(&[FUNCTIONS, function.namespace.as_bytes(), b"\0", function.name.as_bytes()])
}

/// A secret.
pub fn secret(namespace: &str, name: &str) -> Box<[u8]> {
    key(&[SECRETS, namespace.as_bytes(), b"\0", name.as_bytes()])
}

/// The namespace and name of a secret's key.
pub fn secret_of(key: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(key.strip_prefix(SECRETS)?).ok()?.split_once('\0')
}

/// The key of a removed function's last revision.
pub fn tombstone(function: &FunctionKey) -> Box<[u8]> {
    key(&[b"T", function.namespace.as_bytes(), b"\0", function.name.as_bytes()])
}

/// The key of a namespace's weight and quota.
pub fn namespace(name: &str) -> Box<[u8]> {
    key(&[NAMESPACES, name.as_bytes()])
}

/// The key of where a function's schedule stands.
pub fn schedule(function: &FunctionKey) -> Box<[u8]> {
    key(&[b"P", function.namespace.as_bytes(), b"\0", function.name.as_bytes()])
}

/// The key of a function's latest scale decisions.
pub fn decisions(function: &FunctionKey) -> Box<[u8]> {
    key(&[b"G", function.namespace.as_bytes(), b"\0", function.name.as_bytes()])
}

/// The key of the revision that serves meanwhile.
pub fn serving(function: &FunctionKey) -> Box<[u8]> {
    key(&[b"L", function.namespace.as_bytes(), b"\0", function.name.as_bytes()])
}

/// The prefix of a function's revisions.
pub fn revisions(function: &FunctionKey) -> Box<[u8]> {
    key(&[b"M", function.namespace.as_bytes(), b"\0", function.name.as_bytes(), b"\0"])
}

/// The key of a revision.
pub fn revision(function: &FunctionKey, number: u32) -> Box<[u8]> {
    key(&[&revisions(function), &number.to_be_bytes()])
}

/// Revisions of a function that are kept, at most.
const REVISIONS: u32 = 20;
/// Bytes of them, about: of large specs fewer are kept.
const REVISIONS_BYTES: usize = 1 << 20;

/// Keeps a revision, and forgets those that are too many with it.
fn keep_revision(owner: &FunctionKey, deployed: &Deployment, out: &mut Vec<Change>) {
    // An instance's are its function's.
    if parameter::is_instance(owner) {
        return;
    }
    let value = encode(&StoredFunction::new(deployed, &Overrides::default()));
    let keep = (REVISIONS_BYTES / value.len().max(1)).clamp(1, REVISIONS as usize) as u32;
    let last = deployed.revision.0;
    let gone = last.saturating_sub(REVISIONS).max(1)..=last.saturating_sub(keep);
    out.extend(gone.map(|number| Change::Delete(revision(owner, number))));
    out.push(Change::Put(revision(owner, last), value));
}

/// The key of a join token.
pub fn join(id: &str) -> Box<[u8]> {
    key(&[JOINS, id.as_bytes()])
}

/// The key of a worker whose certificate was revoked.
pub fn revoked(worker: &str) -> Box<[u8]> {
    key(&[b"R", worker.as_bytes()])
}

/// The key of an API token.
pub fn token(id: &str) -> Box<[u8]> {
    key(&[TOKENS, id.as_bytes()])
}

/// What is stored of a worker.
pub fn worker_value(drains: bool, gone: bool) -> Bytes {
    Bytes::from(vec![u8::from(drains), u8::from(gone)])
}

/// Whether a stored worker drains; an empty value is one that was only remembered.
pub fn worker_drains(value: &[u8]) -> bool {
    value.first() == Some(&1)
}

/// Whether a stored worker is lost: it is remembered for its draining alone.
pub fn worker_is_gone(value: &[u8]) -> bool {
    value.get(1) == Some(&1)
}

/// The function whose key this is.
pub fn function_of(key: &[u8]) -> Option<FunctionKey> {
    let text = std::str::from_utf8(key.strip_prefix(FUNCTIONS)?).ok()?;
    let (namespace, name) = text.split_once('\0')?;
    Some(FunctionKey::new(namespace, name))
}

/// The key of a call that has not ended.
pub fn live(call: CallId) -> Box<[u8]> {
    key(&[LIVE, &call.0.to_be_bytes()])
}

/// The key of a call that has ended.
pub fn ended(call: CallId) -> Box<[u8]> {
    key(&[ENDED, &call.0.to_be_bytes()])
}

/// What is stored of an ended call: its record, and its outcomes if they lie with it.
fn ended_value(owner: &FunctionKey, record: CallRecord, outcomes: Option<Bytes>) -> Bytes {
    let value = encode(&StoredCall { function: owner.clone(), record, here: Vec::new() });
    match outcomes {
        Some(outcomes) => [&value[..], &outcomes].concat().into(),
        None => value,
    }
}

/// The outcomes that lie with an ended call.
pub fn outcomes_within(value: &[u8]) -> Result<Option<Vec<Entry>>, StoreError> {
    let (_, rest) = decode_first::<StoredCall>(value)?;
    if rest.is_empty() { Ok(None) } else { decode(rest).map(Some) }
}

/// The call whose key this is.
pub fn call_of(key: &[u8]) -> Option<CallId> {
    let bytes: [u8; 16] = key.get(1..17)?.try_into().ok()?;
    Some(CallId(u128::from_be_bytes(bytes)))
}

/// The prefix of a call's segments (`S`), outcomes (`O`) or attempts (`A`).
pub fn of_call(kind: u8, call: CallId) -> Box<[u8]> {
    key(&[&[kind], &call.0.to_be_bytes()])
}

/// The key of a segment.
pub fn segment(call: CallId, number: u32) -> Box<[u8]> {
    key(&[b"S", &call.0.to_be_bytes(), &number.to_be_bytes()])
}

/// The key of an outcome record.
pub fn outcomes(call: CallId, sequence: u64) -> Box<[u8]> {
    key(&[b"O", &call.0.to_be_bytes(), &sequence.to_be_bytes()])
}

/// The key of an input's attempts.
pub fn attempts(call: CallId, index: u64) -> Box<[u8]> {
    key(&[b"A", &call.0.to_be_bytes(), &index.to_be_bytes()])
}

/// The number at the end of a segment's, outcome record's or attempt's key.
pub fn number_of(key: &[u8]) -> u64 {
    key.get(17..).unwrap_or_default().iter().fold(0, |n, byte| (n << 8) | u64::from(*byte))
}

/// The prefix of a function's idempotency keys.
pub fn used_keys(function: &FunctionKey) -> Box<[u8]> {
    key(&[b"K", function.namespace.as_bytes(), b"\0", function.name.as_bytes(), b"\0"])
}

/// The key of a worker.
pub fn worker(name: &str) -> Box<[u8]> {
    key(&[WORKERS, name.as_bytes()])
}

/// The changes that end a call of a function that is gone: what of it had not ended was cancelled.
pub fn orphan_ended(stored: StoredCall, gaps: Vec<Entry>, sequence: u64) -> Vec<Change> {
    let id = stored.record.id;
    let value = ended_value(&stored.function, stored.record, None);
    let mut out = vec![Change::Delete(self::live(id)), Change::Put(ended(id), value)];
    if !gaps.is_empty() {
        out.push(Change::Put(outcomes(id, sequence), encode(&gaps)));
    }
    out
}

/// What a record changes. `live` is the function's deployment, which `Overridden` stores anew with other settings; `open` are
/// the outcomes that are still being packed.
pub fn changes(
    owner: &FunctionKey,
    record: Record,
    live: &mut Option<Deployment>,
    open: &mut Outcomes,
    out: &mut Vec<Change>,
) {
    let put = |deployed: &Deployment, overrides: &Overrides| {
        Change::Put(function(owner), encode(&StoredFunction::new(deployed, overrides)))
    };
    match record {
        Record::Deployed(deployed) => {
            out.push(put(&deployed, &Overrides::default()));
            keep_revision(owner, &deployed, out);
            *live = Some(deployed);
        }
        Record::Serving(Some(before)) => {
            out.push(Change::Put(serving(owner), encode(&StoredFunction::new(&before, &Overrides::default()))));
        }
        Record::Serving(None) => out.push(Change::Delete(serving(owner))),
        Record::Overridden(overrides) => out.extend(live.as_ref().map(|deployed| put(deployed, &overrides))),
        Record::Removed(last) => {
            *live = None;
            out.push(Change::Delete(function(owner)));
            out.push(Change::Delete(serving(owner)));
            out.push(Change::Delete(decisions(owner)));
            out.push(Change::Delete(schedule(owner)));
            let kept = last.0.saturating_sub(REVISIONS).max(1)..=last.0;
            out.extend(kept.map(|number| Change::Delete(revision(owner, number))));
            out.push(Change::Put(tombstone(owner), encode(&Tombstone(last.0))));
        }
        Record::CallOpened(record, here) => {
            let here = if record.segments.is_empty() { here } else { Vec::new() };
            let value = StoredCall { function: owner.clone(), record: *record, here };
            out.push(Change::Put(self::live(value.record.id), encode(&value)));
        }
        Record::CallEnded(record) => {
            let id = record.id;
            let outcomes = open.end(id, out);
            out.push(Change::Delete(self::live(id)));
            out.push(Change::Put(ended(id), ended_value(owner, *record, outcomes)));
        }
        Record::Scheduled(state) => out.push(Change::Put(schedule(owner), encode(&state))),
        Record::Decisions(decisions) => out.push(Change::Put(self::decisions(owner), encode(&decisions))),
        Record::SegmentEnded { call, number } => out.push(Change::Delete(segment(call, number))),
        Record::Ended { call, entries, .. } => open.add(call, &entries, out),
        Record::Attempted { call, index, tries } => {
            out.push(Change::Put(attempts(call, index), encode(&tries)));
        }
        Record::AttemptsEnded { call, index } => out.push(Change::Delete(attempts(call, index))),
        Record::KeyUsed(text, used) => {
            out.push(Change::Put(key(&[&used_keys(owner), text.as_bytes()]), encode(&used)));
        }
        Record::KeyFreed(text) => out.push(Change::Delete(key(&[&used_keys(owner), text.as_bytes()]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_twenty_revisions_are_kept_of_large_ones_fewer_and_none_of_a_function_that_is_gone() {
        let owner = FunctionKey::new("n", "f");
        let (mut kept, mut live, mut open) = (std::collections::BTreeSet::new(), None, Outcomes::default());
        let mut happen = |record, kept: &mut std::collections::BTreeSet<Box<[u8]>>| {
            let mut out = Vec::new();
            changes(&owner, record, &mut live, &mut open, &mut out);
            for change in out {
                match change {
                    Change::Put(key, _) => drop(kept.insert(key)),
                    Change::Delete(key) => drop(kept.remove(&key)),
                }
            }
            kept.iter().filter(|key| key.starts_with(&revisions(&owner))).cloned().collect::<Vec<_>>()
        };
        let deployed = |number, label: usize| {
            let Deployment { spec, at, .. } = super::super::stored::samples::deployment();
            let mut spec = (*spec).clone();
            spec.labels.insert("large".into(), "x".repeat(label));
            Record::Deployed(Deployment { revision: Revision(number), spec: Arc::new(spec), at })
        };
        for number in 1..=30 {
            happen(deployed(number, 1), &mut kept);
        }
        let numbers = |from: u32, to: u32| (from..=to).map(|n| revision(&owner, n)).collect::<Vec<_>>();
        assert_eq!(happen(deployed(31, 1), &mut kept), numbers(12, 31));
        assert_eq!(happen(deployed(32, 300 << 10), &mut kept), numbers(30, 32));
        assert_eq!(happen(Record::Removed(Revision(32)), &mut kept), numbers(1, 0));
    }
}
