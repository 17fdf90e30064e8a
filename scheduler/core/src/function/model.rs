//! When a model's last container may leave: what the scale-to-zero configuration says, and what is known of requests.
//! Unknown is not zero (DESIGN law 8): no data keeps the container.

use super::{Function, Side};
use crate::{
    effect::{Effect, Output},
    event::Requests,
};
use capstan_common::{
    function::{Activity, ActivitySource, OnMissing},
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

impl Function {
    /// The configuration, or what it says of this model, has changed.
    pub(super) fn set_rule(&mut self, rule: ZeroRule) {
        self.model.rule = Some(rule);
    }

    /// The function has inputs, or a request was seen.
    pub(super) fn was_active(&mut self, now: Time) {
        self.model.active_at = self.model.active_at.max(now);
    }

    /// Inputs wait or run, or none does any more.
    pub(super) fn watch_activity(&mut self, now: Time, busy: bool) {
        if std::mem::replace(&mut self.model.busy, busy) || busy {
            self.was_active(now);
        }
    }

    /// Inputs and web requests that wait or run.
    fn inputs(&self) -> u64 {
        let of = |side: &Side| side.pending + side.running;
        of(&self.interactive) + of(&self.background)
    }

    /// Since when the function has had no inputs, if it has none.
    pub(super) fn inactive_since(&self) -> Option<Time> {
        (self.inputs() == 0).then_some(self.model.active_at)
    }

    /// A container's own counter of requests was read. One that is lower than before began anew with its program.
    pub(super) fn counted(&mut self, now: Time, container: ContainerId, value: u64) {
        if self.pool.get(container).is_none() {
            return;
        }
        let before = self.model.counters.insert(container, (value, now));
        let since = match before {
            Some((before, _)) if value >= before => value - before,
            // Also the first reading: what it shows happened since the container began.
            _ => value,
        };
        if since > 0 {
            self.was_active(now);
        }
    }

    /// A Prometheus server has answered, or has not.
    pub(super) fn asked(&mut self, now: Time, requests: Requests) {
        self.model.answer = Some((now, requests));
    }

    /// Asks a Prometheus server once more, where its word is what is waited for.
    pub(super) fn ask_requests(&mut self, now: Time, out: &mut Output) {
        if self.ask_due().is_some_and(|due| due <= now)
            && let Some(within_ms) = self.rule().map(|rule| rule.retention_ms)
        {
            self.model.asked_at = Some(now);
            out.effects.push(Effect::AskRequests { within_ms });
        }
    }

    /// When it is to be asked: once the retention is over as far as is known here, and then again and again.
    pub(super) fn ask_due(&self) -> Option<Time> {
        let activity = self.activity().filter(|activity| activity.source == ActivitySource::Prometheus)?;
        let rule = self.rule().filter(|rule| rule.enabled && self.pool.live() > 0)?;
        let over = self.model.active_at.plus_ms(rule.retention_ms);
        let again = self.model.asked_at.map(|at| at.plus_ms(activity.interval_s.ms));
        Some(again.map_or(over, |again| again.max(over)))
    }

    fn activity(&self) -> Option<&Activity> {
        self.deployed.spec.activity.as_ref()
    }

    pub(super) fn forget_counter(&mut self, container: ContainerId) {
        self.model.counters.remove(&container);
    }

    fn rule(&self) -> Option<&ZeroRule> {
        self.model.rule.as_ref().filter(|_| self.deployed.spec.model_id.is_some() && !self.removed)
    }

    /// What requests past Capstan say against leaving.
    fn held_by_activity(&self) -> Option<&'static str> {
        let activity = self.activity()?;
        let stale_ms = activity.interval_s.ms * STALE_INTERVALS;
        let over = self.model.active_at.plus_ms(self.rule()?.retention_ms);
        // What was read before the retention was over does not prove that nothing came until then.
        let fresh = |at: Time| at >= over && at.plus_ms(stale_ms) > self.now;
        match activity.source {
            ActivitySource::Container => {
                let read = |id: &ContainerId| self.model.counters.get(id).is_some_and(|(_, at)| fresh(*at));
                self.pool.ready_ids().any(|id| !read(&id)).then_some("activity_unknown")
            }
            ActivitySource::Prometheus => match self.model.answer.filter(|(at, _)| fresh(*at)) {
                Some((_, Requests::Counted(0.0))) => None,
                Some((_, Requests::Counted(count))) if count > 0.0 => Some("retention"),
                Some((_, Requests::Missing)) if activity.on_missing == OnMissing::Zero => None,
                _ => Some("activity_unknown"),
            },
        }
    }

    /// The least number of containers that the model asks for beyond its settings, and why.
    pub(super) fn model_floor(&self) -> Option<&'static str> {
        let rule = self.rule()?;
        if !rule.enabled {
            return Some("scale_to_zero_disabled");
        }
        if self.pool.live() == 0 {
            return None;
        }
        if self.model.active_at.plus_ms(rule.retention_ms) > self.now {
            return Some("retention");
        }
        self.held_by_activity()
    }

    /// When the retention ends, if that is what keeps a container.
    pub(super) fn retention_due(&self) -> Option<Time> {
        let rule = self.rule().filter(|rule| rule.enabled && self.pool.live() > 0)?;
        Some(self.model.active_at.plus_ms(rule.retention_ms)).filter(|due| *due > self.now)
    }

    /// The rule, the last request, and what keeps a container now, if anything does, for `explain`.
    pub fn model_view(&self) -> Option<(&ZeroRule, Time, Option<&'static str>)> {
        let kept_by = match () {
            () if self.inputs() > 0 => Some("inputs"),
            () if self.effective.min_containers > 0 => Some("min_containers"),
            () => self.model_floor(),
        };
        self.rule().map(|rule| (rule, self.model.active_at, kept_by))
    }
}
