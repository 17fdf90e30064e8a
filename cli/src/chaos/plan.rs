//! What is done to a cluster, and when: the same for the same seed.

use crate::local::{Mode, Part, Size};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::time::Duration;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// The process ends at once, and starts again when it is over.
    Kill(Part),
    /// The process is asked to end, and starts again when it is over.
    Stop(Part),
    /// The process stands still.
    Pause(Part),
    /// The node's cable is pulled, and plugged in again when it is over.
    Unplug(Part),
    /// etcd has no room until it is over.
    Fill,
    /// What is between workers and a scheduler.
    Links(usize, Mode),
    /// What is between a scheduler and an etcd member, or all of them.
    Store(usize, Option<usize>, Mode),
}

impl Deed {
    /// Its kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(Part::Etcd(_)) => "kill_etcd",
            Self::Kill(Part::Scheduler(_)) => "kill_scheduler",
            Self::Kill(Part::Worker(_)) => "kill_worker",
            Self::Stop(_) => "stop_scheduler",
            Self::Pause(Part::Etcd(_)) => "pause_etcd",
            Self::Pause(Part::Scheduler(_)) => "pause_scheduler",
            Self::Pause(Part::Worker(_)) => "pause_worker",
            Self::Unplug(Part::Etcd(_)) => "unplug_etcd",
            Self::Unplug(Part::Scheduler(_)) => "unplug_scheduler",
            Self::Unplug(Part::Worker(_)) => "unplug_worker",
            Self::Fill => "fill_etcd",
            Self::Links(_, mode) => match mode {
                Mode::Slow(_) => "slow_links",
                Mode::HoldAnswers => "one_way_links",
                Mode::Refuse => "break_links",
                _ => "partition_links",
            },
            Self::Store(_, _, mode) => match mode {
                Mode::Slow(_) => "slow_store",
                Mode::HoldAnswers => "one_way_store",
                Mode::Refuse => "break_store",
                _ => "partition_store",
            },
        }
    }

    /// The process that it is done to, if it is one: no two things are done to it at once. No etcd member may be gone while all
    /// are filled and emptied.
    pub fn part(&self) -> Option<Part> {
        match self {
            Self::Kill(part) | Self::Stop(part) | Self::Pause(part) | Self::Unplug(part) => Some(*part),
            Self::Fill => Some(Part::Etcd(0)),
            Self::Links(..) | Self::Store(..) => None,
        }
    }
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// From the fault before it.
    pub after: Duration,
    /// What is done.
    pub deed: Deed,
    /// How long it lasts.
    pub lasts: Duration,
}

/// So many faults for a cluster of this size.
pub fn plan(seed: u64, faults: usize, size: &Size) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..faults).map(|_| fault(&mut random, size)).collect()
}

fn fault(random: &mut StdRng, size: &Size) -> Fault {
    let ms = |random: &mut StdRng, least: u64, most: u64| Duration::from_millis(random.random_range(least..most));
    let scheduler = random.random_range(0..size.schedulers);
    let worker = random.random_range(0..size.workers.max(1));
    let etcd = random.random_range(0..size.etcd);
    let mode = match random.random_range(0..4) {
        0 => Mode::Hold,
        1 => Mode::HoldAnswers,
        2 => Mode::Refuse,
        _ => Mode::Slow(ms(random, 20, 300)),
    };
    if size.namespaces && random.random_ratio(1, 5) {
        let part = match random.random_range(0..5) {
            0..2 => Part::Scheduler(scheduler),
            2..4 => Part::Worker(worker),
            _ => Part::Etcd(etcd),
        };
        return Fault { after: ms(random, 100, 1_200), deed: Deed::Unplug(part), lasts: ms(random, 300, 8_000) };
    }
    let (deed, lasts) = match random.random_range(0..100) {
        0..16 => (Deed::Kill(Part::Scheduler(scheduler)), ms(random, 200, 4_000)),
        16..26 => (Deed::Stop(Part::Scheduler(scheduler)), ms(random, 200, 3_000)),
        26..38 => (Deed::Pause(Part::Scheduler(scheduler)), ms(random, 500, 6_000)),
        38..46 => (Deed::Kill(Part::Worker(worker)), ms(random, 200, 4_000)),
        46..54 => (Deed::Pause(Part::Worker(worker)), ms(random, 500, 8_000)),
        54..62 => (Deed::Kill(Part::Etcd(etcd)), ms(random, 200, 3_000)),
        62..70 => (Deed::Pause(Part::Etcd(etcd)), ms(random, 300, 3_000)),
        70..84 => (Deed::Links(scheduler, mode), ms(random, 500, 6_000)),
        84..87 => (Deed::Fill, ms(random, 500, 4_000)),
        87..93 => (Deed::Store(scheduler, None, mode), ms(random, 300, 5_000)),
        _ => (Deed::Store(scheduler, Some(etcd), mode), ms(random, 300, 5_000)),
    };
    Fault { after: ms(random, 100, 1_200), deed, lasts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_gives_the_same_plan_and_a_long_plan_has_everything_in_it() {
        let size = Size::default();
        assert_eq!(plan(7, 100, &size), plan(7, 100, &size));
        assert_ne!(plan(7, 100, &size), plan(8, 100, &size));
        let kinds: BTreeSet<&str> = plan(7, 500, &size).iter().map(|fault| fault.deed.kind()).collect();
        assert_eq!(kinds.len(), 16, "{kinds:?}");
        let size = Size { namespaces: true, ..size };
        let kinds: BTreeSet<&str> = plan(7, 500, &size).iter().map(|fault| fault.deed.kind()).collect();
        assert_eq!(kinds.len(), 19, "{kinds:?}");
    }
}
