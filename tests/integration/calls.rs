//! Calls over REST: outputs, errors, limits, keys, cancellation, batching.

use crate::fresh;
use capstan_tests::real::{echo, spec};
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_map_gives_every_output_in_order_or_as_they_end() {
    // SPEC F03 F05 F06 F20
    let (_folder, up) = fresh(&[]);
    up.deploy("f", echo("", json!({"concurrency": {"max_inputs": 8}})).unwrap()).await.unwrap();
    let lines = up.map("f", "", (0..3000).map(|n| json!(n))).await.unwrap();
    let expected: Vec<_> = (0..3000).map(|n| json!({"index": n, "output": n})).collect();
    assert_eq!(lines, expected);
    let mut lines = up.map("f", "ordered=false", (0..100).map(|n| json!(n))).await.unwrap();
    lines.sort_by_key(|line| line["index"].as_u64());
    assert_eq!(lines, expected[..100]);
    assert!(up.map("f", "", []).await.unwrap().is_empty());
}

#[tokio::test]
async fn outputs_come_as_they_end_where_their_order_does_not_matter() {
    // SPEC F08
    let (_folder, up) = fresh(&[]);
    let script = "read n; [ $n != 0 ] || sleep 1; echo $n";
    let more = json!({"autoscaler": {"min_containers": 2, "max_containers": 2}, "resources": {"cpu": 0.1}});
    up.deploy("f", spec(&["sh", "-c", script], "exec", more)).await.unwrap();
    let indexes = |lines: &[Value]| lines.iter().map(|line| line["index"].as_u64().unwrap()).collect::<Vec<_>>();
    let lines = up.map("f", "ordered=false", (0..4).map(|n| json!(n))).await.unwrap();
    assert_eq!(indexes(&lines).last(), Some(&0), "the slowest is the last: {lines:?}");
    let lines = up.map("f", "ordered=true", (0..4).map(|n| json!(n))).await.unwrap();
    assert_eq!(indexes(&lines), [0, 1, 2, 3]);
}

#[tokio::test]
async fn results_are_waited_for_as_long_as_asked_and_no_longer() {
    // SPEC G02 G03 G04: `wait_s` waits, ends, and with 0 asks for what there is.
    let (folder, up) = fresh(&[]);
    let go = folder.path().join("go");
    let script = format!("until [ -e {} ]; do sleep 0.02; done; echo 1", go.display());
    up.deploy("f", spec(&["sh", "-c", &script], "exec", json!({}))).await.unwrap();
    let (_, call) = up.post(&up.function("f", "/spawn"), "1").await.unwrap();
    let id = call["call_id"].as_str().unwrap().to_owned();
    let results = |wait: f64| {
        let request = up.http.get(up.at(&format!("/v1/calls/{id}/results?wait_s={wait}")));
        async move {
            let begun = std::time::Instant::now();
            (request.send().await.unwrap().text().await.unwrap(), begun.elapsed())
        }
    };
    assert_eq!(results(0.0).await.0, "", "nothing is there, and nothing is waited for");
    let (nothing, waited) = results(0.4).await;
    assert!(nothing.is_empty() && waited >= Duration::from_millis(400), "{waited:?}");
    let waiting = results(30.0);
    let finish = async { std::fs::write(&go, "").unwrap() };
    let ((line, waited), ()) = tokio::join!(waiting, finish);
    assert!(line.contains("\"output\":1") && waited < Duration::from_secs(20), "{line} after {waited:?}");
}

