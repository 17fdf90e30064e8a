use super::*;
use crate::{
    container_spec::ContainerSpec,
    function::FunctionSpec,
    gpu::Gpu,
    isolation::{Isolation, Level},
    order::Start,
    report::Hello,
};
use prost::Message;
use std::{fmt::Write, sync::Arc};

fn held(n: u64) -> HeldAttempt {
    HeldAttempt { lease: LeaseId(n), call: CallId(u128::from(n) << 70), index: n * 3, attempt: 2 }
}

fn payloads() -> Vec<Payload> {
    let blob = Body::Blob(Blob { name: "a/in-0".into(), len: 9, crc32c: 7 });
    vec![
        Payload::json("{}"),
        Payload { format: Format::Pickle, body: blob },
        Payload { format: Format::Cbor, ..Payload::json("1") },
    ]
}

/// One of each kind, with everything in it that it can say.
fn reports() -> Vec<Report> {
    let done = |n, result| Done { held: held(n), waited_us: 5, run_us: 6, result };
    let failure = |kind| Failure { traceback: "line 1".into(), ..Failure::new(kind, "E", "it failed") };
    let kinds = [
        FailureKind::Function,
        FailureKind::Timeout,
        FailureKind::Startup,
        FailureKind::Crashed,
        FailureKind::BadOutput,
        FailureKind::Lost,
    ];
    let results = payloads().into_iter().map(Ok).chain(kinds.map(|kind| Err(failure(kind))));
    let container = ContainerId(4);
    vec![
        Report::Hello(Hello {
            protocols: OLDEST_PROTOCOL..=PROTOCOL,
            worker: "w".into(),
            capacity: Amount { cpu_milli: 2000, memory_mib: 99, gpus: 1 },
            version: "v".into(),
            limits: "cgroup v1".into(),
            instance: "17-1".into(),
            store: Some("payloads".into()),
            host: Some([10, 0, 0, 7].into()),
            gpus: vec![Gpu { uuid: "GPU-1".into(), model: "H100".into(), memory_mib: 81_559 }],
            isolation: Isolation { level: Level::Partial, not_kept_apart: vec!["/tmp".into()], trusts: true },
        }),
        Report::Inventory {
            shard: Shard(3),
            held: vec![Held {
                container,
                function: FunctionKey::new("default", "f"),
                revision: Revision(3),
                ready: true,
                gone: true,
                port: 4711,
                gpus: 2,
                running: vec![held(1)],
                finished: vec![done(2, Err(failure(FailureKind::Timeout)))],
            }],
            more: true,
        },
        Report::Refused { container, reason: "full".into() },
        Report::Spawned { container, pid: 17, spawn_us: 900 },
        Report::Looked { container, detail: "GET /healthz answered 503".into() },
        Report::Finished { container, done: results.zip(3..).map(|(result, n)| done(n, result)).collect() },
        Report::Returned { container, leases: vec![LeaseId(5)], reason: "late".into(), closed: true },
        Report::Ended {
            container,
            ending: Ending {
                exit_code: Some(3),
                signal: Some(9),
                oom: true,
                ordered: true,
                reason: "r".into(),
                tail: "t".into(),
            },
            begun: vec![LeaseId(1)],
        },
        Report::Ready { container, phases: vec![Phase { name: "spawn".into(), us: 4 }], port: 4711 },
        Report::Counted { container, value: 12 },
        Report::Log { container, stderr: true, chunk: Bytes::from_static(b"line\n"), dropped: 7 },
        Report::Outranked { shard: Shard(3), epoch: Epoch(9) },
        Report::Beat {
            sequence: 8,
            others: Amount { cpu_milli: 5, memory_mib: 6, gpus: 7 },
            free_gpus: vec!["GPU-1".into()],
        },
    ]
}

