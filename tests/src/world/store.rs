//! What is durable of one function: records folded, and read back as a new owner would.

use bytes::Bytes;
use capstan_common::{
    call::{CallKind, Counts},
    function::Overrides,
    id::{CallId, FunctionKey},
    input::{Outcome, Payload},
};
use capstan_scheduler_core::{
    function::{RecoveredCall, Recovery, Runs},
    record::{CallRecord, Deployment, Record, Tries, UsedKey},
};
use std::collections::BTreeMap;

/// Single calls of a function that wait in memory: few, so that the others are seen.
pub const SPAWN_HEAD: usize = 3;

/// A call as the store has it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its last record.
    pub record: CallRecord,
    /// Its inputs, where they were few.
    pub here: Vec<Payload>,
    /// Which inputs ended.
    pub ended: Runs,
    /// How many ended how.
    pub counts: Counts,
    /// Outcome records.
    pub outcome_records: u64,
    /// Attempts so far.
    pub attempted: BTreeMap<u64, Box<Tries>>,
}

/// A function as the store has it.
#[derive(Debug, Clone, Default)]
pub struct Durable {
    deployed: Option<Deployment>,
    serving: Option<Deployment>,
    overrides: Overrides,
    /// Calls by id.
    pub calls: BTreeMap<CallId, Stored>,
    /// Packed inputs by call and number.
    pub segments: BTreeMap<(CallId, u32), Vec<Payload>>,
    keys: BTreeMap<String, UsedKey>,
}

impl Durable {
    /// Folds a record in; says which promise it breaks, if it breaks one.
    pub fn apply(&mut self, record: Record, max_retries: u32) -> Result<u64, String> {
        let mut ended = 0;
        match record {
            Record::Deployed(deployed) => {
                self.deployed = Some(deployed);
                self.overrides = Overrides::default();
            }
            Record::Serving(before) => self.serving = before,
            Record::Overridden(overrides) => self.overrides = overrides,
            Record::Removed(_) => (self.deployed, self.serving) = (None, None),
            Record::Decisions(_) | Record::Scheduled(_) => {}
            Record::CallOpened(record, here) => {
                let stored = Stored {
                    record: *record,
                    here,
                    ended: Runs::default(),
                    counts: Counts::default(),
                    outcome_records: 0,
                    attempted: BTreeMap::new(),
                };
                self.calls.insert(stored.record.id, stored);
            }
            Record::SegmentEnded { call, number } => drop(self.segments.remove(&(call, number))),
            Record::Ended { call, sequence, entries } => {
                let stored =
                    self.calls.get_mut(&call).ok_or_else(|| format!("{call} ended inputs before it was opened"))?;
                if sequence != stored.outcome_records {
                    return Err(format!("{call}: outcome record {sequence} follows {}", stored.outcome_records));
                }
                stored.outcome_records += 1;
                for entry in entries.iter() {
                    for index in entry.index..entry.index + entry.count {
                        if stored.ended.has(index) {
                            return Err(format!("I3: {call} input {index} ended twice"));
                        }
                    }
                    stored.ended.add(entry.index, entry.count);
                    ended += entry.count;
                    match &entry.outcome {
                        Outcome::Succeeded(output) => {
                            stored.counts.succeeded += entry.count;
                            let expected = Bytes::from(entry.index.to_string());
                            if *output != Payload::json(expected) {
                                return Err(format!(
                                    "{call} input {} has the output of another: {output:?}",
                                    entry.index
                                ));
                            }
                        }
                        Outcome::Failed(_) => stored.counts.failed += entry.count,
                        Outcome::Cancelled => stored.counts.cancelled += entry.count,
                    }
                }
            }
            Record::Attempted { call, index, tries } => {
                let failures = tries.failures;
                if failures > max_retries {
                    return Err(format!(
                        "I7: {call} input {index} failed {failures} times and is tried again, {max_retries} retries allowed"
                    ));
                }
                if let Some(stored) = self.calls.get_mut(&call) {
                    stored.attempted.insert(index, tries);
                }
            }
            Record::AttemptsEnded { call, index } => {
                if let Some(stored) = self.calls.get_mut(&call) {
                    stored.attempted.remove(&index);
                }
            }
            Record::CallEnded(record) => {
                let stored = self.calls.get_mut(&record.id).ok_or("a call ended before it was opened")?;
                if record.counts.ended() != stored.counts.ended() {
                    return Err(format!("{}: ended with {:?}, recorded {:?}", record.id, record.counts, stored.counts));
                }
                stored.record = *record;
            }
            Record::KeyUsed(key, used) => drop(self.keys.insert(key, used)),
            Record::KeyFreed(key) => drop(self.keys.remove(&key)),
        }
        Ok(ended)
    }

    /// What a new owner reads.
    pub fn recovery(&self, key: &FunctionKey) -> Option<Recovery> {
        let live: Vec<_> = self.calls.values().filter(|c| c.record.finished.is_none()).collect();
        // As the loader does: single calls behind the head that have not begun stay where they are.
        let stays = |c: &Stored| c.record.kind == CallKind::Spawn && c.attempted.is_empty();
        let (parked, live): (Vec<_>, Vec<_>) =
            live.into_iter().enumerate().partition(|(n, c)| *n >= SPAWN_HEAD && stays(c));
        Some(Recovery {
            key: key.clone(),
            deployed: self.deployed.clone()?,
            serving: self.serving.clone(),
            overrides: self.overrides.clone(),
            calls: live.into_iter().map(|(_, c)| self.recovered(c)).collect(),
            parked: parked.into_iter().map(|(_, c)| c.record.id).collect(),
            schedule: Default::default(),
            decisions: Vec::new(),
            keys: self.keys.iter().map(|(k, u)| (k.clone(), u.clone())).collect(),
        })
    }

    fn recovered(&self, stored: &Stored) -> RecoveredCall {
        let id = stored.record.id;
        RecoveredCall {
            record: stored.record.clone(),
            here: stored.here.clone(),
            open: self.segments.range((id, 0)..=(id, u32::MAX)).map(|((_, n), _)| *n).collect(),
            ended: stored.ended.clone(),
            counts: stored.counts,
            outcome_records: stored.outcome_records,
            attempted: stored.attempted.clone(),
        }
    }
}
