//! The cluster's figures, on real etcd servers of this machine: one member, one scheduler and one worker, or three schedulers.

use super::{
    load::{lines, parked},
    median, per_second, percentile_ms,
};
use crate::real::{binary, echo, spec};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use capstan::local::{LocalCluster, Size};
use capstan_common::id::FunctionKey;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

struct Bench {
    folder: tempfile::TempDir,
    cluster: LocalCluster,
    http: reqwest::Client,
}

impl Bench {
    async fn start(schedulers: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let programs = binary("capstan-scheduler")?;
        let programs = programs.parent().context("a folder")?;
        let size = Size { etcd: 1, schedulers, workers: 1, ..Size::default() };
        let cluster = LocalCluster::start(programs, folder.path(), &size).await?;
        Ok(Self { folder, cluster, http: reqwest::Client::new() })
    }

    fn at(&self, scheduler: usize, name: &str, what: &str) -> String {
        format!("{}/v1/namespaces/default/functions/{name}{what}", self.cluster.schedulers[scheduler].url)
    }

    async fn deploy(&self, name: &str, spec: &Value) -> Result<()> {
        let answer = self.http.put(self.at(0, name, "")).json(spec).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.text().await?);
        Ok(())
    }

    async fn spawn_map(&self, body: Bytes) -> Result<()> {
        let answer = self.http.post(self.at(0, "f", "/spawn_map")).body(body).send().await?;
        ensure!(answer.status().as_u16() == 202, "{}", answer.text().await?);
        Ok(())
    }

    fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let endpoint = &self.cluster.etcd_urls[0];
        let mut asked = Command::new("etcdctl");
        asked.env("ETCDCTL_API", "3").args(["--endpoints", endpoint]).args(arguments);
        Ok(String::from_utf8(asked.output()?.stdout)?)
    }
}

/// A million inputs of 100 bytes until the durable 202; how many keys and bytes they are; and the way from the scheduler's kill to
/// the first of them dispatched by its next life.
pub async fn backlog() -> Result<Value> {
    let body = lines(1_000_000, 100);
    let mut rates = Vec::new();
    for _ in 0..2 {
        let bench = Bench::start(1).await?;
        bench.deploy("f", &parked()).await?;
        let begun = Instant::now();
        bench.spawn_map(body.clone()).await?;
        rates.push(per_second(1_000_000, begun));
    }
    let mut bench = Bench::start(1).await?;
    bench.deploy("f", &parked()).await?;
    let begun = Instant::now();
    bench.spawn_map(body).await?;
    rates.push(per_second(1_000_000, begun));
    let keys = bench.ctl(&["get", "/capstan/", "--prefix", "--keys-only"])?;
    let keys = keys.lines().filter(|line| !line.is_empty()).count();
    let status: Value = serde_json::from_str(&bench.ctl(&["endpoint", "status", "-w", "json"])?)?;
    let bytes = status[0]["Status"]["dbSize"].as_u64().unwrap_or(0);
    // Its lease is given back by hand: what is measured is the way from there, not the lease.
    bench.cluster.schedulers[0].process.kill().await?;
    let leases = bench.ctl(&["lease", "list"])?;
    for lease in leases.lines().skip(1) {
        bench.ctl(&["lease", "revoke", lease.trim()])?;
    }
    let begun = Instant::now();
    bench.cluster.heal()?;
    let scheduler = &mut bench.cluster.schedulers[0];
    scheduler.process.first_line(Duration::from_secs(60)).await?;
    let ready = begun.elapsed();
    let answers = echo("", json!({"autoscaler": {"max_containers": 1}}))?;
    while bench.deploy("f", &answers).await.is_err() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "the function does not come back");
    }
    loop {
        let stats: Value = bench.http.get(bench.at(0, "f", "/stats")).send().await?.json().await?;
        if stats["backlog"].as_u64().is_some_and(|b| b < 1_000_000) {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "nothing is dispatched: {stats}");
    }
    let dispatched = begun.elapsed();
    drop(bench.folder);
    Ok(json!({
        "inputs_per_s": median(rates.clone()), "runs": rates, "goal_per_s": 150_000,
        "keys": keys, "goal_keys": 5_000, "database_mb": bytes / 1_000_000, "goal_mb": 300,
        "restart_to_ready_ms": ready.as_millis() as u64, "restart_to_first_dispatch_ms": dispatched.as_millis() as u64, "goal_dispatch_ms": 5_000,
    }))
}

