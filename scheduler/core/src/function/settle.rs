//! Attempts end: outcomes are accepted once, failures are tried again, calls end.

use super::{
    Function, Place,
    pool::{Lease, Life, room},
    queue::Queued,
};
use crate::{
    effect::{Effect, Notice, Output, Promise},
    event::FailFast,
    record::{Entry, PastAttempt, Record, Segment},
};
use capstan_common::{
    call::CallKind,
    id::{CallId, ContainerId, LeaseId},
    input::{Failure, FailureKind, Outcome, Payload},
    order::Order,
    report::Done,
    time::Time,
};
use std::{collections::BTreeMap, sync::Arc};

/// How an attempt ended, besides its outcome.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub container: ContainerId,
    pub given: Time,
    pub run_us: u64,
}

/// Characters kept of why a past attempt ended.
const WHY_CHARS: usize = 200;

impl Attempt {
    /// This attempt as its input remembers it.
    fn past(&self, now: Time, lost: bool, why: &str) -> PastAttempt {
        let why = why.chars().take(WHY_CHARS).collect();
        PastAttempt { container: self.container, leased: self.given, ended: now, lost, why }
    }
}

impl Function {
    pub(super) fn finished(&mut self, now: Time, id: ContainerId, done: Vec<Done>, out: &mut Output) {
        let spec = self.serving().spec.clone();
        let accepts_late = mutated!(self.limits.mutant, LATE_OUTCOME_ACCEPTED);
        let settled = self.pool.change(id, |container| {
            let mut settled = Vec::with_capacity(done.len());
            let mut late = Vec::new();
            for done in done {
                // An outcome counts only with the current lease (DESIGN law 6), and for the input that was leased.
                let same = |lease: &Lease| (lease.input.call, lease.input.index) == (done.held.call, done.held.index);
                let held = container.leases.get(&done.held.lease).is_some_and(same);
                let Some(lease) = held.then(|| container.leases.remove(&done.held.lease)).flatten() else {
                    if accepts_late {
                        let lease = Lease::planted(&done.held, now);
                        settled.push((done, lease));
                    } else {
                        late.push(done.held.lease);
                    }
                    continue;
                };
                container.close_group(lease.group, done.run_us);
                settled.push((done, lease));
            }
            container.since = now;
            container.room = room(&spec, container.run_us);
            (settled, late, container.worker.clone())
        });
        let Some((settled, late, worker)) = settled else { return };
        self.drop_late(id, &worker, late, out);
        let leases: Vec<LeaseId> = settled.iter().map(|(done, _)| done.held.lease).collect();
        for (done, lease) in settled {
            self.sizing.ran(done.run_us);
            let attempt = Attempt { container: id, given: lease.given, run_us: done.run_us };
            self.queue.release(lease.input.call, 1);
            match done.result {
                Ok(output) => self.end(now, &lease.input, Place::Running, Outcome::Succeeded(output), attempt),
                Err(failure) => self.attempt_failed(now, lease.input, failure, attempt, out),
            }
        }
        if !leases.is_empty() {
            out.promises.push(Promise::Recorded { worker, container: id, leases });
        }
        self.after_work(id, out);
    }

    fn drop_late(
        &mut self,
        id: ContainerId,
        worker: &capstan_common::id::WorkerId,
        late: Vec<LeaseId>,
        out: &mut Output,
    ) {
        if late.is_empty() {
            return;
        }
        self.late_outcomes += late.len() as u64;
        out.effects.extend(late.iter().map(|lease| Effect::Notice(Notice::LateOutcome { lease: *lease })));
        let forget = Order::Recorded { container: id, leases: late };
        out.effects.push(Effect::Order(worker.clone(), forget));
    }

    /// A container that was only to finish its work stops once it has none; a single-use one after its first.
    pub(super) fn after_work(&mut self, id: ContainerId, out: &mut Output) {
        let single = self.serving().spec.single_use_containers;
        let Some(container) = self.pool.get(id) else { return };
        if !container.is_idle() {
            return;
        }
        match container.life {
            Life::Draining => self.stop(id, "drained", out),
            Life::Ready if single && container.served > 0 => self.stop(id, "single use", out),
            _ => {}
        }
    }

