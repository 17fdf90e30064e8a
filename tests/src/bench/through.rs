//! Work going through: map over http and exec functions, outcomes durable and read by the client.

use super::{load::lines, per_second, percentile_ms};
use crate::real::{Up, echo, spec};
use anyhow::Result;
use bytes::Bytes;
use capstan_worker::runtime::{
    init::{Birth, Init, Launcher, View, Word},
    program::Program,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::fd::AsFd,
    path::Path,
    process::Command,
    time::Instant,
};

/// The user that programs run as, where no function names one.
const FUNCTION_USER: u32 = 1_073_741_824;

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

/// Spawns, reads and waits with the same pipes, without Capstan: on one thread, and on two.
fn bare(count: usize, threads: usize) -> Result<f64> {
    let begun = Instant::now();
    let runners: Vec<_> = (0..threads)
        .map(|_| {
            std::thread::spawn(move || -> std::io::Result<()> {
                for _ in 0..count / threads {
                    let (stdin, mut input) = std::io::pipe()?;
                    input.write_all(b"1")?;
                    drop(input);
                    Command::new("/bin/true").stdin(stdin).output()?;
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

/// The same by inits, one for each thread, without the way there and back.
fn by_inits(count: usize, threads: usize, folder: &Path) -> Result<f64> {
    let launcher = Launcher::default();
    let births = (0..threads).map(|n| {
        let scratch = folder.join(n.to_string());
        std::fs::create_dir_all(&scratch)?;
        let env = Program::base_env(&scratch).into();
        let program = Program { command: vec!["/bin/true".into()], folder: scratch.clone(), env };
        let view = View { scratch, scratch_mib: 16, ..View::default() };
        Ok(Birth { cgroups: Vec::new(), user: Some(FUNCTION_USER), view, program })
    });
    let started = |birth: Result<Birth>| Init::start(&launcher, &birth?).map_err(anyhow::Error::msg);
    let inits = births.map(started).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let run = |init: Init| -> Result<()> {
            for _ in 0..count / threads {
                let ((stdin, mut input), (mut stdout, out), (mut stderr, err)) =
                    (std::io::pipe()?, std::io::pipe()?, std::io::pipe()?);
                input.write_all(b"1")?;
                drop(input);
                init.run(BTreeMap::new(), [stdin.as_fd(), out.as_fd(), err.as_fd()]).map_err(anyhow::Error::msg)?;
                drop((stdin, out, err));
                anyhow::ensure!(init.hear() == Word::Ended(Some(0), None, false), "it did not end well");
                let mut said = Vec::new();
                stdout.read_to_end(&mut said)?;
                stderr.read_to_end(&mut said)?;
            }
            Ok(())
        };
        let runners: Vec<_> = inits.into_iter().map(|init| scope.spawn(move || run(init))).collect();
        let ended =
            runners.into_iter().map(|runner| runner.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        ended.collect::<Result<()>>()
    })?;
    Ok(per_second(count, begun))
}

/// `/bin/true` in one slot and in two, against the bare rate of the same run on as many threads; and by the inits alone.
pub async fn exec() -> Result<Value> {
    let count = 4_000;
    let folder = crate::real::shared_folder()?;
    let ours = async |slots: u32, trusted: bool| {
        let settings = json!({"min_containers": slots, "max_containers": slots});
        let more = json!({"autoscaler": settings, "resources": {"cpu": 1, "cpu_limit": null}, "trusted": trusted});
        rate(spec(&["/bin/true"], "exec", more), count, 200).await
    };
    let mut shares = [const { Vec::new() }; 5];
    let mut rates = Vec::new();
    for _ in 0..3 {
        let (one, two) = (bare(count, 1)?, bare(count, 2)?);
        let (kept_one, kept_two, trusted_two) = (ours(1, false).await?, ours(2, false).await?, ours(2, true).await?);
        let (init_one, init_two) = (by_inits(count, 1, folder.path())?, by_inits(count, 2, folder.path())?);
        let found = [kept_one / one, kept_two / two, trusted_two / two, init_one / one, init_two / two];
        for (share, of) in shares.iter_mut().zip(found) {
            share.push(of);
        }
        rates.push(json!({"bare": [one, two], "one": kept_one, "two": kept_two, "two_trusted": trusted_two, "inits": [init_one, init_two]}));
    }
    let [one, two, trusted, init_one, init_two] = shares.map(|mut share| {
        share.sort_by(f64::total_cmp);
        (share[share.len() / 2] * 100.0).round() / 100.0
    });
    Ok(json!({
        "per_s": rates, "share_of_one_thread": one, "share_of_two_threads": two, "share_of_two_threads_trusted": trusted,
        "inits_alone_of_one_thread": init_one, "inits_alone_of_two_threads": init_two, "goal_one": 0.9, "goal_two": 0.8,
    }))
}

/// What keeping apart costs at a start: the first input of an exec slot, and a server's cold start, against trusted ones of the same
/// run.
pub async fn apart() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &[])?;
    // What leaves a file behind is followed by nobody: each input is the first of its slot.
    let slot = ["sh", "-c", "echo > /tmp/left; cat"];
    let mut medians = Vec::new();
    for (name, trusted) in [("kept", false), ("trusted", true)] {
        up.deploy(&format!("slot-{name}"), spec(&slot, "exec", json!({"trusted": trusted}))).await?;
        up.deploy(&format!("server-{name}"), echo("", json!({"trusted": trusted, "single_use_containers": true}))?)
            .await?;
        medians.push((trusted, Vec::new(), Vec::new()));
    }
    for round in 0..60 {
        for (trusted, slots, servers) in &mut medians {
            let name = if *trusted { "trusted" } else { "kept" };
            for (what, times) in [("slot", slots), ("server", servers)] {
                let begun = Instant::now();
                let (status, answer) = up.invoke(&format!("{what}-{name}"), json!(1)).await?;
                anyhow::ensure!(status == 200, "{status}: {answer}");
                if round >= 10 {
                    times.push(begun.elapsed().as_secs_f64());
                }
            }
        }
    }
    let mut of = |n: usize| {
        let (_, slots, servers) = &mut medians[n];
        (percentile_ms(slots, 0.5), percentile_ms(servers, 0.5))
    };
    let (kept, trusted) = (of(0), of(1));
    let more = |a: f64, b: f64| ((a - b) * 1e3).round() / 1e3;
    Ok(json!({
        "first_input_p50_ms": kept.0, "trusted_input_p50_ms": trusted.0, "first_input_more_ms": more(kept.0, trusted.0),
        "cold_server_p50_ms": kept.1, "trusted_cold_server_p50_ms": trusted.1, "cold_server_more_ms": more(kept.1, trusted.1),
        "goal_more_ms": 5,
    }))
}
