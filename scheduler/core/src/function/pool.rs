//! A function's containers: who can take more, who idles, and how starts went.

use super::queue::Queued;
use crate::{decision::Choice, limits::Limits};
use capstan_common::{
    container::ContainerState,
    function::FunctionSpec,
    id::{ContainerId, LeaseId, RequestId, Revision, WorkerId},
    input::Payload,
    report::HeldAttempt,
    time::Time,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// Containers whose inputs run longer than this on average are not fed ahead.
const SHORT_RUN_US: u64 = 20_000;
/// How much work may lie ahead in a container.
const AHEAD_US: u64 = 10_000;
/// Most inputs that may lie ahead in a container.
const AHEAD_INPUTS: u64 = 256;

/// An attempt that a container holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The input. An adopted one's payload is empty until its segment is loaded.
    pub input: Queued,
    /// When it was given.
    pub given: Time,
    /// The lease that stands for its group: the first of a batch, or itself.
    pub group: LeaseId,
}

impl Lease {
    /// A lease that nobody gave, for the planted fault of accepting late outcomes.
    pub fn planted(held: &HeldAttempt, now: Time) -> Self {
        let payload = Payload::json(bytes::Bytes::new());
        let input = Queued { call: held.call, index: held.index, payload, submitted: now, tries: None };
        Self { input, given: now, group: held.lease }
    }
}

/// A container's life as the function's owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Ordered, not ready.
    Starting,
    /// The same, of a revision that takes over when it is ready.
    Trial,
    /// Takes inputs; idle since then if it has none.
    Ready,
    /// Takes nothing new; stops when it has nothing left.
    Draining,
    /// Told to stop.
    Stopping,
}

/// One container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Where it is.
    pub worker: WorkerId,
    /// Of which revision.
    pub revision: Revision,
    /// Its state.
    pub life: Life,
    /// Whether it was there before its owner.
    pub adopted: bool,
    /// Whether it runs as its worker's user.
    pub trusted: bool,
    /// Why it is where it is; of an adopted one that is not known.
    pub chosen: Option<Choice>,
    /// When the function last asked for more containers before this one came, or it was adopted.
    pub decided: Time,
    /// When it was given its place, or was adopted.
    pub placed: Time,
    /// When it last began to have nothing to do, or last had something.
    pub since: Time,
    /// What it holds.
    pub leases: BTreeMap<LeaseId, Lease>,
    /// Groups (inputs or batches) that it holds; each group's inputs that are still open.
    pub groups: BTreeMap<LeaseId, u32>,
    /// Web requests that it works on.
    pub requests: BTreeSet<RequestId>,
    /// Where its server listens on its worker; 0 if it is none, or not known yet.
    pub port: u16,
    /// Exponential average of a group's run time, in microseconds.
    pub run_us: Option<u64>,
    /// Groups that it has finished.
    pub served: u64,
    /// Groups and requests that it may work on at once.
    pub at_once: u32,
    /// Most groups it may hold, some of them ahead.
    pub room: u32,
}

impl Container {
    /// Whether it has nothing to do.
    pub fn is_idle(&self) -> bool {
        self.leases.is_empty() && self.requests.is_empty()
    }

    /// One input fewer of a group is open.
    pub fn leave_group(&mut self, group: LeaseId) {
        if let Some(open) = self.groups.get_mut(&group) {
            *open -= 1;
            if *open == 0 {
                self.groups.remove(&group);
            }
        }
    }

    /// The same, of one that has run for so long.
    pub fn close_group(&mut self, group: LeaseId, run_us: u64) {
        self.leave_group(group);
        if !self.groups.contains_key(&group) {
            self.served += 1;
            self.run_us = Some(average(self.run_us, run_us));
        }
    }

    /// A map that has become empty keeps its memory: ten thousand idle containers would keep much.
    fn forget_empty(&mut self) {
        if self.leases.is_empty() {
            self.leases = BTreeMap::new();
            self.groups = BTreeMap::new();
        }
    }

    /// Groups and requests that it holds.
    fn held(&self) -> u32 {
        (self.groups.len() + self.requests.len()) as u32
    }

    /// Most that it may hold: nothing lies ahead beside requests, which would not be in the worker's count.
    fn most(&self) -> u32 {
        if self.requests.is_empty() { self.room } else { self.at_once.min(self.room) }
    }

    /// Its state as users see it.
    pub fn state(&self) -> ContainerState {
        match self.life {
            Life::Starting | Life::Trial => ContainerState::Starting,
            Life::Ready if self.is_idle() => ContainerState::Idle,
            Life::Ready => ContainerState::Busy,
            Life::Draining | Life::Stopping => ContainerState::Draining,
        }
    }
}

