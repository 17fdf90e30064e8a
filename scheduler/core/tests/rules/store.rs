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
    function::InputView,
    limits::Limits,
    record::Segment,
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
    fetched(&mut stage, Ok(Payload::json("1")));
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
    let payloads = (0..3).map(|_| Payload::json("1")).collect();
    stage.step(Event::Arrive { call, payloads }).unwrap();
    (0..2).for_each(|_| stage.finish());
    stage.step(Event::Abandon { call }).unwrap();
    assert_eq!(stage.core.call(call).unwrap().1.running, 1, "what runs may end by itself");
    stage.finish();
    let ended = stage.ended.iter().find(|(id, _)| *id == call).unwrap();
    assert_eq!(ended.1, CallState::Cancelled);
}

#[test]
fn what_lies_in_the_store_waits_for_the_store_and_for_nothing_else() {
    // RELIABILITY L2
    let spec = http(json!({"autoscaler": {"min_containers": 1, "max_containers": 1}}));
    let mut stage = Stage::limited(spec.clone(), Limits { spawn_head: 1, ..Limits::default() });
    let segment = Segment { number: 0, first: 0, count: 10 };
    stage.open(1, CallKind::SpawnMap, Inputs::Stored(vec![segment])).unwrap();
    let why = |stage: &Stage, call: u128, index: u64| match stage.core.input(CallId(call), index) {
        Some(InputView::Pending { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let (waiting, of_input) = (stage.core.waiting().unwrap(), why(&stage, 1, 3));
    assert_eq!((&*waiting.code, &*of_input.code), ("store", "store"), "a container is idle");
    assert!(of_input.detail.contains("has not answered yet"), "{of_input:?}");
    let payloads = vec![Payload::json("1"); 10];
    stage.step(Event::Loaded { call: CallId(1), number: 0, payloads }).unwrap();
    assert_eq!((&*stage.core.waiting().unwrap().code, &*why(&stage, 1, 3).code), ("max_containers", "max_containers"));
    // What is behind others in the store waits for what they wait for.
    (2..6).for_each(|call| stage.one(call, CallKind::Spawn).unwrap());
    assert_eq!(why(&stage, 5, 0).code, "max_containers");
}

#[test]
fn a_call_at_its_own_limit_says_so_and_another_does_not() {
    // RELIABILITY L2
    let spec = http(json!({"autoscaler": {"min_containers": 2, "max_containers": 2}}));
    let mut stage = Stage::limited(spec, Limits { map_running: 1, ..Limits::default() });
    stage.open(1, CallKind::Map, Inputs::Later).unwrap();
    let payloads = vec![Payload::json("1"); 3];
    stage.step(Event::Arrive { call: CallId(1), payloads }).unwrap();
    assert_eq!(stage.core.waiting().unwrap().code, "map_limit");
    (2..4).for_each(|call| stage.one(call, CallKind::Invoke).unwrap());
    let code = |call: u128, index: u64| match stage.core.input(CallId(call), index) {
        Some(InputView::Pending { why, .. }) => why.code,
        other => panic!("{other:?}"),
    };
    assert_eq!((&*code(1, 2), &*code(3, 0)), ("map_limit", "max_containers"));
    assert_eq!(stage.core.waiting().unwrap().code, "max_containers", "what could leave comes first");
}
