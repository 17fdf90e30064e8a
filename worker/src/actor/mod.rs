//! The worker's actors: the node, its containers, its link.

mod container;
mod link;
mod node;

pub use link::{Address, Dial};

use crate::{
    config::WorkerConfig,
    runtime::{cgroup::Cgroups, keeper},
    tls::{Open, Tls},
};
use actix::{Actor, Addr, Arbiter};
use anyhow::Context;
use capstan_blob::Blobs;
use node::{NodeActor, Shut};
use std::{process::Child, sync::Arc, time::Duration};

/// A worker that runs.
pub struct Worker {
    node: Addr<NodeActor>,
    arbiter: Arbiter,
    keeper: Child,
    /// How limits are enforced, in words.
    pub limits: String,
}

/// Starts a worker that dials its schedulers and keeps dialling.
pub async fn start(config: WorkerConfig, dials: Vec<Dial>) -> anyhow::Result<Worker> {
    let tls = if config.link_tls { Some(show_oneself(&config, &dials).await?) } else { None };
    let instance: Arc<str> = format!("{}-{}", std::process::id(), capstan_clock::now().0).into();
    let scratch = config.data_dir.join("scratch").join(&*instance);
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("the scratch folder {} cannot be made", scratch.display()))?;
    let scratch = scratch.canonicalize()?;
    let cgroups = if config.cgroups { Cgroups::detect(&format!("capstan-{instance}")) } else { Cgroups::default() };
    let limits = cgroups.describe();
    let parents: Vec<_> = cgroups.folders().filter_map(|f| f.parent().map(std::path::Path::to_path_buf)).collect();
    keeper::clean_stale(&parents);
    // From here on, whatever happens to us, nothing of ours is left behind.
    let keeper = keeper::start(&instance, &scratch, cgroups.folders()).context("the keeper cannot be started")?;
    let blobs = Blobs::open(config.blobs(), config.blob_threshold_bytes)?;
    let arbiter = Arbiter::new();
    let told = limits.clone();
    let node = NodeActor::start_in_arbiter(&arbiter.handle(), move |_| {
        NodeActor::new(config, instance, scratch, cgroups, told, blobs)
    });
    let linked = node.clone();
    if let Some((tls, open)) = &tls {
        arbiter.spawn(tls.clone().keep_fresh(open.clone()));
    }
    arbiter.spawn_fn(move || link::Links::keep(linked, dials, tls.map(|(tls, _)| tls)));
    Ok(Worker { node, arbiter, keeper, limits })
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
            let _ = self.node.send(Shut { within, now }).await;
        }
        self.arbiter.stop();
        drop(self.keeper.stdin.take());
        // Blocks for a moment: nothing else is left to do.
        let _ = self.keeper.wait();
    }
}
