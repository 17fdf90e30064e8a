//! Functions with parameters: each set of values has a pool, settings and numbers of its own.

use crate::fresh;
use capstan_tests::real::{Up, spec};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

fn model(more: Value) -> Value {
    let mut all = json!({"parameters": {
        "model_version": {}, "size": {"type": "integer", "default": 7}, "fast": {"type": "boolean", "default": false},
    }});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec(&["sh", "-c", "cat > /dev/null; printf '%s' \"$CAPSTAN_PARAMETERS\""], "exec", all)
}

async fn names(up: &Up) -> Vec<String> {
    let listed = up.get("/v1/namespaces/default/functions/my-app.Model/instances").await.unwrap();
    let instances = listed["instances"].as_array().unwrap().iter();
    instances.map(|i| i["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn each_set_of_values_has_its_own_pool_settings_and_numbers() {
    // SPEC D11 D12 D13 D14 D15 N19: what a typed object has as a method is asked of the name here, at run time.
    let (_folder, up) = fresh(&[]);
    up.deploy("my-app.Model", model(json!({}))).await.unwrap();
    assert_eq!(names(&up).await, Vec::<String>::new());
    let (status, output) = up.invoke("my-app.Model;model_version=3.5", json!(1)).await.unwrap();
    assert_eq!((status, output), (200, json!({"fast": false, "model_version": "3.5", "size": 7})));
    // The order does not matter, nor that a default is given.
    let (status, output) = up.invoke("my-app.Model;size=7;model_version=4", json!(1)).await.unwrap();
    assert_eq!((status, &output["model_version"]), (200, &json!("4")));
    assert_eq!(names(&up).await, ["my-app.Model;model_version=3.5", "my-app.Model;model_version=4"]);

    let patched = up.http.patch(up.function("my-app.Model;model_version=3.5", "/autoscaler"));
    let patched: Value =
        patched.json(&json!({"min_containers": 2, "buffer_containers": 2})).send().await.unwrap().json().await.unwrap();
    assert_eq!(patched["effective"]["min_containers"], 2);
    let idle = |s: &Value, n: u64| s["containers"]["idle"] == n;
    up.until("my-app.Model;model_version=3.5", SOON, |s| idle(s, 2)).await.unwrap();
    let other = up.get("/v1/namespaces/default/functions/my-app.Model;model_version=4/autoscaler").await.unwrap();
    assert_eq!(
        (&other["overrides"]["min_containers"], &other["effective"]["min_containers"]),
        (&Value::Null, &json!(0))
    );
    assert_eq!(
        up.get("/v1/namespaces/default/functions/my-app.Model;model_version=4/stats").await.unwrap()["desired"],
        0
    );
    // A setting may be the first thing that is asked of an instance.
    let new = up.http.patch(up.function("my-app.Model;model_version=5;fast=true", "/autoscaler"));
    assert_eq!(new.json(&json!({"min_containers": 1})).send().await.unwrap().status().as_u16(), 200);
    up.until("my-app.Model;fast=true;model_version=5", SOON, |s| idle(s, 1)).await.unwrap();
    let listed = up.get("/v1/namespaces/default/functions").await.unwrap();
    assert_eq!(listed["functions"].as_array().unwrap().len(), 1, "instances are not functions: {listed}");

    let spawned = up.post(&up.function("my-app.Model;model_version=4", "/spawn_map"), "1\n2\n3\n").await.unwrap();
    assert_eq!(spawned.0, 202);
    let results = up.results(spawned.1["call_id"].as_str().unwrap()).await.unwrap();
    assert_eq!((results.len(), &results[0]["output"]["model_version"]), (3, &json!("4")));
}

#[tokio::test]
async fn wrong_values_are_refused_and_nothing_is_made_of_them() {
    let (_folder, up) = fresh(&["--set", "scheduler.limits.instances=2"]);
    up.deploy("my-app.Model", model(json!({}))).await.unwrap();
    for (name, pointer) in [
        ("my-app.Model", "/parameters/model_version"),
        ("my-app.Model;size=1", "/parameters/model_version"),
        ("my-app.Model;model_version=1;size=big", "/parameters/size"),
        ("my-app.Model;model_version=1;colour=red", "/parameters/colour"),
    ] {
        let (status, problem) = up.invoke(name, json!(1)).await.unwrap();
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{name}: {problem}");
    }
    assert_eq!(up.invoke("none;model_version=1", json!(1)).await.unwrap().0, 404);
    let unused = up.http.get(up.function("my-app.Model;model_version=1", "/stats")).send().await.unwrap();
    assert_eq!(unused.status().as_u16(), 404);
    let put =
        up.http.put(up.function("my-app.Model;model_version=1", "")).json(&model(json!({}))).send().await.unwrap();
    assert_eq!(put.status().as_u16(), 422, "instances are not deployed");
    let bad = up
        .http
        .put(up.function("bad", ""))
        .json(&model(json!({"parameters": {"n": {"type": "integer", "default": "x"}}})));
    let bad: Value = bad.send().await.unwrap().json().await.unwrap();
    assert_eq!(bad["errors"][0]["pointer"], "/parameters/n/default");
    assert_eq!(names(&up).await, Vec::<String>::new());
    for version in [1, 2] {
        assert_eq!(up.invoke(&format!("my-app.Model;model_version={version}"), json!(1)).await.unwrap().0, 200);
    }
    let (status, problem) = up.invoke("my-app.Model;model_version=3", json!(1)).await.unwrap();
    assert_eq!((status, &problem["code"]), (429, &json!("resource_exhausted")));
}

#[tokio::test]
async fn instances_follow_their_function_survive_a_crash_and_go_when_nobody_needs_them() {
    // SPEC D09 D11
    let (folder, mut up) = fresh(&["--set", "scheduler.limits.instance_idle_ms=1000"]);
    up.deploy("my-app.Model", model(json!({"autoscaler": {"scaledown_window": 1}}))).await.unwrap();
    let kept = "my-app.Model;model_version=3.5";
    let patch = up.http.patch(up.function(kept, "/autoscaler")).json(&json!({"max_containers": 9}));
    assert_eq!(patch.send().await.unwrap().status().as_u16(), 200);
    up.kill().unwrap();
    let up = Up::start(&folder.path().join("data"), &["--set", "scheduler.limits.instance_idle_ms=1000"]).unwrap();
    let settings = up.get(&format!("/v1/namespaces/default/functions/{kept}/autoscaler")).await.unwrap();
    assert_eq!(settings["effective"]["max_containers"], 9, "{settings}");
    // A deployment drops what was set, for instances too, and brings them its spec.
    up.deploy("my-app.Model", model(json!({"timeout_s": 33, "autoscaler": {"scaledown_window": 1}}))).await.unwrap();
    let seen = up.get(&format!("/v1/namespaces/default/functions/{kept}")).await.unwrap();
    assert_eq!((&seen["spec"]["timeout_s"], &seen["spec"]["bound"]), (&json!(33), &json!({"model_version": "3.5"})));
    // It has nothing to do and no settings of its own.
    let listed = "/v1/namespaces/default/functions/my-app.Model/instances";
    up.until_at(listed, SOON, |answer| answer["instances"] == json!([])).await.unwrap();
    // It is there again when it is called; with the function it goes.
    assert_eq!(up.invoke(kept, json!(1)).await.unwrap().0, 200);
    let removed = up.http.delete(up.function("my-app.Model", "")).send().await.unwrap();
    assert_eq!(removed.status().as_u16(), 204);
    assert_eq!(up.invoke(kept, json!(1)).await.unwrap().0, 404);
}

#[tokio::test]
async fn what_an_instance_has_accepted_is_done_whatever_becomes_of_its_name() {
    // SPEC D11
    let (_folder, up) = fresh(&["--set", "worker.cpu=1"]);
    let defaults = |version: &str| {
        json!({"resources": {"cpu": 1, "cpu_limit": null}, "autoscaler": {"scaledown_window": 1},
            "parameters": {"fast": {"type": "boolean", "default": false}, "model_version": {"default": version}}})
    };
    up.deploy("my-app.Model", model(defaults("1"))).await.unwrap();
    let (short, long) = ("my-app.Model;fast=true", "my-app.Model;fast=true;model_version=3.5");
    assert_eq!(up.invoke(short, json!(1)).await.unwrap().0, 200);
    let (status, spawned) = up.post(&up.function(long, "/spawn_map"), "1\n".repeat(40)).await.unwrap();
    assert_eq!(status, 202);
    // One instance goes, and not those whose names begin like its own.
    let removed = up.http.delete(up.function(short, "")).send().await.unwrap();
    assert_eq!(removed.status().as_u16(), 204);
    // Its value becomes the default: the name leads elsewhere now, and what waits is done all the same.
    up.deploy("my-app.Model", model(defaults("3.5"))).await.unwrap();
    let results = up.results(spawned["call_id"].as_str().unwrap()).await.unwrap();
    assert_eq!(results.len(), 40);
    assert!(results.iter().all(|line| line["output"]["model_version"] == "3.5"), "{results:?}");
}

#[tokio::test]
async fn settings_are_of_an_instance_and_a_patch_that_is_refused_makes_none() {
    // SPEC D11 D12
    let (_folder, up) = fresh(&[]);
    let more = json!({"parameters": {"version": {}}});
    up.deploy("app.Model", spec(&["cat"], "exec", more)).await.unwrap();
    let patch = async |name: &str, body: Value| {
        let response = up.http.patch(up.function(name, "/autoscaler")).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (status, problem) = patch("app.Model", json!({"min_containers": 2})).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/parameters/version")), "{problem}");
    for (body, pointer) in [
        (json!({"min_containers": 5000}), "/min_containers"),
        (json!({"max_containers": 0}), "/max_containers"),
        (json!({"speed": 1}), "/speed"),
    ] {
        let (status, problem) = patch("app.Model;version=1", body).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{problem}");
        let looked = up.http.get(up.function("app.Model;version=1", "/autoscaler")).send().await.unwrap();
        assert_eq!(looked.status().as_u16(), 404, "the refused patch made an instance");
    }
    assert_eq!(patch("app.Model;version=1", json!({"min_containers": 1})).await.0, 200);
    // What is pointed to is what was sent, and the other value's source is named.
    let (_, problem) = patch("app.Model;version=1", json!({"min_containers": 4, "max_containers": 4})).await;
    assert_eq!(problem["effective"]["min_containers"], 4);
    let (_, problem) = patch("app.Model;version=1", json!({"max_containers": 3})).await;
    assert_eq!(problem["errors"][0]["pointer"], "/max_containers");
    assert!(problem["detail"].as_str().unwrap().contains("3, overridden < 4, overridden"), "{problem}");
}
