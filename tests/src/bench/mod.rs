//! Benchmarks against the real binary: one function each, one line of JSON each.

mod bombs;
mod etcd;
mod load;
mod machines;
mod pools;
mod roll;
mod scale;
mod servers;
mod through;

use anyhow::{Result, bail};
use serde_json::Value;
use std::time::Instant;

/// All benchmarks, by name.
const NAMES: [&str; 28] = [
    "spawn_map",
    "spawn",
    "invoke",
    "servers",
    "servers_map",
    "backlog",
    "map",
    "map_two",
    "map_batch",
    "exec",
    "apart",
    "stays",
    "bombs",
    "cold_start",
    "pending",
    "growth",
    "idle",
    "functions",
    "decision",
    "keda",
    "share",
    "whatif",
    "day",
    "etcd_backlog",
    "etcd_map",
    "failover",
    "machines",
    "roll",
];

/// Runs the named benchmarks, or all.
pub async fn run(names: &[String]) -> Result<()> {
    let all: Vec<String> = NAMES.iter().map(|n| (*n).to_owned()).collect();
    for name in if names.is_empty() { &all } else { names } {
        let figures = match name.as_str() {
            "spawn_map" => load::spawn_map().await?,
            "spawn" => load::spawn().await?,
            "invoke" => load::invoke().await?,
            "servers" => servers::servers().await?,
            "servers_map" => servers::map().await?,
            "backlog" => load::backlog().await?,
            "map" => through::map(16, 1, 200_000).await?,
            "map_two" => through::map(1, 2, 50_000).await?,
            "map_batch" => through::map_batch().await?,
            "exec" => through::exec().await?,
            "apart" => through::apart().await?,
            "bombs" => bombs::bombs().await?,
            "stays" => crate::stays::bench().await?,
            "cold_start" => scale::cold_start().await?,
            "pending" => scale::pending().await?,
            "growth" => through::growth().await?,
            "idle" => scale::idle().await?,
            "functions" => pools::functions().await?,
            "decision" => pools::decision()?,
            "keda" => pools::keda().await?,
            "share" => pools::share().await?,
            "whatif" => pools::whatif().await?,
            "day" => pools::day()?,
            "etcd_backlog" => etcd::backlog().await?,
            "etcd_map" => etcd::map().await?,
            "failover" => etcd::failover().await?,
            "machines" => machines::machines().await?,
            "roll" => roll::roll().await?,
            other => bail!("there is no benchmark `{other}`; there are {}", NAMES.join(", ")),
        };
        println!("{}", serde_json::json!({"bench": name, "figures": figures}));
    }
    Ok(())
}

/// The value at a share of sorted times, in milliseconds.
fn percentile_ms(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = ((times.len().max(1) - 1) as f64 * share).round() as usize;
    (times.get(at).copied().unwrap_or_default() * 1e6).round() / 1e3
}

/// Things a second since then.
fn per_second(count: usize, begun: Instant) -> f64 {
    (count as f64 / begun.elapsed().as_secs_f64()).round()
}

/// The middle of some figures.
fn median(mut figures: Vec<f64>) -> Value {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default().into()
}
