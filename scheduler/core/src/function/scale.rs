//! The pool follows `Sizing`: demand is told, and idle containers that are not wanted leave.

use super::{Function, bid::Numbers, pool::Life};
use crate::{
    decision::Facts,
    effect::{Demand, Effect, Output},
};
use capstan_common::{parameter, time::Time};

impl Function {
    /// The numbers that the sizing rule reads.
    pub(super) fn facts(&self) -> Facts {
        let floor = u32::from(self.model_floor().is_some());
        let pending = self.interactive.pending + self.background.pending;
        let running = self.interactive.running + self.background.running;
        let active = pending + running > 0;
        // A function whose parameters have no value takes no work, and keeps no containers for it.
        let without = self.removed || parameter::missing(&self.deployed.spec).is_err();
        Facts {
            pending,
            running,
            slots: self.serving().spec.slots(),
            min: if without { 0 } else { self.effective.min_containers.max(floor) },
            max: if without { 0 } else { self.effective.max_containers.unwrap_or(self.limits.system_max_containers) },
            buffer: if active { self.effective.buffer_containers } else { 0 },
            starting: self.pool.starting(),
            live: self.pool.live(),
        }
    }

    pub(super) fn rescale(&mut self, now: Time, out: &mut Output) {
        self.sizing.model.watch(now, self.inputs() > 0);
        let facts = self.facts();
        let known = (self.starts.usual_us(), self.model_floor());
        let notice = self.sizing.resize(now, facts, &self.effective, known);
        out.effects.extend(notice.map(Effect::Notice));
        self.retire_surplus(facts.max, out);
        self.watch_size(now);
        self.stop_idle(now, out);
        self.take_over_asleep(out);
        self.make_room_for_trial(now, out);
        self.tell_demand(now, out);
        out.records.extend(self.sizing.record(now));
    }

    fn watch_size(&mut self, now: Time) {
        let inactive_since = self.inactive_since();
        self.sizing.watch_size(now, self.pool.live(), inactive_since, &self.limits);
    }

    /// Containers that the pool lacks now. Starting ones are capacity; containers of older revisions count against the maximum.
    pub(super) fn missing(&self, now: Time) -> u32 {
        if self.holding || now < self.starts.not_before {
            return 0;
        }
        let lacking = self.sizing.wanted().saturating_sub(self.pool.live());
        // After a failed start one container at a time tries again.
        let lacking =
            if self.starts.failed > 0 { lacking.min(1u32.saturating_sub(self.pool.starting())) } else { lacking };
        let max = self.facts().max;
        if mutated!(self.limits.mutant, MAXIMUM_EXCEEDED) {
            return lacking;
        }
        lacking.min(max.saturating_sub(self.pool.len()))
    }

    fn tell_demand(&mut self, now: Time, out: &mut Output) {
        let min = self.facts().min;
        // One demand asks for one kind of container: for the one that is tried first.
        let trial = self.wants_trial(now);
        let numbers = Numbers {
            missing: if trial { 1 } else { self.missing(now) },
            grants_seen: self.sizing.bid.grants_seen(),
            spare: self.pool.live().saturating_sub(self.sizing.wanted().max(min)).min(self.pool.idle()),
            leaving: self.pool.leaving(),
            min,
        };
        let of = if trial { &self.deployed } else { self.serving() };
        let (revision, spec) = (of.revision, of.spec.clone());
        if !self.sizing.bid.tells(now, revision, numbers) {
            return;
        }
        let Numbers { missing, grants_seen, spare, leaving, min } = numbers;
        out.effects.push(Effect::Demand(Demand {
            function: self.key.clone(),
            missing,
            grants_seen,
            amount: spec.amount(),
            gpus: spec.gpus(),
            needs: spec.needs(),
            spare,
            leaving,
            min,
            weight: spec.weight,
        }));
    }

    /// A maximum that was lowered: what is above it takes nothing new, idle ones first (SPEC B04, D10).
    fn retire_surplus(&mut self, max: u32, out: &mut Output) {
        let surplus = self.pool.live().saturating_sub(max) as usize;
        if surplus > 0 && !self.removed {
            for id in self.pool.lightest(None, true, surplus) {
                self.retire(id, "max_containers was lowered", out);
            }
        }
    }

    /// Containers above the wanted number leave when they have idled their window, the longest idle first (SPEC B10, B15).
    fn stop_idle(&mut self, now: Time, out: &mut Output) {
        while let Some(due) = self.idle_due() {
            if due > now {
                return;
            }
            let Some((_, id)) = self.pool.longest_idle() else { return };
            let id = match self.pool.iter().find(|(_, c)| c.life == Life::Ready) {
                Some((first, _)) if mutated!(self.limits.mutant, BUSY_CONTAINER_STOPPED) => first,
                _ => id,
            };
            self.stop(
                id,
                if self.sizing.is_over(now, &self.limits) { "far more containers than wanted" } else { "idle" },
                out,
            );
            self.watch_size(now);
        }
    }

    /// When the next idle container is to leave.
    pub(super) fn idle_due(&self) -> Option<Time> {
        if self.pool.live() <= self.sizing.wanted() {
            return None;
        }
        let window_ms = u64::from(self.effective.scaledown_window) * 1000;
        let over = self.sizing.is_over(self.now, &self.limits);
        self.pool.longest_idle().map(|(since, _)| if over { since } else { since.plus_ms(window_ms) })
    }

    /// When a start that pauses may be tried again.
    pub(super) fn start_due(&self) -> Option<Time> {
        let pausing = self.starts.not_before > self.now && self.sizing.wanted() > self.pool.live();
        pausing.then_some(self.starts.not_before)
    }
}
