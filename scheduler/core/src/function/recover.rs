//! An owner's memory rebuilt from what is durable.

use super::{
    Function, Place,
    call::{Bulk, Call, Runs},
    queue::Queued,
    rollout::Rollout,
};
use crate::{
    decision::Decision,
    effect::Output,
    limits::Limits,
    record::{CallRecord, Deployment, ScheduleState, Tries, UsedKey},
};
use capstan_common::{
    call::{CallKind, Counts},
    function::Overrides,
    id::{CallId, Epoch, FunctionKey},
    input::Payload,
    time::Time,
};
use std::{collections::BTreeMap, sync::Arc};

/// What the store has of a function.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// Its name.
    pub key: FunctionKey,
    /// The revision that was deployed last.
    pub deployed: Deployment,
    /// The one that serves, where that is still another.
    pub serving: Option<Deployment>,
    /// Its dynamic settings.
    pub overrides: Overrides,
    /// Calls that had not ended.
    pub calls: Vec<RecoveredCall>,
    /// Single background calls that had not begun, behind those in `calls`: only their ids are read.
    pub parked: Vec<CallId>,
    /// Idempotency keys in use.
    pub keys: Vec<(String, UsedKey)>,
    /// Where the schedule stood.
    pub schedule: ScheduleState,
    /// Scale decisions, oldest first.
    pub decisions: Vec<Decision>,
}

/// What the store has of a call that had not ended.
#[derive(Debug, Clone)]
pub struct RecoveredCall {
    /// Its opening record.
    pub record: CallRecord,
    /// Inputs that were in that record.
    pub here: Vec<Payload>,
    /// Segments that are still there.
    pub open: Vec<u32>,
    /// Inputs that ended.
    pub ended: Runs,
    /// Outcomes so far: succeeded, failed, cancelled.
    pub counts: Counts,
    /// Outcome records so far.
    pub outcome_records: u64,
    /// Attempts so far, by index.
    pub attempted: BTreeMap<u64, Box<Tries>>,
}

impl Function {
    /// Rebuilds a function. It gives nothing out until `Settled`: known workers may still hold attempts. Maps, whose
    /// client's stream is broken, end as cancelled.
    pub fn recover(recovery: Recovery, epoch: Epoch, limits: Arc<Limits>, now: Time, out: &mut Output) -> Self {
        let mut function = Self::new(recovery.key, epoch, limits, recovery.deployed, recovery.overrides);
        function.now = now;
        function.holding = true;
        function.rollout = Rollout::recovered(recovery.serving);
        function.sizing.recover(recovery.decisions);
        let mut keys = recovery.keys;
        keys.sort_by(|a, b| (a.1.at, &a.0).cmp(&(b.1.at, &b.0)));
        if mutated!(function.limits.mutant, KEY_FORGOTTEN) {
            keys.clear();
        }
        for (key, used) in keys {
            function.key_ages.push_back((used.at, key.clone()));
            function.keys.insert(key, used);
        }
        for call in recovery.calls {
            function.recover_call(now, call, out);
        }
        recovery.parked.into_iter().for_each(|call| function.park(call));
        function.sizing.begin_revision(&function.deployed.spec, now);
        function.settle_settings();
        function.recover_timer(now, recovery.schedule);
        // What happened before is not known, and unknown is not zero.
        function.sizing.model.was_active(now);
        function.conclude(now, out);
        function
    }

    fn recover_call(&mut self, now: Time, mut recovered: RecoveredCall, out: &mut Output) {
        if mutated!(self.limits.mutant, ENDED_FORGOTTEN) {
            recovered.ended = Runs::default();
            recovered.counts = Counts::default();
        }
        let record = recovered.record;
        let id = record.id;
        let mut call = Call::new(id, record.kind, record.created, record.traceparent.clone());
        let ended = recovered.counts.ended();
        let total = if record.kind == CallKind::Map { ended } else { record.counts.total };
        call.counts = Counts { total, ..recovered.counts };
        call.closed = record.kind != CallKind::Map;
        call.outcome_records = recovered.outcome_records;
        self.queue.open(id, record.kind.is_interactive(), self.lane_limit(record.kind));
        if !record.segments.is_empty() {
            let open = recovered.open;
            let left: Vec<_> = record.segments.iter().filter(|s| open.contains(&s.number)).copied().collect();
            call.bulk = Some(Box::new(Bulk {
                tail: left.into(),
                open: open.into_iter().collect(),
                segments: record.segments,
                ended: recovered.ended.clone(),
                attempted: recovered.attempted.clone(),
                ..Bulk::default()
            }));
            self.tails.insert(id);
        }
        call.counts.total -= total - ended;
        self.calls.insert(id, call);
        self.shift(id, Place::Outside, Place::Pending, total - ended);
        for (index, payload) in recovered.here.into_iter().enumerate() {
            let index = index as u64;
            if record.kind == CallKind::Map || recovered.ended.has(index) {
                continue;
            }
            let tries = recovered.attempted.get(&index).cloned();
            self.queue.push_back(Queued { call: id, index, payload, submitted: record.created, tries });
        }
        if record.kind == CallKind::Map {
            self.cancel(now, id, out);
        }
        self.touched.insert(id);
    }
}
