//! The shells' work in virtual time: effects reach workers and the autoscaler, records become durable, promises are kept.

use super::engine::{Action, World};
use capstan_common::{call::CallKind, id::CallId, order::Order, refusal::Refusal, report::Report as WorkerReport};
use capstan_scheduler_core::{
    autoscaler,
    effect::{Effect, Output, Promise},
    event::{Event, Fetched},
};

impl World {
    pub(super) fn step_function(&mut self, f: usize, event: Event) -> Result<(), String> {
        let refused = self.try_function(f, event)?;
        // Facts are not refused; a client's late word to an ended call is.
        drop(refused);
        Ok(())
    }

    pub(super) fn try_function(&mut self, f: usize, event: Event) -> Result<Result<Option<CallId>, Refusal>, String> {
        let mut out = Output::default();
        let hosted = &mut self.functions[f];
        hosted.given.before(&event);
        let answer = hosted.core.step(self.now, event, &mut out);
        if self.plan.check_all || self.report.events.is_multiple_of(512) {
            hosted.core.check().map_err(|e| format!("{}: {e}", hosted.key))?;
        }
        let most = hosted.core.deployment().spec.group_size() as usize;
        hosted.given.after(&out.effects, &self.stoppable, &hosted.visitors, most)?;
        self.perform(f, out)?;
        Ok(answer)
    }

    /// What a function's shell does after a step.
    pub(super) fn perform(&mut self, f: usize, out: Output) -> Result<(), String> {
        for effect in out.effects {
            self.effect(f, effect)?;
        }
        let hosted = &mut self.functions[f];
        hosted.records.extend(out.records);
        hosted.promises.extend(out.promises);
        self.commit(f)?;
        let hosted = &mut self.functions[f];
        let due = hosted.core.next_alarm().filter(|due| hosted.alarm_at.is_none_or(|set| set > *due));
        if let Some(due) = due {
            hosted.alarm_at = Some(due);
            let generation = hosted.generation;
            self.plan(due, Action::Alarm { function: f, generation });
        }
        Ok(())
    }

