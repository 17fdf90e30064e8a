//! What runs on the workers: containers that start, work and end as the script says.

use capstan_common::{
    container::Ending,
    id::{ContainerId, FunctionKey, LeaseId, RequestId, Revision, WorkerId},
    input::{Failure, FailureKind, Payload},
    order::{Group, Order},
    report::{Done, Held, HeldAttempt},
    time::Time,
};
use capstan_scheduler_core::{autoscaler, event::Event};
use std::collections::{BTreeMap, VecDeque};

/// What is told to a core.
pub enum Act {
    Function(FunctionKey, Event),
    Autoscaler(autoscaler::Event),
}

/// How an attempt ends, or a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// With the function's own error.
    Error,
    /// Its container ends with it.
    Crash,
    /// For want of memory.
    OutOfMemory,
    /// It runs past its time-out.
    Timeout,
    /// The container ends before it is ready.
    Start,
}

impl Fate {
    /// As scripts write it.
    pub fn of(text: &str) -> Result<Self, String> {
        Ok(match text {
            "error" => Self::Error,
            "crash" => Self::Crash,
            "oom" => Self::OutOfMemory,
            "timeout" => Self::Timeout,
            "start" => Self::Start,
            _ => return Err(format!("`{text}` is no way to fail: error, crash, oom, timeout, start")),
        })
    }
}

/// How a function's containers behave.
struct Ways {
    /// How long a start takes, in microseconds; without it, it never ends.
    start_us: Option<u64>,
    run_us: u64,
    fates: VecDeque<Fate>,
}

struct Container {
    function: FunctionKey,
    worker: WorkerId,
    revision: Revision,
    gpus: u32,
    ready: bool,
    slots: usize,
    waiting: VecDeque<Group>,
    running: BTreeMap<LeaseId, Group>,
}

enum Happens {
    Ready(ContainerId),
    Finished(ContainerId, LeaseId),
    Ended(ContainerId, Ending),
    Left(FunctionKey, RequestId),
}

/// All of them.
#[derive(Default)]
pub struct Containers {
    ways: BTreeMap<FunctionKey, Ways>,
    live: BTreeMap<ContainerId, Container>,
    /// In the order in which they got a place.
    numbers: Vec<(ContainerId, FunctionKey)>,
    due: BTreeMap<(Time, u64), Happens>,
    planned: u64,
}

impl Containers {
    /// A function is new: its containers start and run within a second.
    pub fn begin(&mut self, key: &FunctionKey) {
        let ways = Ways { start_us: Some(1_000_000), run_us: 1_000_000, fates: VecDeque::new() };
        self.ways.insert(key.clone(), ways);
    }

    fn ways(&mut self, key: &FunctionKey) -> Result<&mut Ways, String> {
        self.ways.get_mut(key).ok_or_else(|| format!("no function {key}"))
    }

    /// How long they take.
    pub fn takes(&mut self, key: &FunctionKey, start: Option<Option<u64>>, run: Option<u64>) -> Result<(), String> {
        let ways = self.ways(key)?;
        ways.start_us = start.unwrap_or(ways.start_us);
        ways.run_us = run.unwrap_or(ways.run_us);
        Ok(())
    }

    /// How the next ones end.
    pub fn fails(&mut self, key: &FunctionKey, count: usize, fate: Fate) -> Result<(), String> {
        self.ways(key)?.fates.extend(std::iter::repeat_n(fate, count));
        Ok(())
    }

    /// A container's number in the script.
    pub fn number(&mut self, container: ContainerId, function: &FunctionKey) -> usize {
        let found = self.numbers.iter().position(|(id, _)| *id == container);
        found.unwrap_or_else(|| {
            self.numbers.push((container, function.clone()));
            self.numbers.len() - 1
        }) + 1
    }

    /// The container with a number.
    pub fn numbered(&self, number: u64) -> Option<(ContainerId, FunctionKey)> {
        self.numbers.get(usize::try_from(number).ok()?.checked_sub(1)?).cloned()
    }

