//! Servers and the world as they are: connections that close just then, answers that come early, other loopback addresses, health
//! checks that are answered oddly, encodings, trace contexts.

use crate::fresh;
use capstan_tests::{
    raw::Raw,
    real::{Up, binary, spec},
};
use serde_json::{Value, json};
use std::time::Duration;

fn odd(how: &str, more: Value) -> Value {
    let program = binary("odd-server").unwrap();
    spec(&[program.to_str().unwrap(), how], "http", more)
}

/// Fails on the first that failed.
async fn all_succeed(up: &Up, name: &str, count: usize) {
    let lines = up.map(name, "on_error=collect", (0..count).map(|n| json!(n))).await.unwrap();
    let failed: Vec<_> = lines.iter().filter(|line| line.get("output").is_none()).take(3).collect();
    assert!(failed.is_empty() && lines.len() == count, "{name}: {} of {count}: {failed:?}", lines.len());
}

#[tokio::test]
async fn a_connection_that_closes_just_then_fails_no_input() {
    let (_folder, up) = fresh(&[]);
    for how in ["closes", "idle-1", "idle-5"] {
        up.deploy(how, odd(how, json!({"autoscaler": {"max_containers": 2}}))).await.unwrap();
        all_succeed(&up, how, 300).await;
    }
    // Now and then one comes just when the server's patience ends.
    for pause in (0..40).map(|n| 3_500 + 75 * n) {
        tokio::time::sleep(Duration::from_micros(pause)).await;
        assert_eq!(up.invoke("idle-5", json!(pause)).await.unwrap(), (200, json!(pause)));
        let page = up.http.get(up.at("/web/default/idle-5/x")).send().await.unwrap();
        assert_eq!(page.status(), 200);
    }
    // One that takes an input and drops it without a word has failed it, once.
    up.deploy("drops", odd("drops", json!({}))).await.unwrap();
    let (status, problem) = up.invoke("drops", json!(1)).await.unwrap();
    assert_eq!((status, &problem["error"]["type"]), (502, &json!("ConnectionBroken")), "{problem}");
    assert_eq!(problem["error"]["code"], "function_failed");
}

#[tokio::test]
async fn an_answer_that_comes_before_all_was_read_is_the_answer() {
    let (_folder, up) = fresh(&[]);
    up.deploy("early", odd("early", json!({}))).await.unwrap();
    let large = format!("\"{}\"", "x".repeat(8 << 20));
    for _ in 0..10 {
        let (status, problem) = up.post(&up.function("early", "/invoke"), large.clone()).await.unwrap();
        assert_eq!((status, &problem["error"]["type"]), (502, &json!("HTTP 413")), "{problem}");
        // What it wrote after its head may have been on its way when it closed.
        let told = problem["error"]["message"].as_str().unwrap();
        assert!(["far too much", "the function answered 413 Payload Too Large"].contains(&told), "{told}");
        let page = up.http.post(up.at("/web/default/early/")).body(large.clone()).send().await.unwrap();
        assert_eq!(page.status(), 413);
        assert!("far too much".starts_with(&page.text().await.unwrap()));
    }
}

