//! A function on a stage: whatever it asks for happens at once, unless the test says otherwise.

use capstan_common::{
    call::{CallKind, CallState},
    container::Ending,
    function::FunctionSpec,
    id::{CallId, ContainerId, Epoch, FunctionKey, RequestId, Revision, WorkerId},
    input::Payload,
    order::{Assignment, Order},
    refusal::Refusal,
    report::{Done, HeldAttempt},
    time::Time,
};
use capstan_scheduler_core::{
    decision::Choice,
    effect::{Effect, Output, Promise},
    event::{Event, FailFast, Inputs, Opening},
    function::{Function, ZeroRule},
    limits::Limits,
};
use serde_json::{Value, json};
use std::{collections::VecDeque, sync::Arc};

/// Where the containers' servers listen.
pub const PORT: u16 = 4711;

/// Steps of a test after which the function may be too large to be copied at each.
const FEW: usize = 256;

/// A function, its time, and what it asked of others.
pub struct Stage {
    /// The real core.
    pub core: Function,
    /// Virtual time.
    pub now: Time,
    /// Containers that were placed, in order.
    pub placed: Vec<ContainerId>,
    /// Containers that were told to stop, in order.
    pub stopped: Vec<ContainerId>,
    /// Questions for a Prometheus server: when, and for how many milliseconds.
    pub asked: Vec<(Time, u64)>,
    /// Attempts that containers were given and that have not ended, in order.
    pub given: Vec<(ContainerId, Assignment)>,
    /// How many inputs were in each group that containers were given, in order.
    pub groups: Vec<usize>,
    /// Calls that ended, and how.
    pub ended: Vec<(CallId, CallState)>,
    /// Web requests that have a place.
    pub admitted: Vec<(RequestId, ContainerId)>,
    /// Web requests that were turned away.
    pub expelled: Vec<(RequestId, Refusal)>,
    /// Whether containers become ready by themselves.
    pub ready_at_once: bool,
    granted: u32,
    steps: usize,
}

/// A spec of an `http` function with more in it.
pub fn http(more: Value) -> FunctionSpec {
    let mut spec = json!({"runtime": {"process": {"command": ["true"]}}, "protocol": "http"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

impl Stage {
    /// Deploys.
    pub fn new(spec: FunctionSpec) -> Self {
        Self::limited(spec, Limits::default())
    }

    /// The same under other limits.
    pub fn limited(spec: FunctionSpec, limits: Limits) -> Self {
        Self::named("f", spec, limits)
    }

    /// The same under a name.
    pub fn named(name: &str, spec: FunctionSpec, limits: Limits) -> Self {
        let now = Time(1_000_000_000);
        let mut out = Output::default();
        let key = FunctionKey::new("prod", name);
        let spec = (Arc::new(spec), Revision(0));
        let core = Function::deploy(key, Epoch(1), Arc::new(limits), now, spec, &mut out).unwrap();
        let mut stage = Self {
            core,
            now,
            placed: Vec::new(),
            stopped: Vec::new(),
            asked: Vec::new(),
            given: Vec::new(),
            groups: Vec::new(),
            ended: Vec::new(),
            admitted: Vec::new(),
            expelled: Vec::new(),
            ready_at_once: true,
            granted: 0,
            steps: 0,
        };
        stage.perform(out);
        stage
    }

    /// The scale-to-zero configuration's word on the model.
    pub fn ruled(mut self, enabled: bool, retention_s: u64) -> Self {
        let by: Arc<str> = "default".into();
        let rule = ZeroRule { enabled, retention_ms: retention_s * 1000, flag_by: by.clone(), retention_by: by };
        self.step(Event::Ruled(rule)).unwrap();
        self
    }

    /// Something happens.
    pub fn step(&mut self, event: Event) -> Result<(), Refusal> {
        let mut out = Output::default();
        let answer = self.core.step(self.now, event, &mut out);
        self.core.check().unwrap();
        self.steps += 1;
        if self.steps < FEW {
            self.core.check_concluded().unwrap();
        }
        self.perform(out);
        answer.map(|_| ())
    }

    fn perform(&mut self, out: Output) {
        self.ended.extend(out.promises.iter().filter_map(|promise| match promise {
            Promise::Closed { call, state } => Some((*call, *state)),
            _ => None,
        }));
        let mut effects: VecDeque<Effect> = out.effects.into();
        let mut follow = Vec::new();
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Demand(demand) => {
                    let under_way = self.granted - demand.grants_seen as u32;
                    for _ in under_way..demand.missing {
                        self.granted += 1;
                        let container = ContainerId(u64::from(self.granted));
                        self.placed.push(container);
                        let gpu = demand.gpus.first().cloned();
                        let amount = demand.amount.with_gpus(gpu.as_ref().map_or(0, |gpu| gpu.count));
                        follow.push(Event::Granted {
                            container,
                            worker: WorkerId("w".into()),
                            amount,
                            gpu,
                            chosen: Choice::MostFreeCpu,
                        });
                        if self.ready_at_once {
                            follow.push(Event::Ready { container, phases: Vec::new(), port: PORT });
                        }
                    }
                }
                Effect::Order(_, Order::Stop { container, .. }) => {
                    self.stopped.push(container);
                    let ending = Ending { exit_code: Some(0), ..Ending::default() };
                    follow.push(Event::Ended { container, ending, begun: Vec::new() });
                }
                Effect::Order(_, Order::Feed { container, groups }) => {
                    self.groups.extend(groups.iter().map(|group| group.assignments.len()));
                    self.given.extend(groups.into_iter().flat_map(|g| g.assignments).map(|a| (container, a)));
                }
                Effect::AskRequests { within_ms } => self.asked.push((self.now, within_ms)),
                Effect::Admit { request, container, port, .. } => {
                    assert_eq!(port, PORT);
                    self.admitted.push((request, container));
                }
                Effect::Expel { request, why } => self.expelled.push((request, *why)),
                _ => {}
            }
        }
        for event in follow {
            self.step(event).unwrap();
        }
    }

    /// A call of one verb with so many inputs.
    pub fn open(&mut self, call: u128, kind: CallKind, inputs: Inputs) -> Result<(), Refusal> {
        let opening = Opening {
            call: CallId(call),
            kind,
            inputs,
            traceparent: "".into(),
            key: None,
            fail_fast: FailFast::No,
            discard_outputs: false,
        };
        self.step(Event::Open(Box::new(opening)))
    }

    /// A call of one input that waits in memory.
    pub fn one(&mut self, call: u128, kind: CallKind) -> Result<(), Refusal> {
        self.open(call, kind, Inputs::Here(vec![Payload::json("1")]))
    }

    /// The oldest attempt ends well.
    pub fn finish(&mut self) {
        let (container, assignment) = self.given.remove(0);
        let held = HeldAttempt {
            lease: assignment.lease,
            call: assignment.call,
            index: assignment.index,
            attempt: assignment.attempt,
        };
        let done = Done { held, waited_us: 0, run_us: 1, result: Ok(Payload::json("1")) };
        self.step(Event::Finished { container, done: vec![done] }).unwrap();
    }

    /// Time passes; alarms ring when they are due.
    pub fn pass_s(&mut self, seconds: u64) {
        let until = self.now.plus_ms(seconds * 1000);
        while let Some(due) = self.core.next_alarm().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.step(Event::Alarm).unwrap();
        }
        self.now = until;
    }

    /// Containers of all states.
    pub fn containers(&self) -> usize {
        self.core.containers().count()
    }
}
