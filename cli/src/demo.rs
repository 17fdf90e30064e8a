//! `capstan demo`: the whole of it at work on this machine, seen through the same interface that users have.

use crate::{
    cli::{DemoArgs, UpArgs},
    client::{Client, Failed, lines},
    commands::map::{Terms, bar},
    config, manifest, output,
    up::Running,
};
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Inputs whose times are looked at for the percentiles.
const SAMPLED: usize = 400;
/// The pause between two looks at the containers.
const LOOK: Duration = Duration::from_millis(100);
/// How long the demo waits for containers to leave.
const LEAVE: Duration = Duration::from_secs(15);

/// What was seen of one function.
struct Seen {
    function: String,
    inputs: usize,
    failed: usize,
    took: Duration,
    run_ms: Vec<f64>,
    queued_ms: Vec<f64>,
    containers: Vec<u64>,
}

/// The example functions, as they were when this program was built.
const EXAMPLES: [(&str, &str); 3] = [
    ("functions.yaml", include_str!("../../examples/functions.yaml")),
    ("count.sh", include_str!("../../examples/count.sh")),
    ("letters.py", include_str!("../../examples/letters.py")),
];

fn write_examples(folder: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    for (name, text) in EXAMPLES {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(folder.into())
}

/// Runs the demo; succeeds when all inputs did.
pub async fn demo(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let files = files_of(&args.inputs)?;
    let folder = tempfile::tempdir()?;
    let up =
        UpArgs { listen: Some("127.0.0.1:0".into()), data_dir: Some(folder.path().join("data")), ..UpArgs::default() };
    let running = Running::start(config::load(&up)?.settings).await?;
    let client = Client::new(&running.url(), None, None, "default")?;
    output::print(format!("Capstan serves on {} (data in {})", running.url(), folder.path().display()))?;
    let examples = match args.examples {
        Some(folder) => folder,
        None => write_examples(&folder.path().join("examples"))?,
    };
    let result = show(&client, &examples, &files).await;
    if args.keep && result.is_ok() {
        output::print(format!("serving on {} until Ctrl-C", running.url()))?;
        tokio::signal::ctrl_c().await?;
    }
    running.stop().await;
    result
}

fn is_open(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    folder.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
}

fn files_of(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    // Functions run in folders of their own: their inputs are named in full.
    let whole = folder.canonicalize().map_err(|e| Failed::Usage(format!("--inputs {}: {e}", folder.display())))?;
    if rustix::process::getuid().is_root()
        && let Some(closed) = whole.ancestors().find(|folder| !is_open(folder))
    {
        let detail = format!(
            "--inputs {}: functions run as a user of their own, and `{1}` is closed to it: open it (chmod o+rx {1}), or name another folder",
            folder.display(),
            closed.display()
        );
        return Err(Failed::Usage(detail).into());
    }
    let mut folders = vec![whole];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).map_err(|e| Failed::Usage(format!("--inputs {}: {e}", folder.display())))?;
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() && entry.path().to_str().is_some() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    if files.is_empty() {
        return Err(Failed::Usage(format!("--inputs {}: there are no files in it", folder.display())).into());
    }
    files.sort();
    Ok(files)
}

fn has_python() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["/usr/local/bin", "/usr/bin", "/bin"]
        .iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .any(|p| p.join("python3").is_file())
}

async fn show(client: &Client, examples: &Path, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let python = has_python();
    let mut shown = Vec::new();
    for mut entry in manifest::read(&examples.join("functions.yaml"))? {
        if entry.spec["runtime"]["process"]["command"][0] == "python3" {
            if !python {
                output::print(format!(
                    "{}: left out, because there is no python3 here (Debian: apt-get install python3)",
                    entry.name
                ))?;
                continue;
            }
            // Containers have a PATH of their own: a python3 that lies elsewhere is named in full.
            entry.spec["runtime"]["process"]["env"] = json!({"PATH": std::env::var("PATH").unwrap_or_default()});
        }
        let deployed = client.send(Method::PUT, &client.function(&entry.name, ""), &entry.spec).await?;
        output::print(format!(
            "deployed {} ({}), revision {}",
            entry.name,
            deployed["spec"]["protocol"].as_str().unwrap_or("?"),
            deployed["revision"]
        ))?;
        shown.push(entry.name);
    }
    let mut seen = Vec::new();
    for function in &shown {
        seen.push(map_over(client, function, files).await?);
    }
    let starts = cold_starts(client).await?;
    report(client, &seen, &starts)?;
    let failed: usize = seen.iter().map(|s| s.failed).sum();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Maps a function over all files, watching its containers until the last has left.
async fn map_over(client: &Client, function: &str, files: &[PathBuf]) -> anyhow::Result<Seen> {
    let bar = bar(Some(files.len() as u64)).with_prefix(function.to_owned());
    let (done, is_done) = watch::channel(false);
    let watching = actix_rt::spawn(watch_containers(client.clone(), function.to_owned(), bar.clone(), is_done));
    let body: Vec<_> = files.iter().map(|f| Ok::<_, std::io::Error>(format!("{}\n", json!(f)))).collect();
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(body));
    let begun = Instant::now();
    let terms = Terms { ordered: false, collect: true, outputs: true };
    let response = client.stream(&terms.path(client, function), body, None).await?;
    let call = response.headers().get("Capstan-Call-Id").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let mut answer = lines(response);
    let (mut inputs, mut failed) = (0, 0);
    while let Some(line) = answer.next().await {
        let value: Value = serde_json::from_slice(&line?)?;
        inputs += 1;
        if !value["error"].is_null() {
            failed += 1;
            if failed == 1 {
                bar.println(format!("first error: {}", value["error"]["message"]));
            }
        }
        bar.inc(1);
    }
    let took = begun.elapsed();
    if inputs != files.len() {
        anyhow::bail!("{function}: {} inputs were sent, {inputs} ended", files.len());
    }
    let (run_ms, queued_ms) = sample(client, &call, inputs).await?;
    done.send_replace(true);
    let containers = watching.await?;
    bar.finish_and_clear();
    Ok(Seen { function: function.into(), inputs, failed, took, run_ms, queued_ms, containers })
}

