//! `capstan up`: a scheduler and a worker in one process, over the same link as in a cluster.

use crate::config::Settings;
use capstan_scheduler::server::{self, LinkListener, Server};
use capstan_worker::{Dial, Worker};
use std::time::Duration;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// How long containers have when everything stops.
const GRACE: Duration = Duration::from_secs(5);

/// Both halves, running.
pub struct Running {
    server: Server,
    worker: Worker,
}

impl Running {
    /// Starts both.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let (dial, dialled) = mpsc::channel(4);
        let mut worker = settings.worker;
        worker.blob_threshold_bytes = settings.scheduler.blob_threshold_bytes;
        worker.output_max_bytes = settings.scheduler.payload_max_bytes;
        let server = server::start(settings.scheduler, LinkListener::InProcess(dialled)).await?;
        let worker = capstan_worker::start(worker, Dial::InProcess(dial)).await?;
        tracing::info!(limits = worker.limits, "a worker runs in this process");
        Ok(Self { server, worker })
    }

    /// Where REST is served.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Stops both: the worker's containers first, so that what they finish is still recorded.
    pub async fn stop(self) {
        self.worker.stop(GRACE).await;
        self.server.stop().await;
    }
}

/// Runs until a signal, then drains; a second signal ends at once.
pub async fn up(settings: Settings) -> anyhow::Result<()> {
    let running = Running::start(settings).await?;
    println!("ready {}", running.url());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping; once more to stop at once");
    tokio::select! {
        () = running.stop() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