    /// The attempt failed by the function's fault: try again or end (SPEC G11, RELIABILITY I7).
    pub(super) fn attempt_failed(
        &mut self,
        now: Time,
        mut input: Queued,
        failure: Failure,
        attempt: Attempt,
        out: &mut Output,
    ) {
        let retries = self.serving().spec.retries.clone();
        let cancelled = self.is_unwanted(&input);
        let allowed = retries.max_retries + u32::from(mutated!(self.limits.mutant, ONE_RETRY_TOO_MANY));
        if input.failures() >= allowed || cancelled {
            self.end(now, &input, Place::Running, Outcome::Failed(failure), attempt);
            return;
        }
        let tries = input.tries.get_or_insert_default();
        tries.failures += 1 + u32::from(mutated!(self.limits.mutant, ATTEMPT_COUNTED_TWICE));
        tries.remember(attempt.past(now, false, &format!("{}: {}", failure.error_type, failure.message)));
        let failures = tries.failures;
        self.shift(input.call, Place::Running, Place::Pending, 1);
        self.record_attempt(&input, out);
        let due = now.plus_ms(retries.delay_ms(failures, self.limits.retry_floor_ms));
        if self.without_payload(now, &input) {
            return;
        }
        self.delayed.add(due, input);
    }

    /// The attempt was lost without the function's fault: it goes back to the front, a bounded number of times.
    pub(super) fn attempt_lost(&mut self, now: Time, mut input: Queued, why: &str, attempt: Attempt, out: &mut Output) {
        if self.is_unwanted(&input) {
            self.end(now, &input, Place::Running, Outcome::Cancelled, attempt);
            return;
        }
        let losses = input.tries.as_ref().map_or(0, |t| t.losses) + 1;
        if losses > self.limits.losses {
            let failure = Failure::new(
                FailureKind::Lost,
                "AttemptsLost",
                format!("lost {losses} times with its container or worker, last: {why}"),
            );
            self.end(now, &input, Place::Running, Outcome::Failed(failure), attempt);
            return;
        }
        let tries = input.tries.get_or_insert_default();
        tries.losses = losses;
        tries.remember(attempt.past(now, true, why));
        self.record_attempt(&input, out);
        if !mutated!(self.limits.mutant, INPUT_DROPPED_WITH_CONTAINER) {
            self.give_back(now, input);
        }
    }

    /// Whether nobody waits for the input any more: its call was cancelled, or its client went away.
    fn is_unwanted(&self, input: &Queued) -> bool {
        let kept = mutated!(self.limits.mutant, UNWANTED_RUNS_AGAIN);
        self.calls.get(&input.call).is_none_or(|call| call.cancelled) && !kept
    }

    /// The attempt never began: it goes back to the front and does not count.
    pub(super) fn give_back(&mut self, now: Time, input: Queued) {
        if self.is_unwanted(&input) {
            let nobody = Attempt { container: ContainerId(0), given: now, run_us: 0 };
            self.end(now, &input, Place::Running, Outcome::Cancelled, nobody);
            return;
        }
        self.shift(input.call, Place::Running, Place::Pending, 1);
        if !self.without_payload(now, &input) {
            self.queue.push_front(input);
        }
    }

    /// An adopted input whose segment is not loaded yet comes back with that segment.
    fn without_payload(&mut self, now: Time, input: &Queued) -> bool {
        let Some(bulk) = self.calls.get_mut(&input.call).and_then(|c| c.bulk.as_mut()) else {
            return self.waits_for_payload(now, input);
        };
        if !bulk.adopted.remove(&input.index) {
            return false;
        }
        if let Some(tries) = &input.tries {
            bulk.attempted.insert(input.index, tries.clone());
        }
        true
    }

    fn record_attempt(&self, input: &Queued, out: &mut Output) {
        let durable = self.calls.get(&input.call).is_some_and(|c| c.kind != CallKind::Map);
        if let Some(tries) = input.tries.clone().filter(|_| durable) {
            out.records.push(Record::Attempted { call: input.call, index: input.index, tries });
        }
    }

    /// An input's end: recorded once, by the end of this step.
    pub(super) fn end(&mut self, now: Time, input: &Queued, from: Place, outcome: Outcome, attempt: Attempt) {
        let id = input.call;
        let to = match &outcome {
            Outcome::Succeeded(_) => Place::Succeeded,
            Outcome::Failed(_) => Place::Failed,
            Outcome::Cancelled => Place::Cancelled,
        };
        self.shift(id, from, to, 1);
        let Some(call) = self.calls.get_mut(&id) else { return };
        let outcome = match outcome {
            Outcome::Succeeded(_) if call.discard_outputs => Outcome::Succeeded(Payload::json(&b"null"[..])),
            other => other,
        };
        let attempts = input.attempts() + u32::from(from == Place::Running);
        call.settling.push(Entry {
            index: input.index,
            count: 1,
            attempts,
            container: attempt.container,
            submitted: input.submitted,
            leased: attempt.given,
            run_us: attempt.run_us,
            finished: now,
            outcome,
            tries: input.tries.clone(),
        });
        if let Some(segment) = call.segment_of(input.index)
            && let Some(bulk) = call.bulk.as_mut()
        {
            if bulk.adopted.remove(&input.index) {
                // Its segment is not loaded yet, and must not bring it again.
                bulk.ended.add(input.index, 1);
            }
            if let Some(live) = bulk.live.get_mut(&segment) {
                *live -= 1;
            }
        }
        self.touched.insert(id);
    }

