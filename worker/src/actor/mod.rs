//! The worker's actors: the node, its containers, its link.

mod container;
mod link;
mod node;

pub use container::Tell;
pub use link::{Address, Dial};

use crate::{
    config::{Runtime, WorkerConfig},
    runtime::{cgroup::Cgroups, gpu, isolation::Keeping, keeper},
    tls::{Open, Tls},
};
use actix::{Actor, Addr, Arbiter};
use anyhow::Context;
use capstan_blob::Blobs;
use capstan_common::{gpu::Gpu, isolation::Isolation, users::Users};
use futures_util::future::join_all;
use node::{NodeActor, Shut};
use std::{process::Child, sync::Arc, time::Duration};

/// A worker that runs, or many that are simulated.
pub struct Worker {
    nodes: Vec<Addr<NodeActor>>,
    arbiters: Vec<Arbiter>,
    keeper: Option<Child>,
    /// How limits are enforced, in words.
    pub limits: String,
    /// How far functions are kept apart.
    pub isolation: Isolation,
}

/// Starts a worker that dials its schedulers and keeps dialling.
pub async fn start(config: WorkerConfig, dials: Vec<Dial>) -> anyhow::Result<Worker> {
    if config.runtime == Runtime::Sim {
        let gpus = gpu::offered(&config).await.map_err(anyhow::Error::msg)?;
        return start_simulated(&config, &gpus, &dials);
    }
    let tls = if config.link_tls { Some(show_oneself(&config, &dials).await?) } else { None };
    let instance: Arc<str> = format!("{}-{}", std::process::id(), capstan_clock::now().0).into();
    let scratch = config.data_dir.join("scratch").join(&*instance);
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("the scratch folder {} cannot be made", scratch.display()))?;
    let scratch = scratch.canonicalize()?;
    let cgroups = if config.cgroups { Cgroups::detect(&format!("capstan-{instance}")) } else { Cgroups::default() };
    let limits = cgroups.describe();
    let parents: Vec<_> = cgroups.folders().filter_map(|f| f.parent().map(std::path::Path::to_path_buf)).collect();
    keeper::clean_stale(&instance, &parents);
    // From here on, whatever happens to us, nothing of ours is left behind.
    let keeper = keeper::start(&instance, &scratch, cgroups.folders()).context("the keeper cannot be started")?;
    let blobs = Blobs::open(config.blobs(), config.blob_threshold_bytes)?;
    let gpus = gpu::offered(&config).await.map_err(anyhow::Error::msg)?;
    let users = Users::read(&config.function_uids).map_err(anyhow::Error::msg)?;
    let keeping = Keeping::find_out(users, config.trust_functions.unwrap_or(false), &scratch, config.unseen());
    let isolation = keeping.isolation.clone();
    let arbiter = Arbiter::new();
    let told = limits.clone();
    let node = NodeActor::start_in_arbiter(&arbiter.handle(), move |_| {
        NodeActor::new((config, gpus), instance, scratch, cgroups, told, keeping, blobs)
    });
    let linked = node.clone();
    if let Some((tls, open)) = &tls {
        arbiter.spawn(tls.clone().keep_fresh(open.clone()));
    }
    arbiter.spawn_fn(move || link::Links::keep(linked, dials, tls.map(|(tls, _)| tls)));
    Ok(Worker { nodes: vec![node], arbiters: vec![arbiter], keeper: Some(keeper), limits, isolation })
}

/// Threads that simulated workers share.
const SIMULATING: usize = 2;

/// Starts many workers whose containers are simulated, each with a name and links of its own.
fn start_simulated(config: &WorkerConfig, gpus: &[Gpu], dials: &[Dial]) -> anyhow::Result<Worker> {
    let blobs = Blobs::open(config.blobs(), config.blob_threshold_bytes)?;
    let arbiters: Vec<Arbiter> = (0..SIMULATING).map(|_| Arbiter::new()).collect();
    let limits = "none: its containers are simulated".to_owned();
    let mut nodes = Vec::with_capacity(config.sim_workers as usize);
    for n in 0..config.sim_workers {
        let config = WorkerConfig { name: format!("{}-{n}", config.name), ..config.clone() };
        let instance: Arc<str> = format!("{}-{}-{n}", std::process::id(), capstan_clock::now().0).into();
        let gpus = gpus.to_vec();
        let (blobs, told, arbiter) = (blobs.clone(), limits.clone(), &arbiters[n as usize % SIMULATING]);
        let node = NodeActor::start_in_arbiter(&arbiter.handle(), move |_| {
            let (nowhere, none) = (std::path::PathBuf::new(), Keeping::nothing());
            NodeActor::new((config, gpus), instance, nowhere, Cgroups::default(), told, none, blobs)
        });
        let (linked, dials) = (node.clone(), dials.to_vec());
        arbiter.spawn_fn(move || link::Links::keep(linked, dials, None));
        nodes.push(node);
    }
    Ok(Worker { nodes, arbiters, keeper: None, limits, isolation: Isolation::default() })
}

/// The worker's certificate, which it has or now gets, and the way to renew it.
async fn show_oneself(config: &WorkerConfig, dials: &[Dial]) -> anyhow::Result<(Arc<Tls>, Open)> {
    let addresses = dials.iter().filter_map(|dial| match dial {
        Dial::At(address) => Some(address.clone()),
        Dial::InProcess(_) => None,
    });
    let addresses: Vec<_> = addresses.collect();
    let open: Open = Arc::new(move |config| Box::pin(link::door(addresses.clone(), config)));
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("the data folder {} cannot be made", config.data_dir.display()))?;
    let tls = Tls::settle(&config.data_dir, &config.name, &config.join, &open).await?;
    Ok((Arc::new(tls), open))
}

impl Worker {
    /// Lets what runs end within `grace`, then stops everything, and ends. What was cut off is not told as failed: it runs
    /// again.
    pub async fn stop(mut self, grace: Duration) {
        for (now, within) in [(false, grace), (true, Duration::from_secs(2))] {
            // An actor that is gone has nothing left to stop.
            join_all(self.nodes.iter().map(|node| node.send(Shut { within, now }))).await;
        }
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            // Blocks for a moment: nothing else is left to do.
            let _ = keeper.wait();
        }
    }
}
