//! A new revision is tried beside the one that serves.

use crate::stage::http;
use capstan_common::{
    container::Ending,
    id::{ContainerId, Epoch, FunctionKey, Revision, WorkerId},
    order::Order,
    time::Time,
};
use capstan_scheduler_core::{
    decision::Choice,
    effect::{Demand, Effect, Output},
    event::Event,
    function::Function,
    limits::Limits,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// A function with a ready container, and what it has said since.
struct Stage {
    core: Function,
    now: Time,
    said: Vec<Effect>,
    containers: u64,
}

impl Stage {
    fn new(more: Value) -> Self {
        let (mut out, now) = (Output::default(), Time(1_000_000));
        let (key, limits) = (FunctionKey::new("prod", "f"), Arc::new(Limits::default()));
        let spec = (Arc::new(http(more)), Revision(0));
        let core = Function::deploy(key, Epoch(1), limits, now, spec, &mut out).unwrap();
        let mut stage = Self { core, now, said: out.effects, containers: 0 };
        let first = stage.grant();
        stage.step(Event::Ready { container: first, phases: Vec::new(), port: 1 });
        stage
    }

    fn step(&mut self, event: Event) {
        let mut out = Output::default();
        self.core.step(self.now, event, &mut out).unwrap();
        self.core.check().unwrap();
        self.core.check_concluded().unwrap();
        self.said.extend(out.effects);
    }

    fn wait_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.step(Event::Alarm);
    }

    fn demand(&self) -> Demand {
        let demands = self.said.iter().rev();
        demands.filter_map(|e| if let Effect::Demand(demand) = e { Some(demand.clone()) } else { None }).next().unwrap()
    }

    /// Grants what is asked for.
    fn grant(&mut self) -> ContainerId {
        let amount = self.demand().amount;
        self.containers += 1;
        let (container, worker) = (ContainerId(self.containers), WorkerId("w".into()));
        self.step(Event::Granted { container, worker, amount, gpu: None, chosen: Choice::MostFreeCpu });
        container
    }

    fn deploy(&mut self, more: Value, at_once: bool) {
        self.step(Event::Deploy { spec: Arc::new(http(more)), at_once });
    }

    /// The revisions of the containers that were started, in their order.
    fn started(&self) -> Vec<u32> {
        let of = |e: &Effect| match e {
            Effect::Order(_, Order::Start(start)) => Some(start.revision.0),
            _ => None,
        };
        self.said.iter().filter_map(of).collect()
    }

    fn stopped(&self) -> Vec<ContainerId> {
        let of = |e: &Effect| match e {
            Effect::Order(_, Order::Stop { container, .. }) => Some(*container),
            _ => None,
        };
        self.said.iter().filter_map(of).collect()
    }

    fn dies(&mut self, container: ContainerId, ordered: bool) {
        let ending = Ending { exit_code: Some(1), ordered, reason: "it ended".into(), ..Ending::default() };
        self.step(Event::Ended { container, ending, begun: Vec::new() });
    }
}

fn one() -> Value {
    json!({"autoscaler": {"min_containers": 1, "max_containers": 1}})
}

#[test]
fn a_new_revision_is_tried_above_the_maximum_and_takes_over_when_it_is_ready() {
    let mut stage = Stage::new(one());
    stage.deploy(one(), false);
    assert_eq!((stage.core.serving().revision, stage.demand().missing), (Revision(1), 1));
    let trial = stage.grant();
    assert_eq!((stage.started(), stage.stopped()), (vec![1, 2], vec![]));
    // It is no capacity yet: the one that serves counts, and nothing more is asked for.
    assert_eq!((stage.core.stats().desired, stage.demand().missing, stage.demand().leaving), (1, 0, 0));
    stage.step(Event::Ready { container: trial, phases: Vec::new(), port: 2 });
    assert_eq!((stage.core.serving().revision, stage.stopped()), (Revision(2), vec![ContainerId(1)]));
}

#[test]
fn trials_that_fail_pause_longer_and_longer_and_what_others_did_to_them_is_no_failure() {
    let mut stage = Stage::new(one());
    stage.deploy(one(), false);
    for (failed, pause_ms) in [(1, 1_000), (2, 2_000), (3, 4_000)] {
        let trial = stage.grant();
        stage.dies(trial, false);
        assert_eq!((stage.core.rollout().failed, stage.demand().missing), (failed, 0));
        stage.wait_ms(pause_ms - 1);
        assert_eq!(stage.demand().missing, 0);
        stage.wait_ms(1);
        assert_eq!(stage.demand().missing, 1);
    }
    // Its worker was drained, lost, or an operator stopped it.
    let trial = stage.grant();
    stage.dies(trial, true);
    let trial = stage.grant();
    stage.step(Event::Inventory { worker: WorkerId("w".into()), held: Vec::new() });
    assert_eq!((stage.core.rollout().failed, trial), (3, ContainerId(6)));
}

#[test]
fn a_deployment_during_a_rollout_stops_the_trial_and_begins_another() {
    let mut stage = Stage::new(one());
    stage.deploy(one(), false);
    let trial = stage.grant();
    stage.deploy(one(), false);
    assert_eq!((stage.core.serving().revision, stage.stopped()), (Revision(1), vec![trial]));
    // One that was told to stop and is ready all the same takes nothing over.
    stage.step(Event::Ready { container: trial, phases: Vec::new(), port: 2 });
    assert_eq!(stage.core.serving().revision, Revision(1));
    stage.dies(trial, true);
    let next = stage.grant();
    stage.step(Event::Ready { container: next, phases: Vec::new(), port: 3 });
    assert_eq!((stage.core.serving().revision, stage.started()), (Revision(3), vec![1, 2, 3]));
}

#[test]
fn a_revision_takes_over_at_once_by_force_without_a_ready_container_and_where_a_process_serves_each_input() {
    let mut forced = Stage::new(one());
    forced.deploy(one(), true);
    assert_eq!((forced.core.serving().revision, forced.stopped()), (Revision(2), vec![ContainerId(1)]));
    let mut exec = Stage::new(one());
    exec.deploy(json!({"protocol": "exec"}), false);
    assert_eq!(exec.core.serving().revision, Revision(2));
    let mut cold = Stage::new(one());
    cold.dies(ContainerId(1), false);
    cold.deploy(one(), false);
    assert_eq!(cold.core.serving().revision, Revision(2));
    // And a rollout that is under way ends with it.
    let mut rolling = Stage::new(one());
    rolling.deploy(one(), false);
    rolling.deploy(one(), true);
    assert_eq!((rolling.core.serving().revision, rolling.core.rollout().live), (Revision(3), Revision(3)));
}
