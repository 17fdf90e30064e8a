//! GPUs: found by the driver's library, given to one container each, bounded by quotas. The library is one of ours that lists
//! what a test says; all else is real.

use capstan_tests::real::{Up, binary, spec};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// Two cards of a model, one of another, and one that is cut into slices.
const CARDS: &str = "NVIDIA H100 80GB HBM3|GPU-1|81559;NVIDIA L4|GPU-2|23034;NVIDIA H100 80GB HBM3|GPU-3|81559;NVIDIA H100 80GB HBM3|GPU-4|81559|mig";

fn with_cards(arguments: &[&str]) -> anyhow::Result<(tempfile::TempDir, Up)> {
    let folder = capstan_tests::real::shared_folder()?;
    let library = format!("worker.nvml={}", binary("libcapstan_fake_nvml.so")?.display());
    let arguments: Vec<&str> = ["--set", &library].into_iter().chain(arguments.iter().copied()).collect();
    let up = Up::start_with(&folder.path().join("data"), &arguments, |command| {
        command.env("FAKE_NVML", CARDS);
    })?;
    Ok((folder, up))
}

/// Says which GPUs it sees, once the file that its input names is there, in the folder for temporary files that it names.
fn shows(folder: &tempfile::TempDir, gpu: Value) -> Value {
    let script = r#"wait=$(tr -d '"'); until [ -z "$wait" ] || [ -e "$wait" ]; do sleep 0.02; done; echo "\"$CUDA_VISIBLE_DEVICES|$NVIDIA_VISIBLE_DEVICES\"""#;
    let folder = folder.path().to_str().unwrap();
    spec(&["sh", "-c", script, folder], "exec", json!({"resources": {"gpu": gpu}}))
}

/// The outputs of a call that was just accepted, in some order.
async fn outputs(up: &Up, accepted: &Value) -> Vec<Value> {
    let results = up.results(accepted["call_id"].as_str().unwrap()).await.unwrap();
    let mut outputs: Vec<Value> = results.into_iter().map(|result| result["output"].clone()).collect();
    outputs.sort_by_key(Value::to_string);
    outputs
}

#[tokio::test]
async fn the_gpus_that_the_driver_lists_are_given_to_one_container_each() {
    // SPEC L01
    let (folder, up) = with_cards(&[]).unwrap();
    let joined = |answer: &Value| answer["workers"][0]["state"] == "ready";
    let worker = up.until_at("/v1/workers", SOON, joined).await.unwrap()["workers"][0].clone();
    let gpus = |ids: &[&str]| -> Value {
        ids.iter().map(|id| json!({"uuid": id, "model": "H100", "memory_mib": 81_559})).collect()
    };
    assert_eq!(
        (&worker["capacity"]["gpus"], &worker["free"]["gpus"]),
        (&gpus(&["GPU-1", "GPU-3"]), &gpus(&["GPU-1", "GPU-3"]))
    );
    up.deploy("gpu", shows(&folder, json!("H100"))).await.unwrap();
    up.deploy("two", shows(&folder, json!(["B200", "H100:2"]))).await.unwrap();
    up.deploy("l4", shows(&folder, json!(["L4"]))).await.unwrap();
    up.deploy("plain", shows(&folder, json!([]))).await.unwrap();
    let go = folder.path().join("go");
    let wait = json!(go.to_str().unwrap()).to_string();
    let (_, map) = up.post(&up.function("gpu", "/spawn_map"), format!("{wait}\n").repeat(2)).await.unwrap();
    let busy = |answer: &Value| answer["workers"][0]["free"]["gpus"].as_array().is_some_and(Vec::is_empty);
    up.until_at("/v1/workers", SOON, busy).await.unwrap();
    // Whoever wants two waits and hears why; what asks for none runs beside them, and sees none.
    let (_, waits) = up.post(&up.function("two", "/spawn"), "\"\"").await.unwrap();
    let explained = "/v1/namespaces/default/functions/two/explain";
    let why = up.until_at(explained, SOON, |a| !a["waiting"].is_null()).await.unwrap()["waiting"].clone();
    assert!(why["code"] == "no_capacity" && why["detail"].as_str().unwrap().contains("2 × H100"), "{why}");
    assert_eq!(up.invoke("plain", json!("")).await.unwrap(), (200, json!("|void")));
    // A card of the machine that this worker does not offer.
    up.post(&up.function("l4", "/spawn"), "\"\"").await.unwrap();
    let explained = "/v1/namespaces/default/functions/l4/explain";
    let why = up.until_at(explained, SOON, |a| !a["waiting"].is_null()).await.unwrap()["waiting"].clone();
    assert!(why["detail"].as_str().unwrap().contains("at most 2 × H100"), "{why}");
    std::fs::write(&go, "").unwrap();
    assert_eq!(outputs(&up, &map).await, [json!("GPU-1|GPU-1"), json!("GPU-3|GPU-3")]);
    // The second preference, with its count, once those above are idle: they give way.
    assert_eq!(outputs(&up, &waits).await, [json!("GPU-1,GPU-3|GPU-1,GPU-3")]);
}

