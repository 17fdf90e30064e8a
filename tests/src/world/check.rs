//! What must hold of what cores say, seen from outside of them.

use super::{engine::World, links::LOST_MS, visitors::Visitors};
use capstan_common::{
    call::CallKind,
    id::{CallId, ContainerId, LeaseId},
    order::{Assignment, Order},
};
use capstan_scheduler_core::{
    effect::Effect,
    event::{Event, FailFast},
};
use std::collections::{BTreeMap, BTreeSet};

/// Attempts that a function has given to containers and not had back, as its own orders and events tell.
#[derive(Default)]
pub struct Given {
    containers: BTreeMap<ContainerId, BTreeSet<LeaseId>>,
    /// Calls that nobody waits for any more.
    over: BTreeSet<CallId>,
}

impl Given {
    /// An event that the function is about to take.
    pub fn before(&mut self, event: &Event) {
        match event {
            Event::Finished { container, done } => {
                let held = self.containers.entry(*container).or_default();
                done.iter().for_each(|d| {
                    held.remove(&d.held.lease);
                });
            }
            Event::Returned { container, leases, .. } => {
                let held = self.containers.entry(*container).or_default();
                leases.iter().for_each(|l| {
                    held.remove(l);
                });
            }
            Event::Cancel { call } | Event::Abandon { call } => drop(self.over.insert(*call)),
            Event::Ended { container, .. } => drop(self.containers.remove(container)),
            Event::Inventory { held, .. } => {
                for of in held {
                    let known: BTreeSet<_> = of.running.iter().map(|a| a.lease).collect();
                    self.containers.insert(of.container, known);
                }
            }
            _ => {}
        }
    }

    /// Whether the function believes that the container works on the attempt.
    pub fn holds(&self, container: ContainerId, lease: LeaseId) -> bool {
        self.containers.get(&container).is_some_and(|held| held.contains(&lease))
    }

