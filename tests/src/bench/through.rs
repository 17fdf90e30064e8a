//! Work going through: map over http and exec functions, outcomes durable and read by the client.

use super::{load::lines, per_second};
use crate::real::{Up, echo, spec};
use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Maps a body and counts the lines of the answer as they come.
async fn mapped(up: &Up, query: &str, body: Bytes) -> Result<usize> {
    let response = up.http.post(up.function("f", &format!("/map?{query}"))).body(body).send().await?;
    let mut chunks = response.bytes_stream();
    let mut count = 0;
    while let Some(chunk) = chunks.next().await {
        count += chunk?.iter().filter(|b| **b == b'\n').count();
    }
    Ok(count)
}

async fn rate(spec: Value, count: usize, warm: usize) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &[])?;
    up.deploy("f", spec).await?;
    mapped(&up, "ordered=false", lines(warm, 30)).await?;
    let body = lines(count, 30);
    let begun = Instant::now();
    let ended = mapped(&up, "ordered=false", body).await?;
    anyhow::ensure!(ended == count, "{ended} of {count} ended");
    Ok(per_second(count, begun))
}

/// No-op inputs through `containers` echo servers that take `at_once` each.
pub async fn map(at_once: u32, containers: u32, count: usize) -> Result<Value> {
    let more = json!({
        "concurrency": {"max_inputs": at_once},
        "autoscaler": {"min_containers": containers, "max_containers": containers},
        "resources": {"cpu": 0.5, "cpu_limit": null},
    });
    let rate = rate(echo("", more)?, count, 5_000).await?;
    let goal = if at_once > 1 { 20_000 } else { 5_000 };
    Ok(json!({"inputs_per_s": rate, "inputs": count, "at_once": at_once, "containers": containers, "goal": goal}))
}

/// The same for ten thousand and for a million inputs, in one run.
pub async fn growth() -> Result<Value> {
    let spec = |_: usize| {
        echo(
            "",
            json!({
                "concurrency": {"max_inputs": 16},
                "autoscaler": {"min_containers": 1, "max_containers": 1},
                "resources": {"cpu": 0.5, "cpu_limit": null},
            }),
        )
    };
    let mut small = Vec::new();
    for round in 0..5 {
        small.push(rate(spec(round)?, 10_000, 5_000).await?);
    }
    small.sort_by(f64::total_cmp);
    let large = rate(spec(5)?, 1_000_000, 5_000).await?;
    let ratio = (large / small[2] * 100.0).round() / 100.0;
    Ok(json!({"ten_thousand_per_s": small[2], "a_million_per_s": large, "ratio": ratio, "goal_ratio": 0.9}))
}

/// The same in batches of 64.
pub async fn map_batch() -> Result<Value> {
    let more = json!({
        "batching": {"max_batch_size": 64, "wait_ms": 5},
        "autoscaler": {"min_containers": 2, "max_containers": 2},
        "resources": {"cpu": 0.5, "cpu_limit": null},
    });
    let count = 600_000;
    let rate = rate(echo("", more)?, count, 20_000).await?;
    Ok(json!({"inputs_per_s": rate, "inputs": count, "goal": 150_000}))
}

/// Spawns and waits, without Capstan: on one thread, and on two.
fn bare(count: usize, threads: usize) -> Result<f64> {
    let begun = Instant::now();
    let runners: Vec<_> = (0..threads)
        .map(|_| {
            std::thread::spawn(move || -> std::io::Result<()> {
                for _ in 0..count / threads {
                    Command::new("/bin/true").stdin(Stdio::null()).status()?;
                }
                Ok(())
            })
        })
        .collect();
    for runner in runners {
        runner.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(per_second(count, begun))
}

/// `/bin/true`, against the bare rate of the same run.
pub async fn exec() -> Result<Value> {
    let count = 4_000;
    let bare_before = (bare(count, 1)?, bare(count, 2)?);
    let more =
        json!({"autoscaler": {"min_containers": 2, "max_containers": 2}, "resources": {"cpu": 1, "cpu_limit": null}});
    let ours = rate(spec(&["/bin/true"], "exec", more), count, 200).await?;
    let bare_after = (bare(count, 1)?, bare(count, 2)?);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let one = (bare_before.0 + bare_after.0) / 2.0;
    let two = (bare_before.1 + bare_after.1) / 2.0;
    Ok(json!({"per_s": ours, "bare_one_thread_per_s": one, "bare_two_threads_per_s": two,
        "share_of_one": (ours / one * 100.0).round() / 100.0, "share_of_two": (ours / two * 100.0).round() / 100.0, "goal_share": 0.8}))
}