    fn effect(&mut self, f: usize, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Order(worker, order) => {
                if let Order::Start(start) = &order {
                    self.routes.insert(start.container, f);
                }
                self.send_down(&worker, order);
            }
            Effect::Demand(demand) => self.tell_autoscaler(autoscaler::Event::Wanted(demand))?,
            Effect::Release(container) => {
                self.routes.remove(&container);
                self.tell_autoscaler(autoscaler::Event::Released(container))?;
            }
            Effect::Hold { container, worker, amount } => {
                let function = self.functions[f].key.clone();
                self.tell_autoscaler(autoscaler::Event::Held { container, function, worker, amount })?;
            }
            Effect::Load { call, number } => {
                let at = self.after(10, 2_000);
                let generation = self.functions[f].generation;
                self.plan(at, Action::Loaded { function: f, generation, call, number });
            }
            Effect::Credit { call, count } => self.credited(f, call, count),
            Effect::AskRequests { .. } => {}
            Effect::Admit { request, container, .. } => self.admitted(f, request, container)?,
            Effect::Expel { request, .. } => self.expelled(f, request)?,
            Effect::Started { .. } | Effect::Notice(_) => {}
        }
        Ok(())
    }

    pub(super) fn tell_autoscaler(&mut self, event: autoscaler::Event) -> Result<(), String> {
        let mut out = Vec::new();
        self.autoscaler.step(event, &mut out);
        // In a large world the sums are proven now and then: each proof looks at every container.
        if self.plan.check_all || self.report.events.is_multiple_of(4096) {
            self.autoscaler.check()?;
        }
        for effect in out {
            let (function, event) = match effect {
                autoscaler::Effect::Grant { function, container, worker } => {
                    (function, Event::Granted { container, worker })
                }
                autoscaler::Effect::Unplaced { function, why } => (function, Event::Unplaced(why)),
                autoscaler::Effect::GiveWay { function, worker, count, busy } => {
                    (function, Event::GiveWay { worker, count, busy })
                }
            };
            let Some(f) = function.name.strip_prefix('f').and_then(|n| n.parse::<usize>().ok()) else { continue };
            if f < self.functions.len() {
                let generation = self.functions[f].generation;
                let at = self.after(1, 50);
                self.plan(at, Action::Function { function: f, generation, event });
            }
        }
        Ok(())
    }

    fn commit(&mut self, f: usize) -> Result<(), String> {
        let hosted = &mut self.functions[f];
        if hosted.under_way.is_some() {
            return Ok(());
        }
        if hosted.records.is_empty() {
            let promises = std::mem::take(&mut hosted.promises);
            return self.keep(f, promises);
        }
        hosted.under_way = Some((std::mem::take(&mut hosted.records), std::mem::take(&mut hosted.promises)));
        let generation = hosted.generation;
        let at = self.after(40, 8_000);
        self.plan(at, Action::Committed { function: f, generation });
        Ok(())
    }

    pub(super) fn committed(&mut self, f: usize) -> Result<(), String> {
        let hosted = &mut self.functions[f];
        let Some((records, promises)) = hosted.under_way.take() else { return Ok(()) };
        let retries = hosted.core.deployment().spec.retries.max_retries;
        for record in records {
            self.report.ended += hosted.durable.apply(record, retries)?;
        }
        self.keep(f, promises)?;
        self.commit(f)
    }

    fn fetch(&self, f: usize, call: CallId) -> Fetched {
        let stored = self.functions[f].durable.calls.get(&call);
        let payload = stored.and_then(|stored| stored.here.first().cloned());
        Fetched {
            call,
            created: stored.map_or(self.now, |stored| stored.record.created),
            traceparent: "".into(),
            payload: payload.ok_or_else(|| "it is not in the store".into()),
        }
    }

    fn keep(&mut self, f: usize, promises: Vec<Promise>) -> Result<(), String> {
        for promise in promises {
            match promise {
                Promise::Fetch { calls } => {
                    let generation = self.functions[f].generation;
                    let fetched = calls.into_iter().map(|call| self.fetch(f, call)).collect();
                    let at = self.after(10, 2_000);
                    self.plan(at, Action::Function { function: f, generation, event: Event::Fetched(fetched) });
                }
                Promise::Accepted { call } => {
                    let Some(client) = self.waiting.remove(&call) else { continue };
                    self.clients[client].accepted = Some(call);
                    self.clients[client].done = true;
                    // The answer is lost: the client sends again, and must be told of the same call.
                    if self.clients[client].keyed && self.chance(20) {
                        self.clients[client].done = false;
                        let at = self.after(1_000, 10_000_000);
                        self.plan(at, Action::Open { client });
                    }
                }
                Promise::Settled { call, entries } => {
                    let map =
                        self.clients.iter().any(|c| c.kind == CallKind::Map && !c.done && c.asked.contains(&call));
                    if map {
                        let count = entries.iter().map(|e| e.count).sum();
                        let generation = self.functions[f].generation;
                        let at = self.after(10, 5_000);
                        let event = Event::Collect { call, count };
                        self.plan(at, Action::Function { function: f, generation, event });
                    }
                }
                Promise::Closed { call, .. } => {
                    if let Some(client) = self.clients.iter_mut().find(|c| c.asked.contains(&call)) {
                        if client.kind.is_interactive() && !client.done {
                            client.accepted = Some(call);
                        }
                        client.done = true;
                    }
                }
                Promise::Recorded { worker, container, leases } => {
                    self.send_down(&worker, Order::Recorded { container, leases });
                }
            }
        }
        Ok(())
    }

    pub(super) fn reported(&mut self, w: usize, report: WorkerReport) -> Result<(), String> {
        let (container, event) = match report {
            WorkerReport::Hello(_)
            | WorkerReport::Inventory { .. }
            | WorkerReport::Outranked { .. }
            | WorkerReport::Beat { .. }
            | WorkerReport::Log { .. } => return Ok(()),
            WorkerReport::Refused { container, reason } => {
                (container, Event::Refused { container, reason: reason.into() })
            }
            WorkerReport::Spawned { container, spawn_us, .. } => (container, Event::Spawned { container, spawn_us }),
            WorkerReport::Ready { container, phases, port } => (container, Event::Ready { container, phases, port }),
            WorkerReport::Counted { container, value } => (container, Event::Counted { container, value }),
            WorkerReport::Finished { container, done } => (container, Event::Finished { container, done }),
            WorkerReport::Returned { container, leases, closed, .. } => {
                (container, Event::Returned { container, leases, closed })
            }
            WorkerReport::Ended { container, ending, begun } => (container, Event::Ended { container, ending, begun }),
        };
        match self.routes.get(&container).copied() {
            Some(f) => self.step_function(f, event),
            None => {
                if let Event::Finished { done, .. } = event {
                    let leases = done.iter().map(|d| d.held.lease).collect();
                    let worker = self.workers[w].id.clone();
                    self.send_down(&worker, Order::Recorded { container, leases });
                }
                Ok(())
            }
        }
    }
}
