use super::*;
use crate::{
    gpu::Gpu,
    isolation::{Isolation, Level},
    report::Hello,
};

fn held(n: u64) -> HeldAttempt {
    HeldAttempt { lease: LeaseId(n), call: CallId(u128::from(n) << 70), index: n * 3, attempt: 2 }
}

#[test]
fn reports_survive_the_wire() {
    let done = |n, result| Done { held: held(n), waited_us: 5, run_us: 6, result };
    let failure = Failure::new(FailureKind::Timeout, "Timeout", "ran 3 s");
    let blob = Blob { name: "a/in-0".into(), len: 9, crc32c: 7 };
    let container = ContainerId(4);
    let reports = vec![
        Report::Hello(Hello {
            protocol: PROTOCOL,
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
                gone: false,
                port: 4711,
                gpus: 2,
                running: vec![held(1)],
                finished: vec![done(2, Err(failure))],
            }],
            more: true,
        },
        Report::Looked { container, detail: "GET /healthz answered 503".into() },
        Report::Finished {
            container,
            done: vec![done(3, Ok(Payload { format: Format::Cbor, body: Body::Blob(blob) }))],
        },
        Report::Ended {
            container,
            ending: Ending { exit_code: Some(3), ..Ending::default() },
            begun: vec![LeaseId(1)],
        },
        Report::Ready { container, phases: vec![Phase { name: "spawn".into(), us: 4 }], port: 4711 },
        Report::Counted { container, value: 12 },
        Report::Outranked { shard: Shard(3), epoch: Epoch(9) },
        Report::Beat {
            sequence: 8,
            others: Amount { cpu_milli: 5, memory_mib: 6, gpus: 7 },
            free_gpus: vec!["GPU-1".into()],
        },
    ];
    for report in reports {
        assert_eq!(report_in(report.clone().into()), Ok(report));
    }
}

#[test]
fn orders_survive_the_wire_and_a_short_call_id_is_refused() {
    let spec = serde_json::from_str(r#"{"runtime":{"process":{"command":["true"]}}}"#).unwrap();
    let container = ContainerId(4);
    let assignment = Assignment {
        lease: LeaseId(1),
        call: CallId(5),
        index: 0,
        attempt: 1,
        payload: Payload::json(&b"1"[..]),
        traceparent: "".into(),
    };
    let feed = Order::Feed { container, groups: vec![Group { assignments: vec![assignment], batch: true }] };
    let start = Order::Start(Start {
        container,
        function: FunctionKey::new("default", "f"),
        revision: Revision(3),
        spec: Arc::new(spec),
        gpus: 2,
        env: [("CAPSTAN_URL".to_owned(), "http://127.0.0.1:7070".to_owned())].into(),
    });
    let own = Order::Own { shard: Shard(3), shards: 16, epoch: Epoch(2) };
    let peers = Order::Peers { links: vec!["10.0.0.1:7071".into()] };
    for order in [feed.clone(), start, own, peers] {
        assert_eq!(order_in(order.clone().into()), Ok(Some(order)));
    }
    let mut broken = link::Order::from(feed);
    if let Some(link::order::Kind::Feed(feed)) = &mut broken.kind {
        feed.groups[0].assignments[0].call = Bytes::from_static(b"short");
    }
    assert_eq!(order_in(broken), Err(WireError::CallId(5)));
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
