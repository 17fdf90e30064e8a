//! Functions, their autoscaler and their containers, in virtual time: the real cores, and nothing between them that takes time.

mod perform;

use super::{
    containers::{Act, Containers},
    tell,
};
use capstan_common::{
    call::CallKind,
    function::FunctionSpec,
    id::{CallId, Epoch, FunctionKey, RequestId, Revision, WorkerId},
    input::Payload,
    isolation::Ground,
    report::Held,
    resource::Amount,
    time::Time,
    worker::WorkerState,
};
use capstan_scheduler_core::{
    autoscaler::{self, Autoscaler, Policy},
    decision::Decision,
    effect::Output,
    event::{Event, FailFast, Inputs, Opening},
    function::{Function, Recovery},
    limits::Limits,
    record::ScheduleState,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

pub use super::containers::Fate;

/// Monday, 5 January 2026, 00:00 UTC: where profiles and schedules begin to count.
const BEGIN: Time = Time(1_767_571_200_000_000);
/// Steps that one line of a script may take, before it is held for one that never ends.
const STEPS: usize = 100_000;

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Invoke,
    Spawn,
    Map,
}

/// A worker as it joined.
struct Worker {
    capacity: Amount,
    gpu: Arc<str>,
    ground: Ground,
}

/// All of it.
pub struct Cluster {
    now: Time,
    epoch: u64,
    autoscaler: Autoscaler,
    functions: BTreeMap<FunctionKey, Function>,
    /// Decisions of each function that have been told, of the last moment that had some.
    decided: BTreeMap<FunctionKey, Vec<Decision>>,
    /// A decision that the next one of the same moment takes the place of.
    latest: Option<(FunctionKey, Decision)>,
    workers: BTreeMap<WorkerId, Worker>,
    policies: BTreeMap<Arc<str>, Policy>,
    containers: Containers,
    acts: VecDeque<Act>,
    /// Calls in the order of their opening, with their functions.
    calls: Vec<(CallId, FunctionKey)>,
    requests: u64,
    told: Vec<String>,
}

impl Cluster {
    /// Without workers and functions.
    pub fn new() -> Self {
        Self {
            now: BEGIN,
            epoch: 1,
            autoscaler: Autoscaler::new(Epoch(1)),
            functions: BTreeMap::new(),
            decided: BTreeMap::new(),
            latest: None,
            workers: BTreeMap::new(),
            policies: BTreeMap::new(),
            containers: Containers::default(),
            acts: VecDeque::new(),
            calls: Vec::new(),
            requests: 0,
            told: Vec::new(),
        }
    }

    /// What has been told since this was last asked.
    pub fn told(&mut self) -> Vec<String> {
        self.tell_latest();
        std::mem::take(&mut self.told)
    }

    fn say(&mut self, who: &str, what: &str) {
        self.tell_latest();
        self.write(who, what);
    }

    fn write(&mut self, who: &str, what: &str) {
        let seconds = self.now.since_us(BEGIN) as f64 / 1e6;
        self.told.push(format!("{seconds:>7.1} s  {who} {what}"));
    }

    /// A function as scripts name it.
    fn name(function: &FunctionKey) -> String {
        if &*function.namespace == "default" { function.name.to_string() } else { function.to_string() }
    }

    /// A worker joins.
    pub fn join(&mut self, name: &str, capacity: Amount, gpu: &str, strict: bool) {
        let worker = Worker { capacity, gpu: gpu.into(), ground: Ground { strict, trusts: true } };
        self.workers.insert(WorkerId(name.into()), worker);
        self.joined(&WorkerId(name.into()));
        self.settle();
    }

    fn joined(&mut self, name: &WorkerId) {
        let Some(worker) = self.workers.get(name) else { return };
        self.acts.push_back(Act::Autoscaler(autoscaler::Event::Joined {
            worker: name.clone(),
            capacity: worker.capacity,
            gpu: worker.gpu.clone(),
            ground: worker.ground,
            state: WorkerState::Ready,
            flaps: false,
        }));
    }

    /// A worker's state changes.
    pub fn turn(&mut self, name: &str, state: WorkerState) {
        let worker = WorkerId(name.into());
        self.acts.push_back(Act::Autoscaler(autoscaler::Event::Turned { worker: worker.clone(), state }));
        if state == WorkerState::Draining {
            self.everyone(&Event::DrainWorker { worker });
        }
        self.settle();
    }

    /// A worker's links break again and again, or do so no more.
    pub fn flaps(&mut self, name: &str, flaps: bool) {
        self.acts.push_back(Act::Autoscaler(autoscaler::Event::Flaps { worker: WorkerId(name.into()), flaps }));
        self.settle();
    }

    /// A worker is lost.
    pub fn lose(&mut self, name: &str) {
        let worker = WorkerId(name.into());
        self.workers.remove(&worker);
        self.containers.lose(&worker);
        self.everyone(&Event::WorkerLost { worker: worker.clone() });
        self.acts.push_back(Act::Autoscaler(autoscaler::Event::Lost { worker }));
        self.settle();
    }

