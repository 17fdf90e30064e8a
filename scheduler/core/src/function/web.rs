//! Requests through `/web`: each waits for a container and takes a slot of it while it lasts. They are as short-lived as
//! their client's connection: nothing of them is durable, and after a restart there are none.

use super::Function;
use crate::effect::{Effect, Output};
use capstan_common::{
    call::CallKind,
    function::Protocol,
    id::{ContainerId, RequestId},
    parameter,
    refusal::{Code, Refusal},
    time::Time,
};
use std::collections::{BTreeMap, VecDeque};

/// Ended requests that are remembered for what-if.
const PAST: usize = 10_000;

/// A request in a container.
#[derive(Debug, Clone, Copy)]
struct Inside {
    container: ContainerId,
    came: Time,
    admitted: Time,
}

/// A function's web requests.
#[derive(Debug, Clone, Default)]
pub struct Web {
    /// Those without a container and when they came, the oldest first.
    waiting: VecDeque<(RequestId, Time)>,
    /// The others.
    inside: BTreeMap<RequestId, Inside>,
    /// The last that ended: when they came, and for how many microseconds they were in a container.
    past: VecDeque<(Time, u64)>,
    /// Whether the next free slot is theirs; they take turns with inputs.
    turn: bool,
}

impl Web {
    /// Whether any waits for a container.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the next free slot is given to one that waits.
    pub fn has_turn(&self, inputs_wait: bool) -> bool {
        self.waits() && (self.turn || !inputs_wait)
    }

    /// An input was given the slot.
    pub fn passed(&mut self) {
        self.turn = true;
    }

    /// How many wait, and how many are in containers.
    pub fn counts(&self) -> (u64, u64) {
        (self.waiting.len() as u64, self.inside.len() as u64)
    }
}

impl Function {
    /// A request comes. It is refused where the function cannot take any, and past the limits of an invoke.
    pub(super) fn enter(&mut self, now: Time, request: RequestId) -> Result<(), Refusal> {
        self.must_exist()?;
        parameter::missing(&self.deployed.spec)?;
        self.must_serve()?;
        self.within_limits(CallKind::Invoke, 1)?;
        self.web.waiting.push_back((request, now));
        self.interactive.pending += 1;
        Ok(())
    }

    fn must_serve(&self) -> Result<(), Refusal> {
        let spec = &self.serving().spec;
        let refuse = |why: &str| Err(Refusal::new(Code::Unsupported, format!("function `{}` {why}", self.key)));
        if spec.protocol != Protocol::Http {
            return refuse("has the protocol exec and no server to reach; deploy it with protocol http, or invoke it");
        }
        if spec.batching.is_some() {
            return refuse("takes its inputs in batches; invoke it, or deploy it without batching");
        }
        Ok(())
    }

    /// Gives the oldest request that waits a slot.
    pub(super) fn admit(&mut self, now: Time, id: ContainerId, out: &mut Output) {
        let Some((request, came)) = self.web.waiting.pop_front() else { return };
        self.web.turn = false;
        let place = self.pool.change(id, |container| {
            container.since = now;
            container.requests.insert(request);
            (container.worker.clone(), container.port)
        });
        let Some((worker, port)) = place else { return };
        self.interactive.pending -= 1;
        self.interactive.running += 1;
        self.web.inside.insert(request, Inside { container: id, came, admitted: now });
        out.effects.push(Effect::Admit { request, container: id, worker, port });
    }

    /// A request is over, or its client has gone. A server that did not end it in time takes nothing new, as after an input.
    pub(super) fn leave(&mut self, now: Time, request: RequestId, spoilt: bool, out: &mut Output) {
        if let Some(position) = self.web.waiting.iter().position(|(waiting, _)| *waiting == request) {
            self.web.waiting.remove(position);
            self.interactive.pending -= 1;
            return;
        }
        if mutated!(self.limits.mutant, REQUEST_KEEPS_SLOT) {
            return;
        }
        let Some(Inside { container: id, came, admitted }) = self.web.inside.remove(&request) else { return };
        self.interactive.running -= 1;
        if self.web.past.len() == PAST {
            self.web.past.pop_front();
        }
        self.web.past.push_back((came, now.since_us(admitted)));
        self.sizing.ran(now.since_us(admitted));
        self.pool.change(id, |container| {
            container.requests.remove(&request);
            container.served += 1;
            container.since = now;
        });
        if spoilt {
            self.retire(id, "a web request ran past its time-out", out);
        }
        self.after_work(id, out);
    }

    /// A container is gone, and the requests in it with it.
    pub(super) fn expel_from(&mut self, id: ContainerId, why: &str, out: &mut Output) {
        let there = self.web.inside.iter().filter(|(_, inside)| inside.container == id);
        let inside: Vec<RequestId> = there.map(|(request, _)| *request).collect();
        for request in inside {
            self.web.inside.remove(&request);
            self.interactive.running -= 1;
            let detail = format!("the container that worked on the request is gone: {why}");
            out.effects.push(Effect::Expel { request, why: Box::new(Refusal::new(Code::FunctionFailed, detail)) });
        }
    }

    /// No container will come for those that wait.
    pub(super) fn expel_waiting(&mut self, why: &Refusal, out: &mut Output) {
        for (request, _) in std::mem::take(&mut self.web.waiting) {
            self.interactive.pending -= 1;
            out.effects.push(Effect::Expel { request, why: Box::new(why.clone()) });
        }
    }

    /// A revision that serves no requests was deployed: those that wait go.
    pub(super) fn expel_unserved(&mut self, out: &mut Output) {
        if let Err(why) = self.must_serve() {
            self.expel_waiting(&why, out);
        }
    }

    /// The last requests that ended: when each came, and for how many microseconds it was in a container.
    pub fn past_requests(&self) -> impl Iterator<Item = (Time, u64)> {
        self.web.past.iter().copied()
    }

    /// Checks that both sides know of the same requests.
    pub(super) fn check_web(&self) -> Result<(), String> {
        let held = self.pool.iter().flat_map(|(id, c)| c.requests.iter().map(move |request| (*request, id)));
        let held: BTreeMap<_, _> = held.collect();
        let inside = self.web.inside.iter().map(|(request, inside)| (*request, inside.container)).collect();
        (held == inside).then_some(()).ok_or_else(|| "containers and requests do not agree".into())
    }
}
