//! The shells' work in virtual time: effects reach workers and the autoscaler, records become durable, promises are kept.

use super::{
    clients::Client,
    engine::{Action, World},
    host::At,
    shell_mutant,
};
use capstan_common::{
    call::CallKind,
    id::{CallId, Epoch, LinkId},
    order::Order,
    refusal::{Code, Refusal},
    report::Report as WorkerReport,
};
use capstan_scheduler_core::{
    autoscaler,
    effect::{Effect, Output, Promise},
    event::{Event, Fetched},
    record::Record,
};

/// How many times longer than usual what is slow takes.
pub const SLOW: u64 = 100;

impl World {
    pub(super) fn step_function(&mut self, at: At, event: Event) -> Result<(), String> {
        let refused = self.try_function(at, event)?;
        // Facts are not refused; a client's late word to an ended call is.
        drop(refused);
        Ok(())
    }

    pub(super) fn try_function(&mut self, at: At, event: Event) -> Result<Result<Option<CallId>, Refusal>, String> {
        let mut out = Output::default();
        let (now, check) = (self.now, self.plan.check_all || self.report.events.is_multiple_of(512));
        let scheduler = &mut self.schedulers[at.scheduler];
        let host = scheduler.hosts.get_mut(&at.function).filter(|host| host.generation == at.generation);
        let Some((host, Some(core))) = host
            .map(|host| (&mut host.given, host.core.as_mut(), &host.visitors))
            .map(|(given, core, visitors)| ((given, visitors), core))
        else {
            return Ok(Err(Refusal::new(Code::Unavailable, "another scheduler takes the function over")));
        };
        let (given, visitors) = host;
        given.before(&event);
        let answer = core.step(now, event, &mut out);
        if check {
            core.check().map_err(|e| format!("{}: {e}", self.functions[at.function].key))?;
        }
        let most = core.serving().spec.group_size() as usize;
        given.after(&out.effects, &self.stoppable, visitors, most)?;
        self.perform(at, out)?;
        Ok(answer)
    }

    /// What a function's shell does after a step.
    pub(super) fn perform(&mut self, at: At, out: Output) -> Result<(), String> {
        for effect in out.effects {
            self.effect(at, effect)?;
        }
        let Some(host) = self.host(at) else { return Ok(()) };
        host.records.extend(out.records);
        host.promises.extend(out.promises);
        self.commit(at)?;
        let Some(host) = self.host(at) else { return Ok(()) };
        let next = host.core.as_ref().and_then(|core| core.next_alarm());
        let due = next.filter(|due| host.alarm_at.is_none_or(|set| set > *due));
        if let Some(due) = due {
            host.alarm_at = Some(due);
            self.plan(due, Action::Alarm { at });
        }
        Ok(())
    }

