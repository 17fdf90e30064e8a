//! Parked calls: single background calls behind the head of the queue, of which memory keeps nothing but the id. Their
//! payloads stay in the store until their turn comes, so that a backlog of spawns costs as little as one of spawn_map.

use super::{Function, Place, call::Call, pool::Lease, queue::Queued};
use crate::{
    effect::{Output, Promise},
    event::Fetched,
    record::Tries,
};
use bytes::Bytes;
use capstan_common::{
    call::{CallKind, CallState, Counts},
    id::CallId,
    input::{Failure, FailureKind, Outcome, Payload},
    time::Time,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Calls whose payloads are in the store only.
#[derive(Debug, Clone, Default)]
pub struct Parked {
    /// Whose turn has not come.
    waiting: BTreeSet<CallId>,
    /// Asked for.
    fetching: BTreeSet<CallId>,
    /// Live calls whose one input an adopted container held before its payload was read.
    unfilled: BTreeMap<CallId, Unfilled>,
}

/// Where such an input is.
#[derive(Debug, Clone)]
enum Unfilled {
    /// In its container.
    Runs,
    /// It came back, with its attempts until then, and waits for its payload.
    Waits(Option<Box<Tries>>),
    /// In its container; if it comes back it ends, as its payload cannot be read.
    Unreadable(Arc<str>),
}

impl Parked {
    /// Whether the call is one of them.
    pub fn has(&self, call: CallId) -> bool {
        self.waiting.contains(&call) || self.fetching.contains(&call)
    }

    /// Whether the store was asked for any.
    pub fn is_asked_for(&self) -> bool {
        !self.fetching.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        (self.waiting.len() + self.fetching.len()) as u64
    }

    /// All of them.
    pub fn ids(&self) -> Vec<CallId> {
        self.waiting.union(&self.fetching).copied().collect()
    }
}

impl Function {
    /// Whether a single background call that comes now stays in the store.
    pub(super) fn parks(&self, kind: CallKind) -> bool {
        let full = self.queue.background_calls() >= self.limits.spawn_head;
        kind == CallKind::Spawn && (full || !self.parked.waiting.is_empty())
    }

    /// Keeps a call's id and its place in the accounts.
    pub(super) fn park(&mut self, call: CallId) {
        self.parked.waiting.insert(call);
        self.background.pending += 1;
    }

    /// What a parked call looks like from outside.
    pub(super) fn parked_view(&self, call: CallId) -> Option<(CallKind, Counts, CallState)> {
        let counts = Counts { total: 1, pending: 1, ..Counts::default() };
        self.parked.has(call).then_some((CallKind::Spawn, counts, CallState::Pending))
    }

    /// Asks for the next calls when the head of the queue runs low.
    pub(super) fn fetch_parked(&mut self, out: &mut Output) {
        let head = self.limits.spawn_head;
        let near = self.queue.background_calls() + self.parked.fetching.len();
        if self.parked.waiting.is_empty() || near >= head.div_ceil(2) {
            return;
        }
        let calls: Vec<CallId> = self.parked.waiting.iter().take(head - near).copied().collect();
        for call in &calls {
            self.parked.waiting.remove(call);
            self.parked.fetching.insert(*call);
        }
        out.promises.push(Promise::Fetch { calls });
    }

    /// Calls that were asked for; one that ended meanwhile is passed over.
    pub(super) fn fetched(&mut self, now: Time, calls: Vec<Fetched>) {
        for Fetched { call, created, traceparent, payload } in calls {
            if let Some(place) = self.parked.unfilled.remove(&call) {
                self.fill(now, call, (payload, place), created);
            } else if self.unpark(call, created, traceparent) {
                match payload {
                    Ok(_) if mutated!(self.limits.mutant, FETCHED_DROPPED) => {}
                    Ok(payload) => self.queue.push_back(single(call, payload, created, None)),
                    Err(why) => self.end_unreadable(now, call, (created, None), &why),
                }
            }
        }
    }

    fn end_unreadable(&mut self, now: Time, call: CallId, (created, tries): (Time, Option<Box<Tries>>), why: &str) {
        self.queue.push_back(single(call, nothing(), created, tries));
        self.end_waiting(now, call, &unreadable(why));
    }

    fn fill(
        &mut self,
        now: Time,
        call: CallId,
        (payload, place): (Result<Payload, Arc<str>>, Unfilled),
        created: Time,
    ) {
        match (payload, place) {
            (Ok(payload), Unfilled::Waits(tries)) => self.queue.push_back(single(call, payload, created, tries)),
            (Err(why), Unfilled::Waits(tries)) => self.end_unreadable(now, call, (created, tries), &why),
            (Err(why), _) => drop(self.parked.unfilled.insert(call, Unfilled::Unreadable(why))),
            (Ok(payload), _) => self.fill_adopted(call, vec![(0, payload)]),
        }
    }

    /// Makes a parked call a live one that has one input pending. Whether it was parked.
    fn unpark(&mut self, id: CallId, created: Time, traceparent: Arc<str>) -> bool {
        if !self.parked.waiting.remove(&id) && !self.parked.fetching.remove(&id) {
            return false;
        }
        self.background.pending -= 1;
        let mut call = Call::new(id, CallKind::Spawn, created, traceparent);
        call.closed = true;
        self.calls.insert(id, call);
        self.queue.open(id, false, u32::MAX);
        self.shift(id, Place::Outside, Place::Pending, 1);
        true
    }

    /// A parked call is to end: it becomes a live one whose input waits.
    pub(super) fn unpark_to_end(&mut self, call: CallId) {
        let created = Time(call.born_ms() * 1000);
        if self.unpark(call, created, "".into()) {
            self.queue.push_back(single(call, nothing(), created, None));
        }
    }

    /// A container holds a parked call's input: it becomes a live one, and its payload is read in case it must be tried again.
    pub(super) fn unpark_adopted(&mut self, call: CallId, out: &mut Output) -> Option<Queued> {
        let created = Time(call.born_ms() * 1000);
        if !self.unpark(call, created, "".into()) {
            return None;
        }
        self.parked.unfilled.insert(call, Unfilled::Runs);
        out.promises.push(Promise::Fetch { calls: vec![call] });
        Some(single(call, nothing(), created, None))
    }

    /// Whether the input's payload is still being read, and it waits there; or cannot be read, and it ends.
    pub(super) fn waits_for_payload(&mut self, now: Time, input: &Queued) -> bool {
        let Some(place) = self.parked.unfilled.get_mut(&input.call) else { return false };
        if let Unfilled::Unreadable(why) = place {
            let why = why.clone();
            self.parked.unfilled.remove(&input.call);
            self.end_unreadable(now, input.call, (input.submitted, input.tries.clone()), &why);
        } else {
            *place = Unfilled::Waits(input.tries.clone());
        }
        true
    }

    /// A segment of inputs cannot be read: its inputs end, and say so.
    pub(super) fn unreadable(&mut self, now: Time, id: CallId, number: u32, why: &str) {
        let segment = self.calls.get_mut(&id).and_then(|c| c.bulk.as_mut()).and_then(|b| b.loading.remove(&number));
        if let Some(segment) = segment {
            self.end_segments(now, id, vec![segment], &unreadable(why));
        }
    }

    /// Adopted attempts of a call whose payload was read get it, in case they must be tried again.
    pub(super) fn fill_adopted(&mut self, call: CallId, payloads: Vec<(u64, Payload)>) {
        for (index, payload) in payloads {
            let of_input = |l: &Lease| l.input.call == call && l.input.index == index;
            let holder = self.pool.iter().find_map(|(id, c)| {
                let found = c.leases.iter().find(|(_, l)| of_input(l));
                found.map(|(lease, _)| (id, *lease))
            });
            let Some((container, lease)) = holder else { continue };
            self.pool.change(container, |c| {
                if let Some(lease) = c.leases.get_mut(&lease) {
                    lease.input.payload = payload;
                }
            });
        }
    }
}

fn nothing() -> Payload {
    Payload::json(Bytes::new())
}

fn single(call: CallId, payload: Payload, submitted: Time, tries: Option<Box<Tries>>) -> Queued {
    Queued { call, index: 0, payload, submitted, tries }
}

fn unreadable(why: &str) -> Outcome {
    Outcome::Failed(Failure::new(FailureKind::Lost, "InputNotReadable", why))
}
