//! After a reconnect or a restart: what a worker holds is compared with what the owner believes.

use super::{
    Function,
    pool::{Container, Lease, Life, room},
    queue::Queued,
};
use crate::effect::{Effect, Output};
use bytes::Bytes;
use capstan_common::{
    id::{CallId, ContainerId, LeaseId, WorkerId},
    input::Payload,
    order::Order,
    report::{Held, HeldAttempt},
    time::Time,
};
use std::collections::{BTreeMap, BTreeSet};

impl Function {
    /// Reconciles with one worker's inventory: containers that it does not hold are lost, unknown ones are adopted, and
    /// attempts on either side that the other does not know are given back or aborted.
    pub(super) fn inventory(&mut self, now: Time, worker: &WorkerId, held: Vec<Held>, out: &mut Output) {
        let there: BTreeSet<ContainerId> = held.iter().map(|h| h.container).collect();
        let gone: Vec<_> =
            self.pool.iter().filter(|(id, c)| c.worker == *worker && !there.contains(id)).map(|(id, _)| id).collect();
        for id in gone {
            self.container_lost(now, id, "its worker does not hold it any more", out);
        }
        for held in held {
            self.reconcile(now, worker, held, out);
        }
    }

    fn reconcile(&mut self, now: Time, worker: &WorkerId, held: Held, out: &mut Output) {
        let id = held.container;
        if self.pool.get(id).is_none() {
            self.adopt_container(now, worker, &held, out);
        } else if held.ready && self.pool.get(id).is_some_and(|c| matches!(c.life, Life::Starting | Life::Trial)) {
            self.ready(now, id, (Vec::new(), held.port), out);
        }
        let known: BTreeSet<LeaseId> =
            held.running.iter().map(|a| a.lease).chain(held.finished.iter().map(|d| d.held.lease)).collect();
        self.give_back_unknown(now, id, &known, out);
        let mut stale = Vec::new();
        for attempt in held.running {
            if !self.adopt_attempt(now, id, attempt, out) {
                stale.push(attempt.lease);
            }
        }
        if !stale.is_empty() {
            self.order(id, Order::Abort { container: id, leases: stale }, out);
        }
        if self.pool.get(id).is_some_and(|c| c.life == Life::Stopping) {
            // The order to stop may have been lost with the link.
            self.stop(id, "it was told to stop before", out);
        }
        for done in &held.finished {
            self.adopt_attempt(now, id, done.held, out);
        }
        self.finished(now, id, held.finished, out);
    }

    /// Attempts that were sent and never arrived.
    fn give_back_unknown(&mut self, now: Time, id: ContainerId, known: &BTreeSet<LeaseId>, out: &mut Output) {
        let missing: Vec<LeaseId> = self
            .pool
            .get(id)
            .map(|c| c.leases.keys().filter(|l| !known.contains(l)).copied().collect())
            .unwrap_or_default();
        if !missing.is_empty() {
            self.returned(now, id, &missing, false, out);
        }
    }

    fn adopt_container(&mut self, now: Time, worker: &WorkerId, held: &Held, out: &mut Output) {
        // A worker that comes back late may find its containers replaced: what is above the maximum only finishes its work.
        let fits = self.pool.live() < self.facts().max;
        let there = !self.removed && !held.gone;
        let current = held.revision == self.serving().revision && there && fits;
        // It was tried before its owner knew of it.
        let trial = self.is_rolling() && held.revision == self.deployed.revision && there;
        let life = match (current, trial, held.ready) {
            (true, _, true) | (_, true, true) => Life::Ready,
            (true, _, false) => Life::Starting,
            (_, true, false) if self.pool.trials() == 0 => Life::Trial,
            (false, ..) => Life::Draining,
        };
        let takes_over = trial && held.ready;
        let spec = self.spec_of(held.revision);
        let (at_once, room, amount) = (spec.groups_at_once(), room(spec, None), spec.amount().with_gpus(held.gpus));
        let trusted = spec.trusted && [self.deployed.revision, self.serving().revision].contains(&held.revision);
        self.pool.add(
            held.container,
            Container {
                worker: worker.clone(),
                revision: held.revision,
                life,
                adopted: true,
                // Of an older revision it is not known any more.
                chosen: None,
                trusted,
                decided: now,
                placed: now,
                since: now,
                leases: BTreeMap::new(),
                groups: BTreeMap::new(),
                requests: BTreeSet::new(),
                port: held.port,
                run_us: None,
                served: 1,
                at_once,
                room,
            },
        );
        if held.gone {
            return;
        }
        // The autoscaler hears of the container, and must know whose it is.
        self.sizing.bid.again();
        out.effects.push(Effect::Hold { container: held.container, worker: worker.clone(), amount });
        if takes_over {
            self.take_over(out);
        }
    }

    /// Whether the attempt is, or now becomes, one of ours.
    fn adopt_attempt(&mut self, now: Time, id: ContainerId, attempt: HeldAttempt, out: &mut Output) -> bool {
        if self.pool.get(id).is_some_and(|c| c.leases.contains_key(&attempt.lease)) {
            return true;
        }
        let parked = self.unpark_adopted(attempt.call, out);
        let Some(input) = parked.or_else(|| self.take_waiting(attempt.call, attempt.index)) else {
            return false;
        };
        self.account_adopted(attempt.call);
        self.pool.change(id, |container| {
            container.groups.insert(attempt.lease, 1);
            let lease = Lease { input, given: now, group: attempt.lease };
            container.leases.insert(attempt.lease, lease);
        });
        true
    }

    /// Takes an input out of wherever it waits: in memory, for a retry, or in a segment that is not loaded.
    fn take_waiting(&mut self, id: CallId, index: u64) -> Option<Queued> {
        let call = self.calls.get_mut(&id).filter(|c| !c.cancelled)?;
        if let Some(input) = self.queue.remove(id, index) {
            return Some(input);
        }
        if let Some(input) = self.delayed.remove(id, index) {
            return Some(input);
        }
        let submitted = call.created;
        let segment = call.segment_of(index)?;
        let bulk = call.bulk.as_mut()?;
        let unloaded = bulk.loading.contains_key(&segment) || bulk.tail.iter().any(|s| s.number == segment);
        if !unloaded || bulk.ended.has(index) || !bulk.adopted.insert(index) {
            return None;
        }
        let tries = bulk.attempted.get(&index).cloned();
        Some(Queued { call: id, index, payload: Payload::json(Bytes::new()), submitted, tries })
    }
}