    fn everyone(&mut self, event: &Event) {
        self.acts.extend(self.functions.keys().map(|key| Act::Function(key.clone(), event.clone())));
    }

    /// A namespace's weight and quota.
    pub fn govern(&mut self, namespace: &str, policy: Policy) {
        let namespace: Arc<str> = namespace.into();
        self.policies.insert(namespace.clone(), policy.clone());
        self.acts.push_back(Act::Autoscaler(autoscaler::Event::Governed { namespace, policy }));
        self.settle();
    }

    /// A function's first or next revision.
    pub fn deploy(&mut self, key: FunctionKey, spec: FunctionSpec) {
        let spec = Arc::new(spec);
        if self.functions.contains_key(&key) {
            return self.tell(&key, Event::Deploy { spec, at_once: false });
        }
        let mut out = Output::default();
        let limits = Arc::new(Limits::default());
        let first = (spec, Revision(0));
        match Function::deploy(key.clone(), Epoch(self.epoch), limits, self.now, first, &mut out) {
            Ok(function) => {
                self.containers.begin(&key);
                self.functions.insert(key.clone(), function);
                self.perform(&key, out);
                self.settle();
            }
            Err(refusal) => self.say(&Self::name(&key), &format!("is refused: {}", refusal.detail)),
        }
    }

    /// How long containers of a function take to start (without end: `Some(None)`), and to run an input, in microseconds.
    pub fn takes(&mut self, key: &FunctionKey, start: Option<Option<u64>>, run: Option<u64>) -> Result<(), String> {
        self.containers.takes(key, start, run)
    }

    /// How its next attempts or starts end.
    pub fn fails(&mut self, key: &FunctionKey, count: usize, fate: Fate) -> Result<(), String> {
        self.containers.fails(key, count, fate)
    }

    /// Calls of one input each, or one map of many.
    pub fn call(&mut self, key: &FunctionKey, verb: Verb, count: usize) {
        let payloads = |count| vec![Payload::json(&b"1"[..]); count];
        let (calls, kind) = match verb {
            Verb::Invoke => (count, CallKind::Invoke),
            Verb::Spawn => (count, CallKind::Spawn),
            Verb::Map => (1, CallKind::Map),
        };
        for _ in 0..calls {
            let call = CallId((self.calls.len() as u128 + 1) << 16).placed(key.place());
            self.calls.push((call, key.clone()));
            let later = verb == Verb::Map;
            self.acts.push_back(Act::Function(
                key.clone(),
                Event::Open(Box::new(Opening {
                    call,
                    kind,
                    inputs: if later { Inputs::Later } else { Inputs::Here(payloads(1)) },
                    traceparent: "".into(),
                    key: None,
                    fail_fast: FailFast::No,
                    discard_outputs: later,
                })),
            ));
            if later {
                self.acts.push_back(Act::Function(key.clone(), Event::Arrive { call, payloads: payloads(count) }));
                self.acts.push_back(Act::Function(key.clone(), Event::Close { call }));
            }
        }
        self.settle();
    }

    /// Requests through `/web`.
    pub fn visit(&mut self, key: &FunctionKey, count: usize) {
        for _ in 0..count {
            self.requests += 1;
            self.acts.push_back(Act::Function(key.clone(), Event::Enter { request: RequestId(self.requests) }));
        }
        self.settle();
    }

    /// Cancels the n-th call.
    pub fn cancel(&mut self, number: usize) -> Result<(), String> {
        let (call, key) = number.checked_sub(1).and_then(|at| self.calls.get(at)).cloned().ok_or("no such call")?;
        self.tell(&key, Event::Cancel { call });
        Ok(())
    }

    /// An operator stops the n-th container.
    pub fn stop(&mut self, number: u64) -> Result<(), String> {
        let (container, key) = self.containers.numbered(number).ok_or("no such container")?;
        self.tell(&key, Event::StopContainer { container });
        Ok(())
    }

    /// An event for a function, and all that follows at once.
    pub fn tell(&mut self, key: &FunctionKey, event: Event) {
        self.acts.push_back(Act::Function(key.clone(), event));
        self.settle();
    }

    /// So many microseconds pass.
    pub fn wait(&mut self, us: u64) {
        let until = Time(self.now.0 + us);
        for _ in 0..STEPS {
            let alarm = self.functions.iter().filter_map(|(key, f)| Some((f.next_alarm()?, key.clone()))).min();
            let happens = self.containers.next();
            let due = alarm.iter().map(|(at, _)| *at).chain(happens).min().filter(|at| *at <= until);
            let Some(due) = due else {
                self.now = until;
                return;
            };
            self.now = self.now.max(due);
            if happens == Some(due) {
                self.acts.extend(self.containers.happen(self.now));
            } else if let Some((_, key)) = alarm {
                self.acts.push_back(Act::Function(key, Event::Alarm));
            }
            self.settle();
        }
        panic!("{STEPS} steps and no end");
    }