#[tokio::test]
async fn the_first_error_ends_a_map_unless_errors_are_collected() {
    // SPEC F09 F10 F12 F21
    let (_folder, up) = fresh(&[]);
    up.deploy(
        "f",
        spec(&["sh", "-c", "read n; [ $n != 2 ] || { echo ohno >&2; exit 1; }; echo $n"], "exec", json!({})),
    )
    .await
    .unwrap();
    let inputs = || (0..4).map(|n| json!(n));
    let lines = up.map("f", "on_error=collect", inputs()).await.unwrap();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[1]["output"], &lines[2]["error"]["type"]), (&json!(1), &json!("ExitCode1")));
    assert!(lines[2]["error"]["message"].as_str().unwrap().contains("ohno"));
    // To raise is the default.
    let lines = up.map("f", "", inputs()).await.unwrap();
    assert!(!lines.last().unwrap()["error"].is_null() && lines.len() < 4, "{lines:?}");
    let lines = up.map("f", "on_error=raise", inputs()).await.unwrap();
    assert!(lines.last().unwrap()["error"]["message"].as_str().unwrap().contains("ohno"));
    assert_eq!(lines.iter().filter(|l| !l["error"].is_null()).count(), 1);
    let lines = up.map("f", "on_error=collect&outputs=false", inputs()).await.unwrap();
    assert_eq!(lines, [json!({"done": true, "succeeded": 3, "failed": 1})]);
    let lines = up.map("f", "on_error=raise&outputs=false", inputs()).await.unwrap();
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["done"], &lines[0]["failed"], &lines[0]["index"]), (&json!(true), &json!(1), &json!(2)));
}

#[tokio::test]
async fn an_ordered_map_gives_what_is_before_the_error_and_nothing_behind_it() {
    // SPEC F09
    let (_folder, up) = fresh(&[]);
    let script = "read n; case $n in 0) sleep 0.5; echo 0;; 1) echo ohno >&2; exit 1;; *) sleep 30;; esac";
    up.deploy("f", spec(&["sh", "-c", script], "exec", json!({}))).await.unwrap();
    let lines = up.map("f", "ordered=true&on_error=raise", (0..4).map(|n| json!(n))).await.unwrap();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((&lines[0]["output"], &lines[1]["index"]), (&json!(0), &json!(1)));
    let calls = up.get("/v1/calls?function=f").await.unwrap();
    let counts = &calls["calls"][0];
    assert_eq!((&counts["state"], &counts["inputs"]["cancelled"]), (&json!("failed"), &json!(2)), "{calls}");
}

#[tokio::test]
async fn outputs_over_several_lines_come_on_one() {
    let (_folder, up) = fresh(&[]);
    up.deploy("f", spec(&["python3", "-m", "json.tool"], "exec", json!({}))).await.unwrap();
    let lines = up.map("f", "", [json!({"a": [1, 2], "b": "c\nd"})]).await.unwrap();
    assert_eq!(lines, [json!({"index": 0, "output": {"a": [1, 2], "b": "c\nd"}})]);
}

#[tokio::test]
async fn a_removed_function_lets_what_runs_end_and_cancels_what_waits() {
    let (_folder, up) = fresh(&[]);
    let one = json!({"autoscaler": {"max_containers": 1}});
    up.deploy("f", spec(&["sh", "-c", "sleep 1; cat"], "exec", one)).await.unwrap();
    let (_, call) = up.post(&up.function("f", "/spawn_map"), "1\n2\n3\n").await.unwrap();
    let id = call["call_id"].as_str().unwrap();
    up.until("f", SOON, |s| s["running"] == 1).await.unwrap();
    assert_eq!(up.http.delete(up.function("f", "")).send().await.unwrap().status().as_u16(), 204);
    assert_eq!(up.invoke("f", json!(1)).await.unwrap().0, 404);
    let view = up.get(&format!("/v1/calls/{id}")).await.unwrap();
    assert_eq!((&view["inputs"]["running"], &view["inputs"]["cancelled"]), (&json!(1), &json!(2)), "{view}");
    let mut results = up.results(id).await.unwrap();
    results.sort_by_key(|r| r["index"].as_u64());
    assert_eq!((&results[0]["output"], &results[1]["error"]["code"]), (&json!(1), &json!("cancelled")));
}

