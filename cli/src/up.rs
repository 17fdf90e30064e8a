//! `capstan up`: a scheduler and a worker in one process, over the same link as in a cluster.

use crate::{
    cli::{Half, LocalClusterArgs},
    config::Settings,
    local::LocalCluster,
    output,
};
use anyhow::{Context, bail};
use capstan_common::{isolation::Level, users::Users};
use capstan_scheduler::{
    config::Here,
    server::{self, LinkListener, Server},
};
use capstan_worker::{Address, Dial, Worker, config::WorkerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{SetOnce, mpsc},
};

/// How long containers have when everything stops.
const GRACE: Duration = Duration::from_secs(5);

/// Both halves, or one, running.
pub struct Running {
    server: Option<Server>,
    worker: Option<Worker>,
}

impl Running {
    /// Starts both.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !settings.scheduler.link_tls,
            "scheduler.link_tls=true encrypts the links of other machines, and `capstan up` has none: leave it out, or run `capstan scheduler` and `capstan worker`"
        );
        let (dial, dialled) = mpsc::channel(4);
        let mut worker = worker_settings(&settings);
        // Whoever starts both halves in one process is who would trust.
        worker.trust_functions.get_or_insert(true);
        let users = Users::read(&worker.function_uids).map_err(anyhow::Error::msg)?;
        let mut scheduler = settings.scheduler;
        worker.hidden = scheduler.secret_files();
        let strict = Arc::new(SetOnce::new());
        scheduler.here = Some(Here { users, hidden: worker.unseen(), strict: strict.clone() });
        let server = server::start(scheduler, LinkListener::InProcess(dialled)).await?;
        let worker = capstan_worker::start(worker, vec![Dial::InProcess(dial)]).await?;
        // Set here and nowhere else.
        let _ = strict.set(worker.isolation.level == Level::Strict);
        tracing::info!(limits = worker.limits, "a worker runs in this process");
        match worker.isolation.level {
            Level::Strict => tracing::info!(isolation = worker.isolation.describe(), "functions are kept apart"),
            _ => tracing::warn!(isolation = worker.isolation.describe(), "functions are not wholly kept apart"),
        }
        Ok(Self { server: Some(server), worker: Some(worker) })
    }

    /// Starts one half, linked to the other in another process: by a socket, or by the addresses of the settings.
    pub async fn start_half(settings: Settings, half: Half, socket: Option<PathBuf>) -> anyhow::Result<Self> {
        Ok(match half {
            Half::Scheduler => {
                let address = settings.scheduler.link_address().map_err(anyhow::Error::msg)?;
                let link = match (socket, address) {
                    (Some(socket), _) => LinkListener::Unix(socket),
                    (None, Some(address)) => LinkListener::Tcp(address),
                    (None, None) => {
                        bail!("scheduler.link_listen is not set: workers dial in there, like 127.0.0.1:7071")
                    }
                };
                let server = server::start(settings.scheduler, link).await?;
                Self { server: Some(server), worker: None }
            }
            Half::Worker => {
                let named = settings.worker.schedulers.iter().cloned().map(Address::Tcp);
                let dials: Vec<Dial> = socket.map(Address::Unix).into_iter().chain(named).map(Dial::At).collect();
                if dials.is_empty() {
                    bail!("worker.schedulers is empty: name at least one scheduler's link_listen, like 10.0.0.1:7071");
                }
                let worker = capstan_worker::start(worker_settings(&settings), dials).await?;
                Self { server: None, worker: Some(worker) }
            }
        })
    }

    /// Where REST is served.
    pub fn url(&self) -> String {
        self.server.as_ref().map_or_else(|| "worker".into(), |server| server.url.clone())
    }

    /// Where workers dial in, if by TCP.
    pub fn link(&self) -> Option<std::net::SocketAddr> {
        self.server.as_ref().and_then(|server| server.link)
    }

    /// Stops both: the worker's containers first, so that what they finish is still recorded.
    pub async fn stop(self) {
        if let Some(worker) = self.worker {
            if let Some(server) = &self.server {
                server.refuse();
            }
            worker.stop(GRACE).await;
        }
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// The worker's settings, where both halves must agree.
fn worker_settings(settings: &Settings) -> WorkerConfig {
    WorkerConfig {
        blob_threshold_bytes: settings.scheduler.blob_threshold_bytes,
        output_max_bytes: settings.scheduler.payload_max_bytes,
        blob_dir: if settings.worker.blob_dir.as_os_str().is_empty() {
            settings.scheduler.blob_dir.clone()
        } else {
            settings.worker.blob_dir.clone()
        },
        ..settings.worker.clone()
    }
}

/// A scheduler with an actor that panicked is half alive, which is worse than dead: the process ends, and the next start
/// reads what is durable (RELIABILITY F40).
fn abort_on_panic() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Whatever becomes of the words, the process ends.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| told(panic)));
        std::process::abort();
    }));
}

