//! Accepting: a client opens a call, sends a map's inputs, takes its outcomes.

use super::{
    Function, Place,
    call::{Bulk, Call},
    queue::Queued,
};
use crate::{
    effect::{Effect, Output, Promise},
    event::{Inputs, Opening},
    record::{Record, UsedKey},
};
use capstan_common::{
    call::CallKind,
    id::CallId,
    input::Payload,
    parameter,
    refusal::{Code, Refusal},
    time::Time,
};

/// Inputs of a call that are kept ready in memory; below this its next segment is loaded.
const HEAD_INPUTS: usize = 2048;
/// Segments of one call that are loaded at once.
const LOADS_AT_ONCE: usize = 2;
/// Credit is given in portions of at least this, unless the map has none left.
const CREDIT_PORTION: u64 = 64;

impl Function {
    pub(super) fn open(&mut self, now: Time, opening: Opening, out: &mut Output) -> Result<CallId, Refusal> {
        self.must_exist()?;
        parameter::missing(&self.deployed.spec)?;
        if let Some(call) = self.known_key(&opening)? {
            out.promises.push(Promise::Accepted { call });
            return Ok(call);
        }
        let count = match &opening.inputs {
            Inputs::Here(payloads) => payloads.len() as u64,
            Inputs::Stored(segments) => segments.iter().map(|s| u64::from(s.count)).sum(),
            Inputs::Later => 0,
        };
        self.within_limits(opening.kind, count)?;

        let id = opening.call;
        self.run_opened(id)?;
        if self.parks(opening.kind) && matches!(opening.inputs, Inputs::Here(_)) {
            self.open_parked(now, opening, out);
            return Ok(id);
        }
        let mut call = Call::new(id, opening.kind, now, opening.traceparent);
        call.fail_fast = opening.fail_fast;
        call.discard_outputs = opening.discard_outputs;
        call.closed = !matches!(opening.inputs, Inputs::Later);
        self.queue.open(id, opening.kind.is_interactive(), self.lane_limit(opening.kind));
        let mut here = Vec::new();
        match opening.inputs {
            Inputs::Here(payloads) => here = payloads,
            Inputs::Stored(segments) => {
                call.bulk = Some(Box::new(Bulk {
                    tail: segments.iter().copied().collect(),
                    open: segments.iter().map(|s| s.number).collect(),
                    segments,
                    ..Bulk::default()
                }));
                self.tails.insert(id);
            }
            Inputs::Later => {
                call.bulk = Some(Box::default());
                self.maps.insert(id);
            }
        }
        let mut record = call.record(None);
        record.counts.total = count;
        out.records.push(Record::CallOpened(record, here.clone()));
        self.use_key(now, id, opening.key, out);
        self.calls.insert(id, call);
        self.shift(id, Place::Outside, Place::Pending, count);
        for (index, payload) in here.into_iter().enumerate() {
            self.enqueue(now, id, index as u64, payload);
        }
        // Nobody is told that an invoke or a map was accepted: its record may ride with the next one.
        out.urgent |= !opening.kind.is_interactive();
        if !opening.kind.is_interactive() {
            out.promises.push(Promise::Accepted { call: id });
        }
        self.touched.insert(id);
        Ok(id)
    }

    /// A single background call that stays in the store until its turn comes.
    fn open_parked(&mut self, now: Time, opening: Opening, out: &mut Output) {
        let Inputs::Here(here) = opening.inputs else { return };
        let id = opening.call;
        let mut record = Call::new(id, opening.kind, now, opening.traceparent).record(None);
        record.counts.total = here.len() as u64;
        out.records.push(Record::CallOpened(record, here));
        self.use_key(now, id, opening.key, out);
        self.park(id);
        out.urgent = true;
        out.promises.push(Promise::Accepted { call: id });
    }

    fn use_key(&mut self, now: Time, call: CallId, key: Option<(String, [u8; 32])>, out: &mut Output) {
        let Some((key, digest)) = key else { return };
        let used = UsedKey { digest, call, at: now };
        out.records.push(Record::KeyUsed(key.clone(), used.clone()));
        self.key_ages.push_back((now, key.clone()));
        self.keys.insert(key, used);
    }

    fn enqueue(&mut self, now: Time, call: CallId, index: u64, payload: Payload) {
        self.queue.push_back(Queued { call, index, payload, submitted: now, tries: None });
    }

    fn known_key(&self, opening: &Opening) -> Result<Option<CallId>, Refusal> {
        let Some((key, digest)) = &opening.key else {
            return Ok(None);
        };
        match self.keys.get(key) {
            None => Ok(None),
            Some(used) if used.digest == *digest => Ok(Some(used.call)),
            Some(used) => Err(Refusal::new(
                Code::Conflict,
                format!(
                    "Idempotency-Key `{key}` was used for call {} with another body; send the same body or another key",
                    used.call
                ),
            )),
        }
    }

    /// SPEC M01–M04, M11, M12: exactly the limit is accepted, one more is refused, and nothing is half-accepted.
    pub(super) fn within_limits(&self, kind: CallKind, count: u64) -> Result<(), Refusal> {
        let refuse = |what: &str, limit: u64, has: u64| {
            Err(Refusal::exhausted(
                format!(
                    "function `{}` has {has} {what} and takes at most {limit}; {count} more do not fit, try again when some have ended",
                    self.key
                ),
                1,
            ))
        };
        if kind.is_interactive() {
            let side = self.interactive;
            let pending = side.pending + self.credit;
            if pending + count > self.limits.pending_interactive {
                return refuse("pending inputs from invoke and map", self.limits.pending_interactive, pending);
            }
            let total = pending + side.running;
            if total + count > self.limits.total_interactive {
                return refuse("inputs from invoke and map in all", self.limits.total_interactive, total);
            }
        } else if self.background.pending + count > self.limits.pending_background {
            let limit = self.limits.pending_background;
            return refuse("pending inputs from spawn and spawn_map", limit, self.background.pending);
        }
        Ok(())
    }

