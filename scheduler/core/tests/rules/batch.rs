//! Batches: full ones leave at once, others when their oldest input has waited long enough.

use crate::stage::{Stage, http};
use capstan_common::call::CallKind;
use capstan_scheduler_core::event::Event;
use serde_json::json;

fn stage() -> Stage {
    let batching = json!({"max_batch_size": 4, "wait_ms": 100});
    Stage::new(http(json!({"batching": batching, "autoscaler": {"max_containers": 1}})))
}

fn pass_ms(stage: &mut Stage, ms: u64) {
    stage.now = stage.now.plus_ms(ms);
    stage.step(Event::Alarm).unwrap();
}

#[test]
fn a_full_batch_leaves_at_once_and_no_batch_is_larger() {
    // SPEC J01 J03
    let mut stage = stage();
    (0..3).for_each(|n| stage.one(n, CallKind::Invoke).unwrap());
    assert!(stage.groups.is_empty(), "it did not wait for more");
    stage.one(3, CallKind::Invoke).unwrap();
    assert_eq!(stage.groups, [4]);
    (4..14).for_each(|n| stage.one(n, CallKind::Invoke).unwrap());
    pass_ms(&mut stage, 200);
    for _ in 0..14 {
        if !stage.given.is_empty() {
            stage.finish();
        }
        pass_ms(&mut stage, 200);
    }
    assert!(stage.groups.iter().all(|inputs| *inputs <= 4), "{:?}", stage.groups);
    assert_eq!(stage.groups.iter().sum::<usize>(), 14);
}

#[test]
fn a_batch_that_does_not_fill_leaves_when_its_oldest_input_has_waited() {
    // SPEC J02
    let mut stage = stage();
    stage.one(0, CallKind::Invoke).unwrap();
    pass_ms(&mut stage, 60);
    stage.one(1, CallKind::Invoke).unwrap();
    pass_ms(&mut stage, 39);
    assert!(stage.groups.is_empty(), "the oldest has waited for 99 ms");
    pass_ms(&mut stage, 1);
    assert_eq!(stage.groups, [2]);
}
