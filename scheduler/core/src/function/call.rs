//! A live call's accounts: what it brought, what ended, and what of it is still in the store only.

use crate::{
    event::FailFast,
    record::{CallRecord, Entry, Segment, Tries},
};
use capstan_common::{
    call::{CallKind, CallState, Counts},
    id::CallId,
    time::Time,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// A call that has not ended.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its id.
    pub id: CallId,
    /// The verb.
    pub kind: CallKind,
    /// When it was accepted.
    pub created: Time,
    /// W3C trace context of the request.
    pub traceparent: Arc<str>,
    /// Where its inputs are.
    pub counts: Counts,
    /// Whether all its inputs are known.
    pub closed: bool,
    /// Whether it was cancelled.
    pub cancelled: bool,
    /// Whether that was before all its inputs were known: however those that came have ended, it is not done.
    pub cut_short: bool,
    /// Maps: what the first error does to the rest.
    pub fail_fast: FailFast,
    /// Maps: outputs are not kept.
    pub discard_outputs: bool,
    /// Outcome records written so far.
    pub outcome_records: u64,
    /// Outcomes of this step, not yet recorded.
    pub settling: Vec<Entry>,
    /// Where its inputs come from, for maps and packed calls.
    pub bulk: Option<Box<Bulk>>,
}

/// Accounts that only calls of many inputs need.
#[derive(Debug, Clone, Default)]
pub struct Bulk {
    /// All segments, as recorded.
    pub segments: Vec<Segment>,
    /// Segments that are still in the store.
    pub open: BTreeSet<u32>,
    /// Segments whose inputs are not in memory.
    pub tail: VecDeque<Segment>,
    /// Segments asked for and not yet loaded.
    pub loading: BTreeMap<u32, Segment>,
    /// Inputs of loaded segments that have not ended, by segment.
    pub live: BTreeMap<u32, u32>,
    /// Inputs that ended before a restart.
    pub ended: Runs,
    /// Inputs of unloaded segments that an adopted container holds.
    pub adopted: BTreeSet<u64>,
    /// Attempts so far of inputs that failed or were lost before a restart.
    pub attempted: BTreeMap<u64, Box<Tries>>,
    /// Inputs that a map's client may still send.
    pub credit: u64,
    /// Outcomes that a map's client has not taken.
    pub uncollected: u64,
}

impl Call {
    /// A call that has just been opened.
    pub fn new(id: CallId, kind: CallKind, created: Time, traceparent: Arc<str>) -> Self {
        Self {
            id,
            kind,
            created,
            traceparent,
            counts: Counts::default(),
            closed: false,
            cancelled: false,
            cut_short: false,
            fail_fast: FailFast::No,
            discard_outputs: false,
            outcome_records: 0,
            settling: Vec::new(),
            bulk: None,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> CallState {
        if !self.is_over() {
            let begun = self.counts.running + self.counts.ended() > 0;
            return if begun { CallState::Running } else { CallState::Pending };
        }
        let by_error = self.fail_fast != FailFast::No && self.counts.failed > 0;
        if self.cancelled && (self.counts.cancelled > 0 || self.cut_short) && !by_error {
            CallState::Cancelled
        } else if self.counts.failed > 0 {
            CallState::Failed
        } else if self.cancelled && self.counts.total == 0 {
            CallState::Cancelled
        } else {
            CallState::Succeeded
        }
    }

    /// Whether nothing more will happen.
    pub fn is_over(&self) -> bool {
        self.closed && self.counts.ended() == self.counts.total
    }

    /// Its durable form.
    pub fn record(&self, finished: Option<Time>) -> Box<CallRecord> {
        Box::new(CallRecord {
            id: self.id,
            kind: self.kind,
            created: self.created,
            segments: match (&self.bulk, finished) {
                (Some(bulk), None) => bulk.segments.clone(),
                _ => Vec::new(),
            },
            traceparent: self.traceparent.clone(),
            counts: self.counts,
            state: if finished.is_some() { self.state() } else { CallState::Pending },
            finished,
            outcome_records: self.outcome_records,
        })
    }

    /// The segment that an input belongs to.
    pub fn segment_of(&self, index: u64) -> Option<u32> {
        let segments = &self.bulk.as_ref()?.segments;
        let after = segments.partition_point(|s| s.first <= index);
        after.checked_sub(1).map(|i| segments[i].number)
    }
}

/// A set of numbers, kept as runs: small when the numbers are neighbours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<u64, u64>);

impl Runs {
    /// Adds `count` numbers from `first`.
    pub fn add(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let (mut from, mut to) = (first, first + count);
        if let Some((&start, &end)) = self.0.range(..=from).next_back()
            && end >= from
        {
            from = start;
            to = to.max(end);
            self.0.remove(&start);
        }
        while let Some((&start, &end)) = self.0.range(from..=to).next() {
            to = to.max(end);
            self.0.remove(&start);
        }
        self.0.insert(from, to);
    }

    /// Whether the number is in it.
    pub fn has(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, &end)| end > number)
    }

    /// The runs of `from..to` that are not in it, as (first, count).
    pub fn gaps(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = from;
        let before = self.0.range(..=from).next_back().map(|(_, &end)| end);
        at = at.max(before.unwrap_or(at));
        for (&start, &end) in self.0.range(from..to) {
            if start > at {
                gaps.push((at, start - at));
            }
            at = at.max(end);
        }
        if at < to {
            gaps.push((at, to - at));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_hold_what_was_added_and_their_gaps_are_the_rest(adds in prop::collection::vec((0u64..60, 0u64..8), 0..20)) {
            let mut runs = Runs::default();
            let mut plain = BTreeSet::new();
            for (first, count) in adds {
                runs.add(first, count);
                plain.extend(first..first + count);
            }
            let has: Vec<_> = (0..70).filter(|n| runs.has(*n)).collect();
            prop_assert_eq!(has, plain.iter().copied().collect::<Vec<_>>());
            let gaps: Vec<u64> = runs.gaps(5, 65).into_iter().flat_map(|(f, n)| f..f + n).collect();
            prop_assert_eq!(gaps, (5..65).filter(|n| !plain.contains(n)).collect::<Vec<_>>());
        }
    }
}
