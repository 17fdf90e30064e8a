//! The examples of the guides behind the specification, each as a user of the REST interface writes it.

use crate::fresh;
use capstan_tests::real::{echo, spec};
use serde_json::{Value, json};

#[tokio::test]
async fn settings_of_the_guides_hold_as_they_are_written() {
    // SPEC N02 N03 N10 N11 N13 N15 B19 I04 J09, decision D8
    let (_folder, up) = fresh(&[]);
    for (name, more) in [
        ("cost-optimised", json!({"autoscaler": {"scaledown_window": 60}})),
        ("performance-optimised", json!({"autoscaler": {"scaledown_window": 1800}})),
        ("test", json!({"autoscaler": {"scaledown_window": 10}})),
        (
            "autoscaled",
            json!({"autoscaler": {"min_containers": 0, "max_containers": 100, "buffer_containers": 5, "scaledown_window": 300}}),
        ),
        (
            "handle-request",
            json!({"autoscaler": {"min_containers": 2, "max_containers": 100, "buffer_containers": 5, "scaledown_window": 300}}),
        ),
        ("fetch-url", json!({"concurrency": {"max_inputs": 100, "target_inputs": 80}})),
        ("asgi", json!({"concurrency": {"max_inputs": 100}})),
        ("web-service", json!({"concurrency": {"max_inputs": 20}, "resources": {"gpu": ["L40S"]}})),
        ("batch-predict", json!({"batching": {"max_batch_size": 32, "wait_ms": 100}, "resources": {"gpu": ["L40S"]}})),
    ] {
        let deployed = up.deploy(name, echo("", more.clone()).unwrap()).await.unwrap();
        for (field, written) in more.as_object().unwrap() {
            let Some(parts) = written.as_object() else { continue };
            for (part, value) in parts {
                assert_eq!(&deployed["spec"][field][part], value, "{name}: {field}.{part}");
            }
        }
    }
}

#[tokio::test]
async fn a_function_of_an_app_is_found_by_its_name_and_updated_from_inside_another() {
    // SPEC D02 D16 N04 N16 N17
    let (_folder, up) = fresh(&[]);
    up.deploy("my-app.process", echo("", json!({})).unwrap()).await.unwrap();
    // A container reaches Capstan as any client does, with the token that it was given.
    let curl = |settings: Value| {
        let url = up.function("my-app.process", "/autoscaler");
        let script = format!(
            "cat > /dev/null; curl -s -H \"Authorization: Bearer $CAPSTAN_TOKEN\" -X PATCH {url} -d '{settings}'"
        );
        spec(&["sh", "-c", &script], "exec", json!({"token": {"role": "deploy"}}))
    };
    up.deploy("my-app.scale_up_for_peak", curl(json!({"min_containers": 3, "buffer_containers": 2}))).await.unwrap();
    up.deploy("my-app.scale_down_after_peak", curl(json!({"min_containers": 1}))).await.unwrap();
    let (status, answered) = up.invoke("my-app.scale_up_for_peak", json!(null)).await.unwrap();
    assert_eq!((status, &answered["effective"]["min_containers"]), (200, &json!(3)), "{answered}");
    let (_, answered) = up.invoke("my-app.scale_down_after_peak", json!(null)).await.unwrap();
    // A partial update keeps what was set before.
    let effective = &answered["effective"];
    assert_eq!((&effective["min_containers"], &effective["buffer_containers"]), (&json!(1), &json!(2)));
}

#[tokio::test]
async fn a_warm_pool_on_new_york_weekdays_needs_no_function() {
    // SPEC N18
    let (_folder, up) = fresh(&[]);
    let warm = json!([{"name": "warm", "start": "0 6 * * 1-5", "end": "0 22 * * 1-5", "timezone": "America/New_York",
        "autoscaler": {"min_containers": 4}}]);
    let deployed = up.deploy("inference_server", echo("", json!({"profiles": warm})).unwrap()).await.unwrap();
    assert_eq!(deployed["spec"]["profiles"][0]["autoscaler"]["min_containers"], 4);
    let settings = up.get("/v1/namespaces/default/functions/inference_server/autoscaler").await.unwrap();
    let holds = settings["profiles"] == json!(["warm"]);
    assert_eq!(settings["effective"]["min_containers"], if holds { 4 } else { 0 }, "{settings}");
}

#[tokio::test]
async fn a_job_queue_keeps_its_jobs_and_tries_them_again() {
    // SPEC N06 N12
    let (folder, up) = fresh(&["--set", "scheduler.limits.retry_floor_ms=10"]);
    let tried = folder.path().join("tried");
    let script = format!("echo x >> {0}; test $(wc -l < {0}) -ge 3 && cat", tried.display());
    let retries = json!({"max_retries": 2, "initial_delay_ms": 10, "max_delay_ms": 1000});
    up.deploy("job", spec(&["sh", "-c", &script], "exec", json!({"retries": retries, "timeout_s": 3600})))
        .await
        .unwrap();
    let (status, spawned) = up.post(&up.function("job", "/spawn"), r#"{"job":7}"#).await.unwrap();
    assert_eq!(status, 202);
    let results = up.results(spawned["call_id"].as_str().unwrap()).await.unwrap();
    assert_eq!(results[0]["output"], json!({"job": 7}));
    assert_eq!(std::fs::read_to_string(tried).unwrap().lines().count(), 3);
}