    pub(super) fn returned(&mut self, now: Time, id: ContainerId, leases: &[LeaseId], closed: bool, out: &mut Output) {
        let unfed = room(&self.serving().spec, None);
        let back = self.pool.change(id, |container| {
            let mut back = Vec::new();
            for lease in leases {
                if let Some(held) = container.leases.remove(lease) {
                    container.leave_group(held.group);
                    back.push(held);
                }
            }
            container.since = now;
            if closed && Self::takes_work(&container.life) {
                container.life = Life::Draining;
            }
            // What came back unbegun shows that the guess of short runs was wrong.
            container.run_us = None;
            container.room = unfed;
            back
        });
        for held in back.unwrap_or_default().into_iter().rev() {
            self.queue.release(held.input.call, 1);
            if !mutated!(self.limits.mutant, INPUT_DROPPED_WHEN_RETURNED) {
                self.give_back(now, held.input);
            }
        }
        self.after_work(id, out);
    }

    /// Ends a call: what waits ends as cancelled, what runs is interrupted (RELIABILITY I9).
    pub(super) fn cancel(&mut self, now: Time, id: CallId, out: &mut Output) {
        self.abandon(now, id);
        self.abort_running(now, id, 0, out);
    }

    /// Ends a map behind one of its inputs: nothing more arrives, what waits or runs there ends as cancelled.
    fn cut_behind(&mut self, now: Time, id: CallId, index: u64, out: &mut Output) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.closed = true;
        self.end_credit(id);
        let nobody = Attempt { container: ContainerId(0), given: now, run_us: 0 };
        for input in self.queue.drain(id) {
            if input.index < index {
                self.queue.push_back(input);
            } else {
                self.end(now, &input, Place::Pending, Outcome::Cancelled, nobody);
            }
        }
        for input in self.delayed.drain(id, index + 1) {
            self.end(now, &input, Place::Pending, Outcome::Cancelled, nobody);
        }
        self.abort_running(now, id, index + 1, out);
    }

    fn abort_running(&mut self, now: Time, id: CallId, from: u64, out: &mut Output) {
        let holds = |l: &Lease| l.input.call == id && l.input.index >= from;
        let holders: Vec<ContainerId> =
            self.pool.iter().filter(|(_, c)| c.leases.values().any(holds)).map(|(id, _)| id).collect();
        for container in holders {
            self.abort(now, container, id, from, out);
        }
        out.urgent = true;
    }

    /// A call's client went away: what waits ends as cancelled, what runs may end by itself.
    pub(super) fn abandon(&mut self, now: Time, id: CallId) {
        self.unpark_to_end(id);
        let Some(call) = self.calls.get_mut(&id).filter(|c| !c.cancelled) else {
            return;
        };
        call.cancelled = true;
        call.cut_short = !call.closed;
        call.closed = true;
        self.touched.insert(id);
        self.end_credit(id);
        if !mutated!(self.limits.mutant, CANCEL_LEAVES_WAITING) {
            self.end_waiting(now, id, &Outcome::Cancelled);
        }
    }

    fn abort(&mut self, now: Time, id: ContainerId, call: CallId, from: u64, out: &mut Output) {
        let aborted = self.pool.change(id, |container| {
            let of_call = container.leases.iter().filter(|(_, l)| l.input.call == call && l.input.index >= from);
            let leases: Vec<LeaseId> = of_call.map(|(id, _)| *id).collect();
            let mut held = Vec::with_capacity(leases.len());
            for lease in &leases {
                if let Some(lease) = container.leases.remove(lease) {
                    container.leave_group(lease.group);
                    held.push(lease);
                }
            }
            container.since = now;
            // What was begun and cut off has used a container up that takes one input only.
            container.served += u64::from(!held.is_empty());
            (leases, held)
        });
        let Some((leases, held)) = aborted else { return };
        self.order(id, Order::Abort { container: id, leases }, out);
        for Lease { input, given, .. } in held {
            self.queue.release(call, 1);
            let attempt = Attempt { container: id, given, run_us: 0 };
            self.end(now, &input, Place::Running, Outcome::Cancelled, attempt);
        }
        self.after_work(id, out);
    }

    /// Ends all that waits of a call with one outcome: in memory one by one, in the store as runs.
    pub(super) fn end_waiting(&mut self, now: Time, id: CallId, outcome: &Outcome) {
        let nobody = Attempt { container: ContainerId(0), given: now, run_us: 0 };
        for input in self.queue.drain(id) {
            self.end(now, &input, Place::Pending, outcome.clone(), nobody);
        }
        for input in self.delayed.drain(id, 0) {
            self.end(now, &input, Place::Pending, outcome.clone(), nobody);
        }
        self.end_tail(now, id, outcome);
    }

    fn end_tail(&mut self, now: Time, id: CallId, outcome: &Outcome) {
        self.tails.remove(&id);
        let Some(bulk) = self.calls.get_mut(&id).and_then(|call| call.bulk.as_mut()) else { return };
        let mut unloaded: Vec<_> = std::mem::take(&mut bulk.loading).into_values().collect();
        unloaded.extend(std::mem::take(&mut bulk.tail));
        self.end_segments(now, id, unloaded, outcome);
    }

    /// Ends what waits of segments that are not in memory, as runs of neighbours.
    pub(super) fn end_segments(&mut self, now: Time, id: CallId, segments: Vec<Segment>, outcome: &Outcome) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let submitted = call.created;
        let Some(bulk) = call.bulk.as_mut() else { return };
        let mut ended = 0;
        for segment in segments {
            let to = segment.first + u64::from(segment.count);
            let mut settled = bulk.ended.clone();
            bulk.adopted.range(segment.first..to).for_each(|held| settled.add(*held, 1));
            for (index, count) in settled.gaps(segment.first, to) {
                ended += count;
                call.settling.push(Entry {
                    index,
                    count,
                    attempts: 0,
                    container: ContainerId(0),
                    submitted,
                    leased: now,
                    run_us: 0,
                    finished: now,
                    outcome: outcome.clone(),
                    tries: None,
                });
            }
        }
        let to = if matches!(outcome, Outcome::Cancelled) { Place::Cancelled } else { Place::Failed };
        self.shift(id, Place::Pending, to, ended);
        self.touched.insert(id);
    }

    /// Turns this step's ends into records and promises; calls that are over leave.
    pub(super) fn record_ends(&mut self, now: Time, out: &mut Output) {
        let mut failing: Vec<(CallId, FailFast, u64)> = Vec::new();
        for id in &self.touched {
            let Some(call) = self.calls.get(id) else { continue };
            let failed = call.settling.iter().filter(|e| matches!(e.outcome, Outcome::Failed(_)));
            let first = failed.map(|e| e.index).min();
            failing.extend(first.filter(|_| !call.cancelled).map(|first| (*id, call.fail_fast, first)));
        }
        for (id, fail_fast, first) in failing {
            match fail_fast {
                FailFast::No => {}
                FailFast::AtOnce => self.cancel(now, id, out),
                FailFast::InOrder => self.cut_behind(now, id, first, out),
            }
        }
        let mut ended = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            let Some(call) = self.calls.get_mut(&id) else { continue };
            let before = out.records.len();
            settle_call(call, out);
            if mutated!(self.limits.mutant, OUTCOME_NOT_RECORDED) {
                out.records.truncate(before);
            }
            if call.is_over() {
                end_call(call, now, out);
                let state = call.state();
                out.promises.push(Promise::Closed { call: id, state });
                self.end_credit(id);
                self.queue.close(id);
                self.calls.remove(&id);
                if self.calls.is_empty() {
                    // An empty map keeps its memory.
                    self.calls = BTreeMap::new();
                }
                ended.push(id);
            }
        }
        for id in ended {
            self.run_ended(id);
        }
        if self.calls.is_empty() {
            // An empty map keeps its memory.
            self.calls = BTreeMap::new();
        }
    }
}

