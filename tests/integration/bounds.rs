//! Memory is bounded whatever is sent, and however slowly it is read (RELIABILITY B1).

use crate::{fresh, introduction};
use capstan_common::{
    id::{ContainerId, Epoch, FunctionKey, Revision, Shard},
    report::{Held, Report},
    wire::link,
};
use capstan_tests::{
    raw::Raw,
    real::{Up, memory_mib, spec},
};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};
use tokio_stream::wrappers::ReceiverStream;

/// What may be held above an idle scheduler, in MiB.
const ABOVE_IDLE: f64 = 200.0;

fn parked() -> serde_json::Value {
    spec(&["cat"], "exec", json!({"resources": {"cpu": 10_000}}))
}

fn host(up: &Up) -> String {
    up.url.trim_start_matches("http://").to_owned()
}

async fn still_small(up: &Up, idle: f64) {
    let health = up.http.get(up.at("/healthz")).timeout(Duration::from_secs(20)).send().await.expect("it answers");
    assert_eq!(health.status(), 200);
    let now = memory_mib(up.pid()).unwrap();
    eprintln!("{idle} MiB idle, {now} now");
    assert!(now < idle + ABOVE_IDLE, "{idle} MiB idle, {now} now");
}

#[tokio::test]
async fn a_thousand_half_sent_bodies_take_no_more_than_their_share() {
    let (_folder, up) = fresh(&[]);
    up.deploy("f", parked()).await.unwrap();
    let idle = memory_mib(up.pid()).unwrap();
    let half = vec![b'1'; 1 << 20];
    let mut open = Vec::new();
    for n in 0..1_000 {
        let mut stream = TcpStream::connect(host(&up)).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        let path = ["invoke", "spawn", "spawn_map"][n % 3];
        let length = 2 << 20;
        let head = format!(
            "POST /v1/namespaces/default/functions/f/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n"
        );
        // What is not taken is not held.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&half));
        open.push(stream);
    }
    still_small(&up, idle).await;
    drop(open);
    // Their room is given back, and small bodies had some all the time.
    let (status, answer) = up.post(&up.function("f", "/spawn"), "1").await.unwrap();
    assert_eq!(status, 202, "{answer}");
}

/// The most memory that a process itself had since it was last asked.
fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

#[tokio::test]
async fn outputs_that_waited_for_a_slow_first_one_are_given_piece_by_piece() {
    // RELIABILITY B1: a map needs constant memory.
    let (_folder, up) = fresh(&[]);
    let program = "read n; [ $n = 0 ] && while [ ! -e go ]; do sleep 0.1; done; head -c 4000000 /dev/zero | tr '\\0' a";
    let mut spec =
        spec(&["sh", "-c", program], "exec", json!({"autoscaler": {"max_containers": 3}, "resources": {"cpu": 0.1}}));
    let here = capstan_tests::real::shared_folder().unwrap();
    spec["runtime"]["process"]["working_dir"] = json!(here.path());
    up.deploy("f", spec).await.unwrap();
    let body: String = (0..40).map(|n| format!("{n}\n")).collect();
    let mut answer = up.http.post(up.function("f", "/map")).body(body).send().await.unwrap();
    let id = answer.headers()["Capstan-Call-Id"].to_str().unwrap().to_owned();
    up.until_at(&format!("/v1/calls/{id}"), Duration::from_secs(60), |view| view["inputs"]["succeeded"] == 39)
        .await
        .unwrap();
    peak_mib(up.pid());
    let idle = memory_mib(up.pid()).unwrap();
    std::fs::write(here.path().join("go"), "").unwrap();
    let (mut lines, mut bytes) = (0, 0);
    while let Some(piece) = answer.chunk().await.unwrap() {
        lines += piece.iter().filter(|byte| **byte == b'\n').count();
        bytes += piece.len();
    }
    assert!(lines == 40 && bytes > 160_000_000, "{lines} lines, {bytes} bytes");
    let peak = peak_mib(up.pid());
    assert!(peak < idle + 100.0, "{idle} MiB before, {peak} at most");
}

#[tokio::test]
async fn long_lists_that_nobody_reads_are_not_held() {
    let (_folder, up) = fresh(&[]);
    let idle = memory_mib(up.pid()).unwrap();
    let large = "x".repeat(200 << 10);
    for n in 0..150 {
        let mut spec = parked();
        spec["runtime"]["process"]["env"] = json!({"LARGE": large});
        up.deploy(&format!("f{n}"), spec).await.unwrap();
    }
    let mut open = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(host(&up)).unwrap();
        stream
            .write_all(b"GET /v1/namespaces/default/functions?limit=1000 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            .unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200");
        open.push(stream);
    }
    still_small(&up, idle).await;
}

#[tokio::test]
async fn twenty_thousand_idempotency_keys_are_small() {
    let (_folder, up) = fresh(&[]);
    up.deploy("f", parked()).await.unwrap();
    let idle = memory_mib(up.pid()).unwrap();
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let url = up.url.clone();
            std::thread::spawn(move || {
                let mut raw = Raw::to(&url);
                for n in 0..2_500 {
                    let key = format!("{sender}-{n}-{}", "k".repeat(240));
                    let headers = [("idempotency-key", key.as_str())];
                    let answer = raw.send("POST", "/v1/namespaces/default/functions/f/spawn", &headers, b"1").unwrap();
                    assert_eq!(answer.status, 202, "{answer:?}");
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    still_small(&up, idle).await;
}

#[tokio::test]
async fn a_worker_that_floods_its_link_is_not_collected() {
    // RELIABILITY §4.1 A4
    let port = capstan::local::free_ports(1).unwrap()[0];
    let folder = capstan_tests::real::shared_folder().unwrap();
    let listen = format!("scheduler.link_listen=127.0.0.1:{port}");
    let up = Up::start(&folder.path().join("data"), &["--half", "scheduler", "--set", &listen]).unwrap();
    up.deploy("f", parked()).await.unwrap();
    let idle = memory_mib(up.pid()).unwrap();
    let hello = introduction("flood");
    let log = |n: u64| Report::Log {
        container: ContainerId(ContainerId::first(Epoch(9)).0 + n),
        stderr: n.is_multiple_of(2),
        chunk: "x".repeat(250 << 10).into(),
        dropped: n,
    };
    let page = |n: u64| Report::Inventory {
        shard: Shard(0),
        held: (0..2_000)
            .map(|c| Held {
                container: ContainerId(ContainerId::first(Epoch(9)).0 + n * 2_000 + c),
                function: FunctionKey::new("default", "f"),
                revision: Revision(1),
                ready: true,
                gone: false,
                port: 1,
                gpus: 0,
                running: Vec::new(),
                finished: Vec::new(),
            })
            .collect(),
        more: true,
    };
    let mut joined = 0;
    for life in 0..8 {
        let Ok(mut client) = link::link_client::LinkClient::connect(format!("http://127.0.0.1:{port}")).await else {
            continue;
        };
        let (tell, told) = tokio::sync::mpsc::channel(1);
        let asked = tokio::spawn(async move { client.join(ReceiverStream::new(told)).await });
        let mut reports = vec![Report::Hello(hello.clone())];
        reports.extend((0..200).map(|n| if life % 2 == 0 { log(n) } else { page(n) }));
        for report in reports {
            // A link that was cut takes nothing any more.
            if tell.send(link::Reports { reports: vec![report.into()] }).await.is_err() {
                break;
            }
        }
        drop(tell);
        joined += i32::from(matches!(asked.await, Ok(Ok(_))));
    }
    assert!(joined > 0, "no link was ever heard");
    still_small(&up, idle).await;
}
