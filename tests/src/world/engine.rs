//! The engine: one queue of what will happen, in order of time, and the shells' work done in virtual time.

use super::{
    Plan, Report,
    clients::Client,
    host::At,
    keys::Keys,
    links::Link,
    scheduler::Scheduler,
    store::{Durable, SPAWN_HEAD},
    workers::Worker,
};
use capstan_common::{
    function::FunctionSpec,
    id::{CallId, ContainerId, Epoch, FunctionKey, LinkId, RequestId, Shard, WorkerId},
    order::Order,
    report::Report as WorkerReport,
    time::Time,
};
use capstan_scheduler_core::{event::Event, limits::Limits, record::Record};
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
/// Shards of a cluster; one scheduler alone has one.
const SHARDS: u16 = 4;

/// What will happen.
#[derive(Debug, Clone)]
pub enum Action {
    Function {
        at: At,
        event: Event,
    },
    /// A commit reaches the store.
    Stored {
        at: At,
        epoch: Epoch,
        records: Vec<Record>,
    },
    /// The store's answer reaches the scheduler: whether the commit counts.
    Committed {
        at: At,
        counts: bool,
    },
    Alarm {
        at: At,
    },
    Loaded {
        at: At,
        call: CallId,
        number: u32,
    },
    Down {
        link: LinkId,
        order: Order,
    },
    Up {
        link: LinkId,
        report: WorkerReport,
    },
    /// Both ends have heard nothing for too long.
    Silent {
        link: LinkId,
    },
    Node {
        worker: usize,
        life: u32,
        event: node::Event,
    },
    NodeAlarm {
        worker: usize,
        life: u32,
    },
    Join {
        worker: usize,
        life: u32,
        scheduler: usize,
    },
    Beat {
        link: LinkId,
    },
    Lose {
        worker: usize,
        scheduler: usize,
        life: u32,
        parted: Time,
    },
    /// A scheduler looks at what should be.
    Look {
        scheduler: usize,
        life: u32,
    },
    Start {
        scheduler: usize,
    },
    Wake {
        scheduler: usize,
    },
    Settle {
        scheduler: usize,
        shard: Shard,
        epoch: Epoch,
    },
    /// A scheduler's lease may have run out.
    Expire {
        scheduler: usize,
    },
    Open {
        client: usize,
    },
    /// A client's request arrives where it was sent.
    Ask {
        at: At,
        client: usize,
    },
    Cancel {
        client: usize,
    },
    Leave {
        client: usize,
    },
    Visit {
        function: usize,
        request: RequestId,
    },
    Depart {
        at: At,
        request: RequestId,
    },
    Fault,
}

/// A function, as everybody but its owner sees it.
pub struct Subject {
    pub key: FunctionKey,
    pub shard: Shard,
    /// What whoever deployed it deploys again until that is durable.
    pub spec: Arc<FunctionSpec>,
    pub durable: Durable,
}

