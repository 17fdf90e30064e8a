//! Schedules and profiles through virtual hours: each due time makes one run, as the policies say, across redeployments and
//! restarts.

use crate::stage::{Stage, http};
use capstan_common::{
    call::{CallKind, CallState, Counts},
    function::{FunctionSpec, Overrides},
    id::{CallId, Epoch, FunctionKey, Revision},
    input::Payload,
    time::Time,
};
use capstan_scheduler_core::{
    effect::Output,
    event::Event,
    function::{Function, RecoveredCall, Recovery, ScheduleView, call_of},
    limits::Limits,
    record::{CallRecord, Deployment, ScheduleState},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Every minute, one run at a time in one container.
fn spec(more: Value) -> FunctionSpec {
    let mut schedule = json!({"period_s": 60});
    schedule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    http(json!({"schedule": schedule, "autoscaler": {"max_containers": 4}}))
}

fn view(stage: &Stage) -> ScheduleView {
    stage.core.schedule_view().unwrap()
}

fn run_now(stage: &mut Stage) {
    let call = call_of(&FunctionKey::new("prod", "f"), stage.now);
    stage.one(call.0, CallKind::Spawn).unwrap();
}

/// What a scheduler that was killed finds in its store, where the runs of these due times had not ended.
fn recovered(spec: FunctionSpec, due: &[Time], state: ScheduleState, now: Time) -> Function {
    let key = FunctionKey::new("prod", "f");
    let call = |due: &Time| RecoveredCall {
        record: CallRecord {
            id: call_of(&key, *due),
            kind: CallKind::Spawn,
            created: *due,
            segments: Vec::new(),
            outcome_records: 0,
            traceparent: "".into(),
            counts: Counts { total: 1, pending: 1, ..Counts::default() },
            state: CallState::Pending,
            finished: None,
        },
        here: vec![Payload::json("null")],
        open: Vec::new(),
        ended: Default::default(),
        counts: Counts { total: 1, pending: 1, ..Counts::default() },
        outcome_records: 0,
        attempted: Default::default(),
    };
    let recovery = Recovery {
        key: key.clone(),
        deployed: Deployment { revision: Revision(1), spec: Arc::new(spec), at: Time(0) },
        serving: None,
        overrides: Overrides::default(),
        calls: due.iter().map(call).collect(),
        parked: Vec::new(),
        keys: Vec::new(),
        schedule: state,
        decisions: Vec::new(),
    };
    let mut out = Output::default();
    Function::recover(recovery, Epoch(2), Arc::new(Limits::default()), now, &mut out)
}

#[test]
fn with_allow_runs_stand_beside_each_other() {
    // SPEC E05 and section 2.6
    let mut stage = Stage::new(spec(json!({})));
    stage.pass_s(185);
    assert_eq!((stage.given.len(), view(&stage).running.len()), (3, 3));
}

#[test]
fn with_skip_a_run_that_is_due_meanwhile_is_left_out() {
    let mut stage = Stage::new(spec(json!({"overlap": "skip"})));
    stage.pass_s(185);
    assert_eq!((stage.given.len(), view(&stage).waiting), (1, 0));
    stage.finish();
    stage.pass_s(30);
    assert_eq!(stage.given.len(), 0, "what was left out is not made up for");
    stage.pass_s(30);
    assert_eq!(stage.given.len(), 1);
}

#[test]
fn with_queue_runs_follow_each_other_and_none_is_lost() {
    let mut stage = Stage::new(spec(json!({"overlap": "queue"})));
    stage.pass_s(185);
    for left in [2, 1, 0] {
        assert_eq!((stage.given.len(), view(&stage).waiting), (1, left));
        stage.finish();
    }
    assert_eq!((stage.given.len(), view(&stage).waiting), (0, 0));
}

#[test]
fn a_pause_holds_back_what_waits_and_leaves_out_what_is_due_meanwhile() {
    let mut stage = Stage::new(spec(json!({"overlap": "queue"})));
    stage.pass_s(185);
    stage.step(Event::Pause(true)).unwrap();
    assert!(view(&stage).next.is_empty());
    stage.finish();
    stage.pass_s(600);
    assert_eq!((stage.given.len(), view(&stage).waiting), (0, 2), "nothing runs by itself");
    stage.step(Event::Pause(false)).unwrap();
    assert_eq!((stage.given.len(), view(&stage).waiting), (1, 1));
}

#[test]
fn a_deployment_keeps_the_pause_and_what_waits() {
    let mut stage = Stage::new(spec(json!({"overlap": "queue"})));
    stage.pass_s(185);
    stage.step(Event::Pause(true)).unwrap();
    stage.step(Event::Deploy { spec: Arc::new(spec(json!({"overlap": "queue"}))), at_once: false }).unwrap();
    assert_eq!((view(&stage).paused, view(&stage).waiting), (true, 2));
    // Without a schedule there is nothing to be paused, and a later one begins anew.
    stage.step(Event::Deploy { spec: Arc::new(http(json!({}))), at_once: false }).unwrap();
    stage.step(Event::Deploy { spec: Arc::new(spec(json!({}))), at_once: false }).unwrap();
    assert_eq!((view(&stage).paused, view(&stage).waiting), (false, 0));
}

#[test]
fn a_run_that_somebody_asked_for_counts_as_one() {
    let mut stage = Stage::new(spec(json!({"overlap": "skip"})));
    run_now(&mut stage);
    assert_eq!(view(&stage).running.len(), 1);
    stage.pass_s(65);
    assert_eq!(stage.given.len(), 1, "the run that was due was left out");
    stage.finish();
    assert!(view(&stage).running.is_empty());
}

#[test]
fn after_a_restart_runs_that_go_on_are_known_whatever_was_due_since() {
    // SPEC E05: the calls' ids tell; the schedule's own state has moved on to a due time that was left out.
    let began = Time(1_000_000_000);
    let state = ScheduleState { last: Some(began.plus_ms(120_000)), ..ScheduleState::default() };
    let now = began.plus_ms(150_000);
    let mut core = recovered(spec(json!({"overlap": "skip"})), &[began], state, now);
    let running = |core: &Function| core.schedule_view().unwrap().running;
    assert_eq!(running(&core), [call_of(&FunctionKey::new("prod", "f"), began)]);
    let mut out = Output::default();
    core.step(now, Event::Settled, &mut out).unwrap();
    core.step(began.plus_ms(185_000), Event::Alarm, &mut out).unwrap();
    assert_eq!(running(&core).len(), 1, "a second one began beside it");
}

#[test]
fn runs_that_were_missed_are_made_up_for_once_or_left_out() {
    // SPEC E05 and section 2.6
    let last = Time(1_000_000_000);
    let now = last.plus_ms(600_000 + 30_000);
    for (missed, runs) in [("run_once", 1), ("skip", 0)] {
        let state = ScheduleState { last: Some(last), ..ScheduleState::default() };
        let mut core = recovered(spec(json!({"missed": missed})), &[], state, now);
        let mut out = Output::default();
        core.step(now, Event::Settled, &mut out).unwrap();
        let ran: Vec<CallId> = core.schedule_view().unwrap().running;
        let latest = call_of(&FunctionKey::new("prod", "f"), last.plus_ms(600_000));
        assert_eq!(ran, vec![latest; runs], "{missed}");
        assert_eq!(core.schedule_view().unwrap().next[0], last.plus_ms(660_000));
    }
}

#[test]
fn a_profile_holds_between_its_times_and_what_it_raised_goes_down_again() {
    // SPEC E06 E07 N04 N16 N18: a warm pool in the morning, without a function that asks for it
    let warm = json!({"name": "warm", "start": "0 6 * * *", "end": "0 22 * * *",
        "autoscaler": {"min_containers": 4, "buffer_containers": 2}});
    let spec = http(json!({"profiles": [warm], "autoscaler": {"scaledown_window": 60}}));
    let mut stage = Stage::new(spec);
    let hour = |stage: &mut Stage, hour: u64| {
        let until = hour * 3_600 + 120;
        stage.pass_s(until - stage.now.0 / 1_000_000);
        let effective = stage.core.settings().2;
        (effective.min_containers, effective.buffer_containers, stage.containers())
    };
    assert_eq!(hour(&mut stage, 5), (0, 0, 0));
    assert_eq!(hour(&mut stage, 6), (4, 2, 4));
    assert_eq!(hour(&mut stage, 21), (4, 2, 4));
    assert_eq!(hour(&mut stage, 22), (0, 0, 0), "the next day begins in the evening");
    assert_eq!(hour(&mut stage, 30), (4, 2, 4));
}
