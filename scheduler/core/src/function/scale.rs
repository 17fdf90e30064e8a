//! Sizing: how many containers the function wants, why, and which idle ones leave.

use super::{
    Function,
    bid::Numbers,
    pool::{Life, average},
};
use crate::{
    decision::{Decision, Facts},
    effect::{Demand, Effect, Notice, Output},
    record::Record,
};
use capstan_common::{function::ScaleupPolicy, parameter, time::Time};

/// Decisions kept for `explain`.
const KEPT_DECISIONS: usize = 128;
/// Decisions are made durable together, so long after the first of them.
const RECORD_DECISIONS_MS: u64 = 1_000;
/// Decisions of one kind that follow each other faster than this are told as one.
const SAME_DECISION_MS: u64 = 100;

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
            slots: self.deployed.spec.slots(),
            min: if without { 0 } else { self.effective.min_containers.max(floor) },
            max: if without { 0 } else { self.effective.max_containers.unwrap_or(self.limits.system_max_containers) },
            buffer: if active { self.effective.buffer_containers } else { 0 },
            starting: self.pool.starting(),
            live: self.pool.live(),
        }
    }

    pub(super) fn rescale(&mut self, now: Time, out: &mut Output) {
        let mut facts = self.facts();
        self.watch_activity(now, facts.pending + facts.running > 0);
        facts = self.facts();
        let (wanted, mut reason) = self.sized(&facts);
        if wanted == 1 && facts.pending + facts.running == 0 && self.effective.min_containers == 0 {
            reason = self.model_floor().unwrap_or(reason);
        }
        if wanted != self.wanted {
            self.decide(now, wanted, reason, facts, out);
        }
        self.retire_surplus(facts.max, out);
        self.watch_size(now);
        self.stop_idle(now, out);
        self.tell_demand(now, out);
        if self.decisions_due.is_some_and(|due| due <= now) {
            self.decisions_due = None;
            out.records.push(Record::Decisions(self.decisions.iter().cloned().collect()));
        }
    }

    /// What the formula says, and what of it is worth a start.
    fn sized(&self, facts: &Facts) -> (u32, &'static str) {
        let (wanted, reason) = size(facts);
        let floor = facts.min.min(facts.max);
        if self.effective.scaleup_policy == ScaleupPolicy::Latency || wanted <= floor {
            return (wanted, reason);
        }
        let most = worth(facts, self.starts.usual_us().zip(self.run_us)).saturating_add(facts.buffer).max(floor);
        if wanted > most { (most, "worth_starting") } else { (wanted, reason) }
    }

    /// An input has run for so long.
    pub(super) fn ran(&mut self, run_us: u64) {
        self.run_us = Some(average(self.run_us, run_us));
    }

    fn decide(&mut self, now: Time, wanted: u32, reason: &'static str, facts: Facts, out: &mut Output) {
        let from = self.wanted;
        self.wanted = wanted;
        let rising = wanted > from;
        self.decisions_due = self.decisions_due.or(Some(now.plus_ms(RECORD_DECISIONS_MS)));
        if let Some(last) = self.decisions.back_mut() {
            let same = last.reason == reason && (last.to > last.from) == rising;
            if same && now.since_ms(last.at) < SAME_DECISION_MS {
                last.to = wanted;
                last.facts = facts;
                return;
            }
        }
        if self.decisions.len() == KEPT_DECISIONS {
            self.decisions.pop_front();
        }
        self.decisions.push_back(Decision { at: now, from, to: wanted, reason: reason.into(), facts });
        out.effects.push(Effect::Notice(Notice::Scaled { from, to: wanted, reason }));
    }

    /// Containers that the pool lacks now. Starting ones are capacity; containers of older revisions count against the maximum.
    pub(super) fn missing(&self, now: Time) -> u32 {
        if self.holding || now < self.starts.not_before {
            return 0;
        }
        let lacking = self.wanted.saturating_sub(self.pool.live());
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
        let numbers = Numbers {
            missing: self.missing(now),
            grants_seen: self.grants_seen,
            spare: self.pool.live().saturating_sub(self.wanted.max(min)).min(self.pool.idle()),
            leaving: self.pool.leaving(),
            min,
        };
        if !self.bid.tells(now, self.deployed.revision, numbers) {
            return;
        }
        if numbers.missing == 0 {
            self.unplaced = None;
        }
        let (spec, Numbers { missing, grants_seen, spare, leaving, min }) = (&self.deployed.spec, numbers);
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

    /// Far more containers than wanted, for a while: then the surplus need not wait out its window (SPEC B14). While the
    /// function is inactive the window alone counts, so that it means what it says.
    fn watch_size(&mut self, now: Time) {
        let far = self.limits.overprovision_factor.saturating_mul(self.wanted.max(1));
        let surplus = self.pool.live().saturating_sub(self.wanted);
        let inactive = self.inactive_since().is_some_and(|since| since.plus_ms(self.limits.overprovision_ms) <= now);
        if surplus <= far || inactive {
            self.over_since = None;
        } else if self.wanted > 0 {
            self.over_since.get_or_insert(now);
        }
    }

    /// Whether the pool has been far too large for long enough.
    fn is_over(&self, now: Time) -> bool {
        self.wanted > 0 && self.over_since.is_some_and(|since| since.plus_ms(self.limits.overprovision_ms) <= now)
    }

    /// When it will have been.
    pub(super) fn over_due(&self) -> Option<Time> {
        let due = self.over_since?.plus_ms(self.limits.overprovision_ms);
        Some(due).filter(|due| *due > self.now)
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
            self.stop(id, if self.is_over(now) { "far more containers than wanted" } else { "idle" }, out);
            self.watch_size(now);
        }
    }

    /// When the next idle container is to leave.
    pub(super) fn idle_due(&self) -> Option<Time> {
        if self.pool.live() <= self.wanted {
            return None;
        }
        let window_ms = u64::from(self.effective.scaledown_window) * 1000;
        let over = self.is_over(self.now);
        self.pool.longest_idle().map(|(since, _)| if over { since } else { since.plus_ms(window_ms) })
    }

    /// When a start that pauses may be tried again.
    pub(super) fn start_due(&self) -> Option<Time> {
        let pausing = self.starts.not_before > self.now && self.wanted > self.pool.live();
        pausing.then_some(self.starts.not_before)
    }
}

