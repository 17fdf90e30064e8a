//! When a model's last container may leave: what the scale-to-zero configuration says, and what is known of requests.
//! Unknown is not zero (DESIGN law 8): no data keeps the container.

use super::{Function, Side, pool::Pool};
use crate::{
    effect::{Effect, Output},
    event::Requests,
};
use capstan_common::{
    function::{Activity, ActivitySource, FunctionSpec, OnMissing},
    id::ContainerId,
    time::Time,
};
use std::{collections::BTreeMap, sync::Arc};

/// Intervals without a reading after which a container's own counter says nothing any more.
const STALE_INTERVALS: u64 = 3;

/// What the configuration says of this model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZeroRule {
    /// Whether it may be scaled to zero.
    pub enabled: bool,
    /// How long after the last request.
    pub retention_ms: u64,
    /// The entry that decided the flag.
    pub flag_by: Arc<str>,
    /// The entry that decided the retention.
    pub retention_by: Arc<str>,
}

/// What is known of a model's requests.
#[derive(Debug, Clone, Default)]
pub struct Model {
    rule: Option<ZeroRule>,
    /// When it last had a request, as far as is known; at first, when it was deployed or recovered.
    active_at: Time,
    /// Whether there were inputs after the last step: the step that ends the last of them is active too.
    busy: bool,
    /// Each container's counter, and when it was read.
    counters: BTreeMap<ContainerId, (u64, Time)>,
    /// When a Prometheus server was last asked.
    asked_at: Option<Time>,
    /// Its last answer, and when it came.
    answer: Option<(Time, Requests)>,
}

/// What a model's rule is held against: the live revision and what it has.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub now: Time,
    pub spec: &'a FunctionSpec,
    /// Nothing of it is a model any more.
    pub removed: bool,
    pub pool: &'a Pool,
}

impl Seen<'_> {
    fn activity(&self) -> Option<&Activity> {
        self.spec.activity.as_ref()
    }
}

impl Model {
    /// The configuration, or what it says of this model, has changed.
    pub fn set_rule(&mut self, rule: ZeroRule) {
        self.rule = Some(rule);
    }

    /// The function has inputs, or a request was seen.
    pub fn was_active(&mut self, now: Time) {
        self.active_at = self.active_at.max(now);
    }

    /// When it last had a request, as far as is known.
    pub fn active_at(&self) -> Time {
        self.active_at
    }

    /// Inputs wait or run, or none does any more.
    pub fn watch(&mut self, now: Time, busy: bool) {
        if std::mem::replace(&mut self.busy, busy) || busy {
            self.was_active(now);
        }
    }

    /// The counter of requests of a container that is there was read. One that is lower than before began anew with its program.
    pub fn counted(&mut self, now: Time, container: ContainerId, value: u64) {
        let since = match self.counters.insert(container, (value, now)) {
            Some((before, _)) if value >= before => value - before,
            // Also the first reading: what it shows happened since the container began.
            _ => value,
        };
        if since > 0 {
            self.was_active(now);
        }
    }

    /// A container has gone, and its counter with it.
    pub fn forget_counter(&mut self, container: ContainerId) {
        self.counters.remove(&container);
    }

    /// A Prometheus server has answered, or has not.
    pub fn answered(&mut self, now: Time, requests: Requests) {
        self.answer = Some((now, requests));
    }

    /// Within how many milliseconds a Prometheus server is to count requests now, if its word is what is waited for.
    pub fn ask(&mut self, seen: &Seen) -> Option<u64> {
        self.ask_due(seen).filter(|due| *due <= seen.now)?;
        let within_ms = self.rule(seen)?.retention_ms;
        self.asked_at = Some(seen.now);
        Some(within_ms)
    }

    /// When it is to be asked: once the retention is over as far as is known here, and then again and again.
    pub fn ask_due(&self, seen: &Seen) -> Option<Time> {
        let activity = seen.activity().filter(|activity| activity.source == ActivitySource::Prometheus)?;
        let over = self.kept_until(seen)?;
        let again = self.asked_at.map(|at| at.plus_ms(activity.interval_s.ms));
        Some(again.map_or(over, |again| again.max(over)))
    }

