//! A neighbour of functions that take all that they can get, against a neighbour of one that uses its limits as it may.

use super::{load::Connection, percentile_ms};
use crate::real::{Up, echo, spec};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What takes all that it can get. Each ends with its time-out at the latest, and the next begins.
const BOMBS: [(&str, &str); 5] = [
    ("fork", "b() { b | b & }; b; while :; do :; done"),
    ("memory", "exec python3 -c 'a = []\nwhile True: a.append(bytearray(1 << 20))'"),
    (
        "descriptors",
        "exec python3 -c 'import os\na = []\nwhile True:\n  try: a.append(os.dup(0))\n  except OSError: pass'",
    ),
    ("disk", "while :; do dd if=/dev/zero of=$HOME/x bs=1M 2>/dev/null; done"),
    ("log", "exec yes this is a line of a log >&2"),
];
/// What uses its share of the processor, and memory within its limit.
const FULL: &str = "exec python3 -c 'a = bytearray(64 << 20)\nwhile True: a[::4096] = a[::4096]'";
/// How long the neighbour is watched each time.
const WATCHED: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

/// The neighbour's p99 beside each bomb, as a part of that beside a function within its limits.
pub async fn bombs() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &[])?;
    let neighbour = json!({"autoscaler": {"min_containers": 1}, "resources": {"cpu": 0.5, "cpu_limit": null}});
    up.deploy("neighbour", echo("", neighbour)?).await?;
    up.invoke("neighbour", json!(1)).await?;
    let all = [("full", FULL)].into_iter().chain(BOMBS);
    for (name, script) in all.clone() {
        let more = json!({
            "timeout_s": 2, "resources": {"cpu": 0.5, "cpu_limit": 0.5, "memory_mib": 128}, "autoscaler": {"max_containers": 1},
        });
        up.deploy(name, spec(&["sh", "-c", script], "exec", more)).await?;
    }
    let mut p99 = vec![Vec::new(); all.clone().count()];
    for _ in 0..ROUNDS {
        for (n, (name, _)) in all.clone().enumerate() {
            p99[n].push(beside(&up, name).await?);
        }
    }
    let median = |times: &mut Vec<f64>| percentile_ms(times, 0.5) / 1e3;
    let full = median(&mut p99[0]);
    let mut figures = json!({"p99_beside_full_ms": full * 1e3, "goal_ratio": 1.5});
    for (n, (name, _)) in all.enumerate().skip(1) {
        figures[name] = json!(((median(&mut p99[n]) / full) * 100.0).round() / 100.0);
    }
    Ok(figures)
}

/// The neighbour's p99 in seconds while this function is at it.
async fn beside(up: &Up, name: &str) -> Result<f64> {
    let (status, call) = up.post(&up.function(name, "/spawn_map"), "1\n1\n").await?;
    ensure!(status == 202, "{call}");
    up.until(name, Duration::from_secs(10), |s| s["containers"]["busy"] == 1).await?;
    let mut connection = Connection::open(up).await?;
    let (mut times, begun) = (Vec::new(), Instant::now());
    while begun.elapsed() < WATCHED {
        let asked = Instant::now();
        let status = connection.post("/v1/namespaces/default/functions/neighbour/invoke", "1".into()).await?;
        ensure!(status == 200, "the neighbour answered {status}");
        times.push(asked.elapsed().as_secs_f64());
    }
    let id = call["call_id"].as_str().context("a call")?;
    up.post(&up.at(&format!("/v1/calls/{id}/cancel")), "").await?;
    up.until(name, Duration::from_secs(10), |s| s["running"] == 0).await?;
    Ok(percentile_ms(&mut times, 0.99) / 1e3)
}