    fn plan(&mut self, at: Time, what: Happens) {
        self.planned += 1;
        self.due.insert((at, self.planned), what);
    }

    /// When the next thing happens here.
    pub fn next(&self) -> Option<Time> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// A worker is gone, with all it held.
    pub fn lose(&mut self, worker: &WorkerId) {
        self.live.retain(|_, container| container.worker != *worker);
    }

    /// What a worker holds of a function.
    pub fn held(&self, worker: &WorkerId, function: &FunctionKey) -> Vec<Held> {
        let there = self.live.iter().filter(|(_, c)| c.worker == *worker && c.function == *function);
        let held = there.map(|(id, container)| Held {
            container: *id,
            function: function.clone(),
            revision: container.revision,
            ready: container.ready,
            gone: false,
            port: 4711,
            gpus: container.gpus,
            running: Vec::new(),
            finished: Vec::new(),
        });
        held.collect()
    }

    /// A request through `/web` takes as long as an input.
    pub fn visit(&mut self, now: Time, key: &FunctionKey, request: RequestId) {
        let us = self.ways.get(key).map_or(0, |ways| ways.run_us);
        self.plan(Time(now.0 + us), Happens::Left(key.clone(), request));
    }

    /// A worker is told something; what a script shows of it.
    pub fn order(&mut self, now: Time, worker: &WorkerId, order: Order) -> Option<String> {
        match order {
            Order::Start(start) => {
                let number = self.number(start.container, &start.function);
                let ways = self.ways.get_mut(&start.function)?;
                let (start_us, fails) = (ways.start_us, ways.fates.front() == Some(&Fate::Start));
                if fails {
                    ways.fates.pop_front();
                }
                self.live.insert(
                    start.container,
                    Container {
                        function: start.function.clone(),
                        worker: worker.clone(),
                        revision: start.revision,
                        gpus: start.gpus,
                        ready: false,
                        slots: start.spec.at_once as usize,
                        waiting: VecDeque::new(),
                        running: BTreeMap::new(),
                    },
                );
                let ended = |reason: String| {
                    Happens::Ended(start.container, Ending { exit_code: Some(1), reason, ..Ending::default() })
                };
                let limit_us = start.spec.startup_timeout_ms * 1000;
                let (us, what) = match start_us.filter(|us| *us <= limit_us) {
                    Some(us) if fails => (us, ended("the server ended".into())),
                    Some(us) => (us, Happens::Ready(start.container)),
                    None => (limit_us, ended(format!("not ready within {} s", limit_us / 1_000_000))),
                };
                self.plan(Time(now.0 + us), what);
                Some(format!("starts #{number}, revision {}", start.revision.0))
            }
            Order::Feed { container, groups } => {
                let live = self.live.get_mut(&container)?;
                let function = live.function.clone();
                let (inputs, count) = (groups.iter().map(|group| group.assignments.len()).sum::<usize>(), groups.len());
                let batch = groups.iter().any(|group| group.batch);
                live.waiting.extend(groups);
                self.work(now, container);
                let number = self.number(container, &function);
                Some(match (batch, inputs) {
                    (true, _) => format!("gives #{number} {inputs} inputs in {count} batches"),
                    (_, 1) => format!("gives #{number} an input"),
                    _ => format!("gives #{number} {inputs} inputs"),
                })
            }
            Order::Abort { container, leases } => {
                let live = self.live.get_mut(&container)?;
                live.waiting.retain(|group| !group.assignments.iter().all(|a| leases.contains(&a.lease)));
                live.running.retain(|_, group| !group.assignments.iter().all(|a| leases.contains(&a.lease)));
                let function = live.function.clone();
                self.work(now, container);
                let number = self.number(container, &function);
                Some(format!("interrupts {} attempts in #{number}", leases.len()))
            }
            Order::Stop { container, reason, .. } => {
                let function = self.live.get(&container)?.function.clone();
                let number = self.number(container, &function);
                let ending = Ending { exit_code: Some(0), ordered: true, reason: reason.clone(), ..Ending::default() };
                self.plan(now, Happens::Ended(container, ending));
                Some(format!("stops #{number}: {reason}"))
            }
            Order::Own { .. } | Order::Peers { .. } | Order::Recorded { .. } => None,
        }
    }

