//! `Sizing`: how many containers a function wants and why, as a value of its own. It reads numbers that it is given and knows
//! neither calls nor containers.

use super::{bid::Bid, model::Model, pool::average};
use crate::{
    decision::{Decision, Facts},
    effect::Notice,
    limits::Limits,
    record::Record,
};
use capstan_common::{
    function::{AutoscalerSettings, FunctionSpec, ScaleupPolicy},
    profile::Profiles,
    time::Time,
};
use std::collections::VecDeque;

/// Decisions kept for `explain`.
const KEPT_DECISIONS: usize = 128;
/// Decisions are made durable together, so long after the first of them.
const RECORD_DECISIONS_MS: u64 = 1_000;
/// Decisions of one kind that follow each other faster than this are told as one.
const SAME_DECISION_MS: u64 = 100;

/// How many containers are wanted, the decisions that led there, what the autoscaler was told of it, and what changes it:
/// profiles, a model's activity, and how long inputs run.
#[derive(Debug, Clone, Default)]
pub struct Sizing {
    wanted: u32,
    decisions: VecDeque<Decision>,
    /// When decisions that are in memory only are made durable.
    record_due: Option<Time>,
    /// Since when the pool is far larger than what is wanted.
    over_since: Option<Time>,
    /// Exponential average of how long an input runs, in microseconds.
    run_us: Option<u64>,
    /// What the autoscaler was told.
    pub bid: Bid,
    /// Settings that hold at times.
    pub profiles: Profiles,
    /// When a model's last container may leave.
    pub model: Model,
}

impl Sizing {
    /// Takes over what the store has of former decisions, oldest first.
    pub fn recover(&mut self, decisions: Vec<Decision>) {
        self.decisions = decisions.into();
    }

    /// A revision brings its own profiles.
    pub fn begin_revision(&mut self, spec: &FunctionSpec, now: Time) {
        self.profiles = Profiles::of(&spec.profiles);
        self.profiles.turn(now);
    }

    /// Containers wanted.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// The latest decisions, newest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().rev()
    }

    /// An input has run for so long.
    pub fn ran(&mut self, run_us: u64) {
        self.run_us = Some(average(self.run_us, run_us));
    }

    /// Decides how many containers are wanted. `usual_start_us` is how long a start takes, `floor` what keeps a model's last
    /// container.
    pub fn resize(
        &mut self,
        now: Time,
        facts: Facts,
        settings: &AutoscalerSettings,
        (usual_start_us, floor): (Option<u64>, Option<&'static str>),
    ) -> Option<Notice> {
        let (wanted, mut reason) = self.sized(&facts, settings.scaleup_policy, usual_start_us);
        if wanted == 1 && facts.pending + facts.running == 0 && settings.min_containers == 0 {
            reason = floor.unwrap_or(reason);
        }
        (wanted != self.wanted).then(|| self.decide(now, wanted, reason, facts)).flatten()
    }

    /// What the formula says, and what of it is worth a start.
    fn sized(&self, facts: &Facts, policy: ScaleupPolicy, usual_start_us: Option<u64>) -> (u32, &'static str) {
        let (wanted, reason) = size(facts);
        let floor = facts.min.min(facts.max);
        if policy == ScaleupPolicy::Latency || wanted <= floor {
            return (wanted, reason);
        }
        let most = worth(facts, usual_start_us.zip(self.run_us)).saturating_add(facts.buffer).max(floor);
        if wanted > most { (most, "worth_starting") } else { (wanted, reason) }
    }

    fn decide(&mut self, now: Time, wanted: u32, reason: &'static str, facts: Facts) -> Option<Notice> {
        let from = std::mem::replace(&mut self.wanted, wanted);
        let rising = wanted > from;
        self.record_due = self.record_due.or(Some(now.plus_ms(RECORD_DECISIONS_MS)));
        if let Some(last) = self.decisions.back_mut() {
            let same = last.reason == reason && (last.to > last.from) == rising;
            if same && now.since_ms(last.at) < SAME_DECISION_MS {
                last.to = wanted;
                last.facts = facts;
                return None;
            }
        }
        if self.decisions.len() == KEPT_DECISIONS {
            self.decisions.pop_front();
        }
        self.decisions.push_back(Decision { at: now, from, to: wanted, reason: reason.into(), facts });
        Some(Notice::Scaled { from, to: wanted, reason })
    }

    /// The decisions, when it is time to make them durable.
    pub fn record(&mut self, now: Time) -> Option<Record> {
        self.record_due.take_if(|due| *due <= now)?;
        Some(Record::Decisions(self.decisions.iter().cloned().collect()))
    }

    /// When that is.
    pub fn record_due(&self) -> Option<Time> {
        self.record_due
    }

    /// Far more containers than wanted, for a while: then the surplus need not wait out its window (SPEC B14). While the
    /// function is inactive the window alone counts, so that it means what it says. `inactive_since`: it has had no inputs since.
    pub fn watch_size(&mut self, now: Time, live: u32, inactive_since: Option<Time>, limits: &Limits) {
        let far = limits.overprovision_factor.saturating_mul(self.wanted.max(1));
        let surplus = live.saturating_sub(self.wanted);
        let inactive = inactive_since.is_some_and(|since| since.plus_ms(limits.overprovision_ms) <= now);
        if surplus <= far || inactive {
            self.over_since = None;
        } else if self.wanted > 0 {
            self.over_since.get_or_insert(now);
        }
    }

    /// Whether the pool has been far too large for long enough.
    pub fn is_over(&self, now: Time, limits: &Limits) -> bool {
        self.wanted > 0 && self.over_since.is_some_and(|since| since.plus_ms(limits.overprovision_ms) <= now)
    }

    /// When it will have been.
    pub fn over_due(&self, now: Time, limits: &Limits) -> Option<Time> {
        let due = self.over_since?.plus_ms(limits.overprovision_ms);
        Some(due).filter(|due| *due > now)
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
