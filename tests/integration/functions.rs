//! Functions over REST: deploy, settings, scaling, explanations.

use crate::fresh;
use capstan_tests::real::{Up, echo, spec};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

fn containers(stats: &Value) -> u64 {
    stats["containers"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum()
}

#[tokio::test]
async fn a_function_scales_from_zero_serves_and_returns_to_zero() {
    // SPEC A01 A02 A05 A06 A10 B12
    let (_folder, up) = fresh(&[]);
    up.deploy("f", echo("", json!({"autoscaler": {"scaledown_window": 1}})).unwrap()).await.unwrap();
    assert_eq!(containers(&up.get("/v1/namespaces/default/functions/f/stats").await.unwrap()), 0);
    assert_eq!(up.invoke("f", json!({"a": [1, "x"]})).await.unwrap(), (200, json!({"a": [1, "x"]})));
    up.until("f", SOON, |s| containers(s) == 0).await.unwrap();
    let explained = up.get("/v1/namespaces/default/functions/f/explain").await.unwrap();
    let reasons: Vec<_> =
        explained["decisions"].as_array().unwrap().iter().map(|d| d["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["no_inputs", "inputs"]);
    assert_eq!(explained["decisions"][1]["facts"]["pending"], 1);
}

#[tokio::test]
async fn settings_change_while_it_runs_survive_a_restart_and_fall_with_a_deploy() {
    // SPEC D01 D03 D07 D08 D09 D10 B03
    let (folder, mut up) = fresh(&[]);
    let deployed = echo("", json!({"autoscaler": {"max_containers": 5}})).unwrap();
    up.deploy("f", deployed.clone()).await.unwrap();
    let url = up.function("f", "/autoscaler");
    let patch = async |up: &capstan_tests::real::Up, url: &str, body: Value| -> (u16, Value) {
        let response = up.http.patch(url).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    };
    let (status, settings) = patch(&up, &url, json!({"min_containers": 2})).await;
    assert_eq!((status, &settings["effective"]["min_containers"]), (200, &json!(2)));
    up.until("f", SOON, |s| s["containers"]["idle"] == 2).await.unwrap();
    let (_, settings) = patch(&up, &url, json!({"max_containers": 3})).await;
    assert_eq!(settings["overrides"], json!({"min_containers": 2, "max_containers": 3}));
    let (status, problem) = patch(&up, &url, json!({"min_containers": 4})).await;
    assert_eq!((status, problem["errors"][0]["pointer"].as_str()), (422, Some("/min_containers")));
    up.kill().unwrap();
    let up = capstan_tests::real::Up::start(&folder.path().join("data"), &[]).unwrap();
    let settings = up.get("/v1/namespaces/default/functions/f/autoscaler").await.unwrap();
    assert_eq!(settings["overrides"], json!({"min_containers": 2, "max_containers": 3}));
    up.until("f", SOON, |s| s["containers"]["idle"] == 2).await.unwrap();
    let function = up.deploy("f", deployed).await.unwrap();
    assert_eq!(function["revision"], 2);
    let settings = up.get("/v1/namespaces/default/functions/f/autoscaler").await.unwrap();
    assert_eq!((&settings["overrides"], &settings["effective"]["max_containers"]), (&json!({}), &json!(5)));
}

#[tokio::test]
async fn running_inputs_finish_on_the_old_revision_and_new_ones_start_on_the_new() {
    let (_folder, up) = fresh(&[]);
    let version = |n: u32, pause: &str| spec(&["sh", "-c", &format!("sleep {pause}; echo {n}")], "exec", json!({}));
    up.deploy("f", version(1, "1")).await.unwrap();
    let (_, call) = up.post(&up.function("f", "/spawn"), "0").await.unwrap();
    up.until("f", SOON, |s| s["running"] == 1).await.unwrap();
    up.deploy("f", version(2, "0")).await.unwrap();
    assert_eq!(up.invoke("f", json!(0)).await.unwrap(), (200, json!(2)));
    let results = up.results(call["call_id"].as_str().unwrap()).await.unwrap();
    assert_eq!(results[0]["output"], 1);
}

#[tokio::test]
async fn wrong_specs_are_refused_with_the_field_and_nothing_is_deployed() {
    let (_folder, up) = fresh(&[]);
    let process = json!({"process": {"command": ["true"]}});
    for (body, status, pointer) in [
        (json!({}), 422, "/runtime"),
        (json!([1]), 422, ""),
        (json!({"runtime": 5}), 422, "/runtime"),
        (json!({"runtime": process, "protocol": 5}), 422, "/protocol"),
        (json!({"runtime": process, "autoscaler": [1, null, 0, 60]}), 422, "/autoscaler"),
        (json!({"runtime": process, "timeouts": 3}), 422, "/timeouts"),
        (json!({"runtime": process, "timeout_s": "3"}), 422, "/timeout_s"),
        (json!({"runtime": process, "timeout_s": 0}), 422, "/timeout_s"),
        (json!({"runtime": process, "autoscaler": {"min_containers": -1}}), 422, "/autoscaler/min_containers"),
        (
            json!({"runtime": process, "autoscaler": {"min_containers": 2, "max_containers": 1}}),
            422,
            "/autoscaler/min_containers",
        ),
        (json!({"runtime": {"container": {"image": "x"}}}), 422, "/runtime/container"),
        (
            json!({"runtime": {"process": {"command": ["true"], "working_dir": "here"}}}),
            422,
            "/runtime/process/working_dir",
        ),
    ] {
        let response = up.http.put(up.function("f", "")).json(&body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{body}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let malformed = up.http.put(up.function("f", "")).body("{").send().await.unwrap();
    assert_eq!(malformed.status().as_u16(), 400);
    assert_eq!(up.http.get(up.function("f", "")).send().await.unwrap().status().as_u16(), 404);
    let bad_name = up.http.put(up.function("a%20b", "")).json(&json!({"runtime": process})).send().await.unwrap();
    assert_eq!(bad_name.status().as_u16(), 422);
}

#[tokio::test]
async fn an_expected_revision_that_is_not_live_is_412_and_a_removed_function_is_404() {
    let (_folder, up) = fresh(&[]);
    let body = spec(&["cat"], "exec", json!({}));
    let put =
        |revision: &str| up.http.put(up.function("f", "")).header("If-Match", revision.to_owned()).json(&body).send();
    assert_eq!(up.http.put(up.function("f", "")).json(&body).send().await.unwrap().status().as_u16(), 201);
    assert_eq!(put("\"7\"").await.unwrap().status().as_u16(), 412);
    assert_eq!(put("\"1\"").await.unwrap().status().as_u16(), 200);
    let delete = up.http.delete(up.function("f", "")).header("If-Match", "\"9\"").send().await.unwrap();
    assert_eq!(delete.status().as_u16(), 412);
    let patch = up.http.patch(up.function("f", "/autoscaler")).header("If-Match", "\"9\"").json(&json!({})).send();
    assert_eq!(patch.await.unwrap().status().as_u16(), 412);
    assert_eq!(put("*").await.unwrap().status().as_u16(), 200);
    assert_eq!(up.http.delete(up.function("f", "")).send().await.unwrap().status().as_u16(), 204);
    assert_eq!(up.http.delete(up.function("f", "")).send().await.unwrap().status().as_u16(), 404);
    assert_eq!(up.invoke("f", json!(1)).await.unwrap().0, 404);
    assert_eq!(up.http.put(up.function("f", "")).json(&body).send().await.unwrap().status().as_u16(), 201);
    assert_eq!(up.invoke("f", json!(1)).await.unwrap(), (200, json!(1)));
}

#[tokio::test]
async fn idle_containers_give_way_to_waiting_work_of_another_function() {
    let (_folder, up) = fresh(&["--set", "worker.cpu=1"]);
    let whole = json!({"resources": {"cpu": 1}, "autoscaler": {"scaledown_window": 600}});
    up.deploy("a", echo("", whole.clone()).unwrap()).await.unwrap();
    up.deploy("b", echo("", whole).unwrap()).await.unwrap();
    assert_eq!(up.invoke("a", json!(1)).await.unwrap(), (200, json!(1)));
    assert_eq!(up.invoke("b", json!(2)).await.unwrap(), (200, json!(2)));
    assert_eq!(up.invoke("a", json!(3)).await.unwrap(), (200, json!(3)));
}

#[tokio::test]
async fn what_needs_the_room_of_two_idle_containers_gets_it_although_they_became_idle_one_after_the_other() {
    let (folder, up) = fresh(&["--set", "worker.cpu=2"]);
    let more = |cpu: u32| json!({"resources": {"cpu": cpu}, "autoscaler": {"scaledown_window": 600}});
    let script = "f=$(tr -d '\"'); until [ -e \"$f\" ]; do sleep 0.02; done; echo 1";
    let script = &["sh", "-c", script, folder.path().to_str().unwrap()];
    up.deploy("small", spec(script, "exec", more(1))).await.unwrap();
    up.deploy("big", echo("", more(2)).unwrap()).await.unwrap();
    let gate = |n: u32| folder.path().join(format!("go{n}"));
    let inputs = [1, 2].map(|n| format!("{}\n", json!(gate(n).to_str().unwrap()))).concat();
    up.post(&up.function("small", "/spawn_map"), inputs).await.unwrap();
    up.until("small", SOON, |s| s["containers"]["busy"] == 2).await.unwrap();
    for n in [1, 2] {
        std::fs::write(gate(n), "").unwrap();
        up.until("small", SOON, |s| s["containers"]["idle"] == n).await.unwrap();
    }
    assert_eq!(up.invoke("big", json!(3)).await.unwrap(), (200, json!(3)));
}

#[tokio::test]
async fn what_cannot_be_placed_says_why() {
    let (_folder, up) = fresh(&[]);
    up.deploy("f", spec(&["cat"], "exec", json!({"resources": {"gpu": ["H100"]}}))).await.unwrap();
    up.post(&up.function("f", "/spawn"), "1").await.unwrap();
    up.until("f", SOON, |s| s["backlog"] == 1).await.unwrap();
    let explained = up.get("/v1/namespaces/default/functions/f/explain").await.unwrap();
    assert_eq!(explained["waiting"]["code"], "no_capacity");
    assert!(explained["waiting"]["detail"].as_str().unwrap().contains("H100"));
}

#[tokio::test]
async fn a_function_goes_back_to_an_earlier_revision_and_drops_its_overrides() {
    let (folder, mut up) = fresh(&[]);
    let says = |word: &str| {
        spec(&["echo", word], "exec", json!({"runtime": {"process": {"command": ["echo", word], "env": {"K": word}}}}))
    };
    for word in ["1", "2", "3"] {
        up.deploy("f", says(word)).await.unwrap();
    }
    let path = "/v1/namespaces/default/functions/f";
    let patched = up.http.patch(up.at(&format!("{path}/autoscaler"))).json(&json!({"buffer_containers": 1}));
    assert_eq!(patched.send().await.unwrap().status(), 200);
    let back = |up: &Up, body: &'static str| {
        let asked = up.http.post(up.at(&format!("{path}/rollback"))).body(body).send();
        async move {
            let answer = asked.await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        }
    };
    let (status, function) = back(&up, "").await;
    assert_eq!(
        (status, &function["revision"], &function["spec"]["runtime"]["process"]["env"]["K"]),
        (200, &json!(4), &json!("2"))
    );
    assert_eq!(up.invoke("f", json!(0)).await.unwrap(), (200, json!(2)));
    assert_eq!(up.get(&format!("{path}/autoscaler")).await.unwrap()["overrides"], json!({}));
    // What is kept outlives a crash.
    up.kill().unwrap();
    up = Up::start(&folder.path().join("data"), &[]).unwrap();
    assert_eq!(back(&up, r#"{"revision":1}"#).await.0, 200);
    assert_eq!(up.invoke("f", json!(0)).await.unwrap(), (200, json!(1)));
    let kept = up.get(&format!("{path}/revisions")).await.unwrap();
    let told: Vec<_> =
        kept["revisions"].as_array().unwrap().iter().map(|r| (r["revision"].as_u64(), r["live"] == true)).collect();
    assert_eq!(told, [(Some(5), true), (Some(4), false), (Some(3), false), (Some(2), false), (Some(1), false)]);
    for (body, status) in
        [(r#"{"revision":9}"#, 404), (r#"{"revision":"x"}"#, 422), (r#"{"to":1}"#, 422), ("[1]", 422), ("{", 400)]
    {
        assert_eq!(back(&up, body).await.0, status, "{body}");
    }
    let stale = up.http.post(up.at(&format!("{path}/rollback"))).header("If-Match", "\"3\"").send().await.unwrap();
    assert_eq!(stale.status(), 412);
    // One that is deployed under the name of one that is gone has no past.
    assert_eq!(up.http.delete(up.at(path)).send().await.unwrap().status(), 204);
    assert_eq!(back(&up, "").await.0, 404);
    up.deploy("f", says("4")).await.unwrap();
    assert_eq!(back(&up, "").await.0, 404);
}

/// Invokes without a pause until it is told to stop; answers how many answers there were of each status.
async fn load(up: &Up, stop: &std::sync::atomic::AtomicBool) -> std::collections::BTreeMap<u16, u64> {
    let mut answers = std::collections::BTreeMap::new();
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let (status, _) = up.invoke("f", json!(1)).await.unwrap();
        *answers.entry(status).or_default() += 1;
    }
    answers
}

#[tokio::test]
async fn a_revision_that_does_not_start_fails_no_input_that_the_old_one_could_serve() {
    let (_folder, up) = fresh(&["--set", "scheduler.limits.start_backoff_ms=100"]);
    let path = up.at("/v1/namespaces/default/functions/f");
    let put = |spec: Value, query: &str| {
        let asked = up.http.put(format!("{path}?{query}")).json(&spec).send();
        async move {
            let answer = asked.await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        }
    };
    let works = |label: &str| echo("", json!({"autoscaler": {"min_containers": 1}, "labels": {"is": label}})).unwrap();
    assert_eq!(put(works("first"), "").await.0, 201);
    up.until("f", SOON, |s| s["containers"]["idle"] == 1).await.unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let broken = async {
        let script = |script: &str| spec(&["sh", "-c", script], "http", json!({"startup_timeout_s": 1}));
        for (wrong, told) in [
            ("exec /no/such/program", "no/such/program"),
            ("echo wrong settings >&2; exit 3", "wrong settings"),
            ("exec sleep 60", "not ready"),
        ] {
            let (status, answer) = put(script(wrong), "wait_s=60").await;
            assert_eq!((status, &answer["code"]), (409, &json!("deploy_failed")), "{answer}");
            assert!(answer["detail"].as_str().unwrap().contains(told), "{answer}");
        }
        let gpu = echo("", json!({"resources": {"gpu": "H100"}})).unwrap();
        assert_eq!(put(gpu.clone(), "require_capacity=true").await.0, 422);
        let (status, answer) = put(gpu, "wait_s=1").await;
        assert_eq!((status, &answer["revision"], &answer["live_revision"]), (200, &json!(5), &json!(1)), "{answer}");
        assert_eq!(up.get("/v1/namespaces/default/functions/f/explain").await.unwrap()["rollout"]["live_revision"], 1);
        // One that starts takes over.
        let (status, answer) = put(works("last"), "wait_s=60").await;
        assert_eq!((status, &answer["revision"], &answer["live_revision"]), (200, &json!(6), &json!(6)), "{answer}");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let loads = futures_util::future::join_all((0..4).map(|_| load(&up, &stop)));
    let (answers, ()) = tokio::join!(loads, broken);
    let failed: Vec<_> = answers.iter().flatten().filter(|(status, _)| **status != 200).collect();
    let succeeded: u64 = answers.iter().filter_map(|of| of.get(&200)).sum();
    assert!(failed.is_empty() && succeeded > 100, "{answers:?}");
    assert!(up.get("/v1/namespaces/default/functions/f/explain").await.unwrap()["rollout"].is_null());
    // By force it takes over at once, ready or not.
    let (status, answer) = put(spec(&["sleep", "60"], "http", json!({})), "force=true").await;
    assert_eq!((status, &answer["live_revision"]), (200, &json!(7)), "{answer}");
}

#[tokio::test]
async fn a_container_of_the_old_revision_has_its_own_secrets_and_rights_during_a_rollout() {
    let (folder, up) = fresh(&["--set", "scheduler.limits.start_backoff_ms=100"]);
    let secret = async |name: &str| {
        let path = up.at(&format!("/v1/namespaces/default/secrets/{name}"));
        up.http.put(path).json(&json!({"values": {"WORD": name}})).send().await.unwrap().status().as_u16()
    };
    assert_eq!((secret("old").await, secret("new").await), (201, 201));
    let server = folder.path().join("server.py");
    let source = "import os, http.server as h\nclass S(h.BaseHTTPRequestHandler):\n def do_POST(s):\n  s.rfile.read(int(s.headers['Content-Length'])); s.send_response(200); s.end_headers(); s.wfile.write(('\"%s %s\"' % (os.environ.get('WORD'), 'CAPSTAN_TOKEN' in os.environ)).encode())\nh.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), S).serve_forever()\n";
    std::fs::write(&server, source).unwrap();
    let python = server.display().to_string();
    let old = json!({"secrets": ["old"], "token": {"role": "none"}, "autoscaler": {"min_containers": 1}});
    up.deploy("f", spec(&["python3", &python], "http", old)).await.unwrap();
    up.until("f", SOON, |s| s["containers"]["idle"] == 1).await.unwrap();
    let new = json!({"secrets": ["new"], "token": {"role": "deploy"}, "autoscaler": {"min_containers": 1}});
    up.deploy("f", spec(&["sh", "-c", "exit 3"], "http", new)).await.unwrap();
    // Another container of the old revision.
    let listed = up.get("/v1/containers?function=f").await.unwrap();
    let first = listed["containers"].as_array().unwrap().iter().find(|c| c["revision"] == 1).unwrap();
    let stopped = up.http.post(up.at(&format!("/v1/containers/{}/stop", first["id"].as_str().unwrap()))).send().await;
    assert_eq!(stopped.unwrap().status(), 202);
    assert_eq!(up.invoke("f", json!(1)).await.unwrap(), (200, json!("old False")));
    // And nobody takes away what it may need again.
    for name in ["old", "new"] {
        let removed = up.http.delete(up.at(&format!("/v1/namespaces/default/secrets/{name}"))).send().await.unwrap();
        assert_eq!(removed.status(), 409, "{name}");
    }
}

#[tokio::test]
async fn a_rollout_goes_on_after_a_crash_of_the_scheduler() {
    let (folder, mut up) = fresh(&["--set", "scheduler.limits.start_backoff_ms=100"]);
    let go = folder.path().join("go");
    let path = "/v1/namespaces/default/functions/f";
    let server = |ready: &str| {
        let script = format!("{ready}; exec {}", capstan_tests::real::binary("echo-server").unwrap().display());
        spec(&["sh", "-c", &script], "http", json!({"autoscaler": {"min_containers": 1}}))
    };
    up.deploy("f", server(":")).await.unwrap();
    up.until("f", SOON, |s| s["containers"]["idle"] == 1).await.unwrap();
    let waits = format!("until [ -e {} ]; do sleep 0.05; done", go.display());
    let deployed = up.deploy("f", server(&waits)).await.unwrap();
    assert_eq!((&deployed["revision"], &deployed["live_revision"]), (&json!(2), &json!(1)));
    up.kill().unwrap();
    up = Up::start(&folder.path().join("data"), &["--set", "scheduler.limits.start_backoff_ms=100"]).unwrap();
    assert_eq!(up.invoke("f", json!([1])).await.unwrap(), (200, json!([1])));
    let now = up.get(path).await.unwrap();
    assert_eq!((&now["revision"], &now["live_revision"]), (&json!(2), &json!(1)), "{now}");
    std::fs::write(&go, "").unwrap();
    up.until_at(path, SOON, |f| f["live_revision"] == 2).await.unwrap();
    assert_eq!(up.invoke("f", json!([2])).await.unwrap(), (200, json!([2])));
}
