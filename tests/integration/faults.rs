//! Containers and clients that misbehave: only their own attempt fails, and others go on.

use crate::fresh;
use capstan_tests::real::{Up, echo, memory_mib, spec};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(20);

async fn healthy(up: &Up) {
    assert_eq!(up.invoke("good", json!({"ok": 1})).await.unwrap(), (200, json!({"ok": 1})));
}

#[tokio::test]
async fn misbehaving_containers_fail_their_own_attempts_only() {
    // RELIABILITY F18 F20 F22
    let (_folder, up) = fresh(&[]);
    up.deploy("good", echo("", json!({})).unwrap()).await.unwrap();
    for (fault, code, kind) in [
        ("garbage", 502, "bad_output"),
        ("close", 502, "function_failed"),
        ("die", 502, "container_crashed"),
        ("hang", 504, "function_timeout"),
    ] {
        up.deploy(fault, echo(fault, json!({"timeout_s": 1})).unwrap()).await.unwrap();
        let (status, problem) = up.invoke(fault, json!(1)).await.unwrap();
        assert_eq!((status, problem["error"]["code"].as_str()), (code, Some(kind)), "{fault}: {problem}");
        healthy(&up).await;
    }
    let died = up.invoke("die", json!(1)).await.unwrap().1;
    assert!(died["detail"].as_str().unwrap().contains("exit code 9"), "{died}");
}

#[tokio::test]
async fn a_second_answer_to_one_input_is_never_taken_for_the_next_ones() {
    // RELIABILITY F20 I3: one outcome an input, and the right one.
    let (_folder, up) = fresh(&[]);
    let more = json!({"concurrency": {"max_inputs": 4}, "autoscaler": {"max_containers": 2}});
    up.deploy("twice", echo("twice", more).unwrap()).await.unwrap();
    for n in 0..50 {
        assert_eq!(up.invoke("twice", json!(n)).await.unwrap(), (200, json!(n)));
    }
    let lines = up.map("twice", "on_error=collect", (0..500).map(|n| json!(n))).await.unwrap();
    let wrong: Vec<_> = lines.iter().enumerate().filter(|(n, line)| line["output"] != *n).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[tokio::test]
async fn a_gigabyte_of_output_leaves_memory_bounded() {
    // RELIABILITY F22 B1
    let (_folder, up) = fresh(&[]);
    up.deploy("good", echo("", json!({})).unwrap()).await.unwrap();
    up.deploy("flood", echo("flood", json!({})).unwrap()).await.unwrap();
    up.deploy("yes", spec(&["sh", "-c", "head -c 1000000000 /dev/zero"], "exec", json!({}))).await.unwrap();
    healthy(&up).await;
    let before = memory_mib(up.pid()).unwrap();
    assert_eq!(up.invoke("flood", json!(1)).await.unwrap().0, 200);
    let (status, problem) = up.invoke("yes", json!(1)).await.unwrap();
    assert_eq!((status, problem["error"]["type"].as_str()), (502, Some("OutputTooLarge")));
    healthy(&up).await;
    let after = memory_mib(up.pid()).unwrap();
    assert!(after < before + 150.0, "{before} MiB before, {after} after");
}

#[tokio::test]
async fn containers_killed_at_random_fail_or_retry_only_what_they_held() {
    // RELIABILITY F18 I3 I7
    let (_folder, up) = fresh(&["--set", "scheduler.limits.retry_floor_ms=1"]);
    let more = json!({"retries": {"max_retries": 100, "initial_delay_ms": 1}, "autoscaler": {"min_containers": 4, "max_containers": 4}});
    up.deploy("f", echo("", more).unwrap()).await.unwrap();
    let inputs = 5_000;
    let body: String = (0..inputs).map(|n| format!("{n}\n")).collect();
    let (_, call) = up.post(&up.function("f", "/spawn_map"), body).await.unwrap();
    let id = call["call_id"].as_str().unwrap().to_owned();
    let mut seed = 7u64;
    for _ in 0..12 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let found: Vec<_> = processes_of(&up).into_iter().collect();
        if let Some(pid) = found.get((seed >> 33) as usize % found.len().max(1)) {
            // It may have ended in between.
            let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let results = up.results(&id).await.unwrap();
    let outputs: BTreeMap<u64, &Value> = results.iter().map(|r| (r["index"].as_u64().unwrap(), &r["output"])).collect();
    assert_eq!((results.len(), outputs.len()), (inputs, inputs));
    assert!(outputs.iter().all(|(index, output)| *output == index));
}

/// Processes that this scheduler's containers are.
fn processes_of(up: &Up) -> Vec<rustix::process::Pid> {
    let children = std::fs::read_dir(format!("/proc/{}/task", up.pid())).unwrap().flatten();
    let lists = children.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> =
        lists.flat_map(|l| l.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect();
    let is_echo = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.windows(11).any(|w| w == b"echo-server"))
    };
    pids.into_iter().filter(is_echo).filter_map(rustix::process::Pid::from_raw).collect()
}

#[tokio::test]
async fn a_client_that_vanishes_in_a_map_cancels_what_has_not_started() {
    let (_folder, up) = fresh(&["--set", "worker.cpu=1"]);
    up.deploy("f", spec(&["sleep", "0.2"], "exec", json!({"resources": {"cpu": 0.5}}))).await.unwrap();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(
        (0..500).map(|n| Ok::<_, std::io::Error>(format!("{n}\n"))),
    ));
    let response = up.http.post(up.function("f", "/map")).body(body).send().await.unwrap();
    let id = response.headers()["Capstan-Call-Id"].to_str().unwrap().to_owned();
    up.until("f", SOON, |s| s["running"] == 2 && s["backlog"].as_u64() > Some(100)).await.unwrap();
    drop(response);
    up.until("f", SOON, |s| s["backlog"] == 0 && s["running"] == 0).await.unwrap();
    let view = up.get(&format!("/v1/calls/{id}")).await.unwrap();
    assert_eq!(view["state"], "cancelled");
    assert!(view["inputs"]["cancelled"].as_u64().unwrap() > 50, "{view}");
}

