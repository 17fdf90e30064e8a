//! Inputs that pause before their next attempt: by the end of the pause, and by their call.

use super::queue::Queued;
use capstan_common::{id::CallId, time::Time};
use std::collections::BTreeMap;

/// Inputs that pause.
#[derive(Debug, Clone, Default)]
pub struct Delayed {
    by_time: BTreeMap<(Time, CallId, u64), Queued>,
    due: BTreeMap<(CallId, u64), Time>,
}

impl Delayed {
    /// Lets an input pause until `due`.
    pub fn add(&mut self, due: Time, input: Queued) {
        self.due.insert((input.call, input.index), due);
        self.by_time.insert((due, input.call, input.index), input);
    }

    /// Looks at one, with the end of its pause.
    pub fn find(&self, call: CallId, index: u64) -> Option<(Time, &Queued)> {
        let due = *self.due.get(&(call, index))?;
        self.by_time.get(&(due, call, index)).map(|input| (due, input))
    }

    /// The one whose pause ends first, with that end.
    pub fn first(&self) -> Option<(Time, &Queued)> {
        self.by_time.first_key_value().map(|(key, input)| (key.0, input))
    }

    /// Takes one out before its time.
    pub fn remove(&mut self, call: CallId, index: u64) -> Option<Queued> {
        let due = self.due.remove(&(call, index))?;
        self.by_time.remove(&(due, call, index))
    }

    /// Takes out the next one whose pause is over.
    pub fn pop_due(&mut self, now: Time) -> Option<Queued> {
        let first = self.by_time.first_entry().filter(|entry| entry.key().0 <= now)?;
        let input = first.remove();
        self.due.remove(&(input.call, input.index));
        Some(input)
    }

    /// Takes out a call's inputs from `from` on.
    pub fn drain(&mut self, call: CallId, from: u64) -> Vec<Queued> {
        let indexes: Vec<u64> = self.due.range((call, from)..=(call, u64::MAX)).map(|(key, _)| key.1).collect();
        indexes.into_iter().filter_map(|index| self.remove(call, index)).collect()
    }

    /// When the next pause ends.
    pub fn next_due(&self) -> Option<Time> {
        self.by_time.first_key_value().map(|(key, _)| key.0)
    }

    /// Calls and indexes of all, for checks.
    pub fn iter(&self) -> impl Iterator<Item = (CallId, u64)> {
        self.due.keys().copied()
    }

    /// Checks that both orders tell the same.
    pub fn check(&self) -> Result<(), String> {
        let same = self.by_time.keys().all(|(at, call, index)| self.due.get(&(*call, *index)) == Some(at));
        (same && self.due.len() == self.by_time.len()).then_some(()).ok_or_else(|| "the pauses' indexes differ".into())
    }
}
