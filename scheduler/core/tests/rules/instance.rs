//! Instances of functions with parameters: how long they are kept.

use crate::stage::{Stage, http};
use capstan_common::{
    function::{FunctionSpec, OverridesPatch},
    id::{FunctionKey, RequestId},
    parameter,
    refusal::Code,
};
use capstan_scheduler_core::{event::Event, limits::Limits};
use serde_json::json;

fn model() -> FunctionSpec {
    http(json!({"parameters": {"version": {}}, "autoscaler": {"scaledown_window": 5}}))
}

fn instance() -> Stage {
    let (key, spec) = parameter::bind(&FunctionKey::new("prod", "Model;version=3.5"), &model()).unwrap();
    Stage::named(&key.name, spec, Limits::default())
}

fn patch(settings: serde_json::Value) -> Event {
    let patch: OverridesPatch = serde_json::from_value(settings).unwrap();
    Event::Patch(patch)
}

#[test]
fn an_instance_goes_when_it_has_been_idle_and_unreferenced_for_a_while() {
    // SPEC D11
    let mut stage = instance();
    stage.step(Event::Enter { request: RequestId(1) }).unwrap();
    stage.pass_s(3_600);
    assert!(!stage.core.is_removed(), "it works");
    stage.step(Event::Leave { request: RequestId(1), spoilt: false }).unwrap();
    stage.pass_s(5 + 59);
    assert!(!stage.core.is_removed());
    stage.step(Event::Touch).unwrap();
    stage.pass_s(59);
    assert!(!stage.core.is_removed(), "somebody asked for it");
    stage.pass_s(1);
    assert!(stage.core.is_gone());
    assert_eq!(stage.step(Event::Touch).unwrap_err().code, Code::NotFound);
}

#[test]
fn settings_that_somebody_made_keep_an_instance() {
    // SPEC D12 D13
    let mut stage = instance();
    stage.step(patch(json!({"max_containers": 3}))).unwrap();
    stage.pass_s(86_400);
    assert!(!stage.core.is_removed());
    stage.step(patch(json!({"max_containers": null}))).unwrap();
    stage.pass_s(60);
    assert!(stage.core.is_gone());
}

#[test]
fn a_function_itself_is_kept_and_takes_no_work_while_a_parameter_has_no_value() {
    let mut stage = Stage::new(model());
    stage.pass_s(86_400);
    assert!(!stage.core.is_removed());
    let refused = stage.step(Event::Enter { request: RequestId(1) }).unwrap_err();
    assert_eq!(refused.errors[0].pointer, "/parameters/version");
}