/// How starts of the current revision went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Starts {
    /// Waves of starts that failed in a row.
    pub failed: u32,
    /// No start before then.
    pub not_before: Time,
    /// Containers placed before then belong to a wave that already counted.
    pub wave: Time,
    /// How the last one failed.
    pub last: String,
    /// What the last look at a server that is not ready found.
    pub looked: Option<Arc<str>>,
    /// When the latest containers became ready, and how long after their places were given, in microseconds.
    pub took: VecDeque<(Time, u64)>,
}

/// Starts that are remembered for what-if.
const KEPT_STARTS: usize = 128;

impl Starts {
    /// A container died before it was ready. Containers of one wave count once.
    pub fn failed(&mut self, now: Time, placed: Time, detail: String, limits: &Limits) {
        self.last = detail;
        self.looked = None;
        if self.failed > 0 && placed < self.wave {
            return;
        }
        let doubled = limits.start_backoff_ms << self.failed.min(20);
        self.failed += 1;
        self.wave = now;
        self.not_before = now.plus_ms(doubled.min(limits.start_backoff_max_ms));
    }

    /// How long starts have taken lately, in microseconds, if there were any.
    pub fn usual_us(&self) -> Option<u64> {
        let sum: u64 = self.took.iter().map(|(_, us)| us).sum();
        sum.checked_div(self.took.len() as u64)
    }

    /// A container became ready that was placed then, if that is known.
    pub fn succeeded(&mut self, now: Time, placed: Option<Time>) {
        let mut took = std::mem::take(&mut self.took);
        if took.len() == KEPT_STARTS {
            took.pop_front();
        }
        took.extend(placed.map(|placed| (now, now.since_us(placed))));
        *self = Self { took, ..Self::default() };
    }
}

/// A moving average of times with one more; the first is its own.
pub fn average(usual: Option<u64>, us: u64) -> u64 {
    usual.map_or(us, |usual| (usual * 7 + us) / 8)
}

/// All containers of a function.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    /// Boxed: a map's node has room for eleven, and most functions have few containers.
    containers: BTreeMap<ContainerId, Box<Container>>,
    /// Ready containers of the current revision with room: fewest groups first, then the last used, so that the others can age.
    free: BTreeSet<(u32, u64, ContainerId)>,
    /// Ready containers without work, the longest idle first.
    idle: BTreeSet<(Time, ContainerId)>,
    starting: u32,
    live: u32,
    trials: u32,
}

impl Pool {
    /// Looks at one.
    pub fn get(&self, id: ContainerId) -> Option<&Container> {
        self.containers.get(&id).map(|container| &**container)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ContainerId, &Container)> {
        self.containers.iter().map(|(id, c)| (*id, &**c))
    }