#[tokio::test]
async fn spawned_calls_are_found_again_with_their_results() {
    // SPEC F23 F24 G01 G02 G05 G13
    let (_folder, up) = fresh(&[]);
    up.deploy("f", spec(&["cat"], "exec", json!({}))).await.unwrap();
    let body: String = (0..200).map(|n| format!("{n}\n")).collect();
    let (status, call) = up.post(&up.function("f", "/spawn_map"), body).await.unwrap();
    assert_eq!((status, &call["inputs"]), (202, &json!(200)));
    let id = call["call_id"].as_str().unwrap();
    let mut results = up.results(id).await.unwrap();
    results.sort_by_key(|r| r["index"].as_u64());
    assert!(results.iter().enumerate().all(|(n, r)| r["index"] == n && r["output"] == n));
    let view = up.get(&format!("/v1/calls/{id}")).await.unwrap();
    assert_eq!((&view["state"], &view["inputs"]["succeeded"]), (&json!("succeeded"), &json!(200)));
    let page = up.http.get(up.at(&format!("/v1/calls/{id}/results?limit=2&after=i5"))).send().await.unwrap();
    let page = page.text().await.unwrap();
    let indexes: Vec<_> = page.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["index"].clone()).collect();
    assert_eq!(indexes, [5, 6]);
    let life = up.get(&format!("/v1/calls/{id}/inputs/7/explain")).await.unwrap();
    let states: Vec<_> = life["history"].as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["pending", "running", "succeeded"]);
    let listed = up.get("/v1/calls?function=f&state=succeeded").await.unwrap();
    assert_eq!(listed["calls"][0]["id"], id);
}

#[tokio::test]
async fn failed_inputs_are_tried_again_as_often_as_asked_and_no_more() {
    // SPEC G10 G11, RELIABILITY I7
    let (folder, up) = fresh(&["--set", "scheduler.limits.retry_floor_ms=1"]);
    let tries = folder.path().join("tries");
    let script = format!("echo x >> {}; exit 1", tries.display());
    let retries = json!({"retries": {"max_retries": 2, "initial_delay_ms": 1}});
    up.deploy("f", spec(&["sh", "-c", &script], "exec", retries)).await.unwrap();
    let (status, problem) = up.invoke("f", json!(1)).await.unwrap();
    assert_eq!((status, &problem["code"]), (502, &json!("function_failed")));
    assert_eq!(std::fs::read_to_string(tries).unwrap().lines().count(), 3);
    let (_, spawned) = up.post(&up.function("f", "/spawn"), "1").await.unwrap();
    let id = spawned["call_id"].as_str().unwrap();
    up.results(id).await.unwrap();
    let life = up.get(&format!("/v1/calls/{id}/inputs/0/explain")).await.unwrap();
    let history = life["history"].as_array().unwrap();
    let states: Vec<_> = history.iter().map(|s| s["state"].as_str().unwrap()).collect();
    let tried = ["running", "attempt_failed"];
    assert_eq!(states, [&["pending"][..], &tried, &tried, &["running", "failed"]].concat());
    assert!(history[2]["why"].as_str().unwrap().contains("exit code 1"), "{life}");
    assert_eq!(life["attempts"], 3);
}

#[tokio::test]
async fn an_attempt_that_runs_too_long_is_ended_with_all_that_it_started() {
    // SPEC G12, RELIABILITY F20 R2
    let (folder, up) = fresh(&[]);
    let left = folder.path().join("left");
    let script = format!("(sleep 3; touch {}) & sleep 30", left.display());
    up.deploy("f", spec(&["sh", "-c", &script], "exec", json!({"timeout_s": 1}))).await.unwrap();
    let (status, problem) = up.invoke("f", json!(1)).await.unwrap();
    assert_eq!(
        (status, &problem["code"], &problem["error"]["code"]),
        (504, &json!("function_timeout"), &json!("function_timeout"))
    );
    up.deploy("h", echo("hang", json!({"timeout_s": 1, "autoscaler": {"scaledown_window": 1}})).unwrap())
        .await
        .unwrap();
    assert_eq!(up.invoke("h", json!(1)).await.unwrap().0, 504);
    let stats = up.until("h", SOON, |s| s["containers"]["busy"] == 0).await.unwrap();
    assert_eq!(stats["running"], 0);
    assert!(!left.exists());
}

