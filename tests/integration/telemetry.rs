//! What is seen from outside: traces, metrics, logs, events, health, authentication.

use crate::fresh;
use capstan_tests::real::{Up, echo, spec};
use futures_util::StreamExt;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use serde_json::json;
use std::{process::Command, time::Duration};
use tokio::sync::mpsc;

struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        for span in resources.flat_map(|r| r.scope_spans).flat_map(|s| s.spans) {
            let _ = self.0.send(span);
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test]
async fn an_input_is_one_trace_that_continues_the_clients_and_reaches_the_container() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, mut spans) = mpsc::unbounded_channel();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Collector(told)))
            .serve_with_incoming(incoming),
    );

    let folder = tempfile::tempdir().unwrap();
    let up = Up::start_with(&folder.path().join("data"), &[], |command: &mut Command| {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    })
    .unwrap();
    up.deploy("f", spec(&["sh", "-c", "echo $TRACEPARENT"], "exec", json!({}))).await.unwrap();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let response =
        up.http.post(up.function("f", "/invoke")).header("traceparent", parent).body("1").send().await.unwrap();
    let told: String = response.json().await.unwrap();
    let (trace, span) = (&told[3..35], &told[36..52]);
    assert_eq!(trace, "4bf92f3577b34da6a3ce929d0e0e4736");
    let mut seen = std::collections::BTreeMap::new();
    while !["input", "queue", "decide", "start", "start.place", "start.order", "run"]
        .iter()
        .all(|name| seen.contains_key(*name))
    {
        let span = tokio::time::timeout(Duration::from_secs(20), spans.recv()).await.expect("spans in time").unwrap();
        assert_eq!(hex(&span.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        seen.insert(span.name.clone(), span);
    }
    assert_eq!(hex(&seen["input"].parent_span_id), "00f067aa0ba902b7");
    for part in ["queue", "decide", "start", "run"] {
        assert_eq!(seen[part].parent_span_id, seen["input"].span_id, "{part}");
    }
    // What the program does is seen inside its run.
    assert_eq!(hex(&seen["run"].span_id), span);
}

#[tokio::test]
async fn metrics_tell_of_queue_containers_starts_decisions_and_latencies() {
    // SPEC W02 W09: how often containers start, and how long each part of a start takes
    let (_folder, up) = fresh(&[]);
    up.deploy("f", echo("", json!({})).unwrap()).await.unwrap();
    up.invoke("f", json!(1)).await.unwrap();
    let text = up.http.get(up.at("/metrics")).send().await.unwrap().text().await.unwrap();
    for line in [
        "capstan_queue_depth{namespace=\"default\",function=\"f\"} 0",
        "capstan_containers{namespace=\"default\",function=\"f\",state=\"idle\"} 1",
        "capstan_cold_starts_total{namespace=\"default\",function=\"f\"} 1",
        "capstan_cold_start_seconds_count 1",
        "capstan_cold_start_phase_seconds_count{kind=\"place\"} 1",
        "capstan_cold_start_phase_seconds_count{kind=\"spawn\"} 1",
        "capstan_cold_start_phase_seconds_count{kind=\"ready\"} 1",
        "capstan_outcomes_total{kind=\"succeeded\"} 1",
        "capstan_scale_decisions_total{kind=\"inputs\"} 1",
        "capstan_commit_latency_seconds_count",
        "capstan_api_latency_seconds_bucket",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn logs_and_events_follow_what_happens() {
    let (_folder, up) = fresh(&[]);
    let events = up.http.get(up.at("/v1/events")).send().await.unwrap();
    let mut events = events.bytes_stream();
    up.deploy("f", spec(&["sh", "-c", "echo said so >&2; echo 1"], "exec", json!({}))).await.unwrap();
    up.invoke("f", json!(1)).await.unwrap();
    let mut text = String::new();
    while !["\"deployed\"", "\"scaled\"", "\"container_ready\""].iter().all(|kind| text.contains(kind)) {
        let chunk = tokio::time::timeout(Duration::from_secs(20), events.next()).await.expect("events in time");
        text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
    }
    let containers = up.get("/v1/containers?function=f").await.unwrap();
    let id = containers["containers"][0]["id"].as_str().unwrap();
    let log = up.http.get(up.at(&format!("/v1/containers/{id}/logs?follow=true"))).send().await.unwrap();
    let first = log.bytes_stream().next().await.unwrap().unwrap();
    assert_eq!(first, "said so\n");
    assert_eq!(
        up.http.get(up.at("/v1/containers/ct-00000000000000ff/logs")).send().await.unwrap().status().as_u16(),
        404
    );
}

/// Reads events until one is of this kind; answers all of them, each with its id, its kind and its data.
async fn events_until(
    up: &capstan_tests::real::Up,
    query: &str,
    last: Option<&str>,
    kind: &str,
) -> Vec<(String, String, serde_json::Value)> {
    let mut request = up.http.get(up.at(&format!("/v1/events?{query}")));
    if let Some(last) = last {
        request = request.header("Last-Event-ID", last);
    }
    let mut pieces = request.send().await.unwrap().bytes_stream();
    let (mut text, mut events) = (String::new(), Vec::new());
    loop {
        let piece = tokio::time::timeout(Duration::from_secs(20), pieces.next()).await.expect("events in time");
        text.push_str(std::str::from_utf8(&piece.unwrap().unwrap()).unwrap());
        while let Some((event, rest)) = text.clone().split_once("\n\n") {
            text = rest.to_owned();
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let (Some(id), Some(is)) = (field("id: "), field("event: ")) else { continue };
            events.push((id, is.clone(), serde_json::from_str(&field("data: ").unwrap()).unwrap()));
            if is == kind {
                return events;
            }
        }
    }
}

#[tokio::test]
async fn events_have_a_kind_and_an_id_and_go_on_from_there_without_a_gap() {
    let (_folder, up) = fresh(&[]);
    up.deploy("f", spec(&["cat"], "exec", json!({}))).await.unwrap();
    up.deploy("other", spec(&["cat"], "exec", json!({}))).await.unwrap();
    let patched = up.http.patch(up.at("/v1/namespaces/default/functions/f/autoscaler"));
    assert_eq!(patched.json(&json!({"buffer_containers": 1})).send().await.unwrap().status(), 200);
    up.invoke("f", json!(1)).await.unwrap();
    let all = events_until(&up, "after=1&namespace=default&function=f", None, "container_ready").await;
    let kinds: Vec<&str> = all.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert!(kinds.starts_with(&["deployed", "override_changed"]) && kinds.contains(&"scaled"), "{kinds:?}");
    for (id, kind, data) in &all {
        assert_eq!((&data["id"].to_string(), &data["kind"]), (id, &json!(kind)), "{data}");
        assert_eq!((&data["namespace"], &data["function"]), (&json!("default"), &json!("f")), "{data}");
    }
    // What came after an id, and nothing else.
    let again = events_until(&up, "function=f", Some(&all[0].0), "container_ready").await;
    assert_eq!(again, all[1..]);
    let wrong = up.http.get(up.at("/v1/events?after=yesterday")).send().await.unwrap();
    assert_eq!(wrong.status(), 422);
}

#[tokio::test]
async fn a_functions_logs_are_those_of_all_its_containers_also_after_their_end() {
    let (_folder, up) = fresh(&[]);
    let script = "read n; echo out $n >&2; echo more $n >&2; echo $n";
    let soon = json!({"autoscaler": {"scaledown_window": 1, "max_containers": 1}});
    up.deploy("f", spec(&["sh", "-c", script], "exec", soon)).await.unwrap();
    for n in 0..3 {
        up.invoke("f", json!(n)).await.unwrap();
    }
    let gone = |stats: &serde_json::Value| stats["containers"].as_object().unwrap().values().all(|n| n == 0);
    up.until("f", Duration::from_secs(20), gone).await.unwrap();
    let logs = async |query: &str| {
        let path = up.at(&format!("/v1/namespaces/default/functions/f/logs?{query}"));
        let answer = up.http.get(path).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, text) = logs("").await;
    let lines: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!((status, lines), (200, vec!["out 0", "more 0", "out 1", "more 1", "out 2", "more 2"]));
    let container = text.split(' ').next().unwrap();
    assert!(container.starts_with("ct-"), "{text}");
    assert_eq!(logs("tail=2").await.1, format!("{container} out 2\n{container} more 2\n"));
    assert_eq!(logs("since=2030-01-01T00:00:00Z").await.1, "");
    assert_eq!(logs("since=600&tail=1").await.1, format!("{container} more 2\n"));
    let (_, stamped) = logs("timestamps=true&tail=1").await;
    let at = stamped.split(' ').next().unwrap();
    assert!(at.len() == 27 && at.ends_with('Z'), "{stamped}");
    for wrong in ["since=yesterday", "tail=-1", "lines=3"] {
        assert_eq!(logs(wrong).await.0, 422, "{wrong}");
    }
    let of_one = up.http.get(up.at(&format!("/v1/containers/{container}/logs?tail=1"))).send().await.unwrap();
    assert_eq!(of_one.text().await.unwrap(), "more 2\n");
    // What comes later is followed, of whichever container.
    let path = up.at("/v1/namespaces/default/functions/f/logs?follow=true&tail=0");
    let mut followed = up.http.get(path).send().await.unwrap().bytes_stream();
    up.invoke("f", json!(7)).await.unwrap();
    let mut text = String::new();
    while !text.contains("more 7") {
        let piece = tokio::time::timeout(Duration::from_secs(20), followed.next()).await.expect("output in time");
        text.push_str(std::str::from_utf8(&piece.unwrap().unwrap()).unwrap());
    }
    assert!(text.lines().all(|line| line.ends_with('7')), "{text}");
    let absent = up.http.get(up.at("/v1/namespaces/default/functions/none/logs")).send().await.unwrap();
    assert_eq!(absent.status(), 404);
}

#[tokio::test]
async fn a_version_is_told_by_its_parts() {
    let (_folder, up) = fresh(&[]);
    let version = up.get("/v1/version").await.unwrap();
    assert_eq!((&version["version"], &version["api"]), (&json!(env!("CARGO_PKG_VERSION")), &json!("v1")));
    assert!(version["revision"].is_string() && version["link"]["min"].as_u64() <= version["link"]["max"].as_u64());
}

#[tokio::test]
async fn tokens_are_asked_for_and_foreign_pages_are_kept_out() {
    let token = "0123456789abcdef0123";
    let (_folder, up) = fresh(&["--set", &format!("scheduler.tokens={token}")]);
    let status = |path: &str, sent: Option<&str>| {
        let request = up.http.get(up.at(path));
        let request = match sent {
            Some(sent) => request.bearer_auth(sent),
            None => request,
        };
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(status("/healthz", None).await, 200);
    assert_eq!(status("/readyz", None).await, 200);
    assert_eq!(status("/v1/workers", None).await, 401);
    assert_eq!(status("/v1/workers", Some("wrong")).await, 401);
    assert_eq!(status("/v1/workers", Some(token)).await, 200);
    let (_folder, open) = fresh(&[]);
    let foreign = open.http.get(open.at("/v1/workers")).header("Origin", "http://example.com").send().await.unwrap();
    assert_eq!(foreign.status().as_u16(), 403);
}

#[tokio::test]
async fn a_token_that_sends_too_fast_is_told_when_to_come_back() {
    // SPEC M07
    let token = "0123456789abcdef0123";
    let tokens = format!("scheduler.tokens={token}");
    let (_folder, up) = fresh(&[
        "--set",
        &tokens,
        "--set",
        "scheduler.rate_per_s=1",
        "--set",
        "scheduler.rate_burst=100",
        "--set",
        "scheduler.rate_burst_s=0",
    ]);
    let mut statuses = Vec::new();
    for _ in 0..2 {
        let response = up.http.post(up.function("absent", "/spawn")).bearer_auth(token).body("1").send().await.unwrap();
        let told = response.headers().contains_key("Retry-After");
        statuses.push((response.status().as_u16(), told));
    }
    assert_eq!(statuses, [(404, false), (429, true)]);
    let looked = up.http.get(up.at("/v1/workers")).bearer_auth(token).send().await.unwrap();
    assert_eq!(looked.status(), 200, "looking is free");
}

#[tokio::test]
async fn a_drained_worker_takes_nothing_until_it_is_resumed() {
    let (_folder, up) = fresh(&[]);
    up.deploy("f", echo("", json!({})).unwrap()).await.unwrap();
    up.invoke("f", json!(1)).await.unwrap();
    let name = up.get("/v1/workers").await.unwrap()["workers"][0]["id"].as_str().unwrap().to_owned();
    let (status, worker) = up.post(&up.at(&format!("/v1/workers/{name}/drain")), "").await.unwrap();
    assert_eq!((status, worker["state"].as_str()), (200, Some("draining")));
    up.until("f", Duration::from_secs(20), |s| s["containers"]["idle"] == 0 && s["containers"]["draining"] == 0)
        .await
        .unwrap();
    up.post(&up.function("f", "/spawn"), "1").await.unwrap();
    up.until("f", Duration::from_secs(20), |s| s["backlog"] == 1).await.unwrap();
    up.post(&up.at(&format!("/v1/workers/{name}/resume")), "").await.unwrap();
    up.until("f", Duration::from_secs(20), |s| s["backlog"] == 0 && s["running"] == 0).await.unwrap();
}
