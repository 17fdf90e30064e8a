//! Inputs that lie in the store, and what becomes of them if they cannot be read there.

use crate::stage::{Stage, http};
use capstan_common::{
    call::{CallKind, CallState},
    id::{CallId, ContainerId, FunctionKey, LeaseId, Revision, WorkerId},
    input::Payload,
    report::{Held, HeldAttempt},
};
use capstan_scheduler_core::{
    event::{Event, Fetched, Inputs},
    limits::Limits,
};
use serde_json::json;

const CONTAINER: ContainerId = ContainerId(99);
const CALL: CallId = CallId(2);

/// A function of which a container, known from its worker only, runs a call whose input is in the store.
fn adopted() -> Stage {
    let spec = http(json!({"autoscaler": {"max_containers": 1}}));
    let mut stage = Stage::limited(spec, Limits { spawn_head: 1, ..Limits::default() });
    stage.ready_at_once = false;
    (0..=CALL.0).for_each(|n| stage.one(n, CallKind::Spawn).unwrap());
    let held = Held {
        container: CONTAINER,
        function: FunctionKey::new("prod", "f"),
        revision: Revision(1),
        ready: true,
        gone: false,
        port: crate::stage::PORT,
        gpus: 0,
        running: vec![HeldAttempt { lease: LeaseId(7), call: CALL, index: 0, attempt: 1 }],
        finished: Vec::new(),
    };
    stage.step(Event::Inventory { worker: WorkerId("w".into()), held: vec![held] }).unwrap();
    assert_eq!(stage.core.call(CALL).unwrap().1.running, 1);
    stage
}

fn loses_its_worker(stage: &mut Stage) {
    stage.step(Event::WorkerLost { worker: WorkerId("w".into()) }).unwrap();
}

fn fetched(stage: &mut Stage, payload: Result<Payload, &str>) {
    let payload = payload.map_err(Into::into);
    let fetched = Fetched { call: CALL, created: stage.now, traceparent: "".into(), payload };
    stage.step(Event::Fetched(vec![fetched])).unwrap();
}

#[test]
fn an_adopted_input_that_comes_back_waits_until_it_is_read() {
    let mut stage = adopted();
    loses_its_worker(&mut stage);
    assert_eq!(stage.core.call(CALL).unwrap().1.pending, 1);
    fetched(&mut stage, Ok(Payload::Inline("1".into())));
    assert_eq!(stage.core.call(CALL).unwrap().1.pending, 1);
}

#[test]
fn one_that_cannot_be_read_ends_when_it_would_have_to_run_again_and_not_before() {
    let mut stage = adopted();
    loses_its_worker(&mut stage);
    fetched(&mut stage, Err("the disk is broken"));
    assert!(stage.core.call(CALL).is_none_or(|(_, counts, _)| counts.failed == 1));
    // The other way about.
    let mut stage = adopted();
    fetched(&mut stage, Err("the disk is broken"));
    assert_eq!(stage.core.call(CALL).unwrap().1.running, 1);
    loses_its_worker(&mut stage);
    assert!(stage.core.call(CALL).is_none_or(|(_, counts, _)| counts.failed == 1));
}

#[test]
fn a_map_whose_stream_broke_ends_as_cancelled_however_much_of_it_has_succeeded() {
    let mut stage = Stage::new(http(json!({"concurrency": {"max_inputs": 10}})));
    stage.open(7, CallKind::Map, Inputs::Later).unwrap();
    let call = CallId(7);
    let payloads = (0..3).map(|_| Payload::Inline("1".into())).collect();
    stage.step(Event::Arrive { call, payloads }).unwrap();
    (0..2).for_each(|_| stage.finish());
    stage.step(Event::Abandon { call }).unwrap();
    assert_eq!(stage.core.call(call).unwrap().1.running, 1, "what runs may end by itself");
    stage.finish();
    let ended = stage.ended.iter().find(|(id, _)| *id == call).unwrap();
    assert_eq!(ended.1, CallState::Cancelled);
}
