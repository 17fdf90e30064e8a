//! Ten thousand workers with a hundred thousand containers, played by two processes, on one real scheduler.

use super::{percentile_ms, scale::cpu_s};
use crate::{
    cluster::eventually,
    real::{Up, binary, memory_mib, spec},
};
use anyhow::{Context, Result, ensure};
use capstan::local::free_ports;
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Processes that play workers, and workers of each.
const AGENTS: usize = 2;
const EACH: usize = 5_000;
/// Functions, and containers of each.
const FUNCTIONS: usize = 100;
const CONTAINERS: usize = 1_000;
/// How long the cluster is watched at rest.
const REST: Duration = Duration::from_secs(20);

/// A process that plays workers. Ends with this value.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It holds nothing that could be lost.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn agent(folder: &Path, n: usize, link: &str) -> Result<Agent> {
    let child = Command::new(binary("capstan")?)
        .args(["worker", "--runtime", "sim", "--data-dir"])
        .arg(folder.join(format!("agent-{n}")))
        .args([
            format!("--set=worker.name=agent{n}"),
            format!("--set=worker.sim_workers={EACH}"),
            format!("--set=worker.schedulers={link}"),
            "--set=worker.cpu=4".into(),
            "--set=worker.memory_mib=16384".into(),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::from(std::fs::File::create(folder.join(format!("agent-{n}.log")))?))
        .spawn()?;
    Ok(Agent(child))
}

/// A gauge's sum in the metrics' text, over all labels that contain `label`.
async fn gauge(up: &Up, name: &str, label: &str) -> u64 {
    let Ok(answer) = up.http.get(up.at("/metrics")).send().await else { return 0 };
    let text = answer.text().await.unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// What they cost to join, to place, at rest, and what an input waits among them.
pub async fn machines() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let link = format!("127.0.0.1:{}", free_ports(1)?[0]);
    let set = format!("scheduler.link_listen={link}");
    let up = Up::start(&folder.path().join("data"), &["--half", "scheduler", "--set", &set])?;
    let begun = Instant::now();
    let agents = (0..AGENTS).map(|n| agent(folder.path(), n, &link)).collect::<Result<Vec<_>>>()?;
    let workers = (AGENTS * EACH) as u64;
    eventually("all workers", async || (gauge(&up, "capstan_workers", "ready").await == workers).then_some(())).await;
    let joined = begun.elapsed();
    let memory_of_workers = memory_mib(up.pid())?;
    let function = |min: usize| {
        let more = json!({"resources": {"cpu": 0.25, "memory_mib": 64}, "autoscaler": {"min_containers": min, "max_containers": min.max(1)}});
        spec(&["true"], "exec", more)
    };
    let (begun, before) = (Instant::now(), cpu_s(up.pid())?);
    for n in 0..FUNCTIONS {
        up.deploy(&format!("f{n}"), function(CONTAINERS)).await?;
    }
    let containers = (FUNCTIONS * CONTAINERS) as u64;
    let placed = async || (gauge(&up, "capstan_containers", "idle").await == containers).then_some(());
    eventually("all containers", placed).await;
    let (placing, placing_cpu) = (begun.elapsed(), cpu_s(up.pid())? - before);
    let memory = memory_mib(up.pid())?;
    let of = |agents: &[Agent]| agents.iter().map(|agent| cpu_s(agent.0.id())).sum::<Result<f64>>();
    let (own, theirs, begun) = (cpu_s(up.pid())?, of(&agents)?, Instant::now());
    tokio::time::sleep(REST).await;
    let seconds = begun.elapsed().as_secs_f64();
    let percent = |cpu: f64| (cpu / seconds * 1000.0).round() / 10.0;
    let (own, theirs) = (percent(cpu_s(up.pid())? - own), percent(of(&agents)? - theirs));
    let mut waits = Vec::new();
    for n in 0..500 {
        let begun = Instant::now();
        let (status, answer) = up.invoke(&format!("f{}", n % FUNCTIONS), json!(n)).await?;
        ensure!(status == 200 && answer == n, "{status} {answer}");
        waits.push(begun.elapsed().as_secs_f64());
    }
    // A container more, where all those are.
    up.deploy("one-more", function(0)).await?;
    let begun = Instant::now();
    up.invoke("one-more", json!(1)).await?;
    let cold = begun.elapsed();
    let agents_mib = agents.iter().map(|agent| memory_mib(agent.0.id())).sum::<Result<f64>>().context("an agent")?;
    Ok(json!({
        "workers": workers, "containers": containers, "joined_per_s": (workers as f64 / joined.as_secs_f64()).round(),
        "placed_and_ready_per_s": (containers as f64 / placing.as_secs_f64()).round(),
        "scheduler_cpu_ms_per_container": (placing_cpu * 1e6 / containers as f64).round() / 1e3,
        "memory_mib_with_workers": memory_of_workers, "memory_mib_with_containers": memory,
        "beats_per_s": workers * 2, "at_rest_scheduler_core_percent": own, "at_rest_agents_core_percent": theirs,
        "invoke_p50_ms": percentile_ms(&mut waits, 0.5), "invoke_p99_ms": percentile_ms(&mut waits, 0.99),
        "one_more_from_zero_ms": (cold.as_secs_f64() * 1e5).round() / 1e2, "agents_mib": agents_mib,
    }))
}
