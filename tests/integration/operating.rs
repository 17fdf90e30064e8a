//! What operators do to a cluster: restore it, add workers, drain them, make tokens, reach servers of other nodes.

use capstan::local::Size;
use capstan_tests::{
    cluster::{Cluster, eventually},
    real::{binary, spec},
};
use serde_json::{Value, json};

fn echo() -> Value {
    spec(&["cat"], "exec", json!({"resources": {"cpu": 0.25}}))
}

/// Runs etcdctl against a cluster's first member.
async fn etcdctl(bench: &Cluster, arguments: &[&str]) -> String {
    let ran = tokio::process::Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", bench.local.etcd_urls[0]))
        .args(arguments)
        .output()
        .await
        .unwrap();
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// Waits until a scheduler that starts has an input run.
async fn answers(bench: &Cluster, n: u64) {
    eventually("an answer", async || (bench.invoke(0, "echo", &n.to_string()).await == (200, json!(n))).then_some(()))
        .await;
}

#[tokio::test]
async fn after_a_restore_from_a_backup_workers_obey_their_schedulers_again() {
    let mut bench = Cluster::start(Size { etcd: 1, schedulers: 1, workers: 1, ..Size::default() }).await.unwrap();
    bench.deploy("echo", &echo()).await.unwrap();
    assert_eq!(bench.invoke(0, "echo", "1").await, (200, json!(1)));
    // Owners come and go, and the worker hears of each.
    for n in 2..4 {
        bench.local.schedulers[0].process.kill().await.unwrap();
        bench.local.heal().unwrap();
        answers(&bench, n).await;
    }
    bench.local.schedulers[0].process.kill().await.unwrap();
    // The backup is older than these owners.
    let keys = etcdctl(&bench, &["get", "--prefix", "--keys-only", "/capstan/epoch/0"]).await;
    for key in keys.split_whitespace() {
        etcdctl(&bench, &["put", key, "0"]).await;
    }
    bench.local.heal().unwrap();
    answers(&bench, 5).await;
    let numbers = etcdctl(&bench, &["get", "--prefix", "--print-value-only", "/capstan/epoch/0"]).await;
    assert!(numbers.split_whitespace().any(|number| number.parse::<u64>().unwrap() > 3), "{numbers}");
}

#[tokio::test]
async fn a_worker_that_does_not_share_the_payloads_folder_is_refused_by_name() {
    let bench = Cluster::start(Size { etcd: 1, schedulers: 1, workers: 1, ..Size::default() }).await.unwrap();
    let link = format!("--set=worker.schedulers={}", bench.local.schedulers[0].from_workers.address());
    let folder = |name: &str| bench.folder.path().join(name).display().to_string();
    let worker = |more: &[String]| {
        tokio::process::Command::new(binary("capstan-worker").unwrap())
            .args(["--data-dir", &folder("other"), "--set=worker.name=other", &link])
            .args(more)
            .stderr(std::fs::File::create(folder("other.log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let says = async |what: &str| {
        eventually(what, async || {
            std::fs::read_to_string(folder("other.log")).unwrap_or_default().contains(what).then_some(())
        })
        .await;
    };
    assert_eq!(worker(&[]).wait().await.unwrap().code(), Some(2));
    says("needs worker.blob_dir").await;
    let mut elsewhere = worker(&[format!("--set=worker.blob_dir={}", folder("elsewhere"))]);
    says("is not the folder that the schedulers use").await;
    assert_eq!(bench.get(0, "/v1/workers").await["workers"].as_array().unwrap().len(), 1);
    elsewhere.kill().await.unwrap();
    // Payloads of any size are read by whoever needs them.
    let big = spec(&["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x"], "exec", json!({}));
    bench.deploy("big", &big).await.unwrap();
    let (status, output) = bench.invoke(0, "big", "1").await;
    assert_eq!((status, output.as_str().map(str::len)), (200, Some(100_000)));
}

#[tokio::test]
async fn what_one_scheduler_is_told_holds_at_the_others() {
    let bench = Cluster::start(Size { etcd: 1, schedulers: 2, workers: 1, ..Size::default() }).await.unwrap();
    // A worker's containers are those of all schedulers.
    for n in 0..6 {
        bench.deploy(&format!("f{n}"), &echo()).await.unwrap();
        assert_eq!(bench.invoke(0, &format!("f{n}"), "1").await.0, 200);
    }
    for scheduler in 0..2 {
        let worker = bench.get(scheduler, "/v1/workers/worker-1").await;
        assert_eq!(worker["containers"].as_array().unwrap().len(), 6, "{worker}");
        let all = bench.get(scheduler, "/v1/workers").await;
        assert_eq!(all["workers"][0]["containers"].as_array().unwrap().len(), 6, "{all}");
    }
    // A worker that drains does so for all of them, and loses its idle containers.
    let drained = bench.http.post(bench.at(1, "/v1/workers/worker-1/drain")).send().await.unwrap();
    assert_eq!(drained.status(), 200);
    for scheduler in 0..2 {
        let worker = bench.get(scheduler, "/v1/workers/worker-1").await;
        assert_eq!(worker["state"], "draining", "{worker}");
        eventually("an empty worker", async || {
            let worker = bench.get(scheduler, "/v1/workers/worker-1").await;
            worker["containers"].as_array()?.is_empty().then_some(())
        })
        .await;
    }
    // A token is good at once, wherever it is shown.
    let make = async |role: &str, by: &str| {
        let wanted = bench.http.post(bench.at(0, "/v1/tokens")).bearer_auth(by).json(&json!({"role": role}));
        let made = wanted.send().await.unwrap();
        assert_eq!(made.status(), 201);
        made.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
    };
    let show = async |token: &str| {
        let shown = reqwest::Client::new().get(bench.at(1, "/v1/calls")).bearer_auth(token).send();
        shown.await.unwrap().status().as_u16()
    };
    let admin = make("admin", "").await;
    eventually("a closed door", async || (show("nobody's").await == 401).then_some(())).await;
    for _ in 0..3 {
        assert_eq!(show(&make("read", &admin).await).await, 200);
    }
    // One that is revoked at one scheduler is soon none at the others.
    let reader = make("read", &admin).await;
    let tokens = bench.http.get(bench.at(0, "/v1/tokens")).bearer_auth(&admin).send().await.unwrap();
    let tokens = tokens.json::<Value>().await.unwrap();
    assert_eq!(show(&reader).await, 200);
    for token in tokens["tokens"].as_array().unwrap().iter().filter(|token| token["role"] == "read") {
        let url = bench.at(0, &format!("/v1/tokens/{}", token["id"].as_str().unwrap()));
        assert_eq!(bench.http.delete(url).bearer_auth(&admin).send().await.unwrap().status(), 204);
    }
    eventually("a revoked token", async || (show(&reader).await == 401).then_some(())).await;
}

#[tokio::test]
async fn servers_of_other_machines_are_reached_through_any_scheduler() {
    let bench = Cluster::start(Size { etcd: 1, schedulers: 2, workers: 1, ..Size::default() }).await.unwrap();
    let server = ["sh", "-c", "exec python3 -m http.server -b 0.0.0.0 $PORT 2>/dev/null"];
    bench.deploy("site", &spec(&server, "http", json!({"resources": {"cpu": 0.25}}))).await.unwrap();
    for scheduler in 0..2 {
        let page = bench.http.get(bench.at(scheduler, "/web/default/site/")).send().await.unwrap();
        assert_eq!(page.status(), 200);
        assert!(page.text().await.unwrap().contains("Directory listing"));
    }
}
