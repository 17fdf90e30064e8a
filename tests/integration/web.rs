//! The reverse proxy `/web`: what clients send reaches a container as it comes, and what it answers comes back so.

use crate::fresh;
use capstan_tests::real::{Up, binary, spec};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

const SOON: Duration = Duration::from_secs(20);

fn server(more: Value) -> Value {
    let program = binary("web-server").unwrap().display().to_string();
    spec(&[&program], "http", more)
}

fn at(up: &Up, path: &str) -> String {
    up.at(&format!("/web/default/site{path}"))
}

async fn text(up: &Up, path: &str) -> (u16, String) {
    let response = up.http.get(at(up, path)).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn a_request_at_zero_starts_a_container_and_passes_through_unchanged() {
    // SPEC W04
    let (_folder, up) = fresh(&[]);
    up.deploy("site", server(json!({"autoscaler": {"scaledown_window": 1}}))).await.unwrap();
    assert_eq!(up.until("site", SOON, |s| s["containers"]["idle"] == 0).await.unwrap()["desired"], 0);
    let sent = up.http.post(at(&up, "/show/a%2Fb/../c?x=1&y=%20")).header("x-mine", "1").header("connection", "x-hop");
    let sent = sent.header("x-hop", "2").header("authorization", "Basic abc").body("body");
    let response = sent.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers()["capstan-container"].to_str().unwrap().starts_with("ct-"));
    let seen: Value = response.json().await.unwrap();
    assert_eq!((&seen["method"], &seen["target"]), (&json!("POST"), &json!("/show/c?x=1&y=%20")));
    let headers = &seen["headers"];
    assert_eq!((&headers["x-mine"], &headers["x-hop"]), (&json!("1"), &Value::Null));
    assert_eq!(headers["authorization"], "Basic abc", "without tokens it is the container's");
    assert_eq!(headers["x-forwarded-prefix"], "/web/default/site");
    assert_eq!((&headers["x-forwarded-for"], &headers["x-forwarded-proto"]), (&json!("127.0.0.1"), &json!("http")));
    assert!(headers["traceparent"].is_string() && headers["capstan-deadline"].is_string());
    assert!(text(&up, "").await.1.contains(r#""target":"/""#));
    // What the container says is not touched, errors included.
    let refused = up.http.get(at(&up, "/status/405")).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["x-own"].as_bytes()), (405, &b"kept"[..]));
    assert_eq!(refused.text().await.unwrap(), "status 405");
    let head = up.http.head(at(&up, "/show")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers().contains_key("content-length")), (200, true));
    assert_eq!(text(&up, "/status/204").await, (204, String::new()));
    up.until("site", SOON, |s| s["containers"]["idle"] == 0 && s["desired"] == 0).await.unwrap();
}

