//! Size: cold starts, a million pending inputs, a hundred idle functions.

use super::{
    load::{lines, parked},
    percentile_ms,
};
use crate::real::{Up, echo, memory_mib};
use anyhow::{Context, Result};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// CPU seconds that a process has used.
pub fn cpu_s(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

/// From zero, again and again: what of a start is Capstan's own.
pub async fn cold_start() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &[])?;
    up.deploy("f", echo("", json!({"single_use_containers": true}))?).await?;
    let events = up.http.get(up.at("/v1/events")).send().await?;
    let mut chunks = events.bytes_stream();
    let (mut to_process, mut own, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let mut text = String::new();
    for _ in 0..100 {
        up.invoke("f", json!(1)).await?;
        'found: loop {
            while let Some(end) = text.find("\n\n") {
                let event: String = text.drain(..end + 2).collect();
                let Some(data) = event.strip_prefix("data: ") else { continue };
                let event: Value = serde_json::from_str(data.trim())?;
                if event["kind"] == "container_ready" {
                    let us = |phase: &str| event["facts"]["phases_us"][phase].as_f64().unwrap_or_default() / 1e6;
                    to_process.push(us("order") + us("spawn"));
                    own.push(us("order"));
                    whole.push(us("order") + us("spawn") + us("ready"));
                    break 'found;
                }
            }
            let chunk = chunks.next().await.context("events end")??;
            text.push_str(std::str::from_utf8(&chunk)?);
        }
    }
    Ok(json!({
        "input_to_process_p50_ms": percentile_ms(&mut to_process, 0.5), "input_to_process_p99_ms": percentile_ms(&mut to_process, 0.99),
        "messages_p50_ms": percentile_ms(&mut own, 0.5), "to_ready_p50_ms": percentile_ms(&mut whole, 0.5),
        "goal_p50_ms": 2, "goal_p99_ms": 10,
    }))
}

/// A million pending inputs of 100 bytes: memory above idle, and the way from a kill to the first dispatch.
pub async fn pending() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let mut up = Up::start(&data, &[])?;
    up.deploy("f", parked()).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let idle = memory_mib(up.pid())?;
    let (status, answer) = up.post(&up.function("f", "/spawn_map"), lines(1_000_000, 100)).await?;
    anyhow::ensure!(status == 202, "{status}: {answer}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let loaded = memory_mib(up.pid())?;
    // Now a function that can be placed, so that there is something to dispatch after the restart.
    up.kill()?;
    let begun = Instant::now();
    let up = Up::start(&data, &[])?;
    let ready = begun.elapsed();
    up.deploy("f", echo("", json!({"autoscaler": {"max_containers": 1}}))?).await?;
    up.until("f", Duration::from_secs(30), |s| s["backlog"].as_u64().is_some_and(|b| b < 1_000_000)).await?;
    let first = begun.elapsed();
    Ok(json!({"idle_mib": idle, "with_a_million_mib": loaded, "above_idle_mib": loaded - idle, "goal_above_mib": 100,
        "restart_to_ready_ms": ready.as_millis() as u64, "restart_to_first_dispatch_ms": first.as_millis() as u64, "goal_dispatch_ms": 1500}))
}

/// A hundred functions, nothing to do.
pub async fn idle() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &[])?;
    for n in 0..100 {
        up.deploy(&format!("f{n}"), echo("", json!({}))?).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, begun) = (cpu_s(up.pid())?, Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let share = (cpu_s(up.pid())? - before) / begun.elapsed().as_secs_f64();
    Ok(
        json!({"core_percent": (share * 1e4).round() / 100.0, "memory_mib": memory_mib(up.pid())?, "goal_percent": 0.5, "goal_mib": 40}),
    )
}
