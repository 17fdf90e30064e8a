//! Containers and places around the core, in virtual time.

use crate::{Outcome, Trace};
use bytes::Bytes;
use capstan_common::{
    call::CallKind,
    container::Ending,
    function::{FunctionSpec, Overrides},
    id::{CallId, ContainerId, Epoch, FunctionKey, LeaseId, Minter, Revision, WorkerId},
    input::Payload,
    order::{Group, Order},
    report::{Done, HeldAttempt},
    time::Time,
    validate,
};
use capstan_scheduler_core::{
    decision::Choice,
    effect::{Demand, Effect, Output},
    event::{Event, FailFast, Inputs, Opening},
    function::{Function, Recovery, ZeroRule},
    limits::Limits,
    record::{Deployment, ScheduleState},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    sync::Arc,
};

/// An input that was fed ahead and has not begun after so long goes back, as a worker does it.
const AHEAD_MS: u64 = 200;
/// The one call that brings all inputs.
const CALL: CallId = CallId(1);
/// More than any trace has.
const PLENTY: u64 = 1 << 40;
/// The most containers where the system sets no limit.
const MOST: u32 = 1_000_000;

/// What the containers run on.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Containers that fit at one time.
    pub places: u32,
    /// How long a start takes, in microseconds, where the trace knows none.
    pub start_us: u64,
    /// How long after the last input's end is looked on, in milliseconds, so that containers leave.
    pub after_ms: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self { places: 100_000, start_us: 100_000, after_ms: 3_600_000 }
    }
}

/// What is played: a function as it is deployed, and what holds besides.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// As deployed. Its profiles hold at their times; its schedule makes no runs, as those are in the traffic.
    pub spec: FunctionSpec,
    /// Dynamic settings, which hold over both.
    pub overrides: Overrides,
    /// What the scale-to-zero configuration says of its model.
    pub rule: Option<ZeroRule>,
    /// The system's most containers of a function.
    pub most: u32,
}

impl Scenario {
    /// How long idle containers may stay, in milliseconds, and then some.
    fn keeps_ms(&self) -> u64 {
        let window = self.overrides.over(&self.spec.autoscaler).scaledown_window;
        let retention = self.rule.as_ref().map_or(0, |rule| rule.retention_ms);
        (u64::from(window) * 1000).max(retention) + 60_000
    }

    /// A function on which nothing else has a say.
    pub fn of(spec: FunctionSpec) -> Self {
        Self { spec, overrides: Overrides::default(), rule: None, most: MOST }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Granted,
    Ready(ContainerId),
    Ended(ContainerId),
    Finished(ContainerId, LeaseId),
    Late(ContainerId),
    Alarm,
}

struct Held {
    ordered: Time,
    ready: bool,
    waiting: VecDeque<(Time, Group)>,
    running: BTreeMap<LeaseId, (Time, Group)>,
}

struct Player<'a> {
    core: Function,
    trace: &'a Trace,
    machine: &'a Machine,
    now: Time,
    queue: BinaryHeap<Reverse<(Time, u64, Happens)>>,
    counter: u64,
    alarm_at: Option<Time>,
    out: Output,
    demand: Option<Demand>,
    granted: u64,
    under_way: u32,
    minter: Minter,
    worker: WorkerId,
    containers: BTreeMap<ContainerId, Held>,
    /// When the last input had ended.
    drained: Time,
    /// How long containers may stay after it.
    keeps_ms: u64,
    outcome: Outcome,
}

/// Plays a trace through a function. The same trace, scenario and machine give the same outcome.
///
/// # Errors
/// The spec is one that could not be deployed.
pub fn replay(scenario: &Scenario, trace: &Trace, machine: &Machine) -> Result<Outcome, String> {
    let limits = Limits {
        pending_interactive: PLENTY,
        total_interactive: PLENTY,
        map_window: PLENTY,
        map_running: u32::MAX,
        system_max_containers: scenario.most,
        ..Limits::default()
    };
    let begin = trace.arrivals.first().map_or(Time(0), |first| first.at);
    let mut out = Output::default();
    let key = FunctionKey::new("default", "what-if");
    let spec = FunctionSpec { schedule: None, ..scenario.spec.clone() };
    validate::spec(&spec).map_err(|refusal| refusal.detail)?;
    let recovery = Recovery {
        key,
        deployed: Deployment { revision: Revision(1), spec: Arc::new(spec), at: begin },
        serving: None,
        overrides: scenario.overrides.clone(),
        calls: Vec::new(),
        parked: Vec::new(),
        keys: Vec::new(),
        schedule: ScheduleState::default(),
        decisions: Vec::new(),
    };
    let core = Function::recover(recovery, Epoch(1), Arc::new(limits), begin, &mut out);
    let mut player = Player {
        core,
        trace,
        machine,
        now: begin,
        queue: BinaryHeap::new(),
        counter: 0,
        alarm_at: None,
        out,
        demand: None,
        granted: 0,
        under_way: 0,
        minter: Minter::new(Epoch(1)),
        worker: WorkerId("w".into()),
        containers: BTreeMap::new(),
        drained: begin,
        keeps_ms: scenario.keeps_ms(),
        outcome: Outcome { span: (begin, begin), ..Outcome::default() },
    };
    player.perform();
    if let Some(rule) = &scenario.rule {
        player.step(Event::Ruled(rule.clone()))?;
    }
    player.step(Event::Settled)?;
    player.play()?;
    Ok(player.end())
}