    /// Begins what has a slot.
    fn work(&mut self, now: Time, container: ContainerId) {
        while let Some(live) = self.live.get_mut(&container) {
            if !live.ready || live.running.len() >= live.slots {
                return;
            }
            let Some(group) = live.waiting.pop_front() else { return };
            let Some(lease) = group.assignments.first().map(|assignment| assignment.lease) else { continue };
            live.running.insert(lease, group);
            let us = self.ways.get(&live.function).map_or(0, |ways| ways.run_us);
            self.plan(Time(now.0 + us), Happens::Finished(container, lease));
        }
    }

    /// What is due first happens.
    pub fn happen(&mut self, now: Time) -> Vec<Act> {
        let Some((_, what)) = self.due.pop_first() else { return Vec::new() };
        match what {
            Happens::Ready(container) => {
                let Some(live) = self.live.get_mut(&container) else { return Vec::new() };
                live.ready = true;
                let function = live.function.clone();
                self.work(now, container);
                vec![Act::Function(function, Event::Ready { container, phases: Vec::new(), port: 4711 })]
            }
            Happens::Finished(container, lease) => self.finished(now, container, lease),
            Happens::Ended(container, ending) => self.ended(container, ending),
            Happens::Left(function, request) => {
                vec![Act::Function(function, Event::Leave { request, spoilt: false })]
            }
        }
    }

    fn finished(&mut self, now: Time, container: ContainerId, lease: LeaseId) -> Vec<Act> {
        let Some(live) = self.live.get_mut(&container) else { return Vec::new() };
        // It was interrupted.
        if !live.running.contains_key(&lease) {
            return Vec::new();
        }
        let function = live.function.clone();
        let Some(ways) = self.ways.get_mut(&function) else { return Vec::new() };
        let (fate, run_us) = (ways.fates.pop_front_if(|fate| *fate != Fate::Start), ways.run_us);
        let ended = |exit_code, oom| Ending { exit_code, oom, reason: "the server ended".into(), ..Ending::default() };
        let crashed = match fate {
            Some(Fate::Crash) => Some(ended(Some(137), false)),
            Some(Fate::OutOfMemory) => Some(ended(None, true)),
            _ => None,
        };
        if let Some(ending) = crashed {
            return self.ended(container, ending);
        }
        let Some(group) = live.running.remove(&lease) else { return Vec::new() };
        let failed = |kind, what: &str| Err(Failure::new(kind, what, "as the script says"));
        let result = || match fate {
            Some(Fate::Timeout) => failed(FailureKind::Timeout, "Timeout"),
            Some(_) => failed(FailureKind::Function, "ValueError"),
            None => Ok(Payload::json(&b"1"[..])),
        };
        let done =
            group.assignments.iter().map(|given| Done { held: held(given), waited_us: 0, run_us, result: result() });
        let done = done.collect();
        self.work(now, container);
        vec![Act::Function(function, Event::Finished { container, done })]
    }

    fn ended(&mut self, container: ContainerId, ending: Ending) -> Vec<Act> {
        let Some(live) = self.live.remove(&container) else { return Vec::new() };
        let begun = live.running.values().flat_map(|group| &group.assignments).map(|given| given.lease).collect();
        vec![Act::Function(live.function, Event::Ended { container, ending, begun })]
    }
}

fn held(given: &capstan_common::order::Assignment) -> HeldAttempt {
    HeldAttempt { lease: given.lease, call: given.call, index: given.index, attempt: given.attempt }
}
