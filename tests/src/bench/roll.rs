//! An upgrade under load: each scheduler and each worker of a cluster is replaced by one of another build, one after the other, or
//! all together, while clients bring work. `CAPSTAN_BEFORE` is the folder of the older build's programs (by default this
//! build's own), `CAPSTAN_TOGETHER=1` stops all at once.

use crate::{
    cluster::{Cluster, eventually},
    real::{binary, spec},
};
use anyhow::{Context, Result, ensure};
use capstan::local::Size;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const PROGRAMS: [&str; 3] = ["capstan", "capstan-scheduler", "capstan-worker"];
/// Clients that invoke all the time.
const CLIENTS: u64 = 4;
/// Inputs of each call that nobody waits for.
const INPUTS: u64 = 400;
/// Between two replacements.
const PAUSE: Duration = Duration::from_secs(2);

/// Programs by links: pointing them elsewhere upgrades whoever starts next.
struct Programs(PathBuf);

impl Programs {
    fn point_to(&self, build: &Path) -> Result<()> {
        for name in PROGRAMS {
            let link = self.0.join(name);
            if link.is_symlink() {
                std::fs::remove_file(&link)?;
            }
            symlink(build.join(name), link)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Told {
    invoked: AtomicU64,
    failed: std::sync::Mutex<Vec<String>>,
}

/// Invokes until it is stopped. A scheduler that does not take connections is passed over, as a load balancer does.
async fn invoke(client: u64, urls: Vec<String>, told: Arc<Told>, stop: CancellationToken) {
    let http = reqwest::Client::new();
    let mut n = 0u64;
    while !stop.is_cancelled() {
        n += 1;
        let input = (client << 32 | n).to_string();
        for tried in 0.. {
            let url = &urls[(n as usize + tried) % urls.len()];
            let path = format!("{url}/v1/namespaces/default/functions/f/invoke");
            match http.post(path).body(input.clone()).send().await {
                Err(error) if error.is_connect() && tried < 30 => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => {
                    told.fail(format!("{input}: {error:?}"));
                    break;
                }
                Ok(answer) => {
                    let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
                    told.invoked.fetch_add(1, Ordering::Relaxed);
                    if !status.is_success() || text.trim() != input {
                        told.fail(format!("{input}: {status} {text}"));
                    }
                    break;
                }
            }
        }
    }
}

impl Told {
    fn fail(&self, what: String) {
        self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(what);
    }
}

struct Roll {
    bench: Cluster,
    calls: Vec<(String, u64)>,
    runs: PathBuf,
    /// Inputs that had run more than once after each step.
    again: Vec<usize>,
}

impl Roll {
    async fn pause(&mut self) -> Result<()> {
        tokio::time::sleep(PAUSE).await;
        let text = std::fs::read_to_string(&self.runs)?;
        let unique: BTreeSet<&str> = text.lines().collect();
        self.again.push(text.lines().count() - unique.len());
        Ok(())
    }

    async fn spawn(&mut self, scheduler: usize) -> Result<()> {
        let first = (1 << 60) + self.calls.len() as u64 * INPUTS;
        let body: String = (0..INPUTS).map(|n| format!("{}\n", first + n)).collect();
        let sent = self.bench.http.post(self.bench.function(scheduler, "f", "/spawn_map")).body(body).send().await?;
        ensure!(sent.status().as_u16() == 202, "{}", sent.text().await?);
        let call = sent.json::<Value>().await?["call_id"].as_str().context("an id")?.to_owned();
        self.calls.push((call, first));
        Ok(())
    }

    async fn replace_scheduler(&mut self, n: usize) -> Result<()> {
        let process = &mut self.bench.local.schedulers[n].process;
        if std::env::var_os("CAPSTAN_KILL").is_some() {
            process.kill().await?
        } else {
            process.stop().await?
        }
        process.heal()?;
        process.first_line(Duration::from_secs(60)).await?;
        Ok(())
    }

    /// Drained first, as the runbook has it.
    async fn replace_worker(&mut self, n: usize) -> Result<()> {
        let name = self.bench.local.workers[n].name().to_owned();
        let path = format!("/v1/workers/{name}");
        self.bench.http.post(self.bench.at(0, &format!("{path}/drain"))).send().await?.error_for_status()?;
        let worker = async |bench: &Cluster| bench.get(0, &path).await;
        let bench = &self.bench;
        eventually("an empty worker", async || {
            worker(bench).await["containers"].as_array().is_some_and(Vec::is_empty).then_some(())
        })
        .await;
        let before = worker(&self.bench).await["joined_at"].clone();
        self.bench.local.workers[n].stop().await?;
        self.bench.local.workers[n].heal()?;
        let bench = &self.bench;
        eventually("the next worker", async || {
            let seen = worker(bench).await;
            (seen["joined_at"] != before && seen["state"] == "draining").then_some(())
        })
        .await;
        self.bench.http.post(self.bench.at(0, &format!("{path}/resume"))).send().await?.error_for_status()?;
        Ok(())
    }

    async fn replace_all(&mut self) -> Result<()> {
        let local = &mut self.bench.local;
        let schedulers = local.schedulers.iter_mut().map(|scheduler| scheduler.process.stop());
        futures_util::future::try_join_all(schedulers).await?;
        futures_util::future::try_join_all(local.workers.iter_mut().map(|worker| worker.stop())).await?;
        local.heal()?;
        for scheduler in &mut local.schedulers {
            scheduler.process.first_line(Duration::from_secs(60)).await?;
        }
        Ok(())
    }

    /// Why the first of those that ran more than once did, as they tell themselves.
    async fn explain(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.runs)?;
        let mut seen = BTreeSet::new();
        let again = text.lines().filter(|line| !seen.insert(*line)).filter_map(|line| line.parse::<u64>().ok());
        let mut told = Vec::new();
        for input in again.filter(|input| *input >= 1 << 60).take(3) {
            let n = input - (1 << 60);
            let Some((call, _)) = self.calls.get((n / INPUTS) as usize) else { continue };
            told.push(self.bench.get(0, &format!("/v1/calls/{call}/inputs/{}/explain", n % INPUTS)).await);
        }
        Ok(told)
    }

    /// Inputs without an outcome, with another than theirs, and with two.
    async fn count(&self) -> Result<(u64, u64)> {
        let (mut lost, mut twice) = (0, 0);
        for (call, first) in &self.calls {
            let bench = &self.bench;
            eventually(&format!("the end of {call}"), async || {
                bench.get(0, &format!("/v1/calls/{call}")).await["finished_at"].is_string().then_some(())
            })
            .await;
            let path = bench.at(0, &format!("/v1/calls/{call}/results?limit=10000"));
            let text = bench.http.get(path).send().await?.text().await?;
            let mut seen = BTreeMap::<u64, u64>::new();
            for line in text.lines() {
                let line: Value = serde_json::from_str(line)?;
                let index = line["index"].as_u64().context("an index")?;
                if line["output"].as_u64() == Some(first + index) {
                    *seen.entry(index).or_default() += 1;
                }
            }
            lost += INPUTS - seen.len() as u64;
            twice += seen.values().filter(|count| **count > 1).count() as u64;
        }
        Ok((lost, twice))
    }
}

/// Replaces everything under load, and counts what went wrong.
pub async fn roll() -> Result<Value> {
    let after = binary("capstan-scheduler")?.parent().context("a folder")?.to_owned();
    let before = std::env::var_os("CAPSTAN_BEFORE").map_or_else(|| after.clone(), PathBuf::from);
    let together = std::env::var_os("CAPSTAN_TOGETHER").is_some();
    let links = crate::real::shared_folder()?;
    let programs = Programs(links.path().to_owned());
    programs.point_to(&before)?;
    let size = Size { etcd: 1, schedulers: 3, workers: 2, ..Size::default() };
    let bench = Cluster::start_with(&programs.0, size).await?;
    let runs = bench.folder.path().join("runs");
    let script = format!("read x; echo \"$x\" >> {}; sleep 0.02; echo \"$x\"", runs.display());
    let more =
        json!({"resources": {"cpu": 0.1}, "autoscaler": {"max_containers": 6}, "concurrency": {"max_inputs": 2}});
    bench.deploy("f", &spec(&["sh", "-c", &script], "exec", more)).await?;
    let told = Arc::new(Told::default());
    let stop = CancellationToken::new();
    let urls: Vec<String> = bench.local.schedulers.iter().map(|scheduler| scheduler.url.clone()).collect();
    // While nobody is there nobody can be asked.
    let clients = (0..if together { 0 } else { CLIENTS })
        .map(|client| tokio::spawn(invoke(client, urls.clone(), told.clone(), stop.clone())));
    let clients: Vec<_> = clients.collect();
    let mut roll = Roll { bench, calls: Vec::new(), runs, again: Vec::new() };
    roll.spawn(0).await?;
    roll.pause().await?;
    programs.point_to(&after)?;
    if together {
        roll.spawn(1).await?;
        roll.replace_all().await?;
    } else {
        for n in 0..3 {
            roll.spawn((n + 1) % 3).await?;
            roll.replace_scheduler(n).await?;
            roll.pause().await?;
        }
        for n in 0..2 {
            roll.spawn(n).await?;
            roll.replace_worker(n).await?;
            roll.pause().await?;
        }
    }
    roll.spawn(2).await?;
    roll.pause().await?;
    stop.cancel();
    for client in clients {
        client.await?;
    }
    let (lost, twice) = roll.count().await?;
    roll.pause().await?;
    let failed = std::mem::take(&mut *told.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    Ok(json!({
        "together": together, "invoked": told.invoked.load(Ordering::Relaxed), "failed": failed.len(),
        "first_failures": failed.iter().take(5).collect::<Vec<_>>(), "spawned": roll.calls.len() as u64 * INPUTS,
        "lost": lost, "recorded_twice": twice, "run_again_after_each_step": roll.again, "why": roll.explain().await?, "goal": 0,
    }))
}
