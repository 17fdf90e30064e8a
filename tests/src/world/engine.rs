//! The engine: one queue of what will happen, in order of time, and the shells' work done in virtual time.

use super::{
    Plan, Report,
    check::Given,
    clients::{Client, payloads},
    store::Durable,
    workers::Worker,
};
use capstan_common::{
    call::CallKind,
    function::FunctionSpec,
    id::{CallId, ContainerId, Epoch, FunctionKey, WorkerId},
    order::Order,
    refusal::Refusal,
    report::Report as WorkerReport,
    time::Time,
};
use capstan_scheduler_core::{
    autoscaler::{self, Autoscaler},
    effect::{Effect, Output, Promise},
    event::Event,
    function::Function,
    limits::Limits,
    record::Record,
};
use capstan_worker_core::node;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

/// Virtual time after which nothing new is brought and no fault is injected.
const BUSY_MS: u64 = 20_000;
/// Virtual time after which everything must have ended.
const END_MS: u64 = 3_600_000;

/// What will happen.
#[derive(Debug, Clone)]
pub enum Action {
    Function { function: usize, generation: u32, event: Event },
    Committed { function: usize, generation: u32 },
    Alarm { function: usize, generation: u32 },
    Loaded { function: usize, generation: u32, call: CallId, number: u32 },
    Down { worker: usize, link: u32, order: Order },
    Up { worker: usize, link: u32, report: WorkerReport },
    Node { worker: usize, life: u32, event: node::Event },
    NodeAlarm { worker: usize, life: u32 },
    Join { worker: usize, life: u32 },
    Lose { worker: usize, link: u32 },
    Settle { epoch: Epoch },
    Open { client: usize },
    Cancel { client: usize },
    Fault,
}

/// A function with its shell's state.
pub struct Hosted {
    pub key: FunctionKey,
    pub core: Function,
    pub generation: u32,
    pub durable: Durable,
    pub records: Vec<Record>,
    pub promises: Vec<Promise>,
    pub under_way: Option<(Vec<Record>, Vec<Promise>)>,
    pub alarm_at: Option<Time>,
    pub given: Given,
}

/// The world.
pub struct World {
    pub(super) plan: Plan,
    pub(super) rng: StdRng,
    pub(super) now: Time,
    pub(super) epoch: Epoch,
    pub(super) limits: Arc<Limits>,
    pub(super) functions: Vec<Hosted>,
    pub(super) autoscaler: Autoscaler,
    pub(super) workers: Vec<Worker>,
    pub(super) clients: Vec<Client>,
    pub(super) routes: BTreeMap<ContainerId, usize>,
    /// Containers that an operator has stopped.
    pub(super) stoppable: BTreeSet<ContainerId>,
    pub(super) report: Report,
    queue: BTreeMap<(Time, u64), Action>,
    counter: u64,
    calls: u128,
    waiting: BTreeMap<CallId, usize>,
}

fn limits(plan: &Plan) -> Arc<Limits> {
    let limits = Limits { retry_floor_ms: 10, map_running: 40, start_tries: 50, ..Limits::default() };
    #[cfg(feature = "mutants")]
    let limits = Limits { mutant: plan.mutant, ..limits };
    let _ = plan;
    Arc::new(limits)
}

impl World {
    /// A world at its beginning.
    pub fn new(plan: Plan) -> Self {
        let limits = limits(&plan);
        let epoch = Epoch(1);
        let mut world = Self {
            rng: StdRng::seed_from_u64(plan.seed),
            now: Time(1_000_000_000),
            epoch,
            limits,
            functions: Vec::new(),
            autoscaler: Autoscaler::new(epoch),
            workers: (0..plan.workers).map(Worker::new).collect(),
            clients: Vec::new(),
            routes: BTreeMap::new(),
            stoppable: BTreeSet::new(),
            report: Report::default(),
            queue: BTreeMap::new(),
            counter: 0,
            calls: 1 << 80,
            waiting: BTreeMap::new(),
            plan,
        };
        #[cfg(feature = "mutants")]
        world.autoscaler.plant(world.plan.mutant);
        world.populate();
        world
    }