/// The world.
pub struct World {
    pub(super) plan: Plan,
    pub(super) rng: StdRng,
    pub(super) now: Time,
    pub(super) limits: Arc<Limits>,
    pub(super) functions: Vec<Subject>,
    pub(super) schedulers: Vec<Scheduler>,
    /// What etcd knows of schedulers and shards.
    pub(super) keys: Keys,
    pub(super) workers: Vec<Worker>,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) clients: Vec<Client>,
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
        let shards = if plan.schedulers > 1 { SHARDS } else { 1 };
        let mut world = Self {
            rng: StdRng::seed_from_u64(plan.seed),
            now: Time(1_000_000_000),
            limits: limits(&plan),
            functions: Vec::new(),
            schedulers: (0..plan.schedulers).map(Scheduler::new).collect(),
            keys: Keys::new(shards),
            workers: (0..plan.workers).map(Worker::new).collect(),
            links: BTreeMap::new(),
            clients: Vec::new(),
            stoppable: BTreeSet::new(),
            report: Report::default(),
            queue: BTreeMap::new(),
            counter: 0,
            calls: 1 << 80,
            waiting: BTreeMap::new(),
            plan,
        };
        world.populate();
        world
    }

    /// Whether there is more than one scheduler: then ownership hangs on leases.
    pub(super) fn is_clustered(&self) -> bool {
        self.plan.schedulers > 1
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// A time from now.
    pub(super) fn after(&mut self, least_us: u64, most_us: u64) -> Time {
        Time(self.now.0 + self.rng.random_range(least_us..=most_us.max(least_us)))
    }

    pub(super) fn plan(&mut self, at: Time, action: Action) {
        let number = self.next();
        self.queue.insert((at.max(self.now), number), action);
    }

    /// A number that nothing else has.
    pub(super) fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
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
            // What comes to one that is stopped waits in its sockets, in order.
            if let Some(wakes) = self.addressee(&action).and_then(|s| self.schedulers[s].stopped_until) {
                self.plan(wakes, action);
                continue;
            }
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

    /// The scheduler that an action needs to be awake.
    fn addressee(&self, action: &Action) -> Option<usize> {
        match action {
            Action::Function { at, .. }
            | Action::Committed { at, .. }
            | Action::Alarm { at }
            | Action::Loaded { at, .. }
            | Action::Ask { at, .. }
            | Action::Depart { at, .. } => Some(at.scheduler),
            Action::Up { link, .. } => self.links.get(link).map(|l| l.scheduler),
            Action::Look { scheduler, .. } | Action::Settle { scheduler, .. } | Action::Lose { scheduler, .. } => {
                Some(*scheduler)
            }
            _ => None,
        }
    }

    /// Containers of a scheduler whose grant has not reached its function yet.
    pub(super) fn granted_under_way(&self) -> BTreeSet<ContainerId> {
        let granted = |action: &Action| match action {
            Action::Function { event: Event::Granted { container, .. }, .. } => Some(*container),
            _ => None,
        };
        self.queue.values().filter_map(granted).collect()
    }

    /// Every client is done, every fault injected, every call ended, every function owned.
    fn is_over(&self) -> bool {
        if !self.report.events.is_multiple_of(64) {
            return false;
        }
        let brought = self.clients.iter().all(|c| c.done) && self.report.faults == self.plan.faults;
        let ended = |f: &Subject| f.durable.calls.values().all(|c| c.record.finished.is_some());
        if !brought || !self.functions.iter().all(ended) {
            return false;
        }
        let awake = self.schedulers.iter().all(|s| s.stopped_until.is_none());
        let quiet = self.schedulers.iter().flat_map(|s| s.hosts.values()).all(|h| h.is_quiet());
        awake && quiet && (0..self.functions.len()).all(|f| self.owner(f).is_some())
    }

    fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Function { at, event } => self.step_function(at, event),
            Action::Stored { at, epoch, records } => self.stored(at, epoch, records),
            Action::Committed { at, counts } => self.committed(at, counts),
            Action::Alarm { at } => match self.host(at) {
                Some(host) => {
                    host.alarm_at = None;
                    self.step_function(at, Event::Alarm)
                }
                None => Ok(()),
            },
            Action::Loaded { at, call, number } => {
                let segments = &self.functions[at.function].durable.segments;
                let payloads = segments.get(&(call, number)).cloned().unwrap_or_default();
                self.step_function(at, Event::Loaded { call, number, payloads })
            }
            Action::Down { link, order } => match self.links.get(&link) {
                Some(Link { worker, .. }) => self.step_node(*worker, node::Event::Ordered { link, order }),
                None => Ok(()),
            },
            Action::Up { link, report } if self.links.contains_key(&link) => self.reported(link, report),
            Action::Silent { link } => self.break_link(link),
            Action::Node { worker, life, event } if self.workers[worker].life == life => self.step_node(worker, event),
            Action::NodeAlarm { worker, life } if self.workers[worker].life == life => {
                self.workers[worker].alarm_at = None;
                self.step_node(worker, node::Event::Alarm)
            }
            Action::Join { worker, life, scheduler } if self.workers[worker].life == life => {
                self.join(worker, scheduler)
            }
            Action::Beat { link } => {
                self.beat(link);
                Ok(())
            }
            Action::Lose { worker, scheduler, life, parted } if self.schedulers[scheduler].life == life => {
                self.lose(worker, scheduler, parted)
            }
            Action::Look { scheduler, life } if self.schedulers[scheduler].life == life => self.look(scheduler),
            Action::Start { scheduler } => self.start(scheduler),
            Action::Wake { scheduler } => {
                self.schedulers[scheduler].stopped_until = None;
                Ok(())
            }
            Action::Settle { scheduler, shard, epoch } => self.settle(scheduler, shard, epoch),
            Action::Expire { scheduler } => {
                self.expire(scheduler);
                Ok(())
            }
            Action::Open { client } => self.open(client),
            Action::Ask { at, client } => self.ask(at, client),
            Action::Cancel { client } => self.cancel(client),
            Action::Leave { client } => self.leave(client),
            Action::Visit { function, request } => self.visit(function, request),
            Action::Depart { at, request } => self.depart(at, request),
            Action::Fault => self.fault(),
            _ => Ok(()),
        }
    }
}