#[tokio::test]
async fn a_container_that_cannot_start_fails_its_inputs_with_its_last_words() {
    // RELIABILITY F33
    let (_folder, up) = fresh(&["--set", "scheduler.limits.start_backoff_ms=10"]);
    up.deploy("f", spec(&["sh", "-c", "echo no config >&2; exit 3"], "http", json!({}))).await.unwrap();
    let (status, problem) = up.invoke("f", json!(1)).await.unwrap();
    assert_eq!((status, &problem["error"]["code"]), (502, &json!("startup_failed")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("exit code 3") && detail.contains("no config") && detail.contains("3 tries"), "{detail}");
}

#[tokio::test]
async fn a_key_used_again_gives_the_first_answer_and_another_body_is_refused() {
    // RELIABILITY I2
    let (_folder, up) = fresh(&[]);
    up.deploy("f", echo("count", json!({})).unwrap()).await.unwrap();
    let send = |what: &str, key: &str, body: &str| {
        let request = up.http.post(up.function("f", what)).header("Idempotency-Key", key.to_owned());
        request.body(body.to_owned()).send()
    };
    for (what, body, status) in [("/spawn", "1", 202), ("/invoke", "1", 200), ("/spawn_map", "1\n2\n", 202)] {
        let mut answers = Vec::new();
        for _ in 0..2 {
            let response = send(what, "k", body).await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{what}");
            answers.push(response.text().await.unwrap());
        }
        assert_eq!(answers[0], answers[1], "{what}");
        assert_eq!(send(what, "k", "7").await.unwrap().status().as_u16(), 409, "{what}");
    }
    assert_eq!(up.get("/v1/calls?function=f").await.unwrap()["calls"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_viral_burst_is_answered_with_back_pressure_and_it_recovers_by_itself() {
    // SPEC A12
    let (_folder, up) = fresh(&["--set", "scheduler.limits.pending_interactive=20"]);
    let more = json!({"autoscaler": {"max_containers": 2}});
    up.deploy("f", spec(&["sh", "-c", "cat; sleep 0.02"], "exec", more)).await.unwrap();
    let burst = (0..500).map(|n| up.http.post(up.function("f", "/invoke")).body(n.to_string()).send());
    let answers = futures_util::future::join_all(burst).await;
    let (mut served, mut refused) = (0, 0);
    for answer in answers {
        let answer = answer.unwrap();
        match answer.status().as_u16() {
            200 => served += 1,
            429 => {
                assert!(answer.headers().contains_key("Retry-After"));
                refused += 1;
            }
            other => panic!("{other}: {}", answer.text().await.unwrap()),
        }
    }
    assert!(served >= 20 && refused > 0, "{served} served, {refused} refused");
    up.until("f", SOON, |s| s["backlog"] == 0 && s["running"] == 0).await.unwrap();
    // Nothing that was refused ran.
    let metrics = up.http.get(up.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(&format!("capstan_outcomes_total{{kind=\"succeeded\"}} {served}\n")), "{served}");
    assert_eq!(up.invoke("f", json!(1)).await.unwrap(), (200, json!(1)));
}

#[tokio::test]
async fn exactly_the_limit_is_accepted_and_one_more_leaves_no_trace() {
    // SPEC F24 G01 M01 M03 M04 M05 M10 M11 M12: a spawn is answered although nothing can run.
    let (_folder, up) =
        fresh(&["--set", "scheduler.limits.pending_background=10", "--set", "scheduler.limits.pending_interactive=3"]);
    up.deploy("f", spec(&["cat"], "exec", json!({"resources": {"cpu": 1000}}))).await.unwrap();
    let lines = |n: usize| "1\n".repeat(n);
    let url = up.function("f", "/spawn_map");
    assert_eq!(up.post(&url, lines(11)).await.unwrap().0, 429);
    assert_eq!(up.post(&url, lines(9)).await.unwrap().0, 202);
    assert_eq!(up.post(&url, lines(2)).await.unwrap().0, 429);
    assert_eq!(up.post(&up.function("f", "/spawn"), "1").await.unwrap().0, 202);
    let response = up.http.post(up.function("f", "/spawn")).body("1").send().await.unwrap();
    assert_eq!(response.status().as_u16(), 429);
    assert!(response.headers().contains_key("Retry-After"));
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "resource_exhausted");
    up.until("f", SOON, |s| s["backlog"] == 10).await.unwrap();
    let waiting: Vec<_> =
        (0..3).map(|_| tokio::spawn(up.http.post(up.function("f", "/invoke")).body("1").send())).collect();
    up.until("f", SOON, |s| s["backlog"] == 13).await.unwrap();
    assert_eq!(up.invoke("f", json!(1)).await.unwrap().0, 429);
    waiting.into_iter().for_each(|w| w.abort());
    // Clients that went away take what had not started with them.
    up.until("f", SOON, |s| s["backlog"] == 10).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_call_stops_what_runs_and_drops_what_waits() {
    // RELIABILITY I9
    let (folder, up) = fresh(&["--set", "worker.cpu=1"]);
    let late = folder.path().join("late");
    let script = format!("sleep 5; touch {}", late.display());
    up.deploy("f", spec(&["sh", "-c", &script], "exec", json!({"resources": {"cpu": 1}}))).await.unwrap();
    let (_, call) = up.post(&up.function("f", "/spawn_map"), "1\n2\n3\n").await.unwrap();
    let id = call["call_id"].as_str().unwrap();
    up.until("f", SOON, |s| s["running"] == 1).await.unwrap();
    for _ in 0..2 {
        let (status, view) = up.post(&up.at(&format!("/v1/calls/{id}/cancel")), "").await.unwrap();
        assert_eq!((status, &view["state"], &view["inputs"]["cancelled"]), (200, &json!("cancelled"), &json!(3)));
    }
    let results = up.results(id).await.unwrap();
    assert!(results.len() == 3 && results.iter().all(|r| r["error"]["code"] == "cancelled"));
    assert!(!late.exists());
}

#[tokio::test]
async fn batches_fill_or_leave_in_time_and_a_wrong_answer_fails_every_input() {
    // SPEC J01 J02 J05 J06 J07
    let (_folder, up) = fresh(&[]);
    let batching = json!({"batching": {"max_batch_size": 4, "wait_ms": 50}, "autoscaler": {"max_containers": 1}});
    up.deploy("f", echo("", batching.clone()).unwrap()).await.unwrap();
    let lines = up.map("f", "", (0..10).map(|n| json!({"n": n}))).await.unwrap();
    assert!(lines.iter().enumerate().all(|(n, line)| line["output"]["n"] == n));
    up.deploy("short", echo("short", batching).unwrap()).await.unwrap();
    let lines = up.map("short", "on_error=collect", (0..4).map(|n| json!(n))).await.unwrap();
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|line| line["error"]["code"] == "bad_output"));
}

#[tokio::test]
async fn large_payloads_travel_whole_and_one_byte_too_many_is_413() {
    let (_folder, up) = fresh(&[]);
    up.deploy("cat", spec(&["cat"], "exec", json!({}))).await.unwrap();
    up.deploy("echo", echo("", json!({})).unwrap()).await.unwrap();
    let limit = 16 << 20;
    for name in ["cat", "echo"] {
        let text = "x".repeat(limit - 2);
        let (status, output) = up.invoke(name, json!(text)).await.unwrap();
        assert_eq!(status, 200);
        assert!(output.as_str() == Some(&text), "{name}");
        let (status, problem) = up.invoke(name, json!("x".repeat(limit - 1))).await.unwrap();
        assert_eq!((status, &problem["code"]), (413, &json!("payload_too_large")));
    }
    let (status, _) = up.post(&up.function("cat", "/invoke"), b"\"\xff\"".to_vec()).await.unwrap();
    assert_eq!(status, 400);
}

#[tokio::test]
async fn unknown_calls_are_404_and_expired_ones_410() {
    // SPEC G07 G08 M09
    let (_folder, up) = fresh(&["--set", "scheduler.limits.retention_s=1"]);
    up.deploy("f", spec(&["cat"], "exec", json!({}))).await.unwrap();
    let response = up.http.post(up.function("f", "/invoke")).body("1").send().await.unwrap();
    let id = response.headers()["Capstan-Call-Id"].to_str().unwrap().to_owned();
    let begun = tokio::time::Instant::now();
    loop {
        let status = up.http.get(up.at(&format!("/v1/calls/{id}/results"))).send().await.unwrap().status().as_u16();
        if status == 410 {
            break;
        }
        assert_eq!(status, 200);
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for id in ["ca-0192f0c1d2e37a4b8c5d6e7f80910a1b", "nonsense"] {
        let status = up.http.get(up.at(&format!("/v1/calls/{id}"))).send().await.unwrap().status().as_u16();
        assert!(status == 404 || (status == 410 && id != "nonsense"), "{id}: {status}");
    }
}

#[tokio::test]
async fn a_map_that_is_cancelled_in_the_middle_says_that_not_all_was_taken() {
    let (_folder, up) = fresh(&["--set", "scheduler.limits.map_running=4"]);
    let slow = spec(&["sh", "-c", "sleep 0.1; cat"], "exec", json!({"autoscaler": {"max_containers": 2}}));
    up.deploy("slow", slow).await.unwrap();
    for outputs in [true, false] {
        let url = up.function("slow", &format!("/map?on_error=collect&outputs={outputs}"));
        let body: String = (0..5_000).map(|n| format!("{n}\n")).collect();
        let answer = up.http.post(url).body(body).send().await.unwrap();
        let call = answer.headers()["Capstan-Call-Id"].to_str().unwrap().to_owned();
        up.http.post(up.at(&format!("/v1/calls/{call}/cancel"))).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((&last["error"]["code"], last["index"].is_null()), (&json!("cancelled"), true), "{last}");
        assert_eq!(up.get(&format!("/v1/calls/{call}")).await.unwrap()["state"], "cancelled");
    }
}

#[tokio::test]
async fn the_inputs_of_a_call_are_listed_by_state_and_summed_up() {
    let (folder, up) = fresh(&[]);
    let go = folder.path().join("go");
    let script = format!(
        "read n; until [ -e {} ]; do sleep 0.02; done; case $n in *7) echo no >&2; exit 3;; esac; echo $n",
        go.display()
    );
    let four = json!({"autoscaler": {"max_containers": 4}});
    up.deploy("f", spec(&["sh", "-c", &script], "exec", four)).await.unwrap();
    let inputs: String = (0..40).map(|n| format!("{n}\n")).collect();
    let (_, call) = up.post(&up.function("f", "/spawn_map"), inputs).await.unwrap();
    let id = call["call_id"].as_str().unwrap().to_owned();
    let listed = |query: &'static str| {
        let path = format!("/v1/calls/{id}/inputs?{query}");
        let up = &up;
        async move {
            let page = up.get(&path).await.unwrap();
            let of = |input: &serde_json::Value| {
                (input["index"].as_u64().unwrap(), input["state"].as_str().unwrap().to_owned())
            };
            let inputs: Vec<_> = page["inputs"].as_array().unwrap().iter().map(of).collect();
            (inputs, page["next"].as_u64())
        }
    };
    let is_busy = |call: &serde_json::Value| call["inputs"]["running"] == 4;
    up.until_at(&format!("/v1/calls/{id}"), Duration::from_secs(20), is_busy).await.unwrap();
    assert_eq!(listed("state=running").await.0.len(), 4);
    assert_eq!(listed("state=pending").await.0.len(), 36);
    std::fs::write(&go, "").unwrap();
    let ended = |call: &serde_json::Value| !call["finished_at"].is_null();
    up.until_at(&format!("/v1/calls/{id}"), Duration::from_secs(20), ended).await.unwrap();
    let failed = |indexes: &[u64]| indexes.iter().map(|index| (*index, "failed".to_owned())).collect::<Vec<_>>();
    assert_eq!(listed("state=failed").await, (failed(&[7, 17, 27, 37]), None));
    assert_eq!(listed("state=failed&limit=2").await, (failed(&[7, 17]), Some(17)));
    assert_eq!(listed("state=failed&limit=2&after=17").await, (failed(&[27, 37]), Some(37)));
    let (all, next) = listed("limit=1000").await;
    assert!(all.iter().map(|(index, _)| *index).eq(0..40) && next.is_none());
    let summary = up.get(&format!("/v1/calls/{id}/summary")).await.unwrap();
    assert_eq!((&summary["inputs"]["failed"], &summary["inputs"]["succeeded"]), (&json!(4), &json!(36)));
    assert_eq!((&summary["run"]["count"], &summary["queue"]["count"]), (&json!(40), &json!(40)));
    let group = &summary["failures"][0];
    assert_eq!((&group["count"], &group["type"], &group["example_index"]), (&json!(4), &json!("ExitCode3"), &json!(7)));
    let (status, _) = up.post(&up.at("/v1/calls/ca-00000000000000000000000000000000/summary"), "").await.unwrap();
    assert_eq!(status, 405);
    let wrong = up.http.get(up.at(&format!("/v1/calls/{id}/inputs?state=lost"))).send().await.unwrap();
    assert_eq!(wrong.status(), 422);
}
