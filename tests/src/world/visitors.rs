//! Web requests: they come, wait for a container, stay a while, and leave, or are told that there is no place for them.

use super::{
    engine::{Action, BUSY_MS, World},
    host::At,
};
use capstan_common::id::{ContainerId, RequestId};
use capstan_scheduler_core::event::Event;
use rand::Rng;
use std::collections::BTreeMap;

/// Inputs for each web request in a world.
const INPUTS_EACH: u64 = 15;

/// Web requests of one function that are not over: those that wait have no container.
pub type Visitors = BTreeMap<RequestId, Option<ContainerId>>;

impl World {
    pub(super) fn add_visitors(&mut self) {
        for number in 0..self.plan.inputs / INPUTS_EACH {
            let function = self.rng.random_range(0..self.plan.functions);
            let at = self.after(0, BUSY_MS * 1000);
            self.plan(at, Action::Visit { function, request: RequestId(number) });
        }
    }

    pub(super) fn visit(&mut self, f: usize, request: RequestId) -> Result<(), String> {
        let Some(at) = self.owner(f) else { return Ok(()) };
        if let Some(host) = self.host(at) {
            host.visitors.insert(request, None);
        }
        if self.try_function(at, Event::Enter { request })?.is_err() {
            self.host(at).and_then(|host| host.visitors.remove(&request));
        } else if self.chance(10) {
            // Its client does not wait to the end.
            self.plan_departure(at, request, 1_000_000);
        }
        Ok(())
    }

    pub(super) fn admitted(&mut self, at: At, request: RequestId, container: ContainerId) -> Result<(), String> {
        match self.host(at).and_then(|host| host.visitors.insert(request, Some(container))) {
            Some(None) => {}
            other => return Err(format!("web request {request:?} was admitted while it was {other:?}")),
        }
        self.plan_departure(at, request, 2_000_000);
        Ok(())
    }

    pub(super) fn expelled(&mut self, at: At, request: RequestId) -> Result<(), String> {
        let known = self.host(at).and_then(|host| host.visitors.remove(&request));
        known.map(drop).ok_or_else(|| format!("web request {request:?} was expelled, and is not there"))
    }

    fn plan_departure(&mut self, at: At, request: RequestId, most_us: u64) {
        let when = self.after(10, most_us);
        self.plan(when, Action::Depart { at, request });
    }

    pub(super) fn depart(&mut self, at: At, request: RequestId) -> Result<(), String> {
        match self.host(at).and_then(|host| host.visitors.remove(&request)) {
            Some(_) => self.step_function(at, Event::Leave { request, spoilt: false }),
            None => Ok(()),
        }
    }
}
