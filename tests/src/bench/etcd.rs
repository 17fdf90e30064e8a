//! The cluster's figures, on real etcd servers of this machine: one member, one scheduler and one worker, or three schedulers.

use super::{
    load::{self, parked},
    median, per_second, percentile_ms,
};
use crate::{
    cluster::{Cluster, eventually, lines},
    real::{echo, spec},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use capstan::local::Size;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{
    process::Command,
    time::{Duration, Instant},
};

async fn start(schedulers: usize) -> Result<Cluster> {
    Cluster::start(Size { etcd: 1, schedulers, workers: 1, ..Size::default() }).await
}

async fn spawn_map(bench: &Cluster, body: Bytes) -> Result<()> {
    let answer = bench.http.post(bench.function(0, "f", "/spawn_map")).body(body).send().await?;
    ensure!(answer.status().as_u16() == 202, "{}", answer.text().await?);
    Ok(())
}

fn ctl(bench: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut asked = Command::new("etcdctl");
    asked.env("ETCDCTL_API", "3").args(["--endpoints", &bench.local.etcd_urls[0]]).args(arguments);
    Ok(String::from_utf8(asked.output()?.stdout)?)
}

/// A million inputs of 100 bytes until the durable 202; how many keys and bytes they are; and the way from the scheduler's kill to
/// the first of them dispatched by its next life.
pub async fn backlog() -> Result<Value> {
    let body = load::lines(1_000_000, 100);
    let mut rates = Vec::new();
    for _ in 0..2 {
        let bench = start(1).await?;
        bench.deploy("f", &parked()).await?;
        let begun = Instant::now();
        spawn_map(&bench, body.clone()).await?;
        rates.push(per_second(1_000_000, begun));
    }
    let mut bench = start(1).await?;
    bench.deploy("f", &parked()).await?;
    let begun = Instant::now();
    spawn_map(&bench, body).await?;
    rates.push(per_second(1_000_000, begun));
    let keys = ctl(&bench, &["get", "/capstan/", "--prefix", "--keys-only"])?;
    let keys = keys.lines().filter(|line| !line.is_empty()).count();
    let status: Value = serde_json::from_str(&ctl(&bench, &["endpoint", "status", "-w", "json"])?)?;
    let bytes = status[0]["Status"]["dbSize"].as_u64().unwrap_or(0);
    // Its lease is given back by hand: what is measured is the way from there, not the lease.
    bench.local.schedulers[0].process.kill().await?;
    let leases = ctl(&bench, &["lease", "list"])?;
    for lease in leases.lines().skip(1) {
        ctl(&bench, &["lease", "revoke", lease.trim()])?;
    }
    let begun = Instant::now();
    bench.local.heal()?;
    let scheduler = &mut bench.local.schedulers[0];
    scheduler.process.first_line(Duration::from_secs(60)).await?;
    let ready = begun.elapsed();
    let answers = echo("", json!({"autoscaler": {"max_containers": 1}}))?;
    while bench.deploy("f", &answers).await.is_err() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "the function does not come back");
    }
    loop {
        let stats: Value = bench.http.get(bench.function(0, "f", "/stats")).send().await?.json().await?;
        if stats["backlog"].as_u64().is_some_and(|b| b < 1_000_000) {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "nothing is dispatched: {stats}");
    }
    let dispatched = begun.elapsed();
    Ok(json!({
        "inputs_per_s": median(rates.clone()), "runs": rates, "goal_per_s": 150_000,
        "keys": keys, "goal_keys": 5_000, "database_mb": bytes / 1_000_000, "goal_mb": 300,
        "restart_to_ready_ms": ready.as_millis() as u64, "restart_to_first_dispatch_ms": dispatched.as_millis() as u64, "goal_dispatch_ms": 5_000,
    }))
}

/// No-op inputs through one echo server that takes 16 at once.
pub async fn map() -> Result<Value> {
    let bench = start(1).await?;
    let more = json!({
        "concurrency": {"max_inputs": 16}, "autoscaler": {"min_containers": 1, "max_containers": 1},
        "resources": {"cpu": 0.5, "cpu_limit": null},
    });
    bench.deploy("f", &echo("", more)?).await?;
    let mut rates = Vec::new();
    for count in [5_000, 100_000, 100_000, 100_000] {
        let begun = Instant::now();
        let sent =
            bench.http.post(bench.function(0, "f", "/map?ordered=false")).body(load::lines(count, 30)).send().await?;
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
    let mut bench = start(3).await?;
    let log = bench.folder.path().join("runs");
    let script = format!("echo run >> {}; sleep 8; cat", log.display());
    bench.deploy("long", &spec(&["sh", "-c", &script], "exec", json!({"resources": {"cpu": 0.1}}))).await?;
    let started = bench.folder.path().join("started");
    let script = format!("date +%s.%N >> {}; cat", started.display());
    bench.deploy("f", &spec(&["sh", "-c", &script], "exec", json!({"resources": {"cpu": 0.1}}))).await?;
    let (mut times, mut long_runs) = (Vec::new(), 0);
    for round in 0..8 {
        let owner = bench.owner(round % 3, "f").await;
        let other = (owner + 1) % 3;
        let long = bench.http.post(bench.function(other, "long", "/spawn")).body("1").send().await?;
        long_runs += usize::from(long.status().as_u16() == 202);
        eventually("the long run", async || (lines(&log) >= long_runs).then_some(())).await;
        let before = lines(&started);
        let killed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
        bench.local.schedulers[owner].process.kill().await?;
        let answer = bench.http.post(bench.function(other, "f", "/invoke")).body("1").send().await?;
        ensure!(answer.status().is_success(), "round {round}: {}", answer.text().await?);
        let text = std::fs::read_to_string(&started)?;
        let first: f64 = text.lines().nth(before).context("a run")?.parse()?;
        times.push(first - killed);
        bench.local.heal()?;
        let scheduler = &mut bench.local.schedulers[owner];
        scheduler.process.first_line(Duration::from_secs(30)).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    tokio::time::sleep(Duration::from_secs(9)).await;
    let again = lines(&log) - long_runs;
    Ok(json!({
        "kill_to_dispatch_p50_ms": percentile_ms(&mut times, 0.5), "kill_to_dispatch_p99_ms": percentile_ms(&mut times, 0.99),
        "rounds": times.len(), "lease_s": 2, "goal_ms": 3_000, "running_inputs_run_again": again, "goal_again": 0,
    }))
}