/// One of each kind, with everything in it that it can say. Maps have one entry: the order of several is not told.
fn orders() -> Vec<Order> {
    let spec = |json: &str| -> Arc<ContainerSpec> {
        let spec: FunctionSpec = serde_json::from_str(json).unwrap();
        Arc::new(ContainerSpec::of(&spec))
    };
    let container = ContainerId(4);
    let assignment = |payload| Assignment {
        lease: LeaseId(1),
        call: CallId(5),
        index: 3,
        attempt: 2,
        payload,
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
    };
    let start = |spec| {
        Order::Start(Start {
            container,
            function: FunctionKey::new("default", "f"),
            revision: Revision(3),
            spec,
            gpus: 2,
            env: [("CAPSTAN_URL".to_owned(), "http://127.0.0.1:7070".to_owned())].into(),
        })
    };
    vec![
        Order::Own { shard: Shard(3), shards: 16, epoch: Epoch(2) },
        Order::Peers { links: vec!["10.0.0.1:7071".into()] },
        start(spec(r#"{"runtime":{"process":{"command":["true"]}}}"#)),
        start(spec(
            r#"{"runtime":{"process":{"command":["x","-y"],"working_dir":"/w","env":{"A":"b"}}},"protocol":"exec",
            "resources":{"cpu":0.5,"cpu_limit":2,"memory_mib":64},"concurrency":{"max_inputs":4},"timeout_s":1.5,
            "startup_timeout_s":7,"trusted":true,"volumes":{"/data":"v"},"activity":{"path":"/m","counter":"c"},
            "parameters":{"size":{"type":"integer","default":7}}}"#,
        ))
        .map_parameters(),
        start(spec(r#"{"runtime":{"container":{"image":"i","command":["x"],"env":{"A":"b"}}},"confined":true}"#)),
        Order::Feed {
            container,
            groups: vec![
                Group { assignments: payloads().into_iter().map(assignment).collect(), batch: true },
                Group { assignments: vec![assignment(Payload::json("1"))], batch: false },
            ],
        },
        Order::Abort { container, leases: vec![LeaseId(1), LeaseId(2)] },
        Order::Stop { container, grace_ms: 500, reason: "idle".into() },
        Order::Recorded { container, leases: vec![LeaseId(3)] },
    ]
}

impl Order {
    /// With one parameter only.
    fn map_parameters(self) -> Self {
        let Self::Start(mut start) = self else { return self };
        let mut spec = (*start.spec).clone();
        spec.parameters.retain(|name, _| name == "CAPSTAN_PARAMETERS");
        start.spec = Arc::new(spec);
        Self::Start(start)
    }
}

fn golden() -> String {
    let mut lines = String::new();
    for (n, order) in orders().into_iter().enumerate() {
        let _ = writeln!(lines, "order | {n} | {}", hex(&link::Order::from(order).encode_to_vec()));
    }
    for (n, report) in reports().into_iter().enumerate() {
        let _ = writeln!(lines, "report | {n} | {}", hex(&link::Report::from(report).encode_to_vec()));
    }
    lines
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn every_version_that_is_spoken_is_read_as_it_was_written() {
    // `golden/protocol-N.txt` has one message of each kind as version N writes it. `BLESS=1 cargo test -p capstan-common --features
    // wire` writes this version's anew; those of older versions are never touched again.
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire/golden"));
    let file = |version| folder.join(format!("protocol-{version}.txt"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(file(PROTOCOL), golden()).unwrap();
    }
    let (orders, reports) = (orders(), reports());
    for version in OLDEST_PROTOCOL..=PROTOCOL {
        for line in std::fs::read_to_string(file(version)).unwrap().lines() {
            let parts: Vec<&str> = line.split(" | ").collect();
            let (n, bytes): (usize, _) = (parts[1].parse().unwrap(), unhex(parts[2]));
            if parts[0] == "order" {
                let order = order_in(link::Order::decode(&*bytes).unwrap());
                assert_eq!(order, Ok(Some(orders[n].clone())), "protocol {version}");
            } else {
                let report = report_in(link::Report::decode(&*bytes).unwrap());
                assert_eq!(report, Ok(reports[n].clone()), "protocol {version}");
            }
        }
    }
    let written = std::fs::read_to_string(file(PROTOCOL)).unwrap();
    assert_eq!(written, golden(), "messages changed: can the version before still read them? Then BLESS=1");
}

#[test]
fn versions_meet_at_the_newest_that_both_speak_or_not_at_all() {
    assert_eq!(agreed(&(OLDEST_PROTOCOL..=PROTOCOL)), Some(PROTOCOL));
    assert_eq!(agreed(&(1..=PROTOCOL + 5)), Some(PROTOCOL));
    assert_eq!(agreed(&(1..=OLDEST_PROTOCOL)), Some(OLDEST_PROTOCOL));
    assert_eq!(agreed(&(1..=OLDEST_PROTOCOL - 1)), None);
    assert_eq!(agreed(&(PROTOCOL + 1..=PROTOCOL + 2)), None);
    // A worker that names no oldest version speaks one.
    let hello = link::Hello { protocol: PROTOCOL + 1, ..link::Hello::default() };
    assert_eq!(agreed(&hello_in(hello).protocols), None);
}

#[test]
fn an_order_that_cannot_be_read_refuses_one_container_and_says_why() {
    let order = |n: usize| link::Order::from(orders()[n].clone());
    // What a newer scheduler adds is not in the way.
    let mut more = order(3).encode_to_vec();
    more.extend([0xfa, 0x3e, 1, 7]);
    assert_eq!(order_in(link::Order::decode(&*more).unwrap()), Ok(Some(orders()[3].clone())));
    // A protocol, a runtime or a payload that is not known is.
    let mut start = order(3);
    if let Some(link::order::Kind::Start(start)) = &mut start.kind {
        start.spec.as_mut().unwrap().protocol = 99;
    }
    let answer = order_in(start).unwrap_err().answer.unwrap();
    assert!(
        matches!(&answer, Report::Refused { container: ContainerId(4), reason } if reason.contains("protocol 99")),
        "{answer:?}"
    );
    let mut feed = order(5);
    if let Some(link::order::Kind::Feed(feed)) = &mut feed.kind {
        feed.groups[0].assignments[1].payload.as_mut().unwrap().format = 77;
    }
    let Some(Report::Finished { done, .. }) = order_in(feed).unwrap_err().answer else { panic!("its inputs fail") };
    assert!(
        done.len() == 4
            && done.iter().all(|done| matches!(&done.result, Err(why) if why.message.contains("format 77")))
    );
    // A short id is nobody's; the others are told of.
    let mut feed = order(5);
    if let Some(link::order::Kind::Feed(feed)) = &mut feed.kind {
        feed.groups[0].assignments[0].call = Bytes::from_static(b"short");
    }
    let unreadable = order_in(feed).unwrap_err();
    assert_eq!(unreadable.error, WireError::CallId(5));
    assert!(matches!(unreadable.answer, Some(Report::Finished { done, .. }) if done.len() == 3));
    assert_eq!(order_in(link::Order { kind: None }).unwrap_err().answer, None);
}

#[test]
fn long_reports_travel_in_pages_and_nothing_is_left_out() {
    // What one container's outcomes, or a worker's containers, take is not bounded; a message is.
    let (container, text) = (ContainerId(4), "x".repeat(60_000));
    let done = |lease: u64| Done {
        held: HeldAttempt { lease: LeaseId(lease), call: CallId(5), index: lease, attempt: 1 },
        waited_us: 1,
        run_us: 2,
        result: Err(Failure::new(FailureKind::Function, "E", &*text)),
    };
    let finished = pages(Report::Finished { container, done: (0..100).map(done).collect() });
    let held = |n: u64| Held {
        container: ContainerId(n),
        function: FunctionKey::new("default", "f"),
        revision: Revision(1),
        ready: true,
        gone: false,
        port: 0,
        gpus: 0,
        running: vec![HeldAttempt { lease: LeaseId(n), call: CallId(5), index: n, attempt: 1 }],
        finished: (0..if n == 7 { 50 } else { 1 }).map(done).collect(),
    };
    let inventory = pages(Report::Inventory { shard: Shard(0), held: (0..100).map(held).collect(), more: false });
    let (mut outcomes, mut parts, mut running, mut last) = (0, Vec::new(), 0, true);
    for page in finished.into_iter().chain(inventory) {
        assert!(prost::Message::encoded_len(&page) <= REPORTS_BYTES + 100);
        match report_in(page).unwrap() {
            Report::Finished { done, .. } => outcomes += done.len(),
            Report::Inventory { held, more, .. } => {
                last = more;
                for part in held {
                    outcomes += part.finished.len();
                    running += part.running.len();
                    parts.push(part.container.0);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    parts.dedup();
    assert_eq!((outcomes, running, last), (100 + 99 + 50, 100, false));
    assert_eq!(parts, (0..100).collect::<Vec<_>>(), "parts of a container follow one another");
}
