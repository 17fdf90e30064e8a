//! What strangers may send, mutated: requests, messages, stored values, manifests. Nothing ends anything, no answer is a fault of
//! ours, and memory stays where it was. `CAPSTAN_FUZZ_INPUTS=N` draws N inputs; an ordinary run draws twenty thousand.

use crate::{fresh, introduction};
use capstan_common::{
    id::{CallId, ContainerId, FunctionKey, LeaseId, Revision, Shard},
    input::{Blob, Body, Failure, FailureKind, Format, Payload},
    report::{Done, Held, HeldAttempt, Report},
    resource::Amount,
    wire::{self, link},
};
use capstan_scheduler::{
    api::promql,
    link::check::{self, Check},
    store::{
        layout::{self, StoredCall, StoredFunction},
        stored,
    },
    zero_config,
};
use capstan_scheduler_core::{
    autoscaler::Policy,
    record::{Entry, UsedKey},
    scale_to_zero,
};
use capstan_tests::{
    mutate::Mutator,
    raw::Raw,
    real::{Up, echo, memory_mib, spec},
};
use data_encoding::HEXLOWER;
use prost::Message;
use serde_json::json;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;

fn inputs() -> usize {
    std::env::var("CAPSTAN_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

fn requests() -> Vec<Vec<u8>> {
    let f = "/v1/namespaces/default/functions/echo";
    let spec = spec(
        &["cat"],
        "exec",
        json!({
            "autoscaler": {"min_containers": 0, "max_containers": 2, "buffer_containers": 0, "scaledown_window": 5},
            "retries": {"max_retries": 1}, "timeout_s": 1, "labels": {"a": "b"}, "volumes": {"/models": "m"},
            "schedule": {"cron": "0 8 * * 1-5", "timezone": "America/New_York", "input": {"n": 1}},
            "profiles": [{"name": "day", "start": "0 8 * * *", "end": "0 20 * * *", "autoscaler": {"max_containers": 1}}],
            "resources": {"cpu": 0.1, "memory_mib": 64, "gpu": ["H100:2", "any"]},
        }),
    )
    .to_string();
    let zero = r#"{"default":{"enable_scale_to_zero":true,"retention_period":"1h30m5µs"},"m":"model_id: m\nretention_period: 5m"}"#;
    let call = "ca-01a221ebfe2077e5bbfb7b42a908013c";
    let request = |method: &str, path: &str, body: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nidempotency-key: k\r\nif-match: \"1\"\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    };
    vec![
        request("PUT", "/v1/namespaces/default/functions/drawn?dry_run=true", &spec),
        request("POST", &format!("{f}/invoke"), "{\"a\":[1,2,3]}"),
        request("POST", &format!("{f}/spawn"), "\"text\""),
        request("POST", &format!("{f}/spawn_map"), "1\n2\n\"three\"\n"),
        request("POST", &format!("{f}/map?ordered=false&on_error=collect&outputs=true"), "1\n2\n3\n"),
        request("GET", &format!("{f}/explain"), ""),
        request("PATCH", "/v1/namespaces/default/functions/idle/autoscaler", "{\"max_containers\":3,\"min_containers\":null}"),
        request("GET", &format!("/v1/calls/{call}/results?after=e1.2.3&limit=10&ordered=false&wait_s=0"), ""),
        request("GET", &format!("/v1/calls/{call}/inputs/0/explain"), ""),
        request("POST", &format!("/v1/calls/{call}/cancel"), "{}"),
        request("GET", "/v1/calls?namespace=default&function=echo&state=succeeded&after=ca-0&limit=5", ""),
        request("GET", "/v1/containers?function=echo&worker=w&namespace=default", ""),
        request("GET", "/v1/containers/ct-0000010000000001/logs?follow=false", ""),
        request("PUT", "/v1/scale-to-zero", zero),
        request("PUT", "/v1/scale-to-zero", "kind: ConfigMap\napiVersion: v1\ndata:\n  default: |\n    retention_period: 10m\n"),
        request("GET", "/v1/scale-to-zero/effective?model_id=m&namespace=default", ""),
        request("GET", "/api/v1/query?query=sum(increase(vllm%3Arequest_success_total%7Bmodel_name%3D%22m%22%7D%5B5m%5D))&time=1", ""),
        request("GET", "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/wva_desired_replicas?labelSelector=a%3Db%2Cc+in+(d)", ""),
        request("PUT", "/v1/namespaces/drawn", "{\"weight\":2,\"quota\":{\"cpu\":1.5,\"containers\":3}}"),
        request("POST", "/v1/join-tokens", ""),
        request("GET", "/metrics", ""),
        request("GET", "/web/default/page/a/b?c=d", ""),
        request("POST", "/web/default/page/", "hello"),
        b"GET /web/default/page/ws HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n".to_vec(),
        b"POST /v1/namespaces/default/functions/echo/map HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n1\n\r\n0\r\n\r\n".to_vec(),
    ]
}

/// What of an answer tells whether it is of a kind that was seen before, and whether it is a fault of ours.
fn judged(request: &[u8], answer: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(answer);
    let mut kinds = Vec::new();
    // One request may have become several.
    for part in text.split("HTTP/1.1 ").skip(1) {
        // What we say may repeat a piece of what was asked.
        let Some(status) = part.get(..3).and_then(|status| status.parse::<u16>().ok()) else { continue };
        let code = part.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        let asked = String::from_utf8_lossy(request);
        let runs = ["invoke", "map", "/web/", "spawn"].iter().any(|word| asked.contains(word));
        let ours = status == 500 || (matches!(status, 502 | 504) && !runs);
        if ours {
            return Err(format!("{status}: {}\n{}", asked, part.chars().take(2000).collect::<String>()));
        }
        kinds.push(format!("{status}{code}"));
    }
    kinds.truncate(3);
    Ok(kinds.join(" "))
}

async fn alive(up: &Up) {
    let answer = up.http.get(up.at("/healthz")).timeout(Duration::from_secs(20)).send().await.expect("it answers");
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn mutated_requests_meet_no_fault_of_ours() {
    let (_folder, up) = fresh(&["--set", "scheduler.limits.start_tries=1"]);
    up.deploy("echo", echo("", json!({"timeout_s": 1})).unwrap()).await.unwrap();
    up.deploy("idle", spec(&["cat"], "exec", json!({}))).await.unwrap();
    up.deploy("page", echo("", json!({"timeout_s": 1})).unwrap()).await.unwrap();
    up.invoke("echo", json!(1)).await.unwrap();
    let before = memory_mib(up.pid()).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|seed| {
            let (raw, count) = (Raw::to(&up.url), inputs() / 8 / 4);
            std::thread::spawn(move || {
                let mut mutator = Mutator::of(seed, requests());
                let mut wrong = Vec::new();
                for _ in 0..count {
                    let input = mutator.draw();
                    let Ok(answer) = raw.ask(&input) else { continue };
                    match judged(&input, &answer) {
                        Ok(how) => mutator.answered(&input, how),
                        Err(what) => wrong.push(what),
                    }
                }
                (mutator.ways(), wrong)
            })
        })
        .collect();
    let mut ways = 0;
    for thread in threads {
        let (seen, wrong) = thread.join().expect("a thread");
        assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong[0]);
        ways += seen;
    }
    assert!(ways > 20, "{ways} ways of answering");
    alive(&up).await;
    let after = memory_mib(up.pid()).unwrap();
    assert!(after < before + 200.0, "{before} MiB before, {after} after");
}

fn reports() -> Vec<Vec<u8>> {
    let held = HeldAttempt { lease: LeaseId(1 << 40 | 1), call: CallId(7), index: 0, attempt: 1 };
    let done = |result| Done { held, waited_us: 1, run_us: 2, result };
    let blob = Blob { name: format!("{}/out-0-1-{}", CallId(7), "0".repeat(64)).into(), len: 9, crc32c: 1 };
    let failure = Failure::new(FailureKind::Function, "E", "no");
    let function = FunctionKey::new("default", "echo");
    let container = ContainerId(1 << 40 | 1);
    let hello = introduction("drawn");
    let part = Held {
        container,
        function,
        revision: Revision(1),
        ready: true,
        gone: false,
        port: 20_001,
        gpus: 0,
        running: vec![held],
        finished: vec![done(Ok(Payload::json("1")))],
    };
    let all = [
        Report::Hello(hello),
        Report::Inventory { shard: Shard(0), held: vec![part], more: false },
        Report::Finished {
            container,
            done: vec![done(Ok(Payload { format: Format::Json, body: Body::Blob(blob) })), done(Err(failure))],
        },
        Report::Ended { container, ending: Default::default(), begun: vec![LeaseId(1)] },
        Report::Returned { container, leases: vec![LeaseId(1)], reason: "r".into(), closed: true },
        Report::Log { container, stderr: true, chunk: "line\n".into(), dropped: 1 },
        Report::Looked { container, detail: "d".into() },
        Report::Beat { sequence: 1, others: Amount::default(), free_gpus: vec!["g".into()] },
    ];
    all.into_iter().map(|report| link::Reports { reports: vec![report.into()] }.encode_to_vec()).collect()
}

#[tokio::test]
async fn mutated_reports_and_questions_of_kedas_end_nothing() {
    // RELIABILITY §4.1 A4: a worker that lies all the time.
    let (_folder, up, link, keda) = with_doors().await;
    up.deploy("echo", spec(&["cat"], "exec", json!({"autoscaler": {"min_containers": 1}}))).await.unwrap();
    assert_eq!(up.invoke("echo", json!(1)).await.unwrap().0, 200);
    let before = memory_mib(up.pid()).unwrap();
    let mut mutator = Mutator::of(3, reports());
    let mut sent = 0;
    while sent < inputs() / 8 {
        // Each link begins well, and lies until it is cut.
        let Ok(mut client) = link::link_client::LinkClient::connect(format!("http://{link}")).await else { continue };
        let (tell, told) = tokio::sync::mpsc::channel(64);
        let hello = link::Reports::decode(reports()[0].as_slice()).unwrap();
        tell.send(hello).await.unwrap();
        let joined = client.join(ReceiverStream::new(told)).await;
        let Ok(orders) = joined else {
            // Its name is taken until the last link is known to have ended.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let reading = tokio::spawn(async move {
            let mut orders = orders.into_inner();
            while let Ok(Some(_)) = orders.message().await {}
        });
        for _ in 0..500 {
            let input = mutator.draw();
            let Ok(reports) = link::Reports::decode(input.as_slice()) else { continue };
            sent += 1;
            if tell.send(reports).await.is_err() {
                break;
            }
        }
        drop(tell);
        let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
    }
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{keda}")).unwrap().connect_lazy();
    let mut scaler = capstan_scheduler::keda::proto::external_scaler_client::ExternalScalerClient::new(channel);
    let object = |metadata: &[(&str, &str)]| capstan_scheduler::keda::proto::ScaledObjectRef {
        name: "n".into(),
        namespace: "default".into(),
        scaler_metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    let corpus = [object(&[("function", "echo"), ("metric", "desired")]), object(&[("model", "m"), ("cpu", "1")])];
    let mut mutator = Mutator::of(4, corpus.map(|object| object.encode_to_vec()));
    for _ in 0..inputs() / 80 {
        let input = mutator.draw();
        let Ok(asked) = capstan_scheduler::keda::proto::ScaledObjectRef::decode(input.as_slice()) else { continue };
        let answer = tokio::time::timeout(Duration::from_secs(5), scaler.is_active(asked)).await.expect("an answer");
        let how = answer.map_or_else(|status| format!("{:?}", status.code()), |_| "ok".into());
        assert!(how != "Internal" && how != "Unknown", "{how}: {input:?}");
        mutator.answered(&input, how);
    }
    alive(&up).await;
    assert_eq!(up.invoke("echo", json!(2)).await.unwrap(), (200, json!(2)), "honest workers are heard");
    let after = memory_mib(up.pid()).unwrap();
    assert!(after < before + 200.0, "{before} MiB before, {after} after");
    let metrics = up.http.get(up.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.len() < 200_000, "{} bytes of metrics", metrics.len());
}

/// An `up` whose link and KEDA doors are open on this machine.
async fn with_doors() -> (tempfile::TempDir, Up, String, String) {
    let ports = capstan::local::free_ports(2).expect("two ports");
    let (link, keda) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));
    let folder = tempfile::tempdir().unwrap();
    let (data, blobs) = (folder.path().join("data"), folder.path().join("data/blobs"));
    let keda_listen = format!("scheduler.keda_listen={keda}");
    let link_listen = format!("scheduler.link_listen={link}");
    let up = Up::start(&data, &["--half", "scheduler", "--set", &link_listen, "--set", &keda_listen]).unwrap();
    // An honest worker beside.
    let worker = std::process::Command::new(capstan_tests::real::binary("capstan").unwrap())
        .args(["up", "--half", "worker", "--data-dir"])
        .arg(folder.path().join("worker"))
        .args(["--set", &format!("worker.schedulers={link}"), "--set", &format!("worker.blob_dir={}", blobs.display())])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let up = up.with(worker);
    for _ in 0..500 {
        if up.get("/v1/workers").await.unwrap()["workers"].as_array().is_some_and(|workers| !workers.is_empty()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (folder, up, link, keda)
}

/// Draws inputs for something that reads bytes, and lets it read them. It answers a word about each.
fn read_all(name: &str, seed: u64, corpus: Vec<Vec<u8>>, read: impl Fn(&[u8]) -> String) {
    let mut mutator = Mutator::of(seed, corpus);
    for _ in 0..inputs() / 10 {
        let input = mutator.draw();
        let how = read(&input);
        mutator.answered(&input, how.chars().take(40).collect());
    }
    assert!(mutator.ways() > 1, "{name} answers everything alike");
}

fn word<T, E: std::fmt::Display>(read: Result<T, E>) -> String {
    read.map_or_else(|error| error.to_string(), |_| "read".into())
}

#[test]
fn mutated_bytes_are_read_or_refused_by_everything_that_reads_them() {
    let check = Check { output_max: 1 << 20 };
    read_all("link", 10, reports(), |bytes| {
        let Ok(reports) = link::Reports::decode(bytes) else { return "no message".into() };
        let mut said = String::new();
        for report in reports.reports {
            said = match wire::report_in(report) {
                Ok(Report::Hello(hello)) => word(check::hello(hello)),
                Ok(report) => word(check.report(report)),
                Err(error) => error.to_string(),
            };
        }
        said
    });
    // What lies in a store, as the golden file has it.
    let golden = include_str!("../../scheduler/src/store/stored/golden/now.txt");
    let values =
        golden.lines().filter_map(|line| HEXLOWER.decode(line.rsplit(" | ").next()?.as_bytes()).ok()).collect();
    read_all("stored values", 11, values, |bytes| {
        let function = stored::decode::<StoredFunction>(bytes).and_then(|stored| stored.read().map(drop));
        let call = stored::decode::<StoredCall>(bytes).map(drop);
        let _ = (stored::decode::<Vec<Entry>>(bytes).map(drop), stored::decode::<UsedKey>(bytes).map(drop));
        let _ = (layout::outcomes_within(bytes).map(drop), stored::decode::<Policy>(bytes).map(drop));
        zero_config::zero_of(bytes).map_or_else(
            || format!("{}{}", word(function), word(call)),
            |data| format!("{} warnings", zero_config::ZeroConfig::read(data).warnings.len().min(3)),
        )
    });
    let text = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    read_all("queries", 12, text(&["sum(increase(a{b=~\"c.*\",d!='e'}[1h30m]))", "a{b=\"c\"}"]), |bytes| {
        promql::read(&utf8(bytes)).map_or_else(|why| format!("{why:?}"), |_| "read".into())
    });
    read_all("durations", 13, text(&["1h30m", "1.5h", "5µs", "100ms"]), |bytes| {
        word(scale_to_zero::duration_ms(&utf8(bytes)))
    });
    read_all("cron", 14, text(&["0 8 * * 1-5", "*/5 0,12 1-7 * MON#1", "0 0 29 2 *"]), |bytes| {
        word(capstan_common::schedule::cron(&utf8(bytes)))
    });
    read_all("configurations", 15, text(&["default: |\n  retention_period: 5m\nm: {model_id: m}"]), |bytes| {
        let document = zero_config::yaml(&utf8(bytes));
        word(
            document
                .map_err(|e| e.chars().take(12).collect::<String>())
                .and_then(|d| zero_config::entries_of(d).map_err(|e| e.detail)),
        )
    });
    let manifest = "functions:\n- name: a.b\n  runtime: {process: {command: [cat]}}\n  protocol: exec\n  schedule: {period_s: 5}\n";
    let toml = "name = \"a\"\nprotocol = \"exec\"\n[runtime.process]\ncommand = [\"cat\"]\n";
    read_all("manifests", 16, text(&[manifest, toml]), |bytes| {
        let parse = |name: &str| capstan::manifest::parse(std::path::Path::new(name), &utf8(bytes));
        let (yaml, toml) = (parse("f.yaml"), parse("f.toml"));
        let brief = |error: capstan::client::Failed| error.to_string().chars().skip(8).take(16).collect::<String>();
        format!("{}{}", yaml.map_or_else(brief, |_| "read".into()), toml.map_or_else(brief, |_| "read".into()))
    });
    read_all("trace contexts", 17, text(&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]), |bytes| {
        format!("{:?}", capstan_common::trace::context(&utf8(bytes), Some("a=1")).is_some())
    });
    let verb = json!({
        "key": {"namespace": "default", "name": "f;x=1"}, "patch": {"min_containers": null}, "before": {"one_of": [3]},
        "limit": 10, "namespace": "default", "call": "ca-0192f0c1d2e37a4b8c5d6e7f80910a1b", "index": 7, "data": {"default": {}},
        "spec": spec(&["cat"], "exec", json!({})),
    });
    read_all("verbs", 19, vec![verb.to_string().into_bytes()], |bytes| {
        fn read<V: capstan_verb::Verb>(bytes: &[u8]) -> String {
            word(
                serde_json::from_slice::<V>(bytes)
                    .map(|verb| (format!("{:?}", verb.at()), verb.page(Vec::new()).is_some())),
            )
            .chars()
            .take(12)
            .collect()
        }
        use capstan_verb::{call, function, model};
        [
            read::<function::Patch>,
            read::<function::Deploy>,
            read::<call::List>,
            read::<call::ExplainInput>,
            read::<model::SetScaleToZero>,
        ]
        .map(|read| read(bytes))
        .join(" ")
    });
    read_all("specs", 18, vec![spec(&["cat"], "exec", json!({"timeout_s": 5})).to_string().into_bytes()], |bytes| {
        let read = serde_json::from_slice::<capstan_common::function::FunctionSpec>(bytes);
        read.map_or_else(
            |e| e.to_string().chars().take(20).collect(),
            |spec| word(capstan_common::validate::new_spec(&spec).and_then(|()| capstan_common::validate::spec(&spec))),
        )
    });
}
