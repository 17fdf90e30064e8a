//! The worker's actors: the node, its containers, its link.

mod container;
mod link;
mod node;

pub use link::{Address, Dial};

use crate::{
    config::WorkerConfig,
    runtime::{cgroup::Cgroups, keeper},
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
    arbiter.spawn_fn(move || link::Links::keep(linked, dials));
    Ok(Worker { node, arbiter, keeper, limits })
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
