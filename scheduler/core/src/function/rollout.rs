//! A new revision takes over when its first container is ready; until then the one before goes on serving, and where the new one's
//! starts fail it goes on for good (API.md, `PUT …/functions/{fn}`).
//!
//! Meanwhile one container of the new revision is tried at a time, one above the maximum. Where none fits, an idle one of the old
//! revision makes room. Settings, schedule and profiles are the new revision's at once; what containers are and how they are fed
//! stays the old one's.

use super::{
    Function,
    pool::{Life, Starts},
};
use crate::{
    effect::Output,
    record::{Deployment, Record},
};
use capstan_common::{
    function::{FunctionSpec, Protocol},
    id::Revision,
    parameter,
    time::Time,
};

/// A revision that has not taken over yet.
#[derive(Debug, Clone, Default)]
pub struct Rollout {
    /// The revision that serves meanwhile.
    before: Option<Deployment>,
    /// How starts of the new one went.
    pub starts: Starts,
}

/// How far the latest deployment has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The revision that was deployed last.
    pub revision: Revision,
    /// The one that serves.
    pub live: Revision,
    /// Starts of the new one that failed in a row.
    pub failed: u32,
    /// How the last of them failed; empty if none did.
    pub why: String,
}

impl Rollout {
    /// The revision that serves, as the store has it.
    pub fn recovered(before: Option<Deployment>) -> Self {
        Self { before, starts: Starts::default() }
    }
}

impl Function {
    /// The revision that serves: the one that was deployed last, or while that is still to take over the one before.
    pub fn serving(&self) -> &Deployment {
        self.rollout.before.as_ref().unwrap_or(&self.deployed)
    }

    /// Whether the latest revision is still to take over.
    pub(super) fn is_rolling(&self) -> bool {
        self.rollout.before.is_some()
    }

    /// How far the latest deployment has come.
    pub fn rollout(&self) -> Progress {
        let (revision, live) = (self.deployed.revision, self.serving().revision);
        Progress { revision, live, failed: self.rollout.starts.failed, why: self.rollout.starts.last.clone() }
    }

    /// The spec of a container's revision, as far as it is known.
    pub fn spec_of(&self, revision: Revision) -> &FunctionSpec {
        if revision == self.deployed.revision { &self.deployed.spec } else { &self.serving().spec }
    }

    /// Whether the revision that serves goes on until a container of this spec is ready. A process for each input needs no warm
    /// container, and where none is ready there is nothing to keep.
    pub(super) fn outlasts(&self, spec: &FunctionSpec) -> bool {
        let servers = self.serving().spec.protocol == Protocol::Http && spec.protocol == Protocol::Http;
        servers && parameter::missing(spec).is_ok() && self.pool.ready_ids().next().is_some()
    }

    /// The latest revision is to take over from this one.
    pub(super) fn begin_rollout(&mut self, before: Deployment, out: &mut Output) {
        out.records.push(Record::Serving(Some(before.clone())));
        self.rollout = Rollout { before: Some(before), starts: Starts::default() };
        self.sizing.bid.again();
    }

    /// The latest revision serves from now on.
    pub(super) fn take_over(&mut self, out: &mut Output) {
        if self.rollout.before.take().is_some() {
            out.records.push(Record::Serving(None));
            out.urgent = true;
        }
        (self.rollout.starts, self.starts) = (Starts::default(), Starts::default());
        self.sizing.bid.again();
        self.retire_others(out);
        self.expel_unserved(out);
    }

    /// Containers of other revisions than the latest take nothing new; idle ones stop now, busy ones when they are done.
    fn retire_others(&mut self, out: &mut Output) {
        let others = self.pool.iter().filter(|(_, c)| c.revision != self.deployed.revision);
        for id in others.map(|(id, _)| id).collect::<Vec<_>>() {
            self.retire(id, "a newer revision is live", out);
        }
    }

    /// Tried containers of a revision that is not wanted any more stop.
    pub(super) fn stop_trials(&mut self, out: &mut Output) {
        let trials = self.pool.iter().filter(|(_, c)| c.life == Life::Trial);
        for id in trials.map(|(id, _)| id).collect::<Vec<_>>() {
            self.stop(id, "a newer revision was deployed", out);
        }
    }

    /// Whether a container of the latest revision is to be tried, now or when its starts do not pause any more.
    fn may_try(&self) -> bool {
        self.is_rolling() && !self.removed && !self.holding && !self.is_asleep() && self.pool.trials() == 0
    }

    /// Whether nothing runs, nothing waits and nothing is kept.
    fn is_asleep(&self) -> bool {
        self.pool.live() == 0 && self.inputs() == 0 && self.facts().min == 0
    }

    /// Whether a container of the latest revision is to be tried now.
    pub(super) fn wants_trial(&self, now: Time) -> bool {
        self.may_try() && now >= self.rollout.starts.not_before
    }

    /// When the next is tried, if that is later.
    pub(super) fn trial_due(&self) -> Option<Time> {
        let due = self.rollout.starts.not_before;
        (self.may_try() && due > self.now).then_some(due)
    }

    /// The old revision has gone to sleep: the new one takes over, unless it is known that it does not start.
    pub(super) fn take_over_asleep(&mut self, out: &mut Output) {
        let may = self.is_rolling() && !self.removed && !self.holding && self.rollout.starts.failed == 0;
        if may && self.is_asleep() && self.pool.trials() == 0 {
            self.take_over(out);
        }
    }

    /// The container that is to be tried has no place: an idle one of the old revision leaves for it.
    pub(super) fn make_room_for_trial(&mut self, now: Time, out: &mut Output) {
        if !self.wants_trial(now) || self.sizing.bid.unplaced().is_none() || self.pool.leaving() > 0 {
            return;
        }
        if let Some((_, id)) = self.pool.longest_idle() {
            self.stop(id, "makes room for a newer revision", out);
        }
    }
}