    /// Effects that the function has just had; `free` are containers that may be stopped with work in them.
    pub fn after(
        &mut self,
        effects: &[Effect],
        free: &BTreeSet<ContainerId>,
        visitors: &Visitors,
        most_in_group: usize,
    ) -> Result<(), String> {
        for effect in effects {
            let Effect::Order(_, order) = effect else { continue };
            match order {
                Order::Feed { container, groups } => {
                    for group in groups {
                        if group.assignments.len() > most_in_group || group.assignments.is_empty() {
                            let size = group.assignments.len();
                            return Err(format!(
                                "J03: {container} is fed a group of {size}, at most {most_in_group} allowed"
                            ));
                        }
                    }
                    let mut calls = groups.iter().flat_map(|g| &g.assignments).map(|a| a.call);
                    if let Some(call) = calls.find(|call| self.over.contains(call)) {
                        return Err(format!("I9: {call} was cancelled and a new attempt of it is given out"));
                    }
                    let leases = groups.iter().flat_map(|g| &g.assignments).map(|a| a.lease);
                    self.containers.entry(*container).or_default().extend(leases);
                }
                Order::Abort { container, leases } => {
                    let held = self.containers.entry(*container).or_default();
                    leases.iter().for_each(|l| {
                        held.remove(l);
                    });
                }
                Order::Stop { container, reason, .. } => {
                    let visited = visitors.values().any(|inside| inside.as_ref() == Some(container));
                    let holds = visited || self.containers.get(container).is_some_and(|h| !h.is_empty());
                    if holds && !free.contains(container) {
                        return Err(format!("law 7: busy container {container} is stopped: {reason}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl World {
    /// Every place that is taken is taken by a container that its function knows, or has just been granted.
    fn check_places(&self) -> Result<(), String> {
        let under_way = self.granted_under_way();
        for (s, scheduler) in self.schedulers.iter().enumerate() {
            for (container, function) in scheduler.autoscaler.holders() {
                let f = self.functions.iter().position(|f| f.key == *function);
                let core = f.and_then(|f| scheduler.hosts.get(&f)?.core.as_ref());
                let known = core.is_some_and(|core| core.containers().any(|c| c.id == container));
                if !known && !under_way.contains(&container) {
                    return Err(format!("the place of {container} of {function} was not given back by scheduler {s}"));
                }
            }
        }
        Ok(())
    }

    /// An input is not begun by a worker while another one works on it that its owner hears, or should still wait for: a change
    /// of owner runs nothing again (RELIABILITY I6). Behind a link that stays broken it may: what is recorded is still recorded
    /// once.
    pub(super) fn check_alone(&self, w: usize, assignments: &[Assignment]) -> Result<(), String> {
        for (other, worker) in self.workers.iter().enumerate().filter(|(other, _)| *other != w) {
            for assignment in assignments {
                let Some((function, container, lease)) = worker.node.work_on(assignment.call, assignment.index) else {
                    continue;
                };
                let shard = function.shard(self.keys.shards);
                let Some((owner, epoch)) = self.keys.owners.get(&shard) else { continue };
                let scheduler = &self.schedulers[*owner];
                if scheduler.shards.get(&shard) != Some(epoch) {
                    continue;
                }
                // The order to end the other attempt may be under way.
                let of = scheduler.routes.get(&container).and_then(|f| scheduler.hosts.get(f));
                let believed = of.is_some_and(|host| host.given.holds(container, lease));
                let parted = scheduler.parted.get(&other).is_some_and(|at| at.plus_ms(LOST_MS) > self.now);
                let awaited = scheduler.taken[&shard].plus_ms(self.limits.adopt_grace_ms) > self.now || parted;
                let why = match scheduler.told.contains(&(other, shard)) {
                    true if believed => "hears it",
                    false if awaited => "has not waited for it",
                    _ => continue,
                };
                return Err(format!(
                    "I6: {} input {} begins on worker {w} while worker {other} works on it, and its owner {why}",
                    assignment.call, assignment.index
                ));
            }
        }
        Ok(())
    }

    /// After the last fault and enough time: everything that was promised has come true.
    pub(super) fn check_end(&self) -> Result<(), String> {
        self.check_places()?;
        let mut owners: BTreeMap<CallId, usize> = BTreeMap::new();
        for (number, client) in self.clients.iter().enumerate() {
            owners.extend(client.asked.iter().map(|id| (*id, number)));
        }
        let mut opened: BTreeMap<usize, u32> = BTreeMap::new();
        for (f, function) in self.functions.iter().enumerate() {
            let Some(at) = self.owner(f) else { return Err(format!("L1: nobody owns {}", function.key)) };
            let host = &self.schedulers[at.scheduler].hosts[&f];
            if let Some((request, inside)) = host.visitors.first_key_value() {
                return Err(format!("web request {request:?} was never answered; it is in {inside:?}"));
            }
            for (id, stored) in &function.durable.calls {
                if let Some(owner) = owners.get(id) {
                    *opened.entry(*owner).or_default() += 1;
                }
                if stored.record.finished.is_none() {
                    let core = host.core.as_ref().map(|core| (core.stats(), core.waiting()));
                    return Err(format!("L2: {id} has not ended: {:?}; {core:?}", stored.counts));
                }
            }
            let left =
                function.durable.segments.keys().filter(|(call, _)| function.durable.calls.contains_key(call)).count();
            if left > 0 {
                return Err(format!("{left} segments of ended calls were not removed"));
            }
        }
        for (number, client) in self.clients.iter().enumerate() {
            if client.keyed && opened.get(&number).copied().unwrap_or(0) > 1 {
                return Err(format!("I2: client {number} used one key and has {} calls", opened[&number]));
            }
            let Some(call) = client.accepted else { continue };
            let stored = self.functions[client.function].durable.calls.get(&call);
            let stored = stored.ok_or_else(|| format!("I1: accepted call {call} is not in the store"))?;
            if client.kind == CallKind::Map && client.fail_fast != FailFast::No && stored.counts.failed > 0 {
                // Cut short by its first error.
                continue;
            }
            if stored.counts.ended() != client.inputs {
                return Err(format!(
                    "I1: {call} ({:?}) had {} inputs, {:?} ended, {:?}",
                    client.kind, client.inputs, stored.counts, stored.record
                ));
            }
            if stored.counts.cancelled > 0 && !client.cancels {
                return Err(format!("{call}: {} inputs were cancelled by nobody", stored.counts.cancelled));
            }
        }
        Ok(())
    }
}
