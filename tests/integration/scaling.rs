//! Scaling rules that operators set, against the real binary: schedules, profiles, models, namespaces, older names.

use crate::fresh;
use capstan_tests::{
    cluster::eventually,
    real::{Up, echo, spec},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

const SOON: Duration = Duration::from_secs(20);

fn live(stats: &Value) -> u64 {
    ["starting", "idle", "busy"].iter().filter_map(|state| stats["containers"][state].as_u64()).sum()
}

fn calls(answer: &Value) -> BTreeSet<String> {
    let listed = answer["calls"].as_array().cloned().unwrap_or_default();
    listed.iter().filter_map(|c| c["id"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_schedule_runs_once_at_each_due_time_also_across_a_kill() {
    // SPEC E05 and section 2.6
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut up = Up::start(&data, &[]).unwrap();
    let schedule = json!({"schedule": {"period_s": 1, "input": {"by": "schedule"}}});
    up.deploy("f", spec(&["cat"], "exec", schedule)).await.unwrap();
    let listed = "/v1/calls?function=f";
    let done = "/v1/calls?function=f&state=succeeded";
    up.until_at(done, SOON, |c| calls(c).len() >= 2).await.unwrap();
    let before = calls(&up.get(listed).await.unwrap());
    up.kill().unwrap();
    up = Up::start(&data, &[]).unwrap();
    let after = up.until_at(done, SOON, |c| calls(c).len() >= before.len() + 2).await.unwrap();
    assert!(calls(&after).is_superset(&before));
    let runs = calls(&up.get(listed).await.unwrap());
    let seconds: BTreeSet<_> = runs.iter().map(|id| id[3..15].to_owned()).collect();
    assert_eq!(seconds.len(), runs.len(), "two runs of one due time: {runs:?}");
    let id = runs.first().unwrap();
    assert_eq!(up.results(id).await.unwrap()[0]["output"], json!({"by": "schedule"}));

    let path = "/v1/namespaces/default/functions/f/schedule";
    let (status, view) = up.post(&up.at(&format!("{path}/pause")), "").await.unwrap();
    assert_eq!((status, &view["paused"], &view["next"]), (200, &json!(true), &json!([])));
    let (status, ran) = up.post(&up.at(&format!("{path}/run")), "").await.unwrap();
    assert_eq!(status, 202);
    let id = ran["call_id"].as_str().unwrap();
    assert_eq!(up.results(id).await.unwrap().len(), 1);
    let (_, view) = up.post(&up.at(&format!("{path}/resume")), "").await.unwrap();
    assert_eq!(view["next"].as_array().unwrap().len(), 5);
    up.deploy("g", spec(&["cat"], "exec", json!({}))).await.unwrap();
    let none = up.http.get(up.at("/v1/namespaces/default/functions/g/schedule")).send().await.unwrap();
    assert_eq!(none.status().as_u16(), 404);
}

#[tokio::test]
async fn wrong_times_are_refused_by_field() {
    let (_folder, up) = fresh(&[]);
    for (more, pointer) in [
        (json!({"schedule": {"cron": "0 25 * * *"}}), "/schedule/cron"),
        (json!({"schedule": {"cron": "0 8 * * *", "timezone": "Mars/Base"}}), "/schedule/timezone"),
        (json!({"schedule": {}}), "/schedule"),
        (json!({"schedule": {"cron": "0 8 * * *", "period_s": 5}}), "/schedule"),
        (json!({"schedule": {"period_s": 0}}), "/schedule/period_s"),
        (
            json!({"profiles": [{"name": "p", "start": "x", "end": "0 22 * * *", "autoscaler": {}}]}),
            "/profiles/0/start",
        ),
        (
            json!({"autoscaler": {"max_containers": 2}, "profiles": [{"name": "p", "start": "0 6 * * *", "end": "0 22 * * *", "autoscaler": {"min_containers": 4}}]}),
            "/profiles/0/autoscaler/min_containers",
        ),
        (json!({"autoscaler": {"keep_warm": 1, "min_containers": 2}}), "/autoscaler"),
    ] {
        let body = spec(&["cat"], "http", more);
        let response = up.http.put(up.function("f", "")).json(&body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 422, "{body}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
}

#[tokio::test]
async fn a_profile_holds_between_its_times_and_an_operator_has_the_last_word() {
    // SPEC E06 E07
    let (_folder, up) = fresh(&[]);
    // Started every minute and ended once a year: it holds now, whenever the test runs.
    let profile = json!({"name": "day", "start": "* * * * *", "end": "0 0 1 1 *", "autoscaler": {"min_containers": 2}});
    up.deploy("f", echo("", json!({"profiles": [profile]})).unwrap()).await.unwrap();
    let settings = up.get("/v1/namespaces/default/functions/f/autoscaler").await.unwrap();
    assert_eq!((&settings["profiles"], &settings["effective"]["min_containers"]), (&json!(["day"]), &json!(2)));
    up.until("f", SOON, |s| live(s) == 2).await.unwrap();
    let url = up.function("f", "/autoscaler");
    let patched: Value =
        up.http.patch(&url).json(&json!({"min_containers": 0})).send().await.unwrap().json().await.unwrap();
    assert_eq!(patched["effective"]["min_containers"], 0);
    let refused = up.http.patch(&url).json(&json!({"max_containers": 1, "min_containers": 3})).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 422);
    let problem: Value = refused.json().await.unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("3, overridden > 1, overridden"), "{problem}");
}

#[tokio::test]
async fn profiles_that_contradict_each_other_are_refused_and_an_operator_hears_what_a_profile_will_cut() {
    // SPEC E07
    let (_folder, up) = fresh(&[]);
    let profile = |name: &str, start: &str, end: &str, autoscaler: Value| json!({"name": name, "start": start, "end": end, "autoscaler": autoscaler});
    let day = profile("day", "0 6 * * 1-5", "0 22 * * 1-5", json!({"min_containers": 5}));
    let lean = |start: &str, end: &str| profile("lean", start, end, json!({"max_containers": 3}));
    let with = |second: Value| echo("", json!({"profiles": [day, second]})).unwrap();
    let error = up.deploy("f", with(lean("0 12 * * *", "0 13 * * *"))).await.unwrap_err().to_string();
    for part in ["/profiles/0/autoscaler/min_containers", "profile `day`", "profile `lean`", "T12:00:00Z"] {
        assert!(error.contains(part), "{error}");
    }
    // Ended every minute: it does not hold now, whenever the test runs.
    up.deploy("f", with(lean("0 0 29 2 *", "* * * * *"))).await.unwrap();
    let url = up.function("f", "/autoscaler");
    let patched = up.http.patch(&url).json(&json!({"min_containers": 4, "max_containers": null})).send().await.unwrap();
    let warnings = patched.json::<Value>().await.unwrap()["warnings"].clone();
    assert_eq!(warnings.as_array().map_or(0, Vec::len), 1, "{warnings}");
    assert!(warnings[0].as_str().unwrap().contains("while profile `lean` holds"), "{warnings}");
}

#[tokio::test]
async fn older_names_hold_and_are_told_of() {
    // SPEC B17 B18
    let (_folder, up) = fresh(&[]);
    let answer = up
        .deploy("f", echo("", json!({"autoscaler": {"keep_warm": 1, "container_idle_timeout": 30}})).unwrap())
        .await
        .unwrap();
    assert_eq!(answer["spec"]["autoscaler"]["min_containers"], 1);
    let warnings = answer["warnings"].as_array().unwrap();
    assert!(warnings.len() == 2 && warnings[0].as_str().unwrap().contains("min_containers"), "{warnings:?}");
    up.until("f", SOON, |s| live(s) == 1).await.unwrap();
}

#[tokio::test]
async fn settings_take_effect_on_a_running_pool() {
    // SPEC B03 B04 D05 D06 D10
    let (_folder, up) = fresh(&["--set", "worker.cpu=8"]);
    up.deploy("f", echo("", json!({"autoscaler": {"min_containers": 2, "scaledown_window": 600}})).unwrap())
        .await
        .unwrap();
    up.until("f", SOON, |s| live(s) == 2 && s["containers"]["idle"] == 2).await.unwrap();
    let patch = |body: Value| up.http.patch(up.function("f", "/autoscaler")).json(&body).send();
    patch(json!({"min_containers": 5})).await.unwrap();
    up.until("f", SOON, |s| s["containers"]["idle"] == 5).await.unwrap();
    // Lowered: the idle ones above the maximum do not wait out their window.
    patch(json!({"min_containers": 1, "max_containers": 2})).await.unwrap();
    up.until("f", SOON, |s| live(s) == 2).await.unwrap();
    patch(json!({"scaledown_window": 1})).await.unwrap();
    up.until("f", SOON, |s| live(s) == 1).await.unwrap();
}

/// Example 4 of the guide, as a ConfigMap.
const EXAMPLE_4: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata:
  name: model-scale-to-zero-config
  namespace: workload-variant-autoscaler-system
data:
  # Production: longer retention for stability
  llama-prod: |
    model_id: meta/llama-3.1-8b
    namespace: production
    retention_period: "30m"
  llama-dev: |
    model_id: meta/llama-3.1-8b
    namespace: development
    retention_period: "2m"
  broken: |
    model_id: [
"#;

#[tokio::test]
async fn the_configuration_of_the_guide_holds_namespace_by_namespace_and_survives_a_kill() {
    // SPEC Q04 R03 R05 R14 S10 V01 W08, decisions D10 D11 D16 D17
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut up = Up::start(&data, &[]).unwrap();
    let put = up
        .http
        .put(up.at("/v1/scale-to-zero"))
        .header("Content-Type", "application/yaml")
        .body(EXAMPLE_4)
        .send()
        .await
        .unwrap();
    assert_eq!(put.status().as_u16(), 200);
    let warned = put.headers()["Capstan-Warnings"].to_str().unwrap().to_owned();
    assert!(warned.contains("broken"), "{warned}");
    // Another manifest is not taken for an empty ConfigMap.
    for (wrong, pointer) in [
        (EXAMPLE_4.replace("ConfigMap", "Secret"), "/kind"),
        (EXAMPLE_4.replace("name: model-", "name: my-"), "/metadata/name"),
    ] {
        let put = up.http.put(up.at("/v1/scale-to-zero")).header("Content-Type", "application/yaml").body(wrong);
        let refused = put.send().await.unwrap();
        assert_eq!(refused.status(), 422);
        assert_eq!(refused.json::<Value>().await.unwrap()["errors"][0]["pointer"], pointer);
    }
    for round in 0..2 {
        for (namespace, retention, by) in
            [("production", "30m", "llama-prod"), ("development", "2m", "llama-dev"), ("staging", "10m", "system")]
        {
            let path = format!("/v1/scale-to-zero/effective?model_id=meta/llama-3.1-8b&namespace={namespace}");
            let effective = up.get(&path).await.unwrap();
            let told = (&effective["retention_period"], &effective["decided_by"]["retention_period"]);
            assert_eq!(told, (&json!(retention), &json!(by)), "round {round}: {effective}");
        }
        up.kill().unwrap();
        up = Up::start(&data, &[]).unwrap();
    }
    let kept = up.get("/v1/scale-to-zero").await.unwrap();
    assert!(kept["llama-prod"].as_str().unwrap().contains("30m"));
    let missing = up.http.get(up.at("/v1/scale-to-zero/effective")).send().await.unwrap();
    assert_eq!(missing.status().as_u16(), 422);
    let wrong = up.http.put(up.at("/v1/scale-to-zero")).body("- 1\n").send().await.unwrap();
    assert_eq!(wrong.status().as_u16(), 422);
}

#[tokio::test]
async fn a_model_leaves_after_its_retention_and_only_where_it_may() {
    // SPEC P01 P03 P06 P09 P10 R12 V07 V09 X03
    let (_folder, up) = fresh(&["--set", "worker.cpu=4"]);
    let put = |config: Value| up.http.put(up.at("/v1/scale-to-zero")).json(&config).send();
    put(json!({
        "default": {"enable_scale_to_zero": true, "retention_period": "2s"},
        "critical": {"model_id": "critical", "enable_scale_to_zero": false},
    }))
    .await
    .unwrap();
    let window = json!({"scaledown_window": 1});
    for model in ["critical", "cheap"] {
        up.deploy(model, echo("", json!({"model_id": model, "autoscaler": window})).unwrap()).await.unwrap();
    }
    // One that may not be at zero is started without a request; one that may is not.
    up.until("critical", SOON, |s| live(s) == 1).await.unwrap();
    assert_eq!(live(&up.get("/v1/namespaces/default/functions/cheap/stats").await.unwrap()), 0);
    assert_eq!(up.invoke("cheap", json!(1)).await.unwrap(), (200, json!(1)));
    let explained = "/v1/namespaces/default/functions/cheap/explain";
    let reasons = |answer: &Value| -> Vec<String> {
        let decisions = answer["decisions"].as_array().cloned().unwrap_or_default();
        decisions.iter().filter_map(|d| d["reason"].as_str().map(str::to_owned)).collect()
    };
    up.until_at(explained, SOON, |a| reasons(a).first().is_some_and(|r| r == "no_inputs")).await.unwrap();
    up.until("cheap", SOON, |s| live(s) == 0).await.unwrap();
    let told = up.get(explained).await.unwrap();
    assert_eq!(told["scale_to_zero"]["retention_s"], 2.0);
    assert_eq!(told["scale_to_zero"]["decided_by"]["retention_period"], "default");
    assert_eq!(live(&up.get("/v1/namespaces/default/functions/critical/stats").await.unwrap()), 1);
    let critical = up.get("/v1/namespaces/default/functions/critical/explain").await.unwrap();
    assert!(reasons(&critical).contains(&"scale_to_zero_disabled".to_owned()), "{critical}");
    // The configuration is live: once it is allowed, it leaves too.
    put(json!({"default": {"enable_scale_to_zero": true, "retention_period": "1s"}})).await.unwrap();
    up.until("critical", SOON, |s| live(s) == 0).await.unwrap();
    // When requests resume, it is there again.
    assert_eq!(up.invoke("critical", json!(7)).await.unwrap(), (200, json!(7)));
    // Whoever watches one model hears of it, and of no model that is gone.
    let zeros =
        |name: &str| format!("capstan_model_scaled_to_zero_total{{namespace=\"default\",function=\"{name}\"}} 1\n");
    let metrics = async || up.http.get(up.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics().await.contains(&zeros("cheap")));
    up.http.delete(up.function("cheap", "")).send().await.unwrap().error_for_status().unwrap();
    eventually("its counter goes", async || (!metrics().await.contains(&zeros("cheap"))).then_some(())).await;
}

#[tokio::test]
async fn autoscalers_outside_find_an_explicit_zero_and_the_guides_queries_are_answered() {
    // SPEC U03 U04 V04 V05 V06 W09 X03, decisions D9 D12 D13
    let (_folder, up) = fresh(&[]);
    let model = json!({"model_id": "meta/llama-3.1-8b", "autoscaler": {"scaledown_window": 1}});
    up.http
        .put(up.at("/v1/scale-to-zero"))
        .json(&json!({"default": {"enable_scale_to_zero": true}}))
        .send()
        .await
        .unwrap();
    up.deploy("llama-8b-autoscaler", echo("", model).unwrap()).await.unwrap();
    let keda = "inferno_desired_replicas{\n  variantautoscaling_name=\"llama-8b-autoscaler\",\n  variantautoscaling_namespace=\"default\"\n}";
    let requests =
        "sum(increase(vllm:request_success_total{namespace=\"default\",model_name=\"meta/llama-3.1-8b\"}[10m]))";
    let ask = |query: String| {
        let url = reqwest::Url::parse_with_params(&up.at("/api/v1/query"), [("query", query)]).unwrap();
        let request = up.http.get(url);
        async move {
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.json::<Value>().await.unwrap())
        }
    };
    let value = |answer: &Value| answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
    let (status, idle) = ask(keda.into()).await;
    assert_eq!((status, idle["data"]["result"].as_array().unwrap().len()), (200, 1), "{idle}");
    assert_eq!(value(&idle).as_deref(), Some("0"));
    assert_eq!(value(&ask(requests.into()).await.1).as_deref(), Some("0"));
    for _ in 0..3 {
        assert_eq!(up.invoke("llama-8b-autoscaler", json!(1)).await.unwrap().0, 200);
    }
    assert_eq!(value(&ask(keda.into()).await.1).as_deref(), Some("1"));
    assert_eq!(value(&ask(requests.into()).await.1).as_deref(), Some("3"));
    let unknown = ask(requests.replace("8b", "70b")).await.1;
    assert_eq!(unknown["data"]["result"], json!([]), "no data is not zero");
    assert_eq!(ask("rate(".into()).await.0, 400);
    assert_eq!(ask("rate(x[5m])".into()).await.0, 422);
    // Of other times nothing is known, and none is made up.
    assert_eq!(ask("inferno_desired_replicas offset 1h".into()).await.0, 422);
    let of_old = format!("{}?query=inferno_desired_replicas&time=1600000000", up.at("/api/v1/query"));
    assert_eq!(up.http.get(of_old).send().await.unwrap().status(), 422);
    let text = up.http.get(up.at("/metrics")).send().await.unwrap().text().await.unwrap();
    for name in ["inferno_desired_replicas{", "wva_desired_replicas{", "capstan_model_requests_total{"] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    // As Kubernetes' own interfaces have it. SPEC section 3.8, decision D14
    let external = "/apis/external.metrics.k8s.io/v1beta1";
    let listed = up.get(external).await.unwrap();
    assert_eq!(
        (&listed["kind"], &listed["groupVersion"]),
        (&json!("APIResourceList"), &json!("external.metrics.k8s.io/v1beta1"))
    );
    let of_model = "inferno_desired_replicas?labelSelector=variantautoscaling_name%3Dllama-8b-autoscaler%2Cmodel_name";
    let list = up.get(&format!("{external}/namespaces/default/{of_model}")).await.unwrap();
    assert_eq!((&list["kind"], &list["items"][0]["value"]), (&json!("ExternalMetricValueList"), &json!("1")), "{list}");
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let custom = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/variantautoscalings.llmd.ai";
    let list = up.get(&format!("{custom}/llama-8b-autoscaler/inferno_desired_replicas")).await.unwrap();
    let item = &list["items"][0];
    assert_eq!((&list["kind"], &item["value"]), (&json!("MetricValueList"), &json!("1")), "{list}");
    assert_eq!(item["describedObject"]["kind"], "VariantAutoscaling");
    for missing in [format!("{external}/namespaces/default/nothing"), format!("{custom}/nobody/wva_desired_replicas")] {
        let answer = up.http.get(up.at(&missing)).send().await.unwrap();
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.json::<Value>().await.unwrap()["kind"], "Status");
    }
    let scaling = up.get("/v1/namespaces/default/functions/llama-8b-autoscaler/scaling").await.unwrap();
    assert_eq!(scaling["desired"], 1);
}

#[tokio::test]
async fn a_namespace_stays_within_its_quota_and_equal_ones_share_a_full_machine() {
    let (_folder, up) = fresh(&["--set", "worker.cpu=4", "--set", "worker.memory_mib=4096"]);
    let put = |ns: &str, policy: Value| up.http.put(up.at(&format!("/v1/namespaces/{ns}"))).json(&policy).send();
    assert_eq!(put("small", json!({"quota": {"containers": 1}})).await.unwrap().status().as_u16(), 200);
    assert_eq!(put("small2", json!({"weight": 0})).await.unwrap().status().as_u16(), 422);
    let body = spec(&["sh", "-c", "sleep 0.05; echo 1"], "exec", json!({"resources": {"cpu": 0.5, "cpu_limit": null}}));
    let at = |ns: &str, what: &str| up.at(&format!("/v1/namespaces/{ns}/functions/f{what}"));
    for ns in ["small", "a", "b"] {
        up.http.put(at(ns, "")).json(&body).send().await.unwrap().error_for_status().unwrap();
    }
    up.post(&at("small", "/spawn_map"), "1\n".repeat(200)).await.unwrap();
    let waits =
        up.until_at("/v1/namespaces/small/functions/f/explain", SOON, |a| !a["waiting"].is_null()).await.unwrap();
    assert_eq!(waits["waiting"]["code"], "tenant_limit", "{waits}");
    up.http.delete(at("small", "")).send().await.unwrap();
    // One of two is there first and fills the machine; the other gets its half without any work being cut off.
    let (_, first) = up.post(&at("a", "/spawn_map"), "1\n".repeat(2_000)).await.unwrap();
    up.until_at("/v1/namespaces/a/functions/f/stats", SOON, |s| live(s) >= 7).await.unwrap();
    let (_, second) = up.post(&at("b", "/spawn_map"), "1\n".repeat(2_000)).await.unwrap();
    let used = |answer: &Value, name: &str| {
        let spaces = answer["namespaces"].as_array().cloned().unwrap_or_default();
        spaces.iter().find(|s| s["name"] == name).and_then(|s| s["used"]["containers"].as_u64()).unwrap_or(0)
    };
    up.until_at("/v1/namespaces", SOON, |a| used(a, "a") == 4 && used(a, "b") == 4).await.unwrap();
    for call in [first, second] {
        let id = call["call_id"].as_str().unwrap();
        let (_, view) = up.post(&up.at(&format!("/v1/calls/{id}/cancel")), "").await.unwrap();
        assert_eq!(view["inputs"]["failed"], 0, "{view}");
    }
}

#[tokio::test]
async fn what_an_idle_model_gave_back_is_placed_again_and_costs_nothing() {
    // SPEC P07 P08
    let (_folder, up) = fresh(&["--set", "worker.cpu=1"]);
    let config = json!({"default": {"enable_scale_to_zero": true, "retention_period": "3s"}});
    assert_eq!(up.http.put(up.at("/v1/scale-to-zero")).json(&config).send().await.unwrap().status().as_u16(), 200);
    let whole = json!({"cpu": 1, "cpu_limit": null});
    let model = json!({"model_id": "m", "resources": whole, "autoscaler": {"scaledown_window": 1}});
    up.deploy("model", echo("", model).unwrap()).await.unwrap();
    assert_eq!(up.invoke("model", json!(1)).await.unwrap().0, 200);
    // The retention is the model's minimum: it does not give way before.
    up.deploy("other", echo("", json!({"resources": whole})).unwrap()).await.unwrap();
    let (status, spawned) = up.post(&up.function("other", "/spawn"), "2").await.unwrap();
    assert_eq!(status, 202);
    up.until_at("/v1/namespaces/default/functions/other/explain", SOON, |a| a["waiting"]["code"] == "no_capacity")
        .await
        .unwrap();
    assert_eq!(live(&up.get("/v1/namespaces/default/functions/model/stats").await.unwrap()), 1);
    let results = up.results(spawned["call_id"].as_str().unwrap()).await.unwrap();
    assert_eq!(results[0]["output"], 2);
    assert_eq!(live(&up.get("/v1/namespaces/default/functions/model/stats").await.unwrap()), 0);
}