impl Player<'_> {
    fn plan(&mut self, at: Time, what: Happens) {
        self.counter += 1;
        self.queue.push(Reverse((at, self.counter, what)));
    }

    fn play(&mut self) -> Result<(), String> {
        let opening = Opening {
            call: CALL,
            kind: CallKind::Map,
            inputs: Inputs::Later,
            traceparent: "".into(),
            key: None,
            fail_fast: FailFast::No,
            discard_outputs: true,
        };
        self.step(Event::Open(Box::new(opening)))?;
        let trace = self.trace;
        let mut next = 0;
        while next < trace.arrivals.len() {
            let at = trace.arrivals[next].at;
            self.happen_until(at);
            self.now = self.now.max(at);
            let together = trace.arrivals[next..].iter().take_while(|arrival| arrival.at == at).count();
            let payloads = vec![Payload::json(Bytes::new()); together];
            next += together;
            self.step(Event::Arrive { call: CALL, payloads })?;
        }
        self.step(Event::Close { call: CALL })?;
        let all = trace.arrivals.len() as u64;
        let longest = self.longest();
        while self.outcome.inputs < all && self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= longest) {
            self.happen_next();
        }
        self.drained = self.now;
        self.happen_until(self.now.plus_ms(self.machine.after_ms.max(self.keeps_ms)));
        Ok(())
    }

    /// When one container that works on one input after the other, started anew for each, would be done with all.
    fn longest(&self) -> Time {
        let start_us = self.trace.starts_us.iter().copied().max().unwrap_or(self.machine.start_us);
        let work: u64 = self.trace.arrivals.iter().map(|arrival| arrival.run_us + start_us).sum();
        Time(self.now.0.saturating_add(work)).plus_ms(self.machine.after_ms)
    }

    fn happen_next(&mut self) {
        let Some(Reverse((at, _, what))) = self.queue.pop() else { return };
        self.now = self.now.max(at);
        self.happen(what);
    }

    fn happen_until(&mut self, end: Time) {
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            self.happen_next();
        }
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Granted => {
                self.under_way -= 1;
                let container = ContainerId(self.minter.mint());
                let spec = &self.core.deployment().spec;
                // The machine has whatever is wished for first.
                let gpu = spec.gpus().first().cloned();
                let amount = spec.amount().with_gpus(gpu.as_ref().map_or(0, |gpu| gpu.count));
                let worker = self.worker.clone();
                self.tell(Event::Granted { container, worker, amount, gpu, chosen: Choice::MostFreeCpu });
            }
            Happens::Ready(container) => {
                if let Some(held) = self.containers.get_mut(&container) {
                    held.ready = true;
                    self.outcome.cold_starts += 1;
                    self.tell(Event::Ready { container, phases: Vec::new(), port: 0 });
                    self.begin(container);
                }
            }
            Happens::Ended(container) => self.ended(container),
            Happens::Finished(container, group) => self.finished(container, group),
            Happens::Late(container) => self.give_back(container),
            Happens::Alarm => {
                if self.alarm_at.is_some_and(|at| at <= self.now) {
                    self.alarm_at = None;
                    self.tell(Event::Alarm);
                }
            }
        }
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        let answer = self.core.step(self.now, event, &mut self.out);
        self.perform();
        answer.map(drop).map_err(|refusal| refusal.detail)
    }

    /// The same for what is never refused: the limits are wide open.
    fn tell(&mut self, event: Event) {
        let _ = self.step(event);
    }

    fn perform(&mut self) {
        self.out.records.clear();
        self.out.promises.clear();
        let mut effects = std::mem::take(&mut self.out.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Order(_, order) => self.order(order),
                Effect::Demand(demand) => self.demand = Some(demand),
                _ => {}
            }
        }
        self.out.effects = effects;
        self.grant();
        if let Some(due) = self.core.next_alarm().filter(|due| self.alarm_at.is_none_or(|set| set > *due)) {
            self.alarm_at = Some(due);
            self.plan(due.max(self.now), Happens::Alarm);
        }
    }

    /// Gives every place that there is to what is missing.
    fn grant(&mut self) {
        let Some(demand) = &self.demand else { return };
        let under_way = self.granted.saturating_sub(demand.grants_seen) as u32;
        let taken = self.containers.len() as u32 + self.under_way;
        let count = demand.missing.saturating_sub(under_way).min(self.machine.places.saturating_sub(taken));
        for _ in 0..count {
            self.granted += 1;
            self.under_way += 1;
            self.plan(self.now, Happens::Granted);
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Start(start) => {
                let held = Held { ordered: self.now, ready: false, waiting: VecDeque::new(), running: BTreeMap::new() };
                self.containers.insert(start.container, held);
                self.count();
                let starts = &self.trace.starts_us;
                let nth = self.granted as usize;
                let us = if starts.is_empty() { self.machine.start_us } else { starts[nth % starts.len()] };
                self.plan(Time(self.now.0 + us), Happens::Ready(start.container));
            }
            Order::Feed { container, groups } => {
                let now = self.now;
                if let Some(held) = self.containers.get_mut(&container) {
                    held.waiting.extend(groups.into_iter().map(|group| (now, group)));
                    self.begin(container);
                    if self.containers.get(&container).is_some_and(|held| held.ready && !held.waiting.is_empty()) {
                        self.plan(now.plus_ms(AHEAD_MS), Happens::Late(container));
                    }
                }
            }
            Order::Stop { container, .. } => {
                let busy = self.containers.get(&container).is_some_and(|held| !held.running.is_empty());
                self.outcome.cut_off += u64::from(busy);
                self.plan(self.now, Happens::Ended(container));
            }
            Order::Own { .. } | Order::Peers { .. } | Order::Abort { .. } | Order::Recorded { .. } => {}
        }
    }

    /// Lets a container work on as much as it may.
    fn begin(&mut self, container: ContainerId) {
        let at_once = self.core.serving().spec.groups_at_once() as usize;
        let (now, trace) = (self.now, self.trace);
        let Some(held) = self.containers.get_mut(&container).filter(|held| held.ready) else { return };
        let mut begun = Vec::new();
        while held.running.len() < at_once {
            let Some((_, group)) = held.waiting.pop_front() else { break };
            let Some(first) = group.assignments.first().map(|a| a.lease) else { continue };
            let inputs = group.assignments.iter().map(|a| trace.arrivals[a.index as usize]);
            let run_us = inputs.clone().map(|input| input.run_us).max().unwrap_or(0);
            self.outcome.waits_us.extend(inputs.map(|input| now.since_us(input.at)));
            held.running.insert(first, (now, group));
            begun.push((Time(now.0 + run_us), first));
        }
        for (at, group) in begun {
            self.plan(at, Happens::Finished(container, group));
        }
    }

    fn finished(&mut self, container: ContainerId, group: LeaseId) {
        let now = self.now;
        let Some(held) = self.containers.get_mut(&container) else { return };
        let Some((begun, group)) = held.running.remove(&group) else { return };
        self.outcome.inputs += group.assignments.len() as u64;
        let run_us = now.since_us(begun);
        let done = group.assignments.into_iter().map(|a| Done {
            held: HeldAttempt { lease: a.lease, call: a.call, index: a.index, attempt: a.attempt },
            waited_us: 0,
            run_us,
            result: Ok(Payload::json(Bytes::new())),
        });
        let done = done.collect();
        self.begin(container);
        self.tell(Event::Finished { container, done });
    }

    fn give_back(&mut self, container: ContainerId) {
        let now = self.now;
        let Some(held) = self.containers.get_mut(&container) else { return };
        if held.waiting.front().is_none_or(|(at, _)| at.plus_ms(AHEAD_MS) > now) {
            return;
        }
        let leases = held.waiting.drain(..).flat_map(|(_, group)| group.assignments).map(|a| a.lease).collect();
        self.tell(Event::Returned { container, leases, closed: false });
    }

    fn ended(&mut self, container: ContainerId) {
        let Some(held) = self.containers.remove(&container) else { return };
        self.outcome.container_us += self.now.since_us(held.ordered);
        self.count();
        let ending = Ending { ordered: true, ..Ending::default() };
        self.tell(Event::Ended { container, ending, begun: Vec::new() });
    }

    fn count(&mut self) {
        let count = self.containers.len() as u32;
        self.outcome.peak = self.outcome.peak.max(count);
        match self.outcome.containers.last_mut() {
            Some((at, last)) if *at == self.now => *last = count,
            _ => self.outcome.containers.push((self.now, count)),
        }
    }

    fn end(mut self) -> Outcome {
        // What is still there has cost its time up to the last input's end and the last change.
        let last_change = self.outcome.containers.last().map_or(self.now, |(at, _)| *at);
        let last = self.drained.max(last_change);
        let rest = self.containers.values().map(|held| last.since_us(held.ordered));
        self.outcome.container_us += rest.sum::<u64>();
        self.outcome.span.1 = last;
        self.outcome.alive = self.containers.len() as u32;
        self.outcome.unserved = (self.trace.arrivals.len() - self.outcome.waits_us.len()) as u64;
        self.outcome.waits_us.sort_unstable();
        self.outcome
    }
}
