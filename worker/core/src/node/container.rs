//! One container as its worker sees it.

use capstan_common::{
    container::Ending,
    function::Protocol,
    id::LeaseId,
    order::{Assignment, Group, Start},
    report::{Done, HeldAttempt},
    time::Time,
};
use std::collections::{BTreeMap, VecDeque};

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Launched, not ready.
    Starting,
    /// Takes inputs.
    Ready,
    /// Takes nothing new, finishes what it works on.
    Draining,
    /// Told to stop.
    Stopping,
    /// Its process is gone, and these attempts with it; outcomes may still wait to be recorded.
    Gone(Ending, Vec<LeaseId>),
}

/// A group that the container works on.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its attempts that are still wanted.
    pub held: Vec<HeldAttempt>,
    /// From its arrival to its begin.
    pub waited_us: u64,
}

/// One container.
#[derive(Debug, Clone)]
pub struct Container {
    /// The order that made it.
    pub start: Start,
    /// When that came.
    pub ordered: Time,
    /// From then to its process, in microseconds; 0 before, and where a process is started for each input.
    pub spawn_us: u64,
    /// Where it stands.
    pub life: Life,
    /// Whether an input of it was cut off, which it may still work on.
    pub spoilt: bool,
    /// Where its server listens, once it is ready; 0 if it is none.
    pub port: u16,
    /// Groups that it may work on at once.
    pub at_once: u32,
    /// Groups that arrived and have not begun.
    pub waiting: VecDeque<(Time, Group)>,
    /// Groups that it works on, by first lease.
    pub running: BTreeMap<LeaseId, Running>,
    /// Outcomes that are not known to be durable.
    pub unrecorded: BTreeMap<LeaseId, Done>,
    /// Which of the worker's GPUs are its alone.
    pub gpus: Box<[u16]>,
}

/// What an assignment's attempt is called.
pub fn held(assignment: &Assignment) -> HeldAttempt {
    HeldAttempt { lease: assignment.lease, call: assignment.call, index: assignment.index, attempt: assignment.attempt }
}

impl Container {
    /// One that was just ordered, with these of the worker's GPUs.
    pub fn new(now: Time, start: Start, gpus: Box<[u16]>) -> Self {
        Self {
            at_once: start.spec.at_once,
            start,
            ordered: now,
            spawn_us: 0,
            life: Life::Starting,
            spoilt: false,
            port: 0,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            unrecorded: BTreeMap::new(),
            gpus,
        }
    }

    /// Whether inputs are not sent to a server but to a process each.
    pub fn is_exec(&self) -> bool {
        self.start.spec.protocol == Protocol::Exec
    }

    /// A group is over.
    pub fn ended(&mut self, group: LeaseId) -> Option<Running> {
        let running = self.running.remove(&group);
        if self.running.is_empty() {
            // An empty map keeps its memory: ten thousand idle containers would keep much.
            self.running = BTreeMap::new();
        }
        running
    }

    /// Whether it is there as a process, or will be.
    pub fn exists(&self) -> bool {
        !matches!(self.life, Life::Gone(..))
    }

    /// Whether it may be fed.
    pub fn takes_work(&self) -> bool {
        matches!(self.life, Life::Starting | Life::Ready)
    }

    /// All attempts that it holds, begun or not.
    pub fn attempts(&self) -> Vec<HeldAttempt> {
        let begun = self.running.values().flat_map(|r| r.held.iter().copied());
        let waiting = self.waiting.iter().flat_map(|(_, g)| g.assignments.iter().map(held));
        begun.chain(waiting).collect()
    }

    /// When the oldest group that has not begun arrived, if the container could work.
    pub fn oldest_waiting(&self) -> Option<Time> {
        let could = self.life == Life::Ready;
        self.waiting.front().filter(|_| could).map(|(at, _)| *at)
    }

    /// Takes out what has not begun.
    pub fn take_waiting(&mut self) -> Vec<LeaseId> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.iter().flat_map(|(_, g)| &g.assignments).map(|a| a.lease).collect()
    }

    /// Drops these attempts where they have not begun.
    pub fn forget_waiting(&mut self, leases: &[LeaseId]) {
        for (_, group) in &mut self.waiting {
            group.assignments.retain(|a| !leases.contains(&a.lease));
        }
        self.waiting.retain(|(_, group)| !group.assignments.is_empty());
    }
}