    fn effect(&mut self, at: At, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Order(worker, order) => {
                if let Order::Start(start) = &order {
                    self.schedulers[at.scheduler].routes.insert(start.container, at.function);
                }
                let shard = self.functions[at.function].shard;
                self.order(at.scheduler, shard, &worker, order);
            }
            Effect::Demand(demand) => self.tell_autoscaler(at.scheduler, autoscaler::Event::Wanted(demand))?,
            Effect::Release(container) => {
                self.schedulers[at.scheduler].routes.remove(&container);
                self.tell_autoscaler(at.scheduler, autoscaler::Event::Released(container))?;
            }
            Effect::Hold { container, worker, amount } => {
                let function = self.functions[at.function].key.clone();
                let held = autoscaler::Event::Held { container, function, worker, amount };
                self.tell_autoscaler(at.scheduler, held)?;
            }
            Effect::Load { call, number } => {
                let when = self.after(10, 2_000);
                self.plan(when, Action::Loaded { at, call, number });
            }
            Effect::Credit { call, count } => self.credited(at, call, count),
            Effect::AskRequests { .. } => {}
            Effect::Admit { request, container, .. } => self.admitted(at, request, container)?,
            Effect::Expel { request, .. } => self.expelled(at, request)?,
            Effect::Started { .. } | Effect::Notice(_) => {}
        }
        Ok(())
    }

    pub(super) fn tell_autoscaler(&mut self, s: usize, event: autoscaler::Event) -> Result<(), String> {
        let mut out = Vec::new();
        self.schedulers[s].autoscaler.step(event, &mut out);
        // In a large world the sums are proven now and then: each proof looks at every container.
        if self.plan.check_all || self.report.events.is_multiple_of(4096) {
            self.schedulers[s].autoscaler.check()?;
        }
        for effect in out {
            let (function, event) = match effect {
                autoscaler::Effect::Grant { function, container, worker, amount, gpu, chosen } => {
                    (function, Event::Granted { container, worker, amount, gpu, chosen })
                }
                autoscaler::Effect::Unplaced { function, why } => (function, Event::Unplaced(why)),
                autoscaler::Effect::GiveWay { function, worker, count, busy } => {
                    (function, Event::GiveWay { worker, count, busy })
                }
            };
            let Some(f) = function.name.strip_prefix('f').and_then(|n| n.parse::<usize>().ok()) else { continue };
            if let Some(at) = self.at(s, f) {
                let when = self.after(1, 50);
                self.plan(when, Action::Function { at, event });
            }
        }
        Ok(())
    }

    /// The function is not this scheduler's any more, and its containers are another's.
    pub(super) fn tell_left(&mut self, at: At) {
        let function = self.functions[at.function].key.clone();
        self.schedulers[at.scheduler].routes.retain(|_, f| *f != at.function);
        let left = self.tell_autoscaler(at.scheduler, autoscaler::Event::Left(function));
        left.expect("a function that leaves breaks nothing");
    }

    /// A time at which something that is sent to the store now, or comes from it, arrives.
    fn across(&mut self, s: usize, least_us: u64, most_us: u64) -> capstan_common::time::Time {
        let slow = if self.schedulers[s].slow_until > self.now { SLOW } else { 1 };
        self.after(least_us * slow, most_us * slow).max(self.schedulers[s].cut_off_until)
    }

    fn commit(&mut self, at: At) -> Result<(), String> {
        let Some(host) = self.host(at) else { return Ok(()) };
        if host.under_way.is_some() {
            return Ok(());
        }
        if host.records.is_empty() {
            let promises = std::mem::take(&mut host.promises);
            return self.keep(at, promises);
        }
        let (records, epoch) = (std::mem::take(&mut host.records), host.epoch);
        host.under_way = Some(std::mem::take(&mut host.promises));
        let when = self.across(at.scheduler, 20, 4_000);
        self.plan(when, Action::Stored { at, epoch, records });
        Ok(())
    }

    /// A commit is in the store, if its owner still is the owner there (RELIABILITY I4). It is there whether or not anybody
    /// hears of it.
    pub(super) fn stored(&mut self, at: At, epoch: Epoch, records: Vec<Record>) -> Result<(), String> {
        if self.keys.full_until > self.now {
            // The committer tries again until there is room.
            let again = self.after(0, 100_000).max(self.keys.full_until);
            self.plan(again, Action::Stored { at, epoch, records });
            return Ok(());
        }
        let counts = self.keys.holds(self.functions[at.function].shard, epoch)
            || self.plan.mutant == shell_mutant::FENCE_NOT_COMPARED;
        if counts {
            let subject = &mut self.functions[at.function];
            let retries = subject.spec.retries.max_retries;
            for record in records {
                self.report.ended += subject.durable.apply(record, retries)?;
            }
        }
        let when = self.across(at.scheduler, 20, 4_000);
        self.plan(when, Action::Committed { at, counts });
        Ok(())
    }

    pub(super) fn committed(&mut self, at: At, counts: bool) -> Result<(), String> {
        let Some(host) = self.host(at) else { return Ok(()) };
        let (shard, Some(promises)) = (host.shard, host.under_way.take()) else { return Ok(()) };
        if !counts {
            self.note(&format!("a late commit of scheduler {} is refused", at.scheduler));
            self.drop_shard(at.scheduler, shard);
            return Ok(());
        }
        self.keep(at, promises)?;
        self.commit(at)?;
        if self.host(at).is_some_and(|host| host.core.is_none()) {
            self.release_if_written(at.scheduler, shard);
        }
        Ok(())
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

    fn keep(&mut self, at: At, promises: Vec<Promise>) -> Result<(), String> {
        for promise in promises {
            match promise {
                Promise::Fetch { calls } => {
                    let fetched = calls.into_iter().map(|call| self.fetch(at.function, call)).collect();
                    let when = self.after(10, 2_000);
                    self.plan(when, Action::Function { at, event: Event::Fetched(fetched) });
                }
                Promise::Accepted { call } => {
                    let Some(client) = self.waiting.remove(&call) else { continue };
                    self.clients[client].accepted = Some(call);
                    self.clients[client].done = true;
                    // The answer is lost: the client sends again, and must be told of the same call.
                    if self.clients[client].keyed && self.chance(20) {
                        self.clients[client].done = false;
                        let when = self.after(1_000, 10_000_000);
                        self.plan(when, Action::Open { client });
                    }
                }
                Promise::Settled { call, entries } => {
                    let open = |c: &Client| c.kind == CallKind::Map && !c.done && c.at == Some(at);
                    if self.clients.iter().any(|c| open(c) && c.asked.contains(&call)) {
                        let count = entries.iter().map(|e| e.count).sum();
                        let when = self.after(10, 5_000);
                        self.plan(when, Action::Function { at, event: Event::Collect { call, count } });
                    }
                }
                Promise::Closed { call, .. } => {
                    if let Some(client) = self.clients.iter_mut().find(|c| c.asked.contains(&call) && !c.done) {
                        if !client.kind.is_interactive() {
                            client.done = true;
                        } else if client.at == Some(at) {
                            client.accepted = Some(call);
                            client.done = true;
                        }
                    }
                }
                Promise::Recorded { worker, container, leases } => {
                    let shard = self.functions[at.function].shard;
                    self.order(at.scheduler, shard, &worker, Order::Recorded { container, leases });
                }
            }
        }
        Ok(())
    }

    pub(super) fn reported(&mut self, link: LinkId, report: WorkerReport) -> Result<(), String> {
        let Some((w, s)) = self.links.get(&link).map(|l| (l.worker, l.scheduler)) else { return Ok(()) };
        let (container, event) = match report {
            WorkerReport::Hello(_) | WorkerReport::Log { .. } => return Ok(()),
            WorkerReport::Inventory { shard, held, .. } => return self.inventory(link, shard, held),
            WorkerReport::Outranked { shard, .. } => return self.told_of(link, shard),
            WorkerReport::Beat { others, .. } => {
                let worker = self.workers[w].id.clone();
                return self.tell_autoscaler(s, autoscaler::Event::Others { worker, amount: others });
            }
            WorkerReport::Refused { container, reason } => {
                (container, Event::Refused { container, reason: reason.into() })
            }
            WorkerReport::Spawned { container, spawn_us, .. } => (container, Event::Spawned { container, spawn_us }),
            WorkerReport::Ready { container, phases, port } => (container, Event::Ready { container, phases, port }),
            WorkerReport::Looked { container, detail } => {
                (container, Event::Looked { container, detail: detail.into() })
            }
            WorkerReport::Counted { container, value } => (container, Event::Counted { container, value }),
            WorkerReport::Finished { container, done } => (container, Event::Finished { container, done }),
            WorkerReport::Returned { container, leases, closed, .. } => {
                (container, Event::Returned { container, leases, closed })
            }
            WorkerReport::Ended { container, ending, begun } => (container, Event::Ended { container, ending, begun }),
        };
        let known = self.schedulers[s].routes.get(&container).and_then(|f| self.at(s, *f));
        match (known, event) {
            (Some(at), event) => return self.step_function(at, event),
            // Nobody owns it here: its outcomes are not wanted.
            (None, Event::Finished { done, .. }) => {
                let leases = done.iter().map(|d| d.held.lease).collect();
                self.send_down(link, Order::Recorded { container, leases });
            }
            (None, _) => {}
        }
        Ok(())
    }
}