/// No-op inputs through one echo server that takes 16 at once.
pub async fn map() -> Result<Value> {
    let bench = Bench::start(1).await?;
    let more = json!({
        "concurrency": {"max_inputs": 16}, "autoscaler": {"min_containers": 1, "max_containers": 1},
        "resources": {"cpu": 0.5, "cpu_limit": null},
    });
    bench.deploy("f", &echo("", more)?).await?;
    let mut rates = Vec::new();
    for count in [5_000, 100_000, 100_000, 100_000] {
        let begun = Instant::now();
        let sent = bench.http.post(bench.at(0, "f", "/map?ordered=false")).body(lines(count, 30)).send().await?;
        let mut chunks = sent.bytes_stream();
        let mut ended = 0;
        while let Some(chunk) = chunks.next().await {
            ended += chunk?.iter().filter(|b| **b == b'\n').count();
        }
        ensure!(ended == count, "{ended} of {count} ended");
        rates.push(per_second(count, begun));
    }
    rates.remove(0);
    Ok(json!({"inputs_per_s": median(rates.clone()), "runs": rates, "goal": 10_000}))
}

/// From the kill of a function's owner to the first input dispatched by the next one, again and again; and runs that were run
/// again because of it.
pub async fn failover() -> Result<Value> {
    let mut bench = Bench::start(3).await?;
    let log = bench.folder.path().join("runs");
    let script = format!("echo run >> {}; sleep 8; cat", log.display());
    bench.deploy("long", &spec(&["sh", "-c", &script], "exec", json!({"resources": {"cpu": 0.1}}))).await?;
    let started = bench.folder.path().join("started");
    let script = format!("date +%s.%N >> {}; cat", started.display());
    bench.deploy("f", &spec(&["sh", "-c", &script], "exec", json!({"resources": {"cpu": 0.1}}))).await?;
    let shard = |name: &str| u64::from(FunctionKey::new("default", name).shard(16).0);
    let (mut times, mut long_runs) = (Vec::new(), 0);
    for round in 0..8 {
        let owner = owner(&bench, shard("f")).await?;
        let other = (owner + 1) % 3;
        let long = bench.http.post(bench.at(other, "long", "/spawn")).body("1").send().await?;
        long_runs += u64::from(long.status().as_u16() == 202);
        let begun = Instant::now();
        while count(&log) < long_runs as usize {
            ensure!(begun.elapsed() < Duration::from_secs(30), "the long run does not begin");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = count(&started);
        let killed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
        bench.cluster.schedulers[owner].process.kill().await?;
        let answer = bench.http.post(bench.at(other, "f", "/invoke")).body("1").send().await?;
        ensure!(answer.status().is_success(), "round {round}: {}", answer.text().await?);
        let text = std::fs::read_to_string(&started)?;
        let first: f64 = text.lines().nth(before).context("a run")?.parse()?;
        times.push(first - killed);
        bench.cluster.heal()?;
        let scheduler = &mut bench.cluster.schedulers[owner];
        scheduler.process.first_line(Duration::from_secs(30)).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    tokio::time::sleep(Duration::from_secs(9)).await;
    let again = count(&log) as u64 - long_runs;
    Ok(json!({
        "kill_to_dispatch_p50_ms": percentile_ms(&mut times, 0.5), "kill_to_dispatch_p99_ms": percentile_ms(&mut times, 0.99),
        "rounds": times.len(), "lease_s": 2, "goal_ms": 3_000, "running_inputs_run_again": again, "goal_again": 0,
    }))
}

fn count(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

async fn owner(bench: &Bench, shard: u64) -> Result<usize> {
    let begun = Instant::now();
    loop {
        for scheduler in &bench.cluster.schedulers {
            let Ok(answer) = bench.http.get(format!("{}/v1/schedulers", scheduler.url)).send().await else { continue };
            let view: Value = answer.json().await?;
            let owns = |s: &&Value| s["shards"].as_array().is_some_and(|all| all.iter().any(|n| *n == shard));
            let found =
                view["schedulers"].as_array().and_then(|all| all.iter().find(owns)).and_then(|s| s["name"].as_str());
            let at = bench.cluster.schedulers.iter().position(|s| Some(s.process.name()) == found);
            if let Some(at) = at {
                return Ok(at);
            }
        }
        ensure!(begun.elapsed() < Duration::from_secs(30), "nobody owns shard {shard}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
