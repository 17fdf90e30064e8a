//! Programs that try to stay when their attempt is over, and what is left of them.

use crate::real::{Up, shared_folder, spec};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// What the programs do, by the number that is their input modulo how many there are. Those marked with a `T` do not end, and are
/// ended by their time-out.
const WAYS: [&str; 10] = [
    "setsid sleep $M & ",
    "( ( sleep $M & ) & ) ",
    "env -i setsid sleep $M & ",
    "set -m; sleep $M & ",
    "setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep '$M'; done' & ",
    "exec >&- 2>&-; setsid sleep $M & ",
    "exec <&-; nohup setsid sleep $M >/dev/null 2>&1 & ",
    "trap '' TERM HUP INT; sleep $M # T",
    "setsid sleep $M & exec sleep $M # T",
    "setsid env -i setsid sh -c 'trap \"\" TERM; sleep '$M'; sleep '$M & sleep $M # T",
];
/// How long a program may run, in seconds, and how long it may take to end after it was asked.
const TIMEOUT_S: f64 = 1.0;
const GRACE_S: f64 = 0.5;
/// Time-outs that are looked at one by one.
const TIMED: usize = 9;
/// How long everything may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// What came of it.
pub struct Left {
    /// Attempts that ended.
    pub ended: usize,
    /// Of some that their time-out ended: how long past it and the grace they took, in seconds, the longest first.
    pub late_s: Vec<f64>,
}

/// Lets `count` inputs run, with kills of the launcher, of the worker and of its scheduler in between.
///
/// # Errors
/// Something of a program was left: a process, a cgroup, a mount, a descriptor.
pub async fn run(count: usize, kills: usize) -> Result<Left> {
    let folder = shared_folder()?;
    let data = folder.path().join("data");
    let mark = format!("{}", 300_000_000 + std::process::id());
    let mut up = Up::start(&data, &[])?;
    let more = json!({
        "timeout_s": TIMEOUT_S, "autoscaler": {"max_containers": 8}, "concurrency": {"max_inputs": 2},
        "resources": {"cpu": 0.05, "cpu_limit": null, "memory_mib": 64},
    });
    let ways: Vec<String> = WAYS.iter().enumerate().map(|(n, way)| format!("{n}) {way}\n;;")).collect();
    let script = format!("M={mark}; read n; case $n in\n{}\nesac\ntrue", ways.join("\n"));
    let deploy = async |up: &Up| up.deploy("stays", spec(&["sh", "-c", &script], "exec", more.clone())).await;
    deploy(&up).await?;
    // One of each first: what a process has open is counted when everything has been made once.
    let mut ended = 0;
    part(&up, WAYS.len(), &mut ended).await?;
    let before = descriptors(up.pid())?;
    for round in 0..=kills {
        let inputs = (count / (kills + 1)).max(1);
        if round % 2 == 1 {
            kill_launcher(up.pid())?;
        }
        part(&up, inputs, &mut ended).await?;
        if round < kills && round % 2 == 0 {
            let spawned = up.post(&up.function("stays", "/spawn_map"), numbers(20)).await?;
            ensure!(spawned.0 == 202, "{spawned:?}");
            up.kill()?;
            gone(&mark, &data)?;
            up = Up::start(&data, &[])?;
        }
    }
    let begun = Instant::now();
    while descriptors(up.pid())? > before + 16 {
        ensure!(begun.elapsed() < GONE, "{} descriptors were open, and {} are now", before, descriptors(up.pid())?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut late_s = Vec::new();
    for number in (0..WAYS.len()).filter(|n| WAYS[*n].ends_with("# T")).cycle().take(TIMED) {
        let begun = Instant::now();
        let (status, answer) = up.invoke("stays", json!(number)).await?;
        ensure!(status == 504, "{status}: {answer}");
        late_s.push(begun.elapsed().as_secs_f64() - TIMEOUT_S - GRACE_S);
    }
    ensure!(marked(&mark)?.is_empty(), "processes of ended attempts are left: {:?}", marked(&mark)?);
    up.kill()?;
    gone(&mark, &data)?;
    late_s.sort_by(|a, b| b.total_cmp(a));
    Ok(Left { ended, late_s })
}

fn numbers(count: usize) -> String {
    (0..count).map(|n| format!("{}\n", n % WAYS.len())).collect()
}

/// So many inputs, each of which must end as its way does.
async fn part(up: &Up, count: usize, ended: &mut usize) -> Result<()> {
    let url = up.function("stays", "/spawn_map");
    let (status, call) = up.post(&url, numbers(count)).await?;
    ensure!(status == 202, "{call}");
    let results = up.results(call["call_id"].as_str().context("a call")?).await?;
    ensure!(results.len() == count, "{} of {count} ended", results.len());
    for result in &results {
        let number = result["index"].as_u64().unwrap_or_default() as usize % WAYS.len();
        let late = result["error"]["code"] == "function_timeout" || result["error"]["type"] == "Timeout";
        let expected = WAYS[number].ends_with("# T");
        ensure!(late == expected, "way {number}: {result}");
    }
    *ended += count;
    Ok(())
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Processes whose command line has the mark.
fn marked(mark: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(mark) {
            found.push(format!("{}: {line}", entry.file_name().display()));
        }
    }
    Ok(found)
}

fn kill_launcher(of: u32) -> Result<()> {
    let children = fs::read_dir(format!("/proc/{of}/task"))?.flatten().map(|task| task.path().join("children"));
    let children: Vec<String> = children.flat_map(fs::read_to_string).collect();
    for pid in children.join(" ").split_whitespace() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.windows(10).any(|word| word == b"__launcher") {
            let pid = rustix::process::Pid::from_raw(pid.parse()?).context("a pid")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
    }
    Ok(())
}

/// Waits until nothing is left of a worker that was killed.
fn gone(mark: &str, data: &Path) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mounted = mounts.lines().filter(|line| line.contains(&*data.to_string_lossy())).count();
        let (processes, cgroups) = (marked(mark)?, cgroups());
        if processes.is_empty() && mounted == 0 && cgroups.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < GONE, "left behind: {processes:?}, {mounted} mounts, cgroups {cgroups:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Cgroups of workers whose process is gone.
fn cgroups() -> Vec<String> {
    let folders = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = folders.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(str::to_owned);
    let controllers = ["", "memory", "cpu", "pids"].map(|name| Path::new("/sys/fs/cgroup").join(name));
    let places = own.flat_map(|at| controllers.clone().map(|base| base.join(at.trim_start_matches('/'))));
    let entries = places.filter_map(|place| fs::read_dir(place).ok()).flat_map(Iterator::flatten);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let dead = |name: &String| {
        let pid = name.strip_prefix("capstan-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
    };
    names.filter(dead).collect()
}

/// The benchmark: ten thousand, and how late time-outs were kept.
///
/// # Errors
/// See `run`.
pub async fn bench() -> Result<Value> {
    let Left { ended, late_s } = run(10_000, 20).await?;
    let most = late_s.first().copied().unwrap_or_default();
    Ok(json!({
        "ended": ended, "timed": late_s.len(), "latest_past_timeout_and_grace_ms": (most * 1e3).round(), "left_behind": 0,
        "goal_late_ms": 500,
    }))
}