async fn watch_containers(
    client: Client,
    function: String,
    bar: indicatif::ProgressBar,
    done: watch::Receiver<bool>,
) -> Vec<u64> {
    let mut counts = Vec::new();
    let mut left = None;
    loop {
        let stats = client.get(&client.function(&function, "stats")).await.unwrap_or_default();
        let of = |state: &str| stats["containers"][state].as_u64().unwrap_or(0);
        let all = of("starting") + of("idle") + of("busy") + of("draining");
        counts.push(all);
        bar.set_message(format!(
            "containers {all} ({} starting, {} busy, {} idle)",
            of("starting"),
            of("busy"),
            of("idle")
        ));
        if *done.borrow() {
            let since = *left.get_or_insert_with(Instant::now);
            if all == 0 || since.elapsed() > LEAVE {
                return counts;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Run and queue times of some inputs, as their records tell them.
async fn sample(client: &Client, call: &str, inputs: usize) -> Result<(Vec<f64>, Vec<f64>), Failed> {
    let step = inputs.div_ceil(SAMPLED).max(1);
    let (mut run, mut queued) = (Vec::new(), Vec::new());
    for index in (0..inputs).step_by(step) {
        let life = client.get(&format!("/v1/calls/{call}/inputs/{index}/explain")).await?;
        run.extend(life["run_ms"].as_f64());
        let at = |n: usize| life["history"][n]["at"].as_str().and_then(micros);
        if let (Some(from), Some(to)) = (at(0), at(1)) {
            queued.push((to - from) as f64 / 1000.0);
        }
    }
    run.sort_by(f64::total_cmp);
    queued.sort_by(f64::total_cmp);
    Ok((run, queued))
}

/// Microseconds into the day of an RFC 3339 time: enough for a difference within one demo.
fn micros(text: &str) -> Option<i64> {
    let time = text.split_once('T')?.1.trim_end_matches('Z');
    let mut parts = time.split([':', '.']).map(|p| p.parse::<i64>().ok());
    let (h, m, s, us) = (parts.next()??, parts.next()??, parts.next()??, parts.next()??);
    Some(((h * 60 + m) * 60 + s) * 1_000_000 + us)
}

/// Mean seconds by name, out of the metrics: count and sum of the cold start and of its phases.
async fn cold_starts(client: &Client) -> Result<BTreeMap<String, (f64, f64)>, Failed> {
    let response = client.follow("/metrics").await?;
    let text = response.text().await.map_err(crate::client::broken)?;
    let mut found: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for line in text.lines() {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let Some(rest) = name.strip_prefix("capstan_cold_start") else { continue };
        let phase = name.split('"').nth(1).map_or_else(|| "whole".to_owned(), str::to_owned);
        let entry = found.entry(phase);
        if rest.contains("seconds_count") {
            entry.or_default().0 = value;
        } else if rest.contains("seconds_sum") {
            entry.or_default().1 = value;
        }
    }
    found.retain(|_, (count, _)| *count > 0.0);
    Ok(found)
}

fn percentile(sorted: &[f64], p: f64) -> String {
    let at = ((sorted.len() as f64 - 1.0).max(0.0) * p).round() as usize;
    sorted.get(at).map_or("-".into(), |v| format!("{v:.1} ms"))
}

/// Container counts as a line of blocks, one for each slice of time.
fn sparkline(counts: &[u64]) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let step = counts.len().div_ceil(40).max(1);
    counts.chunks(step).map(|c| BLOCKS[(c.iter().max().unwrap_or(&0) * 8).div_ceil(most) as usize]).collect()
}

fn report(client: &Client, seen: &[Seen], starts: &BTreeMap<String, (f64, f64)>) -> anyhow::Result<()> {
    let rows = seen.iter().map(|s| {
        let most = s.containers.iter().max().copied().unwrap_or(0);
        vec![
            s.function.clone(),
            format!("{} ({} failed)", s.inputs, s.failed),
            format!("{:.0}/s", s.inputs as f64 / s.took.as_secs_f64()),
            format!("{} / {}", percentile(&s.run_ms, 0.5), percentile(&s.run_ms, 0.99)),
            format!("{} / {}", percentile(&s.queued_ms, 0.5), percentile(&s.queued_ms, 0.99)),
            format!("0 → {most} → {}  {}", s.containers.last().unwrap_or(&0), sparkline(&s.containers)),
        ]
    });
    let head = ["function", "inputs", "throughput", "run p50 / p99", "queue p50 / p99", "containers over time"];
    output::print(output::table(&head, rows))?;
    let rows = starts.iter().map(|(phase, (count, sum))| {
        vec![phase.clone(), format!("{count}"), format!("{:.1} ms", sum / count * 1000.0)]
    });
    output::print(output::table(&["cold start", "times", "mean"], rows))?;
    let url = client.url();
    let first = seen.first().map_or("examples.count", |s| &s.function);
    output::print(format!(
        "Look further (while it runs: `capstan demo --keep` serves on until Ctrl-C, at the address that it says):\n  \
         capstan --url {url} explain {first}      why there were as many containers as there were\n  \
         capstan --url {url} top                         functions and containers, live\n  \
         {url}/docs/                  the REST interface in a browser\n  \
         {url}/metrics                Prometheus metrics"
    ))
}