#[tokio::test]
async fn a_slow_reader_holds_back_its_own_map_and_nobody_else() {
    // RELIABILITY F28 B1
    let (_folder, up) = fresh(&[]);
    up.deploy("good", echo("", json!({"concurrency": {"max_inputs": 4}})).unwrap()).await.unwrap();
    let host = up.url.strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&host).await.unwrap();
    let head = "POST /v1/namespaces/default/functions/good/map HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let line = format!("\"{}\"\n", "x".repeat(2000));
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    // Writes until the scheduler takes no more: it must not take everything.
    let mut taken = 0u64;
    while tokio::time::timeout(Duration::from_secs(1), stream.write_all(chunk.as_bytes())).await.is_ok() {
        taken += chunk.len() as u64;
        assert!(taken < 256 << 20, "no back-pressure");
    }
    healthy(&up).await;
    assert!(memory_mib(up.pid()).unwrap() < 250.0);
}

#[tokio::test]
async fn bodies_that_are_wrong_get_a_clear_error() {
    let (_folder, up) = fresh(&["--set", "scheduler.payload_max_bytes=1000"]);
    up.deploy("good", echo("", json!({})).unwrap()).await.unwrap();
    for (what, body, status) in [
        ("/invoke", b"".to_vec(), 400),
        ("/invoke", b"{".to_vec(), 400),
        ("/invoke", b"1 2".to_vec(), 400),
        ("/invoke", b"\"\xff\xfe\"".to_vec(), 400),
        ("/invoke", vec![b'1'; 1001], 413),
        ("/spawn_map", b"1\n{\n".to_vec(), 400),
        ("/spawn_map", [b"1\n".to_vec(), vec![b'1'; 1001]].concat(), 413),
        ("/map", b"1\n{\n".to_vec(), 400),
    ] {
        let (got, problem) = up.post(&up.function("good", what), body.clone()).await.unwrap();
        assert_eq!(got, status, "{what} {:?}: {problem}", String::from_utf8_lossy(&body[..body.len().min(20)]));
        assert!(problem["code"].is_string() && problem["detail"].is_string());
    }
    assert_eq!(up.get("/v1/namespaces/default/functions/good/stats").await.unwrap()["backlog"], 0);
}

#[tokio::test]
async fn half_open_and_slow_connections_do_not_disturb_others() {
    let (_folder, up) = fresh(&[]);
    up.deploy("good", echo("", json!({})).unwrap()).await.unwrap();
    let host = up.url.strip_prefix("http://").unwrap().to_owned();
    // CAPSTAN_SLOW sets another number, up to the open files that the machine allows.
    let many = std::env::var("CAPSTAN_SLOW").map_or(500, |n| n.parse().expect("CAPSTAN_SLOW is a number"));
    let mut slow = Vec::new();
    for _ in 0..many {
        let mut stream = TcpStream::connect(&host).await.unwrap();
        stream.write_all(b"POST /v1/namespaces/default/functions/good/invoke HTTP/1.1\r\nHost: loc").await.unwrap();
        slow.push(stream);
    }
    for _ in 0..20 {
        healthy(&up).await;
    }
    // A head that never ends is answered or cut by the scheduler, not kept for ever.
    let mut byte = [0u8; 512];
    let answered = tokio::time::timeout(Duration::from_secs(15), slow[0].read(&mut byte)).await;
    assert!(answered.is_ok());
}
