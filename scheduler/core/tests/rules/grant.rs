//! Grants that cross a deployment on their way.

use crate::stage::http;
use capstan_common::{
    id::{ContainerId, Epoch, FunctionKey, RequestId, Revision, WorkerId},
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

fn step(core: &mut Function, event: Event) -> Vec<Effect> {
    let mut out = Output::default();
    core.step(Time(2_000_000), event, &mut out).unwrap();
    core.check().unwrap();
    out.effects
}

fn demand(effects: &[Effect]) -> Demand {
    let found =
        effects.iter().rev().find_map(|e| if let Effect::Demand(demand) = e { Some(demand.clone()) } else { None });
    found.unwrap()
}

fn granted(container: u64, asked: &Demand) -> Event {
    let gpu = asked.gpus.first().cloned();
    let amount = asked.amount.with_gpus(gpu.as_ref().map_or(0, |gpu| gpu.count));
    Event::Granted {
        container: ContainerId(container),
        worker: WorkerId("w".into()),
        amount,
        gpu,
        chosen: Choice::MostFreeCpu,
    }
}

/// A function whose input waits for a container while another revision comes: what was asked for before and after.
fn redeployed(before: Value, after: Value) -> (Function, Demand, Demand) {
    let spec = |resources: Value| Arc::new(http(json!({"resources": resources})));
    let mut out = Output::default();
    let (key, limits) = (FunctionKey::new("prod", "f"), Arc::new(Limits::default()));
    let mut core =
        Function::deploy(key, Epoch(1), limits, Time(1_000_000), (spec(before), Revision(0)), &mut out).unwrap();
    let first = demand(&step(&mut core, Event::Enter { request: RequestId(1) }));
    let second = demand(&step(&mut core, Event::Deploy { spec: spec(after), at_once: false }));
    (core, first, second)
}

#[test]
fn a_grant_of_what_an_earlier_revision_asked_for_is_given_back_and_asked_for_anew() {
    for (before, after) in [
        (json!({"gpu": "H100"}), json!({"gpu": "L4"})),
        (json!({"gpu": "H100"}), json!({"gpu": "H100:2"})),
        (json!({}), json!({"gpu": "H100"})),
        (json!({"gpu": "H100"}), json!({})),
        (json!({"cpu": 1}), json!({"cpu": 8})),
        (json!({"memory_mib": 64}), json!({"memory_mib": 512})),
    ] {
        let (mut core, first, second) = redeployed(before.clone(), after.clone());
        let effects = step(&mut core, granted(1, &first));
        assert!(effects.contains(&Effect::Release(ContainerId(1))), "{before} then {after}: {effects:?}");
        let anew = demand(&effects);
        assert_eq!((anew.missing, anew.grants_seen, &anew.gpus), (1, 1, &second.gpus));
        let started = step(&mut core, granted(2, &anew));
        let gpus = anew.gpus.first().map_or(0, |gpu| gpu.count);
        let starts = |e: &Effect| matches!(e, Effect::Order(_, Order::Start(start)) if start.gpus == gpus);
        assert!(started.iter().any(starts), "{before} then {after}: {started:?}");
    }
}
