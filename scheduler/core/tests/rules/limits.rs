//! Limits at their documented values: what reaches one is taken, one more is refused, and leaves nothing behind.

use crate::stage::{Stage, http};
use capstan_common::{call::CallKind, refusal::Code};
use capstan_scheduler_core::{event::Inputs, record::Segment};
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
fn a_million_inputs_wait_in_the_background_and_one_more_is_refused() {
    // SPEC M03 M11 M12
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
    assert!(stage.core.call(capstan_common::id::CallId(3)).is_none());
    // Interactive calls have limits of their own.
    stage.one(4, CallKind::Invoke).unwrap();
    let mut stage = stuck();
    let refused = stage.open(1, CallKind::SpawnMap, Inputs::Stored(segments(1, 1_000_001))).unwrap_err();
    assert_eq!((refused.code, stage.core.stats().backlog), (Code::ResourceExhausted, 0));
}
