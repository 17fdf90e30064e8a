//! Records: what is now true, to be made durable.

use crate::decision::Decision;
use capstan_common::{
    call::{CallKind, CallState, Counts},
    function::{FunctionSpec, Overrides},
    id::{CallId, ContainerId, Revision},
    input::{Outcome, Payload},
    time::Time,
};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc};

/// A fact that a promise may rest on.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A revision is live; dynamic overrides are gone (SPEC D09).
    Deployed(Deployment),
    /// This revision serves until the one that was deployed last has a ready container; nothing: that has taken over.
    Serving(Option<Deployment>),
    /// The dynamic overrides are these.
    Overridden(Overrides),
    /// The function is gone; this was its last revision.
    Removed(Revision),
    /// Where the schedule stands.
    Scheduled(ScheduleState),
    /// The latest scale decisions, oldest first.
    Decisions(Vec<Decision>),
    /// A call was accepted.
    CallOpened(Box<CallRecord>, Vec<Payload>),
    /// All inputs of a segment ended; it can go.
    SegmentEnded {
        /// Of which call.
        call: CallId,
        /// Which segment.
        number: u32,
    },
    /// Inputs ended.
    Ended {
        /// Of which call.
        call: CallId,
        /// Counts up within the call.
        sequence: u64,
        /// How they ended, in the order of their ends.
        entries: Arc<Vec<Entry>>,
    },
    /// An attempt failed and the input waits for the next one.
    Attempted {
        /// The input's call.
        call: CallId,
        /// The input's place.
        index: u64,
        /// Its attempts so far.
        tries: Box<Tries>,
    },
    /// The input that `Attempted` told of has ended.
    AttemptsEnded {
        /// The input's call.
        call: CallId,
        /// The input's place.
        index: u64,
    },
    /// A call ended.
    CallEnded(Box<CallRecord>),
    /// An idempotency key is in use.
    KeyUsed(String, UsedKey),
    /// An idempotency key is free again.
    KeyFreed(String),
}

/// Where a function's schedule stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// Whether it is paused.
    pub paused: bool,
    /// The last due time that was seen to, or when the revision was deployed.
    pub last: Option<Time>,
    /// Due times whose runs wait for an earlier one to end.
    pub waiting: VecDeque<Time>,
}

/// A revision and when it was deployed.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// Its number, from 1.
    pub revision: Revision,
    /// What it runs.
    pub spec: Arc<FunctionSpec>,
    /// When it was deployed.
    pub at: Time,
}

/// What is durable of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallRecord {
    /// Its id.
    pub id: CallId,
    /// Which verb made it.
    pub kind: CallKind,
    /// When it was accepted.
    pub created: Time,
    /// Input segments, in order; empty for calls whose inputs are in the record or not durable.
    pub segments: Vec<Segment>,
    /// W3C trace context of the request, empty where there was none.
    pub traceparent: Arc<str>,
    /// Where its inputs are. While it runs only `total` is durable.
    pub counts: Counts,
    /// Its state; while it runs, `Pending`.
    pub state: CallState,
    /// When it ended.
    pub finished: Option<Time>,
    /// How many outcome records it has, once it ended.
    pub outcome_records: u64,
}

/// A packed run of inputs in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its number within the call, from 0.
    pub number: u32,
    /// The first input's index.
    pub first: u64,
    /// How many inputs it has.
    pub count: u32,
}

impl Segment {
    /// Whether it has the input with this index.
    pub fn covers(&self, index: u64) -> bool {
        (self.first..self.first + u64::from(self.count)).contains(&index)
    }
}

/// How one input ended, or a run of neighbours that ended alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The (first) input's index.
    pub index: u64,
    /// How many inputs in a row this speaks of.
    pub count: u64,
    /// Tries begun.
    pub attempts: u32,
    /// The container of the last attempt; 0 where there was none.
    pub container: ContainerId,
    /// When it arrived.
    pub submitted: Time,
    /// When its last attempt was given to a container.
    pub leased: Time,
    /// From begin to end of the last attempt, in microseconds.
    pub run_us: u64,
    /// When it ended.
    pub finished: Time,
    /// How.
    pub outcome: Outcome,
    /// The attempts before the last one, where there were any.
    pub tries: Option<Box<Tries>>,
}

/// An input's attempts that ended without ending the input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// Attempts that failed by the function's fault.
    pub failures: u32,
    /// Attempts lost without its fault.
    pub losses: u32,
    /// The latest of them, oldest first, at most [`Tries::KEPT`].
    pub past: Vec<PastAttempt>,
}

impl Tries {
    /// Attempts that are remembered one by one.
    pub const KEPT: usize = 10;

    /// How many there were.
    pub fn count(&self) -> u32 {
        self.failures + self.losses
    }

    /// Remembers one more; the oldest is forgotten.
    pub fn remember(&mut self, attempt: PastAttempt) {
        if self.past.len() == Self::KEPT {
            self.past.remove(0);
        }
        self.past.push(attempt);
    }
}

/// One attempt that did not end its input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastAttempt {
    /// Which container held it.
    pub container: ContainerId,
    /// When it was given to that container.
    pub leased: Time,
    /// When it ended.
    pub ended: Time,
    /// Whether it was lost without the function's fault, and does not count as a retry.
    pub lost: bool,
    /// Why it ended, shortened.
    pub why: String,
}

/// What an idempotency key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedKey {
    /// Digest of the request's body.
    pub digest: [u8; 32],
    /// The call that it made.
    pub call: CallId,
    /// When it was used.
    pub at: Time,
}