    pub(super) fn arrive(&mut self, now: Time, id: CallId, payloads: Vec<Payload>) -> Result<(), Refusal> {
        let gone = || Refusal::new(Code::Cancelled, format!("map {id} was cancelled"));
        let call = self.calls.get_mut(&id).filter(|c| !c.closed).ok_or_else(gone)?;
        let bulk = call.bulk.as_mut().ok_or_else(gone)?;
        let count = payloads.len() as u64;
        if count > bulk.credit {
            return Err(Refusal::exhausted(
                format!("map {id} has credit for {} inputs, not for {count}", bulk.credit),
                1,
            ));
        }
        bulk.credit -= count;
        self.credit -= count;
        let first = call.counts.total;
        self.shift(id, Place::Outside, Place::Pending, count);
        for (offset, payload) in payloads.into_iter().enumerate() {
            self.enqueue(now, id, first + offset as u64, payload);
        }
        Ok(())
    }

    pub(super) fn close(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.closed = true;
        self.touched.insert(id);
        self.end_credit(id);
    }

    /// A map sends nothing more: its credit is free for others.
    pub(super) fn end_credit(&mut self, id: CallId) {
        self.maps.remove(&id);
        if mutated!(self.limits.mutant, CREDIT_NOT_RETURNED) {
            return;
        }
        if let Some(bulk) = self.calls.get_mut(&id).and_then(|c| c.bulk.as_mut()) {
            self.credit -= std::mem::take(&mut bulk.credit);
        }
    }

    pub(super) fn collect(&mut self, id: CallId, count: u64) {
        if let Some(bulk) = self.calls.get_mut(&id).and_then(|c| c.bulk.as_mut()) {
            bulk.uncollected = bulk.uncollected.saturating_sub(count);
        }
    }

    /// Gives open maps as much credit as their window and the function's limits allow; a tenth of the pending limit stays for invoke.
    pub(super) fn grant_credit(&mut self, out: &mut Output) {
        if self.maps.is_empty() {
            return;
        }
        let limits = &self.limits;
        let share = |room: u64, maps: usize| (room / maps as u64).max(u64::from(room > 0));
        let mut maps = self.maps.len();
        for id in &self.maps {
            let Some(call) = self.calls.get_mut(id) else { continue };
            let Some(bulk) = call.bulk.as_mut() else { continue };
            let waiting = self.interactive.pending + self.credit;
            let on_its_way = bulk.credit + call.counts.pending + call.counts.running + bulk.uncollected;
            let room =
                share((limits.pending_interactive - limits.pending_interactive / 10).saturating_sub(waiting), maps)
                    .min(limits.total_interactive.saturating_sub(waiting + self.interactive.running))
                    .min(limits.map_window.saturating_sub(on_its_way));
            maps -= 1;
            if room >= CREDIT_PORTION || (room > 0 && bulk.credit == 0) {
                bulk.credit += room;
                self.credit += room;
                out.effects.push(Effect::Credit { call: *id, count: room });
            }
        }
    }

    /// Asks for the next segments of calls whose head runs low.
    pub(super) fn load_tails(&mut self, out: &mut Output) {
        let mut done = Vec::new();
        for id in &self.tails {
            let Some(bulk) = self.calls.get_mut(id).and_then(|c| c.bulk.as_mut()) else {
                done.push(*id);
                continue;
            };
            let near = self.queue.waiting_of(*id);
            // Where memory is full of other calls' inputs, a call keeps one segment near.
            let most = if self.queue.bytes() < self.limits.head_bytes as u64 { HEAD_INPUTS } else { 1 };
            while bulk.loading.len() < LOADS_AT_ONCE.min(most) && near < most {
                let Some(segment) = bulk.tail.pop_front() else {
                    done.push(*id);
                    break;
                };
                bulk.loading.insert(segment.number, segment);
                out.effects.push(Effect::Load { call: *id, number: segment.number });
            }
        }
        for id in done {
            self.tails.remove(&id);
        }
    }

    pub(super) fn loaded(&mut self, id: CallId, number: u32, payloads: Vec<Payload>) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let submitted = call.created;
        let Some(bulk) = call.bulk.as_mut() else { return };
        let Some(segment) = bulk.loading.remove(&number) else { return };
        let mut payloads = payloads;
        if mutated!(self.limits.mutant, SEGMENT_CUT_SHORT) {
            payloads.pop();
        }
        let mut live = 0;
        let mut held = Vec::new();
        for (offset, payload) in payloads.into_iter().enumerate() {
            let index = segment.first + offset as u64;
            if bulk.ended.has(index) {
                continue;
            }
            live += 1;
            if bulk.adopted.remove(&index) {
                held.push((index, payload));
                continue;
            }
            let tries = bulk.attempted.remove(&index);
            self.queue.push_back(Queued { call: id, index, payload, submitted, tries });
        }
        bulk.live.insert(number, live);
        self.fill_adopted(id, held);
        self.touched.insert(id);
    }
}