#[tokio::test]
async fn a_server_is_ready_when_it_answers_and_says_why_it_is_not() {
    // SPEC W04: what is late, or answers 5xx, gets no inputs before it is ready.
    let (_folder, up) = fresh(&["--set", "scheduler.limits.start_tries=1"]);
    for how in ["no-get", "post-only", "late", "v6"] {
        up.deploy(how, odd(how, json!({}))).await.unwrap();
        assert_eq!(up.invoke(how, json!(how)).await.unwrap(), (200, json!(how)), "{how}");
    }
    let page = up.http.get(up.at("/web/default/v6/")).send().await.unwrap();
    assert_eq!(page.status(), 200, "a page of a server on ::1");
    for (how, told) in
        [("never", "answered 503"), ("deaf", "had no answer"), ("absent", "found nothing that listens there")]
    {
        let program = if how == "absent" { spec(&["sleep", "60"], "http", json!({})) } else { odd(how, json!({})) };
        let mut late = program;
        late["startup_timeout_s"] = json!(if how == "deaf" { 6 } else { 2 });
        up.deploy(how, late).await.unwrap();
        let asked = up.invoke(how, json!(1));
        let explained = async {
            for _ in 0..200 {
                let why = up.get(&format!("/v1/namespaces/default/functions/{how}/explain")).await.unwrap();
                if why["waiting"]["detail"].as_str().is_some_and(|detail| detail.contains(told)) {
                    return why["waiting"].clone();
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            Value::Null
        };
        let (answer, why) = tokio::join!(asked, explained);
        let (status, problem) = answer.unwrap();
        assert_eq!((status, &problem["error"]["code"]), (502, &json!("startup_failed")), "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("GET http://127.0.0.1:") && detail.contains("/healthz") && detail.contains(told),
            "{detail}"
        );
        assert!(!detail.contains("signal"), "the signal is Capstan's own: {detail}");
        assert_eq!(why["code"], "starting", "{how}: while it waits it is told why: {why}");
    }
}

#[tokio::test]
async fn programs_that_do_not_start_are_named() {
    let (folder, up) = fresh(&["--set", "scheduler.limits.start_tries=1"]);
    let script = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    for (name, path, told) in [
        ("lost", script("lost", "#!/no/such/thing\n", 0o755), "names `/no/such/thing` in its first line"),
        ("dos", script("dos", "#!/bin/sh\r\necho 1\r\n", 0o755), "as Windows ends lines"),
        ("plain", script("plain", "#!/bin/sh\necho 1\n", 0o644), "may not be executed"),
        ("gone", folder.path().join("gone").display().to_string(), "is not a file on this worker"),
    ] {
        up.deploy(name, spec(&[&path], "exec", json!({}))).await.unwrap();
        let (_, problem) = up.invoke(name, json!(1)).await.unwrap();
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(told) && detail.contains(&path), "{name}: {problem}");
    }
    let long = spec(&["true", &"x".repeat(200 << 10)], "exec", json!({}));
    up.deploy("long", long).await.unwrap();
    let (_, problem) = up.invoke("long", json!(1)).await.unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("too long for Linux"), "{problem}");
}

#[tokio::test]
async fn errors_of_any_size_and_spelling_are_told_and_bounded() {
    let (_folder, up) = fresh(&[]);
    up.deploy("half", odd("surrogate", json!({}))).await.unwrap();
    let (_, problem) = up.invoke("half", json!(1)).await.unwrap();
    assert_eq!(problem["error"]["type"], "Odd\u{fffd}");
    assert_eq!(problem["error"]["message"], "half \u{fffd}");
    up.deploy("long", odd("long", json!({"batching": {"max_batch_size": 100, "wait_ms": 50}}))).await.unwrap();
    let lines = up.map("long", "on_error=collect", (0..300).map(|n| json!(n))).await.unwrap();
    assert_eq!(lines.len(), 300);
    assert!(lines.iter().all(|line| line.to_string().len() < 40 << 10 && line["error"]["type"] == "E"));
    up.deploy("after", odd("", json!({}))).await.unwrap();
    assert_eq!(up.invoke("after", json!(1)).await.unwrap(), (200, json!(1)), "the worker's link goes on");
}

#[tokio::test]
async fn what_passes_through_web_says_no_more_than_it_may() {
    let (_folder, up) = fresh(&[]);
    up.deploy("headers", odd("headers", json!({}))).await.unwrap();
    let mut raw = Raw::to(&up.url);
    let sent = [
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "host=evil.example"),
        ("x-forwarded-for", "1.2.3.4"),
        ("authorization", "Bearer of-the-servers-own"),
    ];
    let answer = raw.send("POST", "/web/default/headers/", &sent, b"{}").unwrap();
    let seen: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
    assert_eq!(seen["x-forwarded-host"], json!(up.url.trim_start_matches("http://")));
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert!(seen.get("forwarded").is_none(), "{seen}");
    assert_eq!(seen["x-forwarded-for"], "1.2.3.4, 127.0.0.1");
    assert_eq!(seen["authorization"], "Bearer of-the-servers-own", "no token opened this door: it is the server's");
    assert!(answer.head.contains("set-cookie: a=1; path=/web/default/headers/"), "{}", answer.head);
    assert!(!answer.head.contains("x-inner"), "a header of the connection: {}", answer.head);
    up.deploy("switches", odd("switches", json!({}))).await.unwrap();
    let answer = raw.send("GET", "/web/default/switches/", &[], b"").unwrap();
    assert_eq!(answer.status, 502, "{answer:?}");
}