    fn populate(&mut self) {
        for f in 0..self.plan.functions {
            self.add_function(f);
        }
        for w in 0..self.plan.workers {
            let at = self.after(0, 50_000);
            self.plan(at, Action::Join { worker: w, life: 0 });
        }
        let mut left = self.plan.inputs;
        while left > 0 {
            let inputs = self.add_client(left);
            left -= inputs.min(left);
        }
        for _ in 0..self.plan.faults {
            let at = self.after(0, BUSY_MS * 1000);
            self.plan(at, Action::Fault);
        }
    }

    fn spec(&mut self) -> FunctionSpec {
        let exec = self.chance(40);
        let batch = !exec && self.chance(40);
        let concurrency = if batch { 1 } else { self.rng.random_range(1..4) };
        let min = if self.chance(20) { 1 } else { 0 };
        let mut spec = json!({
            "runtime": {"process": {"command": ["true"]}},
            "protocol": if exec { "exec" } else { "http" },
            "resources": {"cpu": self.rng.random_range(1..5) as f64 * 0.25},
            "autoscaler": {"min_containers": min, "max_containers": self.rng.random_range(1..7), "buffer_containers": self.rng.random_range(0..2), "scaledown_window": self.rng.random_range(1..4)},
            "concurrency": {"max_inputs": concurrency},
            "retries": {"max_retries": self.rng.random_range(0..4), "initial_delay_ms": 10, "max_delay_ms": 1000},
        });
        if batch {
            spec["batching"] =
                json!({"max_batch_size": self.rng.random_range(2..9), "wait_ms": self.rng.random_range(0..200)});
        }
        if self.chance(20) {
            spec["labels"] = json!({"slow-start": "yes"});
        }
        if concurrency == 1 && self.chance(15) {
            spec["single_use_containers"] = json!(true);
        }
        serde_json::from_value(spec).expect("a spec")
    }

    fn add_function(&mut self, f: usize) {
        let key = FunctionKey::new("default", &format!("f{f:05}"));
        let spec = Arc::new(self.spec());
        let mut out = Output::default();
        let core = Function::deploy(key.clone(), self.epoch, self.limits.clone(), self.now, spec, &mut out)
            .expect("a valid spec");
        self.functions.push(Hosted {
            key,
            core,
            generation: 0,
            durable: Durable::default(),
            records: Vec::new(),
            promises: Vec::new(),
            under_way: None,
            alarm_at: None,
            given: Given::default(),
        });
        self.perform(f, out).expect("a first deployment");
    }

    fn add_client(&mut self, left: u64) -> u64 {
        let kind = match self.rng.random_range(0..10) {
            0..=1 => CallKind::Invoke,
            2..=3 => CallKind::Spawn,
            4..=6 => CallKind::Map,
            _ => CallKind::SpawnMap,
        };
        let most = (left / 4).clamp(2, 20_000);
        let inputs =
            if matches!(kind, CallKind::Invoke | CallKind::Spawn) { 1 } else { self.rng.random_range(1..=most) };
        let client = Client {
            function: self.rng.random_range(0..self.plan.functions),
            kind,
            inputs,
            keyed: matches!(kind, CallKind::Spawn | CallKind::SpawnMap),
            cancels: kind == CallKind::SpawnMap && self.chance(15),
            asked: BTreeSet::new(),
            accepted: None,
            sent: 0,
            arrives: Time(0),
            closed: false,
            done: false,
        };
        let number = self.clients.len();
        let at = self.after(0, BUSY_MS * 1000);
        self.plan(at, Action::Open { client: number });
        if client.cancels {
            let at = Time(at.0 + self.rng.random_range(0..3_000_000));
            self.plan(at, Action::Cancel { client: number });
        }
        self.clients.push(client);
        inputs
    }

    /// With this chance in a hundred.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// A time from now.
    pub(super) fn after(&mut self, least_us: u64, most_us: u64) -> Time {
        Time(self.now.0 + self.rng.random_range(least_us..=most_us.max(least_us)))
    }

    pub(super) fn plan(&mut self, at: Time, action: Action) {
        self.counter += 1;
        self.queue.insert((at.max(self.now), self.counter), action);
    }

    pub(super) fn note(&mut self, what: &str) {
        if self.plan.log {
            let _ = writeln!(self.report.log, "{:>12} {what}", self.now.0);
        }
    }