/// The sizing rule (SPEC §2.2), with the term that decided.
pub fn size(facts: &Facts) -> (u32, &'static str) {
    let inputs = facts.pending + facts.running;
    let base = u32::try_from(inputs.div_ceil(facts.slots)).unwrap_or(u32::MAX);
    let wish = base.saturating_add(facts.buffer);
    if wish > facts.max {
        (facts.max, "max_containers")
    } else if wish < facts.min {
        (facts.min.min(facts.max), "min_containers")
    } else if inputs == 0 {
        (wish, "no_inputs")
    } else if facts.buffer > 0 {
        (wish, "inputs_and_buffer")
    } else {
        (wish, "inputs")
    }
}

/// How many containers are worth having for what waits and runs: with so many, what waits has begun by the time that one more
/// could be there (SPEC §2.2, `scaleup_policy: cost`). `usual` is how long a start and an input take, in microseconds; as long as
/// that is not known, one container after the other finds out.
fn worth(facts: &Facts, usual: Option<(u64, u64)>) -> u32 {
    if facts.pending + facts.running == 0 {
        return 0;
    }
    let busy = facts.running.div_ceil(facts.slots);
    let (least, waits) = match usual {
        None => (u64::from(facts.live) + u64::from(facts.starting == 0), 0),
        Some((start_us, run_us)) => {
            let work_us = u128::from(facts.pending) * u128::from(run_us);
            let each_us = u128::from(facts.slots) * u128::from(start_us.max(1));
            (1, u64::try_from(work_us.div_ceil(each_us)).unwrap_or(u64::MAX))
        }
    };
    u32::try_from(busy.max(least).max(waits)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worth_a_start_follows_from_what_is_usual_and_is_found_out_one_by_one() {
        let facts = |pending, running, starting, live| Facts {
            pending,
            running,
            slots: 1,
            min: 0,
            max: 1_000,
            buffer: 0,
            starting,
            live,
        };
        // A start of a minute and runs of half a second: ten containers begin 1,200 inputs within that minute.
        let usual = Some((60_000_000, 500_000));
        assert_eq!(worth(&facts(1_200, 0, 0, 0), usual), 10);
        assert_eq!(worth(&facts(1, 0, 0, 0), usual), 1);
        assert_eq!(worth(&facts(0, 7, 0, 7), usual), 7);
        assert_eq!(worth(&facts(0, 0, 0, 3), usual), 0);
        // Nothing is known: one more, unless one is on its way; so neither a new function nor an adopted container stays alone.
        assert_eq!(worth(&facts(10_000, 0, 0, 0), None), 1);
        assert_eq!(worth(&facts(10_000, 0, 1, 1), None), 1);
        assert_eq!(worth(&facts(10_000, 1, 0, 1), None), 2);
    }
}