#[tokio::test]
async fn bodies_stream_both_ways_while_they_last() {
    let (_folder, up) = fresh(&[]);
    up.deploy("site", server(json!({}))).await.unwrap();
    // An upload larger than anything that is kept in memory, of unknown length.
    let piece = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    let pieces = futures_util::stream::iter((0..64).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let counted = up.http.put(at(&up, "/count")).body(reqwest::Body::wrap_stream(pieces)).send().await.unwrap();
    assert_eq!(counted.text().await.unwrap(), (64 << 20).to_string());
    // Each event comes before the next piece is sent.
    let (say, said) = mpsc::channel::<Result<String, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(said));
    say.send(Ok("first".into())).await.unwrap();
    let response = up.http.post(at(&up, "/events")).body(body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut events = response.bytes_stream();
    assert_eq!(events.next().await.unwrap().unwrap(), "data: first\n\n");
    for word in ["second", "third"] {
        say.send(Ok(word.into())).await.unwrap();
        assert_eq!(events.next().await.unwrap().unwrap(), format!("data: {word}\n\n"));
    }
    let stats = up.get("/v1/namespaces/default/functions/site/stats").await.unwrap();
    assert_eq!((&stats["running"], &stats["containers"]["busy"]), (&json!(1), &json!(1)));
    drop(say);
    assert!(events.next().await.is_none());
    up.until("site", SOON, |s| s["running"] == 0).await.unwrap();
}

#[tokio::test]
async fn a_websocket_lasts_as_one_input_and_keeps_its_container() {
    let (_folder, up) = fresh(&[]);
    let settings = json!({"scaledown_window": 1, "max_containers": 1});
    up.deploy("site", server(json!({"autoscaler": settings, "concurrency": {"max_inputs": 2}}))).await.unwrap();
    let address = at(&up, "/ws?room=1").replace("http://", "ws://");
    let (mut socket, response) =
        tokio_tungstenite::connect_async(address.into_client_request().unwrap()).await.unwrap();
    assert_eq!(response.status().as_u16(), 101);
    for n in 0..100 {
        let message = Message::binary(vec![n; 1 + usize::from(n) * 999]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    // A second request shares the container; a third must wait for its slot.
    assert_eq!(text(&up, "/status/200").await.0, 200);
    let stats = up.get("/v1/namespaces/default/functions/site/stats").await.unwrap();
    assert_eq!((&stats["running"], &stats["containers"]["busy"]), (&json!(1), &json!(1)));
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    up.until("site", SOON, |s| s["containers"]["busy"] == 0 && s["containers"]["idle"] == 0).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_input_does_not_take_the_web_requests_beside_it_along() {
    let (_folder, up) = fresh(&[]);
    up.deploy("site", server(json!({"concurrency": {"max_inputs": 2}}))).await.unwrap();
    let address = at(&up, "/ws").replace("http://", "ws://");
    let (mut socket, _) = tokio_tungstenite::connect_async(address).await.unwrap();
    let (_, spawned) = up.post(&up.function("site", "/spawn"), r#""hang""#).await.unwrap();
    let call = spawned["call_id"].as_str().unwrap();
    up.until("site", SOON, |s| s["running"] == 2).await.unwrap();
    let cancel = up.at(&format!("/v1/calls/{call}/cancel"));
    assert_eq!(up.http.post(cancel).send().await.unwrap().status(), 200);
    // The server may still work on the input: it takes nothing new, and stays as long as the socket does.
    up.until("site", SOON, |s| s["containers"]["draining"] == 1 && s["running"] == 1).await.unwrap();
    socket.send(Message::text("still there")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still there"));
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    up.until("site", SOON, |s| s["containers"]["draining"] == 0).await.unwrap();
}

#[tokio::test]
async fn requests_beyond_the_slots_wait_and_clients_that_go_leave_no_trace() {
    // SPEC A06 M01
    let (_folder, up) = fresh(&["--set", "scheduler.limits.pending_interactive=2"]);
    up.deploy("site", server(json!({"autoscaler": {"max_containers": 1}}))).await.unwrap();
    let dripping = up.http.get(at(&up, "/drip")).send().await.unwrap();
    let mut drops = dripping.bytes_stream();
    assert_eq!(drops.next().await.unwrap().unwrap(), "begun\n");
    let waiting: Vec<_> = (0..2).map(|_| tokio::spawn(up.http.get(at(&up, "/status/200")).send())).collect();
    up.until("site", SOON, |s| s["backlog"] == 2).await.unwrap();
    let (status, refused) = text(&up, "/status/200").await;
    let refused: Value = serde_json::from_str(&refused).unwrap();
    assert_eq!((status, &refused["code"]), (429, &json!("resource_exhausted")));
    waiting[0].abort();
    up.until("site", SOON, |s| s["backlog"] == 1).await.unwrap();
    // The client of the endless answer goes: its slot is the next one's.
    drop(drops);
    for task in waiting.into_iter().skip(1) {
        assert_eq!(task.await.unwrap().unwrap().status().as_u16(), 200);
    }
    up.until("site", SOON, |s| s["running"] == 0 && s["backlog"] == 0).await.unwrap();
}

#[tokio::test]
async fn what_goes_wrong_is_told_in_the_contracts_words() {
    let (_folder, up) = fresh(&[]);
    up.deploy("site", server(json!({"timeout_s": 1}))).await.unwrap();
    let problem = async |path: &str| {
        let (status, body) = text(&up, path).await;
        (status, serde_json::from_str::<Value>(&body).unwrap_or_else(|_| panic!("{body}")))
    };
    let container = async || {
        let response = up.http.get(at(&up, "/status/200")).send().await.unwrap();
        response.headers()["capstan-container"].to_str().unwrap().to_owned()
    };
    let first = container().await;
    let (status, late) = problem("/hang").await;
    assert_ne!(container().await, first, "a server that does not end a request in time takes no other");
    assert_eq!(
        (status, &late["code"], &late["error"]["type"]),
        (504, &json!("function_timeout"), &json!("FunctionTimeout"))
    );
    let (status, died) = problem("/die").await;
    assert_eq!((status, &died["code"]), (502, &json!("function_failed")));
    // An answer that has begun is broken off: it must not look whole.
    let begun = up.http.get(at(&up, "/drip")).send().await.unwrap();
    assert!(begun.bytes().await.is_err());
    assert_eq!(text(&up, "/status/200").await.0, 200, "the next request has a new container");
    up.deploy("batched", server(json!({"batching": {"max_batch_size": 2, "wait_ms": 5}}))).await.unwrap();
    up.deploy("program", spec(&["cat"], "exec", json!({}))).await.unwrap();
    for (path, expected) in [("batched/", 422), ("program/x", 422), ("nothing/", 404)] {
        let response = up.http.get(up.at(&format!("/web/default/{path}"))).send().await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{path}");
    }
    let metrics = up.http.get(up.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("capstan_outcomes_total{kind=\"function_timeout\"} 2"), "{metrics}");
}

#[tokio::test]
async fn a_token_opens_the_door_and_goes_no_further() {
    let (_folder, up) = fresh(&["--set", "scheduler.tokens=0123456789abcdef"]);
    let key = "Bearer 0123456789abcdef";
    let deployed = up.http.put(up.function("site", "")).header("authorization", key).json(&server(json!({})));
    assert_eq!(deployed.send().await.unwrap().status().as_u16(), 201);
    assert_eq!(text(&up, "/show").await.0, 401);
    let seen =
        |request: reqwest::RequestBuilder| async { request.send().await.unwrap().json::<Value>().await.unwrap() };
    let own = seen(up.http.get(at(&up, "/show")).header("authorization", key)).await;
    assert_eq!(own["headers"]["authorization"], Value::Null);
    let both = up
        .http
        .get(at(&up, "/show"))
        .header("capstan-token", "0123456789abcdef")
        .header("authorization", "Bearer its-own");
    let both = seen(both).await;
    assert_eq!(
        (&both["headers"]["authorization"], &both["headers"]["capstan-token"]),
        (&json!("Bearer its-own"), &Value::Null)
    );
}

#[tokio::test]
async fn a_models_own_counter_keeps_it_and_a_counter_that_stands_still_lets_it_go() {
    // SPEC P01 P02 P03
    let (_folder, up) = fresh(&[]);
    let config = json!({"default": {"enable_scale_to_zero": true, "retention_period": "4s"}});
    let put = up.http.put(up.at("/v1/scale-to-zero")).json(&config).send().await.unwrap();
    assert_eq!(put.status().as_u16(), 200);
    let program = binary("web-server").unwrap().display().to_string();
    let model = json!({"model_id": "m", "activity": {"interval_s": 1}, "autoscaler": {"scaledown_window": 1}});
    up.deploy("site", spec(&[&program, "41"], "http", model)).await.unwrap();
    let seen: Value = serde_json::from_str(&text(&up, "/show").await.1).unwrap();
    // Past Capstan, to where the container listens.
    let host = seen["headers"]["host"].as_str().unwrap();
    assert_eq!(host, up.url.trim_start_matches("http://"), "the client's own host is passed on");
    let address = address_of(&up, "site").await;
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        let hit = up.http.get(format!("http://{address}/hit")).send().await;
        assert_eq!(hit.expect("the model is still there").status().as_u16(), 200);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    up.until("site", SOON, |s| s["containers"]["idle"] == 0 && s["desired"] == 0).await.unwrap();
}

/// Where a function's only container listens.
async fn address_of(up: &Up, function: &str) -> String {
    let listed = up.get(&format!("/v1/containers?function={function}")).await.unwrap();
    listed["containers"][0]["address"].as_str().expect("an address").to_owned()
}

#[tokio::test]
async fn one_event_loop_serves_many_requests_at_once() {
    // SPEC I05 I06
    let (_folder, up) = fresh(&[]);
    let settings = json!({"concurrency": {"max_inputs": 50}, "autoscaler": {"max_containers": 1}});
    up.deploy("site", server(settings)).await.unwrap();
    let address = at(&up, "/ws").replace("http://", "ws://");
    let mut sockets = Vec::new();
    for _ in 0..50 {
        sockets.push(tokio_tungstenite::connect_async(address.clone()).await.unwrap().0);
    }
    let stats = up.get("/v1/namespaces/default/functions/site/stats").await.unwrap();
    assert_eq!((&stats["running"], &stats["containers"]["busy"]), (&json!(50), &json!(1)));
    for socket in &mut sockets {
        socket.send(Message::text("still there")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still there"));
    }
}

#[tokio::test]
async fn a_token_may_send_so_many_web_requests_a_second() {
    // SPEC M08, decision D4
    let limits = ["scheduler.tokens=0123456789abcdef", "scheduler.rate_per_s=3", "scheduler.rate_burst=3"];
    let (_folder, up) = fresh(&["--set", limits[0], "--set", limits[1], "--set", limits[2]]);
    let key = "Bearer 0123456789abcdef";
    let deployed = up.http.put(up.function("site", "")).header("authorization", key).json(&server(json!({})));
    assert_eq!(deployed.send().await.unwrap().status().as_u16(), 201);
    let mut refused = 0;
    for _ in 0..12 {
        let response = up.http.get(at(&up, "/status/200")).header("authorization", key).send().await.unwrap();
        match response.status().as_u16() {
            200 => {}
            429 => {
                assert!(response.headers().contains_key("retry-after"));
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(refused > 0);
}

/// Sends raw bytes and reads until the server closes.
async fn raw(up: &Up, text: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(up.url.trim_start_matches("http://")).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn answers_are_framed_as_they_must_be_and_nothing_is_made_up() {
    let (_folder, up) = fresh(&[]);
    up.deploy("site", server(json!({"timeout_s": 5, "concurrency": {"max_inputs": 10}}))).await.unwrap();
    let get = |path: &str, more: &str| format!("GET /web/default/site{path} HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
    // What has no body leaves nothing behind on its connection.
    for bare in ["/status/204", "/status/304"] {
        let last = get("/status/200", "connection: close\r\n");
        let answer = raw(&up, &(get(bare, "") + &last)).await;
        let (first, second) = answer.split_once("\r\n\r\n").unwrap();
        assert!(first.starts_with(&format!("HTTP/1.1 {}", &bare[8..])), "{answer}");
        assert!(second.starts_with("HTTP/1.1 200 OK\r\n") && second.ends_with("status 200"), "{answer}");
        assert!(!answer.to_lowercase().contains("content-type"), "{answer}");
    }
    // A GET may have a body, and a chunked one too.
    let chunked = "transfer-encoding: chunked\r\nconnection: close\r\n";
    let answer = raw(&up, &(get("/count", chunked) + "5\r\nhello\r\n0\r\n\r\n")).await;
    assert!(answer.ends_with('5') || answer.contains("\r\n5\r\n"), "{answer}");
    // A handshake that is refused is answered whole; one with a body is none.
    let socket = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let refused = raw(&up, &get("/status/403", socket)).await;
    assert!(refused.starts_with("HTTP/1.1 403") && refused.ends_with("status 403"), "{refused}");
    let smuggled = raw(&up, &get("/ws", &format!("{socket}content-length: 30\r\n"))).await;
    assert!(smuggled.starts_with("HTTP/1.1 400"), "{smuggled}");
    // Nobody else makes up headers that mark inputs.
    let marked = up.http.get(at(&up, "/show")).header("capstan-call-id", "ca-1").header("x-forwarded-for", "10.0.0.1");
    let seen: Value = marked.send().await.unwrap().json().await.unwrap();
    assert_eq!(seen["headers"]["capstan-call-id"], Value::Null);
    assert_eq!(seen["headers"]["x-forwarded-for"], "10.0.0.1, 127.0.0.1");
}