    pub(super) fn worker_number(&self, id: &WorkerId) -> Option<usize> {
        id.0.strip_prefix('w')?.parse().ok()
    }

    /// Lets everything happen.
    pub fn run(mut self) -> (Report, Result<(), String>) {
        let outcome = self.happen_all().and_then(|()| self.check_end());
        self.report.accepted = self.clients.iter().filter(|c| c.accepted.is_some()).count();
        (self.report, outcome)
    }

    fn happen_all(&mut self) -> Result<(), String> {
        let begun = self.now;
        while let Some(((at, _), action)) = self.queue.pop_first() {
            self.now = at;
            self.report.events += 1;
            if self.plan.log {
                let text = format!("{action:?}");
                self.note(&text);
            }
            self.act(action)?;
            self.report.virtual_s = at.since_ms(begun) / 1000;
            if at.since_ms(begun) > END_MS || self.is_over() {
                break;
            }
        }
        Ok(())
    }

    /// Containers whose grant has not reached its function yet.
    pub(super) fn granted_under_way(&self) -> BTreeSet<ContainerId> {
        let granted = |action: &Action| match action {
            Action::Function { event: Event::Granted { container, .. }, .. } => Some(*container),
            _ => None,
        };
        self.queue.values().filter_map(granted).collect()
    }

    /// Every client is done, every fault injected, every call ended.
    fn is_over(&self) -> bool {
        if !self.report.events.is_multiple_of(64) {
            return false;
        }
        let brought = self.clients.iter().all(|c| c.done) && self.report.faults == self.plan.faults;
        let ended = |f: &Hosted| f.under_way.is_none() && f.durable.calls.values().all(|c| c.record.finished.is_some());
        brought && self.functions.iter().all(ended)
    }

    fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Function { function, generation, event } if self.functions[function].generation == generation => {
                self.step_function(function, event)
            }
            Action::Committed { function, generation } if self.functions[function].generation == generation => {
                self.committed(function)
            }
            Action::Alarm { function, generation } if self.functions[function].generation == generation => {
                self.functions[function].alarm_at = None;
                self.step_function(function, Event::Alarm)
            }
            Action::Loaded { function, generation, call, number }
                if self.functions[function].generation == generation =>
            {
                let payloads =
                    self.functions[function].durable.segments.get(&(call, number)).cloned().unwrap_or_default();
                self.step_function(function, Event::Loaded { call, number, payloads })
            }
            Action::Down { worker, link, order } if self.workers[worker].link == link => {
                self.step_node(worker, node::Event::Ordered(order))
            }
            Action::Up { worker, link, report } if self.workers[worker].link == link => self.reported(worker, report),
            Action::Node { worker, life, event } if self.workers[worker].life == life => self.step_node(worker, event),
            Action::NodeAlarm { worker, life } if self.workers[worker].life == life => {
                self.workers[worker].alarm_at = None;
                self.step_node(worker, node::Event::Alarm)
            }
            Action::Join { worker, life } if self.workers[worker].life == life => self.join(worker),
            Action::Lose { worker, link } if self.workers[worker].link == link && !self.workers[worker].linked => {
                self.lose(worker)
            }
            Action::Settle { epoch } if epoch == self.epoch => {
                (0..self.functions.len()).try_for_each(|f| self.step_function(f, Event::Settled))
            }
            Action::Open { client } => self.open(client),
            Action::Cancel { client } => match self.clients[client].accepted {
                Some(call) => self.step_function(self.clients[client].function, Event::Cancel { call }),
                None => Ok(()),
            },
            Action::Fault => self.fault(),
            _ => Ok(()),
        }
    }

    pub(super) fn step_function(&mut self, f: usize, event: Event) -> Result<(), String> {
        let refused = self.try_function(f, event)?;
        // Facts are not refused; a client's late word to an ended call is.
        drop(refused);
        Ok(())
    }

    fn try_function(&mut self, f: usize, event: Event) -> Result<Result<Option<CallId>, Refusal>, String> {
        let mut out = Output::default();
        let hosted = &mut self.functions[f];
        hosted.given.before(&event);
        let answer = hosted.core.step(self.now, event, &mut out);
        if self.plan.check_all || self.report.events.is_multiple_of(512) {
            hosted.core.check().map_err(|e| format!("{}: {e}", hosted.key))?;
        }
        let most = hosted.core.deployment().spec.group_size() as usize;
        hosted.given.after(&out.effects, &self.stoppable, most)?;
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
            Effect::Started { .. } | Effect::Notice(_) => {}
        }
        Ok(())
    }

    pub(super) fn tell_autoscaler(&mut self, event: autoscaler::Event) -> Result<(), String> {
        let mut out = Vec::new();
        self.autoscaler.step(event, &mut out);
        self.autoscaler.check()?;
        for effect in out {
            let (function, event) = match effect {
                autoscaler::Effect::Grant { function, container, worker } => {
                    (function, Event::Granted { container, worker })
                }
                autoscaler::Effect::Unplaced { function, reason } => (function, Event::Unplaced { reason }),
                autoscaler::Effect::GiveWay { function, count } => (function, Event::GiveWay { count }),
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

    fn committed(&mut self, f: usize) -> Result<(), String> {
        let hosted = &mut self.functions[f];
        let Some((records, promises)) = hosted.under_way.take() else { return Ok(()) };
        let retries = hosted.core.deployment().spec.retries.max_retries;
        for record in records {
            self.report.ended += hosted.durable.apply(record, retries)?;
        }
        self.keep(f, promises)?;
        self.commit(f)
    }

    fn keep(&mut self, f: usize, promises: Vec<Promise>) -> Result<(), String> {
        for promise in promises {
            match promise {
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

    fn open(&mut self, number: usize) -> Result<(), String> {
        if self.clients[number].done {
            return Ok(());
        }
        self.calls += 1 << 64;
        let id = CallId(self.calls);
        let client = &mut self.clients[number];
        client.asked.insert(id);
        let (opening, packed) = client.opening(number, id);
        let (f, interactive) = (client.function, client.kind.is_interactive());
        for (segment, payloads) in packed {
            self.functions[f].durable.segments.insert((id, segment), payloads);
        }
        if !interactive {
            self.waiting.insert(id, number);
        }
        match self.try_function(f, Event::Open(Box::new(opening)))? {
            Ok(Some(call)) if call != id => {
                // The key was known: the promise is for the first call.
                self.waiting.remove(&id);
                self.waiting.insert(call, number);
            }
            Ok(_) => {}
            Err(_) => {
                self.waiting.remove(&id);
                let at = self.after(1_000_000, 5_000_000);
                self.plan(at, Action::Open { client: number });
            }
        }
        Ok(())
    }

    fn credited(&mut self, f: usize, call: CallId, count: u64) {
        let found =
            self.clients.iter().position(|c| c.kind == CallKind::Map && !c.done && c.asked.last() == Some(&call));
        let Some(number) = found else { return };
        let generation = self.functions[f].generation;
        let client = &mut self.clients[number];
        let sending = count.min(client.inputs - client.sent);
        let payloads = payloads(client.sent, sending);
        client.sent += sending;
        let closing =
            client.sent == client.inputs && !std::mem::replace(&mut client.closed, client.sent == client.inputs);
        let at = self.after(10, 2_000).max(self.clients[number].arrives);
        self.clients[number].arrives = at;
        if sending > 0 {
            self.plan(at, Action::Function { function: f, generation, event: Event::Arrive { call, payloads } });
        }
        if closing {
            self.plan(at, Action::Function { function: f, generation, event: Event::Close { call } });
        }
    }

    /// Clients without an answer: those with a key send again, those with a broken stream give up.
    pub(super) fn clients_after_crash(&mut self) {
        self.waiting.clear();
        for number in 0..self.clients.len() {
            let client = &mut self.clients[number];
            if client.done || client.asked.is_empty() {
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

    fn reported(&mut self, w: usize, report: WorkerReport) -> Result<(), String> {
        let (container, event) = match report {
            WorkerReport::Hello(_) | WorkerReport::Beat { .. } | WorkerReport::Log { .. } => return Ok(()),
            WorkerReport::Refused { container, reason } => {
                (container, Event::Refused { container, reason: reason.into() })
            }
            WorkerReport::Spawned { container, spawn_us, .. } => (container, Event::Spawned { container, spawn_us }),
            WorkerReport::Ready { container, phases } => (container, Event::Ready { container, phases }),
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