    /// What the configuration says of it, if it is a model.
    pub fn rule(&self, seen: &Seen) -> Option<&ZeroRule> {
        self.rule.as_ref().filter(|_| seen.spec.model_id.is_some() && !seen.removed)
    }

    /// Until when the last request alone keeps a container, if it has one that may leave.
    fn kept_until(&self, seen: &Seen) -> Option<Time> {
        let rule = self.rule(seen).filter(|rule| rule.enabled && seen.pool.live() > 0)?;
        Some(self.active_at.plus_ms(rule.retention_ms))
    }

    /// When the retention ends, if that is what keeps a container.
    pub fn retention_due(&self, seen: &Seen) -> Option<Time> {
        self.kept_until(seen).filter(|due| *due > seen.now)
    }

    /// The least number of containers that the model asks for beyond its settings is one, for this reason, or none.
    pub fn floor(&self, seen: &Seen) -> Option<&'static str> {
        if !self.rule(seen)?.enabled {
            return Some("scale_to_zero_disabled");
        }
        let until = self.kept_until(seen)?;
        if until > seen.now { Some("retention") } else { self.held_by_activity(until, seen) }
    }

    /// What requests past Capstan say against leaving, once the retention is over.
    fn held_by_activity(&self, over: Time, seen: &Seen) -> Option<&'static str> {
        let activity = seen.activity()?;
        let stale_ms = activity.interval_s.ms * STALE_INTERVALS;
        // What was read before the retention was over does not prove that nothing came until then.
        let fresh = |at: Time| at >= over && at.plus_ms(stale_ms) > seen.now;
        match activity.source {
            ActivitySource::Container => {
                let read = |id: &ContainerId| self.counters.get(id).is_some_and(|(_, at)| fresh(*at));
                seen.pool.ready_ids().any(|id| !read(&id)).then_some("activity_unknown")
            }
            ActivitySource::Prometheus => match self.answer.filter(|(at, _)| fresh(*at)) {
                Some((_, Requests::Counted(0.0))) => None,
                Some((_, Requests::Counted(count))) if count > 0.0 => Some("retention"),
                Some((_, Requests::Missing)) if activity.on_missing == OnMissing::Zero => None,
                _ => Some("activity_unknown"),
            },
        }
    }
}

impl Function {
    /// What the model's rule is held against.
    pub(super) fn seen(&self) -> Seen<'_> {
        Seen { now: self.now, spec: &self.serving().spec, removed: self.removed, pool: &self.pool }
    }

    /// Inputs and web requests that wait or run.
    pub(super) fn inputs(&self) -> u64 {
        let of = |side: &Side| side.pending + side.running;
        of(&self.interactive) + of(&self.background)
    }

    /// Since when the function has had no inputs, if it has none.
    pub(super) fn inactive_since(&self) -> Option<Time> {
        (self.inputs() == 0).then_some(self.sizing.model.active_at())
    }

    /// A container's own counter of requests was read.
    pub(super) fn counted(&mut self, now: Time, container: ContainerId, value: u64) {
        if self.pool.get(container).is_some() {
            self.sizing.model.counted(now, container, value);
        }
    }

    /// Asks a Prometheus server once more, where its word is what is waited for.
    pub(super) fn ask_requests(&mut self, out: &mut Output) {
        let spec = self.serving().spec.clone();
        let seen = Seen { now: self.now, spec: &spec, removed: self.removed, pool: &self.pool };
        let within = self.sizing.model.ask(&seen);
        out.effects.extend(within.map(|within_ms| Effect::AskRequests { within_ms }));
    }

    /// What keeps a model's last container.
    pub(super) fn model_floor(&self) -> Option<&'static str> {
        self.sizing.model.floor(&self.seen())
    }

    /// The rule, the last request, and what keeps a container now, if anything does, for `explain`.
    pub fn model_view(&self) -> Option<(&ZeroRule, Time, Option<&'static str>)> {
        let kept_by = match () {
            () if self.inputs() > 0 => Some("inputs"),
            () if self.effective.min_containers > 0 => Some("min_containers"),
            () => self.model_floor(),
        };
        let model = &self.sizing.model;
        model.rule(&self.seen()).map(|rule| (rule, model.active_at(), kept_by))
    }
}