fn settle_call(call: &mut super::call::Call, out: &mut Output) {
    if call.settling.is_empty() {
        return;
    }
    let entries = Arc::new(std::mem::take(&mut call.settling));
    let tried = entries.iter().filter(|e| e.tries.is_some());
    for entry in tried.filter(|_| call.kind != CallKind::Map) {
        out.records.push(Record::AttemptsEnded { call: call.id, index: entry.index });
    }
    out.records.push(Record::Ended { call: call.id, sequence: call.outcome_records, entries: entries.clone() });
    call.outcome_records += 1;
    out.promises.push(Promise::Settled { call: call.id, entries: entries.clone() });
    out.urgent = true;
    let Some(bulk) = call.bulk.as_mut() else { return };
    if call.kind == CallKind::Map {
        bulk.uncollected += entries.iter().map(|e| e.count).sum::<u64>();
    }
    let emptied: Vec<u32> = bulk.live.iter().filter(|(_, live)| **live == 0).map(|(n, _)| *n).collect();
    for number in emptied {
        bulk.live.remove(&number);
        bulk.open.remove(&number);
        out.records.push(Record::SegmentEnded { call: call.id, number });
    }
}

fn end_call(call: &mut super::call::Call, now: Time, out: &mut Output) {
    for number in call.bulk.iter_mut().flat_map(|bulk| std::mem::take(&mut bulk.open)) {
        out.records.push(Record::SegmentEnded { call: call.id, number });
    }
    out.records.push(Record::CallEnded(call.record(Some(now))));
    out.urgent = true;
}
