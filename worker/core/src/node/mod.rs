//! One worker: it admits or refuses containers, hands inputs to them, and remembers every outcome until it is durable.
//!
//! Nobody over-commits it: an order is a proposal that is checked against what is free.

mod container;
mod event;
mod invariant;

pub use event::{Effect, Event};

use capstan_common::{
    container::{Ending, Phase},
    container_spec::ContainerSpec,
    id::{ContainerId, Epoch, FunctionKey, LeaseId, LinkId, Shard},
    input::{Failure, FailureKind, Payload},
    order::{Group, Order, Start},
    report::{Done, Held, Report},
    resource::Amount,
    time::Time,
};
use container::{Container, Life};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// An input that was fed ahead and has not begun after so long goes back: the guess of short runs was wrong.
const AHEAD_MS: u64 = 200;

/// How long a server may take to end whose input was cut off (RELIABILITY F20: deadline, TERM, grace, KILL).
const SPOILT_GRACE_MS: u32 = 500;
/// The type of a failure whose connection broke without an answer.
pub const CONNECTION_BROKEN: &str = "ConnectionBroken";

/// A shard's owner, as the worker knows it.
#[derive(Debug, Clone, Copy)]
struct Owner {
    epoch: Epoch,
    /// Its link, while that stands.
    link: Option<LinkId>,
}

/// A worker's whole state.
#[derive(Debug, Clone)]
pub struct Node {
    capacity: Amount,
    used: Amount,
    /// Its GPUs, by their ids.
    gpus: Vec<Arc<str>>,
    /// Over how many shards functions are spread.
    shards: u16,
    /// Who owns each shard, as far as it was told.
    owners: BTreeMap<Shard, Owner>,
    /// Takes nothing new, for ever.
    shutting: bool,
    containers: BTreeMap<ContainerId, Container>,
}

impl Node {
    /// An empty worker with these GPUs, by their ids.
    pub fn new(capacity: Amount, gpus: Vec<Arc<str>>) -> Self {
        Self {
            capacity: Amount { gpus: gpus.len() as u64, ..capacity },
            gpus,
            used: Amount::default(),
            shards: 1,
            owners: BTreeMap::new(),
            shutting: false,
            containers: BTreeMap::new(),
        }
    }