    /// Until so many minutes after midnight, today or tomorrow.
    pub fn until(&mut self, minute: u64) -> Result<(), String> {
        const DAY_US: u64 = 86_400_000_000;
        let today = self.now.0 - self.now.0 % DAY_US + minute * 60_000_000;
        let at = if today > self.now.0 { today } else { today + DAY_US };
        self.wait(at - self.now.0);
        Ok(())
    }

    /// Why a function's inputs wait.
    pub fn explain(&mut self, key: &FunctionKey) -> Result<(), String> {
        let function = self.functions.get(key).ok_or("no such function")?;
        let why = function.waiting().map_or_else(|| "nothing waits".to_owned(), |why| tell::waiting(&why));
        self.say(&Self::name(key), &why);
        Ok(())
    }

    /// How many machines of a kind are asked for.
    pub fn nodes(&mut self, node: Amount) {
        let count = self.autoscaler.nodes(node);
        self.say("nodes", &format!("of {}: {count}", tell::amount(node)));
    }

    /// Another life of the scheduler: functions come from the store, containers from the workers.
    pub fn restart(&mut self) -> Result<(), String> {
        self.epoch += 1;
        self.autoscaler = Autoscaler::new(Epoch(self.epoch));
        for (namespace, policy) in self.policies.clone() {
            self.acts.push_back(Act::Autoscaler(autoscaler::Event::Governed { namespace, policy }));
        }
        let limits = Arc::new(Limits::default());
        for (key, function) in std::mem::take(&mut self.functions) {
            let stats = function.stats();
            if stats.backlog + stats.running > 0 {
                return Err(format!("{key} has work: a script restarts idle functions only"));
            }
            let mut decisions: Vec<_> = function.decisions().cloned().collect();
            decisions.reverse();
            let recovery = Recovery {
                key: key.clone(),
                deployed: function.deployment().clone(),
                serving: Some(function.serving().clone())
                    .filter(|live| live.revision != function.deployment().revision),
                overrides: function.settings().1.clone(),
                calls: Vec::new(),
                parked: Vec::new(),
                keys: Vec::new(),
                schedule: ScheduleState::default(),
                decisions,
            };
            let mut out = Output::default();
            let recovered = Function::recover(recovery, Epoch(self.epoch), limits.clone(), self.now, &mut out);
            self.functions.insert(key.clone(), recovered);
            self.perform(&key, out);
        }
        for worker in self.workers.keys().cloned().collect::<Vec<_>>() {
            for key in self.functions.keys() {
                let held: Vec<Held> = self.containers.held(&worker, key);
                self.acts.push_back(Act::Function(key.clone(), Event::Inventory { worker: worker.clone(), held }));
            }
            self.joined(&worker);
        }
        self.everyone(&Event::Settled);
        self.settle();
        Ok(())
    }

    /// Everything that follows at once.
    fn settle(&mut self) {
        for _ in 0..STEPS {
            match self.acts.pop_front() {
                None => return,
                Some(Act::Function(key, event)) => self.step(&key, event),
                Some(Act::Autoscaler(event)) => {
                    let mut out = Vec::new();
                    self.autoscaler.step(event, &mut out);
                    self.autoscaler.check().unwrap();
                    out.into_iter().for_each(|effect| self.grant(effect));
                }
            }
        }
        panic!("{STEPS} steps and no end");
    }

    fn step(&mut self, key: &FunctionKey, event: Event) {
        let Some(function) = self.functions.get_mut(key) else { return };
        let mut out = Output::default();
        let answer = function.step(self.now, event, &mut out);
        function.check().and_then(|()| function.check_concluded()).unwrap_or_else(|broken| panic!("{key}: {broken}"));
        if let Err(refusal) = answer {
            self.say(&Self::name(key), &format!("refuses: {}", refusal.detail));
        }
        self.perform(key, out);
        if self.functions.get(key).is_some_and(Function::is_gone) {
            self.functions.remove(key);
            self.acts.push_back(Act::Autoscaler(autoscaler::Event::Forgotten(key.clone())));
            self.say(&Self::name(key), "is gone");
        }
    }

    fn grant(&mut self, effect: autoscaler::Effect) {
        let (function, event) = match effect {
            autoscaler::Effect::Grant { function, container, worker, amount, gpu, chosen } => {
                let number = self.containers.number(container, &function);
                let cards = gpu.as_ref().map_or_else(String::new, |gpu| format!(" with {gpu}"));
                self.say(&Self::name(&function), &format!("gets #{number} on {worker}{cards} ({})", chosen.code()));
                (function, Event::Granted { container, worker, amount, gpu, chosen })
            }
            autoscaler::Effect::Unplaced { function, why } => {
                self.say(&Self::name(&function), &format!("is not placed: {}", tell::waiting(&why)));
                (function, Event::Unplaced(why))
            }
            autoscaler::Effect::GiveWay { function, worker, count, busy } => {
                self.say(&Self::name(&function), &tell::give_way(worker.as_ref(), count, busy));
                (function, Event::GiveWay { worker, count, busy })
            }
        };
        self.acts.push_back(Act::Function(function, event));
    }
}
