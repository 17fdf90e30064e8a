//! Clients: they bring calls, send again what was not answered, and remember what they were promised.

use super::{
    engine::{Action, World},
    host::At,
};
use capstan_common::{call::CallKind, id::CallId, input::Payload, time::Time};
use capstan_scheduler_core::{
    event::{Event, FailFast, Inputs, Opening},
    record::Segment,
};
use rand::Rng;
use std::collections::BTreeSet;

/// Inputs in one packed segment of a simulated upload.
const SEGMENT: u64 = 48;

/// A client with one call to make.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its function.
    pub function: usize,
    /// Its verb.
    pub kind: CallKind,
    /// How many inputs it brings.
    pub inputs: u64,
    /// Whether it sends again, with the same key, until it hears an answer.
    pub keyed: bool,
    /// Whether it will cancel.
    pub cancels: bool,
    /// Whether it will go away before the end.
    pub leaves: bool,
    /// Maps: what the first error does.
    pub fail_fast: FailFast,
    /// Ids that it has used.
    pub asked: BTreeSet<CallId>,
    /// Where it waits for the answers of its open connection.
    pub at: Option<At>,
    /// The call that it was promised.
    pub accepted: Option<CallId>,
    /// Inputs that a map has sent.
    pub sent: u64,
    /// When the last of them arrives: a stream keeps its order.
    pub arrives: Time,
    /// Maps: whether all were sent.
    pub closed: bool,
    /// It waits for nothing any more.
    pub done: bool,
}

/// Every input is its own index, and every output its input: what comes out is known.
pub fn payloads(from: u64, count: u64) -> Vec<Payload> {
    (from..from + count).map(|n| Payload::json(n.to_string())).collect()
}

impl Client {
    /// The call, and the segments to be written before it.
    pub fn opening(&self, number: usize, call: CallId) -> (Opening, Vec<(u32, Vec<Payload>)>) {
        let mut packed = Vec::new();
        let inputs = match self.kind {
            CallKind::Map => Inputs::Later,
            CallKind::SpawnMap => {
                let mut segments = Vec::new();
                let mut first = 0;
                while first < self.inputs {
                    let count = SEGMENT.min(self.inputs - first);
                    let number = segments.len() as u32;
                    segments.push(Segment { number, first, count: count as u32 });
                    packed.push((number, payloads(first, count)));
                    first += count;
                }
                Inputs::Stored(segments)
            }
            _ => Inputs::Here(payloads(0, self.inputs)),
        };
        let opening = Opening {
            call,
            kind: self.kind,
            inputs,
            traceparent: "".into(),
            key: self.keyed.then(|| (format!("client-{number}"), [number as u8; 32])),
            fail_fast: if self.kind == CallKind::Map { self.fail_fast } else { FailFast::No },
            discard_outputs: false,
        };
        (opening, packed)
    }
}

impl World {
    /// A client sends its request to whoever it believes to own the function.
    pub(super) fn open(&mut self, number: usize) -> Result<(), String> {
        if self.clients[number].done {
            return Ok(());
        }
        let believers = self.believers(self.clients[number].function);
        if believers.is_empty() {
            let at = self.after(50_000, 200_000);
            self.plan(at, Action::Open { client: number });
            return Ok(());
        }
        let at = believers[self.rng.random_range(0..believers.len())];
        if self.schedulers[at.scheduler].stopped_until.is_some() {
            // It hears nothing for a while and sends again; what it sent first arrives all the same, much later.
            self.plan(self.now, Action::Ask { at, client: number });
            let again = self.after(500_000, 2_000_000);
            self.plan(again, Action::Open { client: number });
            return Ok(());
        }
        self.ask(at, number)
    }

    /// A client's request arrives at a scheduler.
    pub(super) fn ask(&mut self, at: At, number: usize) -> Result<(), String> {
        if self.clients[number].done || (!self.clients[number].keyed && !self.clients[number].asked.is_empty()) {
            return Ok(());
        }
        let Some(epoch) = self.host(at).map(|host| host.epoch) else { return self.again(number) };
        self.calls += 1 << 64;
        let id = CallId(self.calls);
        let client = &self.clients[number];
        let (opening, packed) = client.opening(number, id);
        let (f, interactive) = (client.function, client.kind.is_interactive());
        let refuses = !self.keys.holds(self.functions[f].shard, epoch) || self.keys.full_until > self.now;
        if !packed.is_empty() && refuses {
            // The store refuses the inputs: this scheduler is not the owner any more, or there is no room.
            return self.again(number);
        }
        self.clients[number].asked.insert(id);
        self.clients[number].at = Some(at);
        for (segment, payloads) in packed {
            self.functions[f].durable.segments.insert((id, segment), payloads);
        }
        if !interactive {
            self.waiting.insert(id, number);
        }
        match self.try_function(at, Event::Open(Box::new(opening)))? {
            Ok(Some(call)) if call != id => {
                // The key was known: the promise is for the first call.
                self.waiting.remove(&id);
                self.waiting.insert(call, number);
            }
            Ok(_) => {}
            Err(_) => {
                self.waiting.remove(&id);
                if !self.clients[number].keyed {
                    // It was refused, and knows it.
                    self.clients[number].asked.remove(&id);
                }
                return self.again(number);
            }
        }
        Ok(())
    }

    fn again(&mut self, number: usize) -> Result<(), String> {
        let at = self.after(200_000, 2_000_000);
        self.plan(at, Action::Open { client: number });
        Ok(())
    }

    /// A client cancels what it was promised.
    pub(super) fn cancel(&mut self, number: usize) -> Result<(), String> {
        let client = &self.clients[number];
        let Some(call) = client.accepted else { return Ok(()) };
        match self.owner(client.function) {
            Some(at) => self.step_function(at, Event::Cancel { call }),
            None => Ok(()),
        }
    }

    /// A client goes away: nobody waits for its call any more.
    pub(super) fn leave(&mut self, number: usize) -> Result<(), String> {
        let client = &mut self.clients[number];
        let Some(call) = client.asked.last().copied().filter(|_| !client.done) else { return Ok(()) };
        client.done = true;
        let f = client.function;
        self.believers(f).into_iter().try_for_each(|at| self.step_function(at, Event::Abandon { call }))
    }

    pub(super) fn credited(&mut self, to: At, call: CallId, count: u64) {
        let open = |c: &Client| c.kind == CallKind::Map && !c.done && c.at == Some(to);
        let found = self.clients.iter().position(|c| open(c) && c.asked.last() == Some(&call));
        let Some(number) = found else { return };
        let client = &mut self.clients[number];
        let sending = count.min(client.inputs - client.sent);
        let payloads = payloads(client.sent, sending);
        client.sent += sending;
        let closing =
            client.sent == client.inputs && !std::mem::replace(&mut client.closed, client.sent == client.inputs);
        let at = self.after(10, 2_000).max(self.clients[number].arrives);
        self.clients[number].arrives = at;
        if sending > 0 {
            self.plan(at, Action::Function { at: to, event: Event::Arrive { call, payloads } });
        }
        if closing {
            self.plan(at, Action::Function { at: to, event: Event::Close { call } });
        }
    }

    /// Clients without an answer from where the function lives no more: those with a key send again, those with a broken
    /// stream give up.
    pub(super) fn forsake_clients(&mut self, at: At) {
        for number in 0..self.clients.len() {
            let client = &mut self.clients[number];
            if client.at != Some(at) || client.done {
                continue;
            }
            if client.keyed {
                let at = self.after(1_000, 500_000);
                self.plan(at, Action::Open { client: number });
            } else {
                client.done = true;
            }
        }
    }
}
