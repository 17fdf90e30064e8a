//! The engine: one queue of what will happen, in order of time, and the shells' work done in virtual time.

use super::{
    Plan, Report,
    check::Given,
    clients::Client,
    store::{Durable, SPAWN_HEAD},
    visitors::Visitors,
    workers::{LINK, Worker},
};
use capstan_common::{
    id::{CallId, ContainerId, Epoch, FunctionKey, RequestId, WorkerId},
    order::Order,
    report::Report as WorkerReport,
    time::Time,
};
use capstan_scheduler_core::{
    autoscaler::Autoscaler, effect::Promise, event::Event, function::Function, limits::Limits, record::Record,
};
use capstan_worker_core::node;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

/// Virtual time after which nothing new is brought and no fault is injected.
pub(super) const BUSY_MS: u64 = 20_000;
/// Virtual time after which everything must have ended: a pool of one slow single-use container needs hours for a large call.
const END_MS: u64 = 20 * 3_600_000;

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
    Leave { client: usize },
    Visit { function: usize, request: RequestId },
    Depart { function: usize, generation: u32, request: RequestId },
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
    pub visitors: Visitors,
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
    pub(super) calls: u128,
    pub(super) waiting: BTreeMap<CallId, usize>,
}

fn limits(plan: &Plan) -> Arc<Limits> {
    let limits =
        Limits { retry_floor_ms: 10, map_running: 40, start_tries: 50, spawn_head: SPAWN_HEAD, ..Limits::default() };
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
        let left = |f: &Hosted| f.visitors.is_empty();
        brought && self.functions.iter().all(ended) && self.functions.iter().all(left)
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
                self.step_node(worker, node::Event::Ordered { link: LINK, order })
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
            Action::Leave { client } => self.leave(client),
            Action::Visit { function, request } => self.visit(function, request),
            Action::Depart { function, generation, request } if self.functions[function].generation == generation => {
                self.depart(function, request)
            }
            Action::Fault => self.fault(),
            _ => Ok(()),
        }
    }
}