    /// Every container, whatever its revision and state.
    pub fn len(&self) -> u32 {
        self.containers.len() as u32
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// Ordered and not ready.
    pub fn starting(&self) -> u32 {
        self.starting
    }

    /// Ready or starting: what counts as capacity.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// Containers of a revision that has not taken over: they are not capacity yet.
    pub fn trials(&self) -> u32 {
        self.trials
    }

    /// Ready containers without work.
    pub fn idle(&self) -> u32 {
        self.idle.len() as u32
    }

    /// Containers that take inputs.
    pub fn ready_ids(&self) -> impl Iterator<Item = ContainerId> {
        self.containers.iter().filter(|(_, c)| c.life == Life::Ready).map(|(id, _)| *id)
    }

    /// The longest idle container, and since when.
    pub fn longest_idle(&self) -> Option<(Time, ContainerId)> {
        self.idle.first().copied()
    }

    /// Live containers, on one worker or all: idle ones, the longest idle first; then, if `busy` ones are meant too, those with the
    /// least work.
    pub fn lightest(&self, worker: Option<&WorkerId>, busy: bool, count: usize) -> Vec<ContainerId> {
        let here = |id: &ContainerId| worker.is_none_or(|worker| self.containers[id].worker == *worker);
        let mut found: Vec<_> = self.idle.iter().map(|(_, id)| *id).filter(here).take(count).collect();
        if busy && found.len() < count {
            let live = self.containers.iter().filter(|(id, c)| {
                let takes = matches!(c.life, Life::Starting) || (c.life == Life::Ready && !c.is_idle());
                takes && here(id)
            });
            let mut live: Vec<_> = live.map(|(id, c)| (c.leases.len() + c.requests.len(), *id)).collect();
            live.sort_unstable();
            found.extend(live.into_iter().map(|(_, id)| id).take(count - found.len()));
        }
        found
    }

    /// Containers of any revision that take nothing new and will leave.
    pub fn leaving(&self) -> u32 {
        self.len() - self.live - self.trials
    }

    /// The container that should get the next group, with its room. One that is fed ahead is left alone until half of what
    /// lies ahead is done: an order then carries many inputs, not one for each that ended. Without `ahead` nothing is.
    pub fn next_free(&self, at_once: u32, ahead: bool) -> Option<(ContainerId, u32)> {
        let (held, _, id) = *self.free.first()?;
        let most = self.containers[&id].most();
        let room = if ahead { most } else { most.min(at_once) };
        let low = at_once + room.saturating_sub(at_once) / 2;
        (held < low.max(1)).then(|| (id, room.saturating_sub(held))).filter(|(_, room)| *room > 0)
    }

    /// How many containers have room.
    pub fn free_len(&self) -> usize {
        self.free.len()
    }

    /// Adds a container.
    pub fn add(&mut self, id: ContainerId, container: Container) {
        self.index(id, &container, true);
        self.containers.insert(id, Box::new(container));
    }

    /// Takes a container out.
    pub fn remove(&mut self, id: ContainerId) -> Option<Container> {
        let container = self.containers.remove(&id)?;
        self.index(id, &container, false);
        Some(*container)
    }

    /// Changes a container, and keeps the indexes true.
    pub fn change<T>(&mut self, id: ContainerId, change: impl FnOnce(&mut Container) -> T) -> Option<T> {
        let mut container = self.containers.remove(&id)?;
        self.index(id, &container, false);
        let result = change(&mut container);
        container.forget_empty();
        self.index(id, &container, true);
        self.containers.insert(id, container);
        Some(result)
    }

    fn index(&mut self, id: ContainerId, container: &Container, add: bool) {
        let held = container.held();
        let ready = container.life == Life::Ready;
        if ready && held < container.most() {
            let key = (held, u64::MAX - container.since.0, id);
            if add {
                self.free.insert(key);
            } else {
                self.free.remove(&key);
            }
        }
        if ready && container.is_idle() {
            if add {
                self.idle.insert((container.since, id));
            } else {
                self.idle.remove(&(container.since, id));
            }
        }
        let step = |count: &mut u32, counts: bool| match (counts, add) {
            (true, true) => *count += 1,
            (true, false) => *count -= 1,
            (false, _) => {}
        };
        step(&mut self.starting, container.life == Life::Starting);
        step(&mut self.live, ready || container.life == Life::Starting);
        step(&mut self.trials, container.life == Life::Trial);
    }

    /// Checks what must always hold.
    pub fn check(&self) -> Result<(), String> {
        let mut rebuilt = Self::default();
        for (id, container) in &self.containers {
            rebuilt.add(*id, (**container).clone());
            let open: u32 = container.groups.values().sum();
            if open as usize != container.leases.len() {
                return Err(format!("{id}: groups count {open}, leases {}", container.leases.len()));
            }
        }
        let same = rebuilt.free == self.free
            && rebuilt.idle == self.idle
            && rebuilt.starting == self.starting
            && rebuilt.live == self.live
            && rebuilt.trials == self.trials;
        same.then_some(()).ok_or_else(|| "the pool's indexes are not true".into())
    }
}

/// How many groups a container may hold: what it works on at once, and a little ahead where its runs are short.
pub fn room(spec: &FunctionSpec, run_us: Option<u64>) -> u32 {
    let at_once = spec.groups_at_once();
    let short = run_us.filter(|us| *us < SHORT_RUN_US && !spec.single_use_containers);
    let Some(run_us) = short else { return at_once };
    let most = (AHEAD_INPUTS / u64::from(spec.group_size())).max(1);
    let ahead = (u64::from(at_once) * AHEAD_US / run_us.max(10)).clamp(1, most);
    at_once + ahead as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_containers_with_short_runs_are_fed_ahead() {
        let spec: FunctionSpec = serde_json::from_str(r#"{"runtime":{"process":{"command":["true"]}}}"#).unwrap();
        assert_eq!(room(&spec, None), 1);
        assert_eq!(room(&spec, Some(SHORT_RUN_US)), 1);
        assert_eq!(room(&spec, Some(1000)), 11);
        assert_eq!(room(&spec, Some(1)), 257);
        let single = FunctionSpec { single_use_containers: true, ..spec };
        assert_eq!(room(&single, Some(1)), 1);
    }

    #[test]
    fn a_wave_of_failed_starts_counts_once_and_the_pause_doubles_to_its_cap() {
        // RELIABILITY F33
        let limits = Limits::default();
        let mut starts = Starts::default();
        for _ in 0..16 {
            starts.failed(Time(5), Time(1), "exit code 3".into(), &limits);
        }
        assert_eq!((starts.failed, starts.not_before), (1, Time(5).plus_ms(1000)));
        let mut now = Time(5);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            now = starts.not_before;
            starts.failed(now, now, "exit code 3".into(), &limits);
            pauses.push(starts.not_before.since_ms(now));
        }
        assert_eq!(pauses, [2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000]);
        starts.succeeded(now.plus_ms(30), Some(now));
        assert_eq!((starts.not_before, &starts.took), (Time(0), &VecDeque::from([(now.plus_ms(30), 30_000)])));
    }
}
