//! Limits at their documented values: what reaches one is taken, one more is refused, and leaves nothing behind.

use crate::stage::{Stage, http};
use capstan_common::{call::CallKind, id::CallId, input::Payload, refusal::Code};
use capstan_scheduler_core::{
    event::{Event, Inputs},
    limits::Limits,
    record::Segment,
};
use serde_json::json;

/// A function whose one container is never ready.
fn stuck() -> Stage {
    let mut stage = Stage::new(http(json!({"autoscaler": {"max_containers": 1}})));
    stage.ready_at_once = false;
    stage
}

#[test]
fn two_thousand_invokes_wait_and_one_more_is_refused_until_there_is_room() {
    // SPEC M01 M05 M11 M12, decision D5: each function, and each instance of one, has its own
    let mut stage = Stage::new(http(json!({"autoscaler": {"max_containers": 1}})));
    // The first one runs, and does not wait.
    (0..=2_000).for_each(|n| stage.one(n, CallKind::Invoke).unwrap());
    let backlog = stage.core.stats().backlog;
    assert_eq!(backlog, 2_000);
    let refused = stage.one(9_999, CallKind::Invoke).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(refused.detail.contains("2000"), "{}", refused.detail);
    assert_eq!(stage.core.stats().backlog, backlog, "what was refused left something behind");
    stage.finish();
    stage.one(9_999, CallKind::Invoke).unwrap();
}

#[test]
fn a_thousand_inputs_of_one_map_run_at_once_and_another_calls_run_beside_them() {
    // SPEC M06 F01 F18
    let mut stage = Stage::new(http(json!({"concurrency": {"max_inputs": 10}})));
    let payloads = |count: usize| vec![Payload::json("1"); count];
    let limit = Limits::default().map_running as usize;
    assert_eq!(limit, 1_000);
    for (call, inputs, given) in [(1, 1_500, limit), (2, 10, limit + 10)] {
        stage.open(call, CallKind::Map, Inputs::Later).unwrap();
        stage.step(Event::Arrive { call: CallId(call), payloads: payloads(inputs) }).unwrap();
        stage.step(Event::Close { call: CallId(call) }).unwrap();
        assert_eq!(stage.given.len(), given);
    }
    let of_first = |stage: &Stage| stage.given.iter().filter(|(_, a)| a.call == CallId(1)).count();
    for _ in 0..1_510 {
        stage.finish();
        assert!(of_first(&stage) <= limit);
    }
    assert!(stage.given.is_empty() && stage.ended.len() == 2);
}

#[test]
fn a_million_inputs_wait_in_the_background_and_one_more_is_refused() {
    // SPEC M03 M11 M12 G06
    let mut stage = stuck();
    let segments = |count: u32, each: u32| {
        (0..count).map(|number| Segment { number, first: u64::from(number * each), count: each }).collect()
    };
    stage.open(1, CallKind::SpawnMap, Inputs::Stored(segments(1_000, 1_000))).unwrap();
    assert_eq!(stage.core.stats().backlog, 1_000_000);
    let refused = stage.one(2, CallKind::Spawn).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(stage.open(3, CallKind::SpawnMap, Inputs::Stored(segments(1, 1))).is_err());
    assert_eq!(stage.core.stats().backlog, 1_000_000);
    assert!(stage.core.call(CallId(3)).is_none());
    // Interactive calls have limits of their own.
    stage.one(4, CallKind::Invoke).unwrap();
    let mut stage = stuck();
    let refused = stage.open(1, CallKind::SpawnMap, Inputs::Stored(segments(1, 1_000_001))).unwrap_err();
    assert_eq!((refused.code, stage.core.stats().backlog), (Code::ResourceExhausted, 0));
}