/// What the kernel adds to our score when it looks for somebody to end for want of memory: functions have the highest.
const OOM_SCORE: &str = "-500";

/// Open files that a scheduler and a worker ask for; as many as their systemd units allow.
const OPEN_FILES: u64 = 65_536;
/// With fewer than these, strangers at a port could take what the work itself needs.
const FEW_OPEN_FILES: u64 = 8_192;

/// Raises the number of files that may be open as far as the machine allows: a shell's usual 1,024 is for programs that cannot
/// deal with more, and each connection and each container takes some.
fn raise_open_files() {
    let before = getrlimit(Resource::Nofile);
    let most = before.maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    let may = before.current.unwrap_or(OPEN_FILES).max(most);
    // What cannot be raised is told below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(may), ..before });
    let may = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if may < FEW_OPEN_FILES {
        tracing::warn!(
            open_files = may,
            "few files may be open at once: many connections or containers will be refused; raise the hard limit to {OPEN_FILES} \
             (LimitNOFILE of a systemd unit, `ulimit -Hn` of a shell)"
        );
    }
}

/// Runs until a signal, then drains; a second signal ends at once.
pub async fn up(settings: Settings, half: Option<Half>, socket: Option<PathBuf>) -> anyhow::Result<()> {
    abort_on_panic();
    // Not allowed for a plain user: then we are as likely as anybody, and functions go before us all the same.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    raise_open_files();
    let running = match half {
        Some(half) => Running::start_half(settings, half, socket).await?,
        None => Running::start(settings).await?,
    };
    let pages = running.server.as_ref().and_then(|server| server.pages.clone());
    let pages = pages.map(|url| format!("\npages {url}")).unwrap_or_default();
    let link = running.link().map(|link| format!("\nlink {link}")).unwrap_or_default();
    // Whoever started it may have read enough already.
    let _ = output::print(format!("ready {}{link}{pages}", running.url()));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // The terminal was closed: that is no reason to end otherwise.
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    tracing::info!("stopping; once more to stop at once");
    tokio::select! {
        () = running.stop() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Runs a cluster on this machine until a signal.
pub async fn local_cluster(args: LocalClusterArgs, as_json: bool) -> anyhow::Result<()> {
    let own = tempfile::tempdir()?;
    let folder = args.dir.unwrap_or_else(|| own.path().to_owned());
    let programs = std::env::current_exe()?.parent().context("a folder")?.to_owned();
    let cluster = LocalCluster::start(&programs, &folder, &args.size.size()).await?;
    let urls: Vec<&str> = cluster.schedulers.iter().map(|scheduler| scheduler.url.as_str()).collect();
    if as_json {
        let told = serde_json::json!({
            "schedulers": urls, "etcd": cluster.etcd_urls, "folder": folder, "ca": cluster.ca, "token": cluster.token,
        });
        output::print_json(&told)?;
    } else {
        for url in &urls {
            output::print(format!("scheduler {url}"))?;
        }
        let ca = cluster.ca.as_ref().map(|file| format!("CAPSTAN_CA={} ", file.display())).unwrap_or_default();
        let token = cluster.token.as_ref().map(|token| format!("CAPSTAN_TOKEN={token} ")).unwrap_or_default();
        output::print(format!("try: CAPSTAN_URL={} {ca}{token}capstan schedulers", urls[0]))?;
        output::print(format!("everything lies in {}; Ctrl-C ends it", folder.display()))?;
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