#[tokio::test]
async fn a_token_of_capstans_is_never_handed_on_whoever_made_it() {
    let (_folder, up) = fresh(&[]);
    up.deploy("headers", odd("headers", json!({}))).await.unwrap();
    let made: Value =
        up.http.post(up.at("/v1/tokens")).json(&json!({"role": "admin"})).send().await.unwrap().json().await.unwrap();
    let token = made["token"].as_str().unwrap();
    let bearer = format!("Bearer {token}");
    let mut raw = Raw::to(&up.url);
    for sent in
        [vec![("authorization", bearer.as_str())], vec![("capstan-token", token), ("authorization", bearer.as_str())]]
    {
        let answer = raw.send("POST", "/web/default/headers/", &sent, b"{}").unwrap();
        assert!(answer.status == 200 && !answer.body.contains(token), "{answer:?}");
    }
    let own = [("capstan-token", token), ("authorization", "Basic of-the-server")];
    let answer = raw.send("POST", "/web/default/headers/", &own, b"{}").unwrap();
    assert!(answer.body.contains("Basic of-the-server") && !answer.body.contains(token), "{answer:?}");
}

#[tokio::test]
async fn encodings_and_trace_contexts_are_taken_by_the_letter() {
    let (_folder, up) = fresh(&[]);
    up.deploy("headers", odd("headers", json!({}))).await.unwrap();
    let mut raw = Raw::to(&up.url);
    let path = "/v1/namespaces/default/functions/headers/invoke";
    let answer = raw.send("POST", path, &[("content-encoding", "gzip")], b"\x1f\x8b\x08").unwrap();
    assert!(answer.status == 415 && answer.body.contains("gzip"), "{answer:?}");
    let answer = raw.send("POST", path, &[], b"\xef\xbb\xbf1").unwrap();
    assert!(answer.status == 400 && answer.body.contains("byte order mark"), "{answer:?}");
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let seen = |raw: &mut Raw, sent: &[(&str, &str)]| -> Value {
        let answer = raw.send("POST", path, sent, b"1").unwrap();
        serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"))
    };
    let told = seen(&mut raw, &[("traceparent", parent), ("tracestate", "a=1"), ("tracestate", "b=2")]);
    assert!(told["traceparent"].as_str().unwrap().contains("4bf92f3577b34da6a3ce929d0e0e4736"), "{told}");
    assert_eq!(told["tracestate"], "a=1,b=2");
    for bad in [parent.to_uppercase(), format!("{parent}-extra")] {
        let told = seen(&mut raw, &[("traceparent", &bad), ("tracestate", "a=1")]);
        let given = told["traceparent"].as_str().unwrap();
        assert!(!given.to_lowercase().contains("4bf92f3577b34da6a3ce929d0e0e4736"), "{bad}: {given}");
        assert!(told.get("tracestate").is_none(), "a state without its parent: {told}");
    }
}

#[tokio::test]
async fn a_schedules_input_keeps_its_digits() {
    let (_folder, up) = fresh(&[]);
    let text = r#"{"runtime":{"process":{"command":["cat"]}},"protocol":"exec","schedule":{"period_s":3600,"input":{"id":12345678901234567890123}}}"#;
    let answer = up.http.put(up.function("f", "")).body(text).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let (status, run) = up.post(&up.function("f", "/schedule/run"), "").await.unwrap();
    assert_eq!(status, 202);
    up.results(run["call_id"].as_str().unwrap()).await.unwrap();
    let results = up.at(&format!("/v1/calls/{}/results", run["call_id"].as_str().unwrap()));
    let lines = up.http.get(results).send().await.unwrap().text().await.unwrap();
    assert!(lines.contains("12345678901234567890123"), "{lines}");
    let shown = up.http.get(up.function("f", "")).send().await.unwrap().text().await.unwrap();
    assert!(shown.contains("12345678901234567890123"), "{shown}");
}
