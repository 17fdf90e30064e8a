//! `capstan chaos`: a cluster on this machine is hurt by a seeded plan while clients bring work; afterwards their history is checked.

mod fill;
mod history;
mod plan;
mod workload;

use crate::{
    cli::ChaosArgs,
    local::{LocalCluster, Mode, Part, Process, Size},
    output,
};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use plan::{Deed, Fault};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use workload::Clients;

/// Clients that bring work.
const CLIENTS: u64 = 4;
/// Things that are wrong at one time, at most.
const AT_ONCE: usize = 3;
/// How long an accepted call may take to end once everything is well again.
const SETTLE: Duration = Duration::from_secs(120);

/// Runs it.
pub async fn chaos(args: ChaosArgs, as_json: bool) -> Result<ExitCode> {
    let size = args.size.size();
    let own = tempfile::tempdir()?;
    let folder = args.keep.clone().unwrap_or_else(|| own.path().to_owned());
    let report = run(&args, &size, folder).await?;
    let well = report["broken"].as_array().is_some_and(Vec::is_empty);
    if as_json {
        output::print_json(&report)?;
    } else {
        show(&report)?;
        if !well {
            let again = format!("capstan chaos --seed {} --faults {}", args.seed, args.faults);
            output::print(format!("promises were broken; run it again with: {again}"))?;
        }
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(report: &Value) -> Result<()> {
    let figures = ["seed", "faults", "calls", "inputs", "answers", "refused", "seconds"];
    let rows = figures.iter().map(|name| vec![(*name).to_owned(), report[*name].to_string()]).collect::<Vec<_>>();
    let kinds = report["kinds"].as_object().into_iter().flatten();
    let kinds = kinds.map(|(kind, count)| vec![format!("  {kind}"), count.to_string()]);
    let broken = report["broken"].as_array().map_or(0, Vec::len);
    let last = vec!["promises broken".to_owned(), broken.to_string()];
    let rows = rows.into_iter().chain(kinds).chain([last]);
    output::print(output::table(&["", "count"], rows))?;
    for line in report["broken"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::print(line.to_owned())?;
    }
    Ok(())
}

async fn run(args: &ChaosArgs, size: &Size, folder: PathBuf) -> Result<Value> {
    let programs = std::env::current_exe()?.parent().context("a folder")?.to_owned();
    let mut size = size.clone();
    size.etcd_arguments.push(format!("--quota-backend-bytes={}", fill::QUOTA_BYTES));
    size.set.push(format!("scheduler.etcd.quota_bytes={}", fill::QUOTA_BYTES));
    let mut cluster = LocalCluster::start(&programs, &folder, &size).await?;
    let clients = Clients::new(&cluster)?;
    clients.deploy().await?;
    let (stop, stopped) = watch::channel(false);
    let bringing: Vec<_> = (0..CLIENTS)
        .map(|n| tokio::spawn(clients.clone().bring(args.seed.wrapping_mul(1000) + n, stopped.clone())))
        .collect();
    let begun = Instant::now();
    let kinds = hurt(&mut cluster, &plan::plan(args.seed, args.faults, &size), &clients).await?;
    cluster.heal()?;
    stop.send_replace(true);
    for client in bringing {
        client.await?;
    }
    clients.prove_well(args.seed).await;
    let crashes = crashes(&cluster);
    clients.history().broken.extend(crashes);
    let calls: Vec<String> = clients.history().calls.keys().cloned().collect();
    let bar = bar(calls.len(), "checking what was accepted");
    for call in &calls {
        clients.settle(call, SETTLE).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
    clients.look_at_limits().await;
    let history = clients.history();
    let inputs: usize = history.calls.values().map(|call| call.inputs.len()).sum();
    Ok(json!({
        "seed": args.seed, "faults": args.faults, "kinds": kinds, "calls": history.calls.len(), "inputs": inputs,
        "answers": history.answers, "refused": history.refused, "broken": history.broken,
        "seconds": begun.elapsed().as_secs(),
    }))
}

/// What crashed that nobody hurt.
fn crashes(cluster: &LocalCluster) -> Vec<String> {
    let schedulers = cluster.schedulers.iter().map(|scheduler| &scheduler.process);
    let all = cluster.etcd.iter().chain(schedulers).chain(&cluster.workers);
    all.flat_map(Process::crashes).cloned().collect()
}

fn bar(count: usize, what: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(count as u64).with_style(style).with_message(what)
}

/// Does one fault after the other, and undoes each when its time is over. Answers how many there were of each kind.
async fn hurt(cluster: &mut LocalCluster, plan: &[Fault], clients: &Clients) -> Result<BTreeMap<&'static str, usize>> {
    let bar = bar(plan.len(), "hurting the cluster");
    let mut kinds = BTreeMap::new();
    let mut wrong: Vec<(Instant, Deed)> = Vec::new();
    for fault in plan {
        let next = Instant::now() + fault.after;
        while Instant::now() < next || wrong.len() >= AT_ONCE || is_busy(&wrong, &fault.deed) {
            undo_due(cluster, &mut wrong).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tracing::info!(deed = ?fault.deed, lasts_ms = fault.lasts.as_millis() as u64, "a fault");
        apply(cluster, fault.deed).await?;
        wrong.push((Instant::now() + fault.lasts, fault.deed));
        *kinds.entry(fault.deed.kind()).or_insert(0) += 1;
        if kinds.values().sum::<usize>() % 10 == 0 {
            clients.look_at_limits().await;
        }
        bar.inc(1);
    }
    while !wrong.is_empty() {
        undo_due(cluster, &mut wrong).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bar.finish_and_clear();
    Ok(kinds)
}

/// Whether something is being done to the same process or connection, or to another etcd member: a minority may be gone.
fn is_busy(wrong: &[(Instant, Deed)], deed: &Deed) -> bool {
    let same = |other: &Deed| match (deed, other) {
        (Deed::Links(a, _), Deed::Links(b, _)) => a == b,
        (Deed::Store(a, _, _), Deed::Store(b, _, _)) => a == b,
        (a, b) => match (a.part(), b.part()) {
            (Some(Part::Etcd(_)), Some(Part::Etcd(_))) => true,
            (Some(a), Some(b)) => a == b,
            _ => false,
        },
    };
    wrong.iter().any(|(_, other)| same(other))
}

fn process(cluster: &mut LocalCluster, part: Part) -> &mut Process {
    match part {
        Part::Etcd(n) => &mut cluster.etcd[n],
        Part::Scheduler(n) => &mut cluster.schedulers[n].process,
        Part::Worker(n) => &mut cluster.workers[n],
    }
}

fn store(cluster: &LocalCluster, scheduler: usize, member: Option<usize>, mode: Mode) {
    let proxies = cluster.schedulers[scheduler].to_etcd.iter().enumerate();
    proxies.filter(|(n, _)| member.is_none_or(|m| m == *n)).for_each(|(_, proxy)| proxy.set(mode));
}

async fn apply(cluster: &mut LocalCluster, deed: Deed) -> Result<()> {
    match deed {
        Deed::Kill(part) => process(cluster, part).kill().await,
        Deed::Stop(part) => process(cluster, part).stop().await,
        Deed::Pause(part) => process(cluster, part).pause(true),
        Deed::Unplug(part) => cluster.plug(part, false),
        Deed::Fill => {
            let urls = cluster.etcd_urls.clone();
            tokio::task::spawn_blocking(move || fill::fill(urls)).await?
        }
        Deed::Links(scheduler, mode) => {
            cluster.schedulers[scheduler].from_workers.set(mode);
            Ok(())
        }
        Deed::Store(scheduler, member, mode) => {
            store(cluster, scheduler, member, mode);
            Ok(())
        }
    }
}

/// Undoes what has lasted long enough.
async fn undo_due(cluster: &mut LocalCluster, wrong: &mut Vec<(Instant, Deed)>) -> Result<()> {
    let now = Instant::now();
    for (_, deed) in wrong.extract_if(.., |(until, _)| *until <= now) {
        match deed {
            Deed::Kill(part) | Deed::Stop(part) | Deed::Pause(part) => process(cluster, part).heal()?,
            Deed::Unplug(part) => cluster.plug(part, true)?,
            Deed::Fill => {
                let urls = cluster.etcd_urls.clone();
                tokio::task::spawn_blocking(move || fill::empty(&urls)).await??;
                // Whoever started meanwhile found no room for its lease, and ended.
                for scheduler in &mut cluster.schedulers {
                    scheduler.process.revive()?;
                }
            }
            Deed::Links(scheduler, _) => cluster.schedulers[scheduler].from_workers.set(Mode::Pass),
            Deed::Store(scheduler, member, _) => store(cluster, scheduler, member, Mode::Pass),
        }
    }
    Ok(())
}