#[tokio::test]
async fn a_namespace_takes_no_more_gpus_than_its_quota() {
    let (folder, up) = with_cards(&["--set", "worker.gpus=h100"]).unwrap();
    let capstan = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binary("capstan").unwrap());
        let output = command.args(["--url", &up.url]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    capstan(&["namespace", "default", "--gpus", "1"]);
    up.deploy("gpu", shows(&folder, json!(["H100"]))).await.unwrap();
    let go = folder.path().join("go");
    let wait = json!(go.to_str().unwrap()).to_string();
    let (_, map) = up.post(&up.function("gpu", "/spawn_map"), format!("{wait}\n").repeat(3)).await.unwrap();
    let explained = "/v1/namespaces/default/functions/gpu/explain";
    // Before that they wait for the store, which has them.
    let is_bounded = |a: &Value| a["waiting"]["code"] == "tenant_limit";
    let why = up.until_at(explained, SOON, is_bounded).await.unwrap()["waiting"].clone();
    assert!(why["detail"].as_str().unwrap().contains("at most 1 GPU;"), "{why}");
    let space = up.get("/v1/namespaces/default").await.unwrap();
    assert_eq!((&space["used"]["gpus"], &space["quota"]["gpus"]), (&json!(1), &json!(1)));
    assert!(capstan(&["namespaces"]).contains("GPUs"));
    assert!(capstan(&["workers"]).contains("H100"));
    // More is allowed: the next starts at once.
    capstan(&["namespace", "default", "--gpus", "2"]);
    up.until_at("/v1/namespaces/default", SOON, |space| space["used"]["gpus"] == 2).await.unwrap();
    std::fs::write(&go, "").unwrap();
    assert_eq!(outputs(&up, &map).await.len(), 3);
}

#[tokio::test]
async fn idle_containers_of_a_namespace_make_room_in_its_quota_at_once() {
    let (folder, up) = with_cards(&[]).unwrap();
    let policy = json!({"quota": {"gpus": 1}});
    up.http.put(up.at("/v1/namespaces/default")).json(&policy).send().await.unwrap().error_for_status().unwrap();
    for name in ["first", "second"] {
        up.deploy(name, shows(&folder, json!("H100"))).await.unwrap();
    }
    // Its window is a minute: the second function waits for no part of it.
    for name in ["first", "second", "first"] {
        assert_eq!(up.invoke(name, json!("")).await.unwrap().0, 200);
    }
    let policy = json!({"quota": {"gpus": 0}});
    up.http.put(up.at("/v1/namespaces/default")).json(&policy).send().await.unwrap().error_for_status().unwrap();
    up.until_at("/v1/namespaces/default", SOON, |space| space["used"]["gpus"] == 0).await.unwrap();
}

#[tokio::test]
async fn gpus_that_are_declared_are_numbered_and_those_that_are_not_there_are_refused_at_the_start() {
    let folder = capstan_tests::real::shared_folder().unwrap();
    let up = Up::start(&folder.path().join("data"), &["--set", "worker.gpus=MI300X:2"]).unwrap();
    up.deploy("f", shows(&folder, json!(["any:2"]))).await.unwrap();
    assert_eq!(up.invoke("f", json!("")).await.unwrap(), (200, json!("0,1|0,1")));
    for (gpus, part) in [("B200", "this machine has none of it; it has: H100, L4"), ("H100:0", "worker.gpus must be")] {
        let error = with_cards(&["--set", &format!("worker.gpus={gpus}")]).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = up.deploy("wrong", shows(&folder, json!(["H100:9"]))).await.unwrap_err().to_string();
    assert!(error.contains("/resources/gpu/0") && error.contains("from 1 to 8"), "{error}");
}
