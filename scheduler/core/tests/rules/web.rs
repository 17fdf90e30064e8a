//! Web requests: each is an input for the autoscaler and takes a slot while it lasts.

use crate::stage::{Stage, http};
use capstan_common::{call::CallKind, container::Ending, id::RequestId, refusal::Code};
use capstan_scheduler_core::{event::Event, limits::Limits};
use serde_json::json;
use std::sync::Arc;

fn enter(stage: &mut Stage, requests: std::ops::Range<u64>) {
    requests.for_each(|n| stage.step(Event::Enter { request: RequestId(n) }).unwrap());
}

fn spawn(stage: &mut Stage, calls: std::ops::Range<u128>) {
    calls.for_each(|n| stage.one(n, CallKind::Spawn).unwrap());
}

#[test]
fn each_request_is_an_input_for_the_autoscaler() {
    // SPEC A03 A06: web requests count as inputs do
    let mut stage = Stage::new(http(json!({"concurrency": {"max_inputs": 4}, "autoscaler": {"scaledown_window": 10}})));
    enter(&mut stage, 0..10);
    assert_eq!((stage.containers(), stage.admitted.len()), (3, 10));
    stage.pass_s(3_600);
    assert_eq!(stage.containers(), 3, "busy containers are not stopped");
    (0..10).for_each(|n| stage.step(Event::Leave { request: RequestId(n), spoilt: false }).unwrap());
    stage.pass_s(10);
    assert_eq!(stage.containers(), 0);
}

#[test]
fn a_request_at_zero_waits_for_the_container() {
    // SPEC W04
    let mut stage = Stage::new(http(json!({})));
    stage.ready_at_once = false;
    enter(&mut stage, 0..1);
    assert_eq!((stage.containers(), stage.admitted.len(), stage.core.stats().backlog), (1, 0, 1));
    let container = stage.placed[0];
    stage.step(Event::Ready { container, phases: Vec::new(), port: crate::stage::PORT }).unwrap();
    assert_eq!(stage.admitted, [(RequestId(0), container)]);
}

#[test]
fn requests_and_inputs_take_turns_and_share_the_slots() {
    // SPEC I03
    let mut stage = Stage::new(http(json!({"concurrency": {"max_inputs": 2}, "autoscaler": {"max_containers": 1}})));
    stage.ready_at_once = false;
    spawn(&mut stage, 1..5);
    enter(&mut stage, 0..4);
    let container = stage.placed[0];
    stage.step(Event::Ready { container, phases: Vec::new(), port: crate::stage::PORT }).unwrap();
    assert_eq!((stage.admitted.len(), stage.core.stats().running, stage.core.stats().backlog), (1, 2, 6));
    stage.step(Event::Leave { request: stage.admitted[0].0, spoilt: false }).unwrap();
    assert_eq!(stage.core.stats().running, 2, "the slot is taken again, never more");
}

#[test]
fn requests_whose_container_or_function_goes_are_told() {
    let mut stage = Stage::new(http(json!({"autoscaler": {"max_containers": 1}})));
    enter(&mut stage, 0..3);
    let container = stage.placed[0];
    let ending = Ending { signal: Some(9), ..Ending::default() };
    stage.step(Event::Ended { container, ending, begun: Vec::new() }).unwrap();
    assert_eq!((stage.expelled[0].0, stage.expelled[0].1.code), (RequestId(0), Code::FunctionFailed));
    assert_eq!(stage.admitted.len(), 2, "the next has another container");
    stage.step(Event::Remove).unwrap();
    assert_eq!((stage.expelled.len(), stage.expelled[1].1.code), (2, Code::NotFound));
    stage.step(Event::Leave { request: RequestId(1), spoilt: false }).unwrap();
    assert!(stage.core.is_gone(), "what was in a container may end first");
}

#[test]
fn what_cannot_be_reached_or_would_be_too_much_is_refused() {
    // SPEC M01
    for (spec, code) in [
        (json!({"protocol": "exec"}), Code::Unsupported),
        (json!({"batching": {"max_batch_size": 2, "wait_ms": 5}}), Code::Unsupported),
    ] {
        let mut stage = Stage::new(http(spec));
        assert_eq!(stage.step(Event::Enter { request: RequestId(1) }).unwrap_err().code, code);
    }
    let limits = Limits { pending_interactive: 3, ..Limits::default() };
    let mut stage = Stage::limited(http(json!({})), limits);
    stage.ready_at_once = false;
    enter(&mut stage, 0..3);
    let refused = stage.step(Event::Enter { request: RequestId(9) }).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted);
    stage.step(Event::Deploy { spec: Arc::new(http(json!({"protocol": "exec"}))), at_once: false }).unwrap();
    assert_eq!(stage.expelled.len(), 3, "a revision without a server serves none that wait");
}

#[test]
fn the_decision_falls_with_the_event_and_not_later() {
    // SPEC A08
    let mut stage = Stage::new(http(json!({})));
    stage.pass_s(77);
    let at = stage.now;
    enter(&mut stage, 0..50);
    assert_eq!(stage.containers(), 50);
    assert!(stage.core.decisions().all(|decision| decision.at == at));
}

#[test]
fn a_function_takes_25_000_inputs_and_requests_in_all() {
    // SPEC M01 M02
    let mut stage =
        Stage::new(http(json!({"concurrency": {"max_inputs": 10000}, "autoscaler": {"max_containers": 3}})));
    enter(&mut stage, 0..25_000);
    assert_eq!((stage.core.stats().running, stage.core.stats().backlog), (25_000, 0));
    let refused = stage.step(Event::Enter { request: RequestId(25_000) }).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(refused.detail.contains("at most 25000"), "{}", refused.detail);
    stage.step(Event::Leave { request: RequestId(7), spoilt: false }).unwrap();
    enter(&mut stage, 25_000..25_001);
}