    /// Takes an event.
    pub fn step(&mut self, now: Time, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Parted { link } => {
                self.owners.values_mut().filter(|o| o.link == Some(link)).for_each(|owner| owner.link = None);
            }
            Event::Ordered { link, order } => self.ordered(now, link, order, out),
            Event::Spawned { container, pid } => {
                if let Some(c) = self.containers.get_mut(&container) {
                    let spawn_us = now.since_us(c.ordered);
                    c.spawn_us = spawn_us;
                    self.tell(container, Report::Spawned { container, pid, spawn_us }, out);
                }
            }
            Event::Ready { container, phases, port } => self.ready(now, container, phases, port, out),
            Event::Looked { container, detail } => self.tell(container, Report::Looked { container, detail }, out),
            Event::Counted { container, value } => self.tell(container, Report::Counted { container, value }, out),
            Event::Worked { container, group, results, run_us } => {
                self.worked(now, container, group, results, run_us, out);
            }
            Event::Wrote { container, stderr, chunk, dropped } => {
                self.tell(container, Report::Log { container, stderr, chunk, dropped }, out);
            }
            Event::Exited { container, ending } => self.exited(container, ending, out),
            Event::Drain => self.drain(out),
            Event::Shutdown => {
                self.owners.values_mut().for_each(|owner| owner.link = None);
                let all: Vec<_> = self.containers.keys().copied().collect();
                for container in all {
                    self.stop(container, 0, "the worker ends", out);
                }
            }
            Event::Alarm => self.return_waiting(now, out),
        }
    }

    fn drain(&mut self, out: &mut Vec<Effect>) {
        self.shutting = true;
        let all: Vec<_> = self.containers.keys().copied().collect();
        for id in all {
            let Some(container) = self.containers.get(&id) else { continue };
            let serves = !container.is_exec() && self.owner(id).is_some();
            let Some(container) = self.containers.get(&id) else { continue };
            if container.life == Life::Ready && (serves || !container.running.is_empty()) {
                self.close(id, "the worker ends", out);
            } else if container.life != Life::Draining {
                self.stop(id, 1000, "the worker ends", out);
            }
        }
    }

    /// The container takes nothing new, and its owner hears of it.
    fn close(&mut self, id: ContainerId, why: &str, out: &mut Vec<Effect>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        if container.life == Life::Ready {
            container.life = Life::Draining;
        }
        let leases = container.take_waiting();
        self.tell(id, Report::Returned { container: id, leases, reason: why.into(), closed: true }, out);
    }

    /// Whether the container may have web requests in it, which only its owner knows of: then it is the owner who stops it.
    fn is_shared(&self, id: ContainerId) -> bool {
        let may_serve = |c: &Container| !c.is_exec() && (c.at_once > 1 || self.shutting);
        self.owner(id).is_some() && self.containers.get(&id).is_some_and(may_serve)
    }

    fn shard(&self, function: &FunctionKey) -> Shard {
        function.shard(self.shards)
    }

    /// The link to a container's owner, while it stands.
    fn owner(&self, id: ContainerId) -> Option<LinkId> {
        let container = self.containers.get(&id)?;
        self.owners.get(&self.shard(&container.start.function))?.link
    }

    /// Tells a container's owner.
    fn tell(&self, id: ContainerId, report: Report, out: &mut Vec<Effect>) {
        if let Some(link) = self.owner(id) {
            out.push(Effect::Tell(link, report));
        }
    }

    /// Somebody owns a shard: the one with the highest number is obeyed, and hears what there is of it. Ended containers that
    /// still hold outcomes, and those that take nothing new, are told of again.
    fn owned(&mut self, link: LinkId, (shard, shards): (Shard, u16), epoch: Epoch, out: &mut Vec<Effect>) {
        if let Some(owner) = self.owners.get(&shard).filter(|owner| owner.epoch > epoch) {
            out.push(Effect::Tell(link, Report::Outranked { shard, epoch: owner.epoch }));
            return;
        }
        self.shards = shards.max(1);
        self.owners.insert(shard, Owner { epoch, link: Some(link) });
        out.push(Effect::Tell(link, Report::Inventory { shard, held: self.inventory(shard), more: false }));
        let of_shard = self.containers.iter().filter(|(_, c)| self.shard(&c.start.function) == shard);
        for (id, container) in of_shard {
            let report = match &container.life {
                Life::Gone(ending, begun) => {
                    Report::Ended { container: *id, ending: ending.clone(), begun: begun.clone() }
                }
                Life::Draining => {
                    let reason = "it takes nothing new".into();
                    Report::Returned { container: *id, leases: Vec::new(), reason, closed: true }
                }
                Life::Starting | Life::Ready | Life::Stopping => continue,
            };
            out.push(Effect::Tell(link, report));
        }
    }

    /// What a shard's owner must know to adopt what is here of it.
    pub fn inventory(&self, shard: Shard) -> Vec<Held> {
        self.containers
            .iter()
            .filter(|(_, c)| self.shard(&c.start.function) == shard)
            .map(|(id, c)| Held {
                container: *id,
                function: c.start.function.clone(),
                revision: c.start.revision,
                ready: c.life != Life::Starting,
                gone: matches!(c.life, Life::Gone(..)),
                port: c.port,
                gpus: c.start.gpus,
                running: c.attempts(),
                finished: c.unrecorded.values().cloned().collect(),
            })
            .collect()
    }

    /// All that the worker has, and what of it is given out.
    pub fn resources(&self) -> (Amount, Amount) {
        (self.capacity, self.used)
    }

    /// What containers take whose owner is not at this link.
    pub fn others(&self, link: LinkId) -> Amount {
        // One scheduler alone owns everything: it is asked twice a second, and a worker may have ten thousand idle containers.
        let owns = |owner: &Owner| owner.link == Some(link);
        if self.owners.len() == usize::from(self.shards) && self.owners.values().all(owns) {
            return Amount::default();
        }
        let others = self.containers.iter().filter(|(id, c)| c.exists() && self.owner(**id) != Some(link));
        others.fold(Amount::default(), |sum, (_, c)| sum.plus(c.start.amount()))
    }

    /// Containers that exist as processes.
    pub fn live(&self) -> usize {
        self.containers.values().filter(|c| c.exists()).count()
    }

    /// An order counts only if it comes from the owner of what it is about (RELIABILITY I5).
    fn ordered(&mut self, now: Time, link: LinkId, order: Order, out: &mut Vec<Effect>) {
        let container = match order {
            Order::Own { shard, shards, epoch } => return self.owned(link, (shard, shards), epoch, out),
            Order::Start(start) => return self.start(now, link, start, out),
            // Links are the shell's.
            Order::Peers { .. } => return,
            Order::Feed { container, .. }
            | Order::Abort { container, .. }
            | Order::Stop { container, .. }
            | Order::Recorded { container, .. } => container,
        };
        if self.containers.contains_key(&container) && self.owner(container) != Some(link) {
            return;
        }
        match order {
            Order::Feed { container, groups } => self.feed(now, link, container, groups, out),
            Order::Abort { container, leases } => self.abort(container, &leases, out),
            Order::Stop { container, grace_ms, reason } => self.stop(container, grace_ms, &reason, out),
            Order::Recorded { container, leases } => self.recorded(container, &leases),
            Order::Own { .. } | Order::Start(_) | Order::Peers { .. } => {}
        }
    }

    fn start(&mut self, now: Time, link: LinkId, start: Start, out: &mut Vec<Effect>) {
        let id = start.container;
        let owner = self.owners.get(&self.shard(&start.function)).and_then(|owner| owner.link);
        if self.containers.contains_key(&id) || owner != Some(link) {
            return;
        }
        let amount = start.amount();
        if self.shutting {
            out.push(Effect::Tell(link, Report::Refused { container: id, reason: "the worker ends".into() }));
            return;
        }
        if !self.capacity.covers(self.used.plus(amount)) {
            let free = self.capacity.minus(self.used);
            let reason = format!("the worker has {free:?} free, the container asks for {amount:?}");
            out.push(Effect::Tell(link, Report::Refused { container: id, reason }));
            return;
        }
        self.used = self.used.plus(amount);
        let free: Box<[u16]> =
            if start.gpus == 0 { Box::default() } else { self.free_gpus().take(start.gpus as usize).collect() };
        let gpus = free.iter().map(|n| self.gpus[usize::from(*n)].clone()).collect();
        self.containers.insert(id, Container::new(now, start.clone(), free));
        out.push(Effect::Launch { start, gpus });
    }

    /// GPUs that no container has, in their order.
    fn free_gpus(&self) -> impl Iterator<Item = u16> {
        let taken: BTreeSet<u16> =
            self.containers.values().filter(|c| c.exists()).flat_map(|c| c.gpus.iter().copied()).collect();
        (0..self.gpus.len() as u16).filter(move |n| !taken.contains(n))
    }

    /// GPUs that no container has, by their ids.
    pub fn idle_gpus(&self) -> Vec<Arc<str>> {
        if self.gpus.is_empty() {
            // Asked twice a second, of workers that may have ten thousand containers.
            return Vec::new();
        }
        self.free_gpus().map(|n| self.gpus[usize::from(n)].clone()).collect()
    }

    fn ready(&mut self, now: Time, id: ContainerId, phases: Vec<Phase>, port: u16, out: &mut Vec<Effect>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        if container.life == Life::Starting {
            container.life = Life::Ready;
        }
        container.port = port;
        let mut all = vec![Phase { name: "spawn".into(), us: container.spawn_us }];
        all.extend(phases);
        self.tell(id, Report::Ready { container: id, phases: all, port }, out);
        self.begin_work(now, id, out);
    }

    fn feed(&mut self, now: Time, link: LinkId, id: ContainerId, groups: Vec<Group>, out: &mut Vec<Effect>) {
        let leases = |groups: &[Group]| -> Vec<LeaseId> {
            groups.iter().flat_map(|g| &g.assignments).map(|a| a.lease).collect()
        };
        match self.containers.get_mut(&id).filter(|c| c.takes_work()) {
            Some(container) => {
                container.waiting.extend(groups.into_iter().map(|group| (now, group)));
                self.begin_work(now, id, out);
            }
            None => {
                let reason = "the container takes nothing new".into();
                let leases = leases(&groups);
                out.push(Effect::Tell(link, Report::Returned { container: id, leases, reason, closed: true }));
            }
        }
    }

    /// Gives the container as many groups as it works on at once.
    fn begin_work(&mut self, now: Time, id: ContainerId, out: &mut Vec<Effect>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        while container.life == Life::Ready && container.running.len() < container.at_once as usize {
            let Some((arrived, group)) = container.waiting.pop_front() else { return };
            let Some(first) = group.assignments.first().map(|a| a.lease) else { continue };
            let held = group.assignments.iter().map(container::held).collect();
            container.running.insert(first, container::Running { held, waited_us: now.since_us(arrived) });
            out.push(Effect::Run { container: id, group: first, assignments: group.assignments, batch: group.batch });
        }
    }

    fn worked(
        &mut self,
        now: Time,
        id: ContainerId,
        group: LeaseId,
        results: Vec<(LeaseId, Result<Payload, Failure>)>,
        run_us: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        let cut_off = |f: &Failure| f.kind == FailureKind::Crashed || f.error_type == CONNECTION_BROKEN;
        let interrupted = |r: &Result<Payload, Failure>| matches!(r, Err(f) if cut_off(f));
        if container.life == Life::Stopping && results.iter().any(|(_, r)| interrupted(r)) {
            // Cut off by the stop: its container's end tells of it, and it does not count as the function's failure.
            return;
        }
        let Some(running) = container.ended(group) else { return };
        let timed_out = results.iter().any(|(_, result)| matches!(result, Err(f) if f.kind == FailureKind::Timeout));
        let mut results: BTreeMap<LeaseId, _> = results.into_iter().collect();
        let mut done = Vec::with_capacity(running.held.len());
        for held in running.held {
            // An aborted input's result is not wanted.
            let Some(result) = results.remove(&held.lease) else { continue };
            let ended = Done { held, waited_us: running.waited_us, run_us, result };
            container.unrecorded.insert(held.lease, ended.clone());
            done.push(ended);
        }
        let drained = container.life == Life::Draining && container.running.is_empty();
        if !done.is_empty() {
            self.tell(id, Report::Finished { container: id, done }, out);
        }
        if drained && self.containers.get(&id).is_some_and(Container::is_exec) {
            let reason = "drained".into();
            out.push(Effect::Terminate { container: id, grace_ms: 0, reason });
        } else if timed_out || drained {
            self.spoilt(id, "an input ran past its time-out or was cancelled", out);
        }
        self.begin_work(now, id, out);
    }

    /// A server whose input was cut off may still work on it: alone, it is stopped at once; with others, when they are done.
    fn spoilt(&mut self, id: ContainerId, why: &str, out: &mut Vec<Effect>) {
        if self.containers.get(&id).is_none_or(Container::is_exec) {
            return;
        }
        self.close(id, why, out);
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.spoilt = true;
        if container.running.is_empty() && !self.is_shared(id) {
            out.push(Effect::Terminate { container: id, grace_ms: SPOILT_GRACE_MS, reason: why.into() });
        }
    }

    fn abort(&mut self, id: ContainerId, leases: &[LeaseId], out: &mut Vec<Effect>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.forget_waiting(leases);
        let mut cut = Vec::new();
        for (group, running) in &mut container.running {
            let before = running.held.len();
            running.held.retain(|held| !leases.contains(&held.lease));
            if running.held.is_empty() && before > 0 {
                cut.push(*group);
            }
        }
        for lease in leases {
            container.unrecorded.remove(lease);
        }
        for group in &cut {
            out.push(Effect::Interrupt { container: id, group: *group });
        }
        if !cut.is_empty() && !container.is_exec() {
            cut.iter().for_each(|group| drop(container.ended(*group)));
            if container.at_once == 1 || container.running.is_empty() {
                self.spoilt(id, "an input was cancelled", out);
            }
        }
    }

    fn stop(&mut self, id: ContainerId, grace_ms: u32, reason: &str, out: &mut Vec<Effect>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        if matches!(container.life, Life::Gone(..)) {
            return;
        }
        let grace_ms = if container.spoilt { grace_ms.min(SPOILT_GRACE_MS) } else { grace_ms };
        let leases = container.take_waiting();
        container.life = Life::Stopping;
        if !leases.is_empty() {
            self.tell(id, Report::Returned { container: id, leases, reason: reason.into(), closed: true }, out);
        }
        out.push(Effect::Terminate { container: id, grace_ms, reason: reason.into() });
    }

    fn recorded(&mut self, id: ContainerId, leases: &[LeaseId]) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        for lease in leases {
            container.unrecorded.remove(lease);
        }
        if container.unrecorded.is_empty() {
            // An empty map keeps its memory.
            container.unrecorded = BTreeMap::new();
        }
        if matches!(container.life, Life::Gone(..)) && container.unrecorded.is_empty() {
            self.containers.remove(&id);
        }
    }

    fn exited(&mut self, id: ContainerId, mut ending: Ending, out: &mut Vec<Effect>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        if matches!(container.life, Life::Gone(..)) {
            return;
        }
        let drained = container.life == Life::Draining && container.running.is_empty();
        ending.ordered = container.life == Life::Stopping || drained;
        self.used = self.used.minus(container.start.amount());
        let begun: Vec<LeaseId> = container.running.values().flat_map(|r| &r.held).map(|h| h.lease).collect();
        container.running.clear();
        container.waiting.clear();
        container.life = Life::Gone(ending.clone(), begun.clone());
        let forgotten = container.unrecorded.is_empty();
        self.tell(id, Report::Ended { container: id, ending, begun }, out);
        if forgotten {
            self.containers.remove(&id);
        }
    }

    /// Inputs fed ahead that have waited too long go back to the scheduler, which may have a better place.
    fn return_waiting(&mut self, now: Time, out: &mut Vec<Effect>) {
        let late: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, c)| c.oldest_waiting().is_some_and(|at| at.plus_ms(AHEAD_MS) <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            let leases = container.take_waiting();
            let reason = "it waited behind a long input".into();
            self.tell(id, Report::Returned { container: id, leases, reason, closed: false }, out);
        }
    }

    /// The next time that the node wants an `Alarm`, if any.
    pub fn next_alarm(&self) -> Option<Time> {
        let oldest = self.containers.values().filter_map(Container::oldest_waiting).min();
        oldest.map(|at| at.plus_ms(AHEAD_MS))
    }

    /// A container's spec, while it exists.
    pub fn spec(&self, id: ContainerId) -> Option<&Arc<ContainerSpec>> {
        self.containers.get(&id).map(|c| &c.start.spec)
    }
}

#[cfg(test)]
mod tests;
