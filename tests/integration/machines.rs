//! Workers of a cluster, as several schedulers see and share them.

use capstan::local::{Mode, Size, free_ports};
use capstan_common::{
    container::Ending,
    id::ContainerId,
    report::{Hello, Report},
    resource::Amount,
    wire::{PROTOCOL, link},
};
use capstan_tests::{
    cluster::{Cluster, SOON, eventually, lines},
    real::{Up, binary, spec},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, process::Stdio};
use tokio::process::Command;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

fn size(schedulers: usize, workers: usize) -> Size {
    Size { etcd: 1, schedulers, workers, ..Size::default() }
}

fn script(text: &str, more: Value) -> Value {
    let mut more = more;
    more["resources"] = json!({"cpu": 0.5});
    spec(&["sh", "-c", text], "exec", more)
}

trait Machines {
    async fn put(&self, namespace: &str, name: &str, spec: &Value);
    async fn owners(&self, names: &[String]) -> BTreeMap<usize, Vec<String>>;
    async fn worker(&self, scheduler: usize, name: &str) -> Value;
    async fn containers(&self, scheduler: usize, worker: &str) -> Vec<Value>;
    async fn is_everywhere(&self, worker: &str, state: &str);
}

impl Machines for Cluster {
    async fn put(&self, namespace: &str, name: &str, spec: &Value) {
        let url = self.at(0, &format!("/v1/namespaces/{namespace}/functions/{name}"));
        let answer = self.http.put(url).json(spec).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Functions of the default namespace by the scheduler that owns them.
    async fn owners(&self, names: &[String]) -> BTreeMap<usize, Vec<String>> {
        let mut owners: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for name in names {
            owners.entry(self.owner(0, name).await).or_default().push(name.clone());
        }
        owners
    }

    async fn worker(&self, scheduler: usize, name: &str) -> Value {
        self.get(scheduler, &format!("/v1/workers/{name}")).await
    }

    async fn containers(&self, scheduler: usize, worker: &str) -> Vec<Value> {
        let view = self.get(scheduler, &format!("/v1/containers?worker={worker}")).await;
        view["containers"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until a worker is in a state, as all schedulers see it.
    async fn is_everywhere(&self, worker: &str, state: &str) {
        for scheduler in 0..self.local.schedulers.len() {
            eventually(&format!("`{state}` everywhere"), async || {
                (self.worker(scheduler, worker).await["state"] == state).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn two_namespaces_share_full_workers_though_different_schedulers_own_their_functions() {
    let bench = Cluster::start(size(2, 1)).await.unwrap();
    let work = script("sleep 0.2; cat", json!({"autoscaler": {"max_containers": 20}}));
    // A name is found for each namespace whose shard lies with another scheduler.
    let shards = bench.get(0, "/v1/schedulers").await;
    let count = shards["shards"].as_u64().unwrap() as u16;
    let of = |scheduler: usize| {
        let view = &shards["schedulers"][scheduler]["shards"];
        view.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u16).collect::<Vec<_>>()
    };
    let named = |namespace: &str, shards: &[u16]| {
        let key = |n: &usize| capstan_common::id::FunctionKey::new(namespace, &format!("f{n}"));
        let found = (0..).find(|n| shards.contains(&key(n).shard(count).0)).unwrap();
        format!("f{found}")
    };
    let (rich, poor) = (named("rich", &of(0)), named("poor", &of(1)));
    bench.put("rich", &rich, &work).await;
    bench.put("poor", &poor, &work).await;
    let call = async |namespace: &str, name: &str| {
        let url = bench.at(0, &format!("/v1/namespaces/{namespace}/functions/{name}/spawn_map"));
        let body: String = (0..2_000).map(|n| format!("{n}\n")).collect();
        let sent = bench.http.post(url).body(body).send().await.unwrap();
        assert_eq!(sent.status(), 202);
        sent.json::<Value>().await.unwrap()["call_id"].as_str().unwrap().to_owned()
    };
    let held = async |namespace: &str| {
        let mut held = Vec::new();
        for scheduler in 0..2 {
            let view = bench.get(scheduler, &format!("/v1/namespaces/{namespace}")).await;
            held.push(view["used"]["containers"].as_u64().unwrap_or(0));
        }
        held
    };
    let first = call("rich", &rich).await;
    eventually("a full worker", async || (held("rich").await == [8, 8]).then_some(())).await;
    let second = call("poor", &poor).await;
    eventually("half for each, as both see it", async || {
        (held("rich").await == [4, 4] && held("poor").await == [4, 4]).then_some(())
    })
    .await;
    for id in [first, second] {
        let url = bench.at(1, &format!("/v1/calls/{id}/cancel"));
        assert!(bench.http.post(url).send().await.unwrap().status().is_success());
    }
}

#[tokio::test]
async fn many_workers_are_played_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let link = format!("127.0.0.1:{}", free_ports(1).unwrap()[0]);
    let set = format!("scheduler.link_listen={link}");
    let up = Up::start(&folder.path().join("data"), &["--half", "scheduler", "--set", &set]).unwrap();
    let arguments = [
        "worker".to_owned(),
        "--runtime=sim".into(),
        format!("--data-dir={}", folder.path().join("agent").display()),
        "--set=worker.sim_workers=50".into(),
        "--set=worker.name=played".into(),
        "--set=worker.cpu=2".into(),
        format!("--set=worker.schedulers={link}"),
    ];
    let mut agent = Command::new(binary("capstan").unwrap());
    let mut agent = agent.args(arguments).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let more = json!({"resources": {"cpu": 0.25}, "autoscaler": {"min_containers": 300}});
    up.deploy("f", spec(&["none"], "exec", more)).await.unwrap();
    up.until("f", SOON, |stats| stats["containers"]["idle"] == 300).await.unwrap();
    assert_eq!(up.get("/v1/workers").await.unwrap()["workers"].as_array().unwrap().len(), 50);
    let outputs = up.map("f", "ordered=true", (0..500).map(|n| json!(n))).await.unwrap();
    assert!(outputs.iter().enumerate().all(|(n, line)| line["output"] == n), "{outputs:?}");
    // Scaling in ends them too.
    let url = up.function("f", "/autoscaler");
    let patch = json!({"min_containers": 0, "scaledown_window": 2});
    assert!(up.http.patch(url).json(&patch).send().await.unwrap().status().is_success());
    up.until("f", SOON, |stats| stats["containers"]["idle"] == 0).await.unwrap();
    agent.kill().await.unwrap();
    let wrong = Command::new(binary("capstan").unwrap())
        .args(["worker", "--set=worker.sim_workers=3", "--set=worker.schedulers=127.0.0.1:1"])
        .output()
        .await
        .unwrap();
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && told.contains("set worker.runtime=sim"), "{told}");
}

/// Writes a line, and waits until it may end.
fn waits(log: &Path, gate: &Path) -> Value {
    let text = format!("echo run >> {}; while [ ! -e {} ]; do sleep 0.05; done; cat", log.display(), gate.display());
    script(&text, json!({"autoscaler": {"scaledown_window": 600}}))
}

#[tokio::test]
async fn a_drained_worker_is_emptied_by_all_schedulers_and_kills_no_work() {
    let bench = Cluster::start(size(2, 2)).await.unwrap();
    let (log, gate) = (bench.folder.path().join("runs"), bench.folder.path().join("gate"));
    let names: Vec<String> = (0..4).map(|n| format!("f{n}")).collect();
    for name in &names {
        bench.deploy(name, &waits(&log, &gate)).await.unwrap();
    }
    assert!(bench.owners(&names).await.len() > 1, "all lie with one scheduler");
    let mut calls = Vec::new();
    for name in &names {
        let sent = bench.http.post(bench.function(1, name, "/spawn_map")).body("1\n2\n").send().await.unwrap();
        calls.push(sent.json::<Value>().await.unwrap()["call_id"].as_str().unwrap().to_owned());
    }
    eventually("eight runs", async || (lines(&log) == 8).then_some(())).await;
    assert!(!bench.containers(0, "worker-1").await.is_empty());
    let drained = bench.http.post(bench.at(0, "/v1/workers/worker-1/drain")).send().await.unwrap();
    assert_eq!(drained.status(), 200);
    bench.is_everywhere("worker-1", "draining").await;
    // What runs there goes on; what is new begins elsewhere.
    for name in &names {
        let sent = bench.http.post(bench.function(1, name, "/spawn")).body("3").send().await.unwrap();
        calls.push(sent.json::<Value>().await.unwrap()["call_id"].as_str().unwrap().to_owned());
    }
    eventually("four more runs", async || (lines(&log) == 12).then_some(())).await;
    std::fs::write(&gate, "").unwrap();
    for call in &calls {
        eventually("its end", async || {
            let view = bench.get(0, &format!("/v1/calls/{call}")).await;
            (view["state"] == "succeeded").then_some(())
        })
        .await;
    }
    assert_eq!(lines(&log), 12, "a run was killed and begun again");
    eventually("an empty worker", async || {
        let left = [bench.containers(0, "worker-1").await, bench.containers(1, "worker-1").await];
        left.iter().all(Vec::is_empty).then_some(())
    })
    .await;
    let resumed = bench.http.post(bench.at(1, "/v1/workers/worker-1/resume")).send().await.unwrap();
    assert_eq!(resumed.status(), 200);
    bench.is_everywhere("worker-1", "ready").await;
}

#[tokio::test]
async fn a_worker_that_flaps_is_passed_over_while_a_steady_one_has_room() {
    // RELIABILITY F16
    let bench = Cluster::start(size(1, 1)).await.unwrap();
    let joined = async || bench.worker(0, "worker-1").await["joined_at"].as_str().map(str::to_owned);
    for _ in 0..3 {
        let before = joined().await;
        bench.local.schedulers[0].from_workers.set(Mode::Refuse);
        eventually("the break", async || (bench.worker(0, "worker-1").await["state"] == "unreachable").then_some(()))
            .await;
        bench.local.schedulers[0].from_workers.set(Mode::Pass);
        eventually("the next link", async || {
            let view = bench.worker(0, "worker-1").await;
            (view["state"] == "ready" && joined().await != before).then_some(())
        })
        .await;
    }
    let view = bench.worker(0, "worker-1").await;
    assert!(view["flaps_until"].is_string(), "{view}");
    // The only one there is does all the same.
    bench.deploy("echo", &script("cat", json!({}))).await.unwrap();
    assert_eq!(bench.invoke(0, "echo", "1").await, (200, json!(1)));
}

#[tokio::test]
async fn a_worker_that_hears_nothing_takes_its_scheduler_for_dead_and_dials_again() {
    // RELIABILITY F5
    let bench = Cluster::start(size(1, 1)).await.unwrap();
    bench.local.schedulers[0].from_workers.set(Mode::HoldAnswers);
    eventually("the worker's doubt", async || {
        let log = std::fs::read_to_string(bench.local.workers[0].log()).unwrap_or_default();
        log.contains("the scheduler was silent").then_some(())
    })
    .await;
    bench.local.schedulers[0].from_workers.set(Mode::Pass);
    bench.deploy("echo", &script("cat", json!({}))).await.unwrap();
    assert_eq!(bench.invoke(0, "echo", "1").await, (200, json!(1)));
}

async fn dial(bench: &Cluster) -> link::link_client::LinkClient<Channel> {
    let address = format!("http://{}", bench.local.schedulers[0].from_workers.address());
    link::link_client::LinkClient::connect(address).await.unwrap()
}

fn hello(worker: &str, protocol: u32) -> Report {
    Report::Hello(Hello {
        protocols: protocol..=protocol,
        worker: worker.into(),
        capacity: Amount { cpu_milli: 100, memory_mib: 100, gpus: 0 },
        version: "9.9.9".into(),
        limits: String::new(),
        instance: "x".into(),
        store: None,
        host: None,
        isolation: Default::default(),
        gpus: Vec::new(),
    })
}

fn says(report: Report) -> link::Reports {
    link::Reports { reports: vec![report.into()] }
}

#[tokio::test]
async fn a_worker_that_tells_of_anothers_container_is_not_heard() {
    // RELIABILITY §4.1 A4
    let bench = Cluster::start(size(1, 1)).await.unwrap();
    let (log, gate) = (bench.folder.path().join("runs"), bench.folder.path().join("gate"));
    bench.deploy("f", &waits(&log, &gate)).await.unwrap();
    let sent = bench.http.post(bench.function(0, "f", "/spawn")).body("7").send().await.unwrap();
    let call = sent.json::<Value>().await.unwrap()["call_id"].as_str().unwrap().to_owned();
    eventually("the run", async || (lines(&log) == 1).then_some(())).await;
    let container = bench.containers(0, "worker-1").await[0]["id"].as_str().unwrap().parse().unwrap();
    let (tell, told) = tokio::sync::mpsc::channel(8);
    tell.send(says(hello("liar", PROTOCOL))).await.unwrap();
    let mut orders = dial(&bench).await.join(ReceiverStream::new(told)).await.unwrap().into_inner();
    let ended = Report::Ended { container, ending: Ending::default(), begun: Vec::new() };
    tell.send(says(ended)).await.unwrap();
    // What nobody owns is told to stop, in the order of the reports: by then the lie was heard, too.
    tell.send(says(Report::Spawned { container: ContainerId(1), pid: 1, spawn_us: 1 })).await.unwrap();
    let stopped = |orders: link::Orders| {
        orders.orders.into_iter().any(|order| matches!(order.kind, Some(link::order::Kind::Stop(_))))
    };
    while !stopped(orders.message().await.unwrap().expect("orders")) {}
    std::fs::write(&gate, "").unwrap();
    eventually("its end", async || {
        let view = bench.get(0, &format!("/v1/calls/{call}")).await;
        (view["state"] == "succeeded").then_some(())
    })
    .await;
    assert_eq!(lines(&log), 1, "the run was taken for lost and begun again");
}

#[tokio::test]
async fn a_worker_of_another_protocol_is_refused_and_told_what_to_do() {
    // RELIABILITY F35
    let bench = Cluster::start(size(1, 1)).await.unwrap();
    let mut client = dial(&bench).await;
    let refused = client.join(tokio_stream::once(says(hello("newer", PROTOCOL + 1)))).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let told = refused.message();
    assert!(told.contains("protocols 5 to 5") && told.contains("versions that have one in common"), "{told}");
    let known = bench.get(0, "/v1/workers").await;
    assert!(known["workers"].as_array().unwrap().iter().all(|w| w["name"] != "newer"), "{known}");
}
