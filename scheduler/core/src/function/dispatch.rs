//! Giving inputs to containers: who gets how many, in groups of one or in batches.

use super::{Function, Place, pool::Lease, queue::Queued, waits::Stop};
use crate::effect::{Effect, Output};
use capstan_common::{
    id::{ContainerId, LeaseId},
    order::{Assignment, Group, Order},
    time::Time,
};

impl Function {
    /// Gives out what waits while containers have room. A batch leaves when it is full or its oldest input has waited
    /// long enough (SPEC J02), and never holds more than its size (J03). Answers at what it stopped.
    pub(super) fn dispatch(&mut self, now: Time, out: &mut Output) -> Stop {
        if self.holding {
            return Stop::Empty;
        }
        let size = self.serving().spec.group_size() as usize;
        let size = size + usize::from(size > 1 && mutated!(self.limits.mutant, BATCH_TOO_LARGE));
        let mut taken = Vec::new();
        let at_once = self.serving().spec.groups_at_once();
        while let Some((container, room)) = self.pool.next_free(at_once, !self.web.waits()) {
            let ready = if self.store_full { 0 } else { self.queue.ready() };
            let due = size == 1 || ready >= size || self.batch_due().is_some_and(|due| due <= now);
            if self.web.has_turn(ready > 0 && due) {
                self.admit(now, container, out);
                continue;
            }
            if ready == 0 || !due {
                return if due { Stop::Empty } else { Stop::Batch };
            }
            self.web.passed();
            let share = (ready / size / self.pool.free_len().max(1)).max(1);
            let share = if self.web.waits() { 1 } else { share };
            let groups = share.min(room as usize);
            self.queue.take(groups * size, &mut taken);
            if taken.is_empty() {
                return Stop::Empty;
            }
            self.feed(now, container, &mut taken, size, out);
        }
        Stop::Slots
    }

    fn feed(&mut self, now: Time, id: ContainerId, taken: &mut Vec<Queued>, size: usize, out: &mut Output) {
        let batch = self.serving().spec.batching.is_some();
        let mut groups = Vec::with_capacity(taken.len().div_ceil(size));
        let mut leases: Vec<(LeaseId, Lease)> = Vec::with_capacity(taken.len());
        let mut inputs = taken.drain(..).peekable();
        while inputs.peek().is_some() {
            let group = self.mint_lease();
            let mut assignments = Vec::with_capacity(size.min(inputs.len()));
            for input in inputs.by_ref().take(size) {
                let lease = if assignments.is_empty() { group } else { self.mint_lease() };
                let traceparent = self.calls.get(&input.call).map(|c| c.traceparent.clone());
                self.shift(input.call, Place::Pending, Place::Running, 1);
                assignments.push(Assignment {
                    lease,
                    call: input.call,
                    index: input.index,
                    attempt: input.attempts() + 1,
                    payload: input.payload.clone(),
                    traceparent: traceparent.unwrap_or_default(),
                });
                leases.push((lease, Lease { input, given: now, group }));
            }
            groups.push(Group { assignments, batch });
        }
        let worker = self.pool.change(id, |container| {
            container.since = now;
            for (lease, held) in leases {
                *container.groups.entry(held.group).or_insert(0) += 1;
                container.leases.insert(lease, held);
            }
            container.worker.clone()
        });
        if let Some(worker) = worker {
            out.effects.push(Effect::Order(worker, Order::Feed { container: id, groups }));
        }
    }

    /// When the batch that is being collected must leave, if one is and a container could take it.
    pub(super) fn batch_due(&self) -> Option<Time> {
        let batching = self.serving().spec.batching.as_ref()?;
        let ready = self.queue.ready();
        if self.holding || ready == 0 || ready >= batching.max_batch_size as usize {
            return None;
        }
        self.pool.next_free(self.serving().spec.groups_at_once(), true)?;
        self.queue.oldest().map(|oldest| oldest.plus_ms(batching.wait_ms))
    }
}
