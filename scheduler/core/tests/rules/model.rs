//! When a model's last container leaves, and what keeps it.

use crate::stage::{Stage, http};
use capstan_common::{call::CallKind, id::RequestId};
use capstan_scheduler_core::{
    event::{Event, Requests},
    scale_to_zero::Config,
};
use serde_json::json;

/// A model whose requests others tell of, with one container that was started for a first request.
fn model(activity: serde_json::Value) -> Stage {
    let spec = json!({"model_id": "m", "autoscaler": {"scaledown_window": 1}, "activity": activity});
    let mut stage = Stage::new(http(spec)).ruled(true, 600);
    let request = RequestId(1);
    stage.step(Event::Enter { request }).unwrap();
    stage.step(Event::Leave { request, spoilt: false }).unwrap();
    assert_eq!(stage.containers(), 1);
    stage
}

/// The container's counter shows this, every interval for so long.
fn reads(stage: &mut Stage, seconds: u64, value: impl Fn(u64) -> u64) {
    for second in 0..seconds {
        if second.is_multiple_of(5) {
            let container = stage.placed[stage.placed.len() - 1];
            stage.step(Event::Counted { container, value: value(second) }).unwrap();
        }
        stage.pass_s(1);
    }
}

#[test]
fn a_counter_that_stands_still_for_the_retention_lets_the_last_container_leave() {
    // SPEC P01 P02 P03
    let mut stage = model(json!({"interval_s": 5}));
    reads(&mut stage, 599, |_| 42);
    assert_eq!((stage.containers(), stage.core.stats().desired), (1, 1));
    reads(&mut stage, 10, |_| 42);
    assert_eq!(stage.containers(), 0);
}

#[test]
fn requests_past_capstan_keep_the_container_and_a_counter_that_began_anew_has_counted_them_all() {
    // SPEC P02
    let mut stage = model(json!({"interval_s": 5}));
    // One request at 400 s; then the program restarts inside of its container, has one request and shows 1.
    reads(&mut stage, 800, |second| if second < 400 { 42 } else { 43 });
    assert_eq!(stage.containers(), 1);
    reads(&mut stage, 300, |_| 1);
    reads(&mut stage, 290, |_| 1);
    assert_eq!(stage.containers(), 1, "600 s have not passed since the restarted program's request");
    reads(&mut stage, 30, |_| 1);
    assert_eq!(stage.containers(), 0);
}

#[test]
fn a_counter_that_cannot_be_read_keeps_the_container() {
    // SPEC decision D9: unknown is not zero
    let mut stage = model(json!({"interval_s": 5}));
    stage.pass_s(7_200);
    assert_eq!(stage.containers(), 1);
    reads(&mut stage, 5, |_| 0);
    stage.pass_s(5);
    assert_eq!(stage.containers(), 0, "known to be nothing");
}

fn prometheus(on_missing: &str) -> Stage {
    model(json!({"source": "prometheus", "interval_s": 30, "on_missing": on_missing}))
}

#[test]
fn a_prometheus_server_is_asked_when_the_retention_is_over_and_only_a_known_zero_counts() {
    // SPEC V04 V05 V06 P03, decision D9
    let mut stage = prometheus("keep");
    let begun = stage.now;
    stage.pass_s(599);
    assert!(stage.asked.is_empty(), "what Capstan itself knows suffices until then");
    stage.pass_s(1);
    assert_eq!(stage.asked, [(begun.plus_ms(600_000), 600_000)]);
    for answer in [Requests::Counted(42.0), Requests::Missing, Requests::Unknown, Requests::Counted(f64::NAN)] {
        stage.step(Event::Asked(answer)).unwrap();
        let before = stage.asked.len();
        stage.pass_s(30);
        assert_eq!((stage.containers(), stage.asked.len()), (1, before + 1), "{answer:?}");
    }
    stage.step(Event::Asked(Requests::Counted(0.0))).unwrap();
    stage.pass_s(2);
    assert_eq!(stage.containers(), 0);
    let asked = stage.asked.len();
    stage.pass_s(3_600);
    assert_eq!(stage.asked.len(), asked, "at zero there is nothing to ask");
}

#[test]
fn an_answer_grows_old() {
    // SPEC decision D9: what was known half an hour ago is not known now
    let mut stage = prometheus("keep");
    stage.pass_s(100);
    stage.step(Event::Asked(Requests::Counted(0.0))).unwrap();
    stage.pass_s(1_800);
    assert_eq!(stage.containers(), 1);
}

#[test]
fn a_missing_series_is_zero_only_where_that_is_said() {
    // SPEC V06, decision D9
    let mut stage = prometheus("zero");
    stage.pass_s(601);
    stage.step(Event::Asked(Requests::Unknown)).unwrap();
    stage.pass_s(5);
    assert_eq!(stage.containers(), 1);
    stage.step(Event::Asked(Requests::Missing)).unwrap();
    stage.pass_s(5);
    assert_eq!(stage.containers(), 0);
}

#[test]
fn each_retention_that_the_guide_recommends_keeps_the_last_container_for_just_so_long() {
    // SPEC W01 W07 P01 P02 Q01
    let config = json!({
        "dev": {"model_id": "dev", "enable_scale_to_zero": true, "retention_period": "2m"},
        "bursty": {"model_id": "bursty", "enable_scale_to_zero": true, "retention_period": "15m"},
        "steady": {"model_id": "steady", "enable_scale_to_zero": true, "retention_period": "30m"},
        "nightly": {"model_id": "nightly", "enable_scale_to_zero": true, "retention_period": "10m"},
        "critical": {"model_id": "critical", "enable_scale_to_zero": false},
    });
    let (config, warnings) = Config::read(config.as_object().unwrap());
    assert!(warnings.is_empty(), "{warnings:?}");
    for (model, minutes) in [("dev", 2), ("bursty", 15), ("steady", 30), ("nightly", 10), ("critical", 0)] {
        let effective = config.effective(model, "prod", None);
        let spec = json!({"model_id": model, "autoscaler": {"scaledown_window": 1}});
        let mut stage = Stage::new(http(spec)).ruled(effective.enable_scale_to_zero, effective.retention_ms / 1000);
        stage.one(1, CallKind::Invoke).unwrap();
        stage.finish();
        if minutes == 0 {
            stage.pass_s(86_400);
            assert_eq!(stage.containers(), 1, "{model} is never without");
            continue;
        }
        stage.pass_s(minutes * 60 - 1);
        assert_eq!(stage.containers(), 1, "{model} within its retention");
        stage.pass_s(2);
        assert_eq!(stage.containers(), 0, "{model} after it");
    }
}

#[test]
fn the_retention_counts_from_the_end_of_the_last_request_and_not_from_its_beginning() {
    // SPEC P01 P09 P10
    let mut stage = Stage::new(http(json!({"model_id": "m", "autoscaler": {"scaledown_window": 1}}))).ruled(true, 300);
    stage.one(1, CallKind::Invoke).unwrap();
    stage.pass_s(100);
    stage.finish();
    stage.pass_s(299);
    assert_eq!(stage.containers(), 1, "299 s after the request");
    stage.one(2, CallKind::Invoke).unwrap();
    stage.finish();
    stage.pass_s(299);
    assert_eq!(stage.containers(), 1, "the clock began anew with the second request");
    stage.pass_s(2);
    assert_eq!(stage.containers(), 0);
}
