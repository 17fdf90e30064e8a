//! A whole scheduler, started and stopped.

use crate::{
    actor::{
        alarm::AlarmActor,
        autoscaler::{AutoscalerActor, Governed, Told},
        prometheus::Prometheus,
        registry::Registry,
    },
    api::{Api, govern::ZeroConfig},
    config::SchedulerConfig,
    global::Globals,
    link::LinkServer,
    rest,
    shard::{Env, Shards, Shared},
    store::{Store, embedded::Embedded},
    telemetry::{Telemetry, trace::Tracer},
};
use actix::{Actor, Arbiter};
use anyhow::Context;
use capstan_blob::Blobs;
use capstan_common::{
    id::{Epoch, Shard},
    wire::link::link_server,
};
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock, RwLock},
};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

/// Where workers dial in.
pub enum LinkListener {
    /// A worker in this process.
    InProcess(mpsc::Receiver<DuplexStream>),
    /// A unix socket, which only its owner can open.
    Unix(std::path::PathBuf),
}

/// A scheduler that serves.
pub struct Server {
    /// Where REST is served.
    pub address: SocketAddr,
    /// Everything a client can do, for callers in this process.
    pub api: Arc<Api>,
    rest: actix_web::dev::ServerHandle,
    arbiters: Vec<Arbiter>,
    shared: Arc<Shared>,
}

/// Starts a scheduler: opens the store, recovers what it holds, serves links and REST.
pub async fn start(config: SchedulerConfig, links: LinkListener) -> anyhow::Result<Server> {
    config.check().map_err(anyhow::Error::msg)?;
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("the data folder {} cannot be made", config.data_dir.display()))?;
    let (store, opened) = Embedded::open(&config.data_dir.join("log"))?;
    if opened.cut > 0 {
        tracing::warn!(bytes = opened.cut, "the log's last record was torn and was cut off; it was never acknowledged");
    }
    let store: Arc<dyn Store> = Arc::new(store);
    let globals = Globals::Beside(store.clone(), OnceLock::new());
    let parts = Parts::start(&config, store.epoch(), globals, 1).await?;
    let env = Env::open(&parts.shared, Shard(0), store).await?;
    if let Globals::Beside(_, committer) = &parts.shared.globals {
        // Set here and nowhere else.
        let _ = committer.set(env.committer.clone());
    }
    parts.serve(config, links).await
}

/// A scheduler's parts before it serves.
struct Parts {
    shared: Arc<Shared>,
    functions: Arbiter,
    timers: Arbiter,
}

impl Parts {
    /// Everything but shards, from what belongs to no function.
    async fn start(config: &SchedulerConfig, epoch: Epoch, globals: Globals, shards: u16) -> anyhow::Result<Self> {
        let (functions, timers) = (Arbiter::new(), Arbiter::new());
        let telemetry = Arc::new(Telemetry {
            metrics: Arc::default(),
            events: Default::default(),
            logs: Default::default(),
            models: Default::default(),
            tracer: Tracer::from_env(),
        });
        let registry = Arc::new(Registry::default());
        let alarm = AlarmActor::start_in_arbiter(&timers.handle(), |_| AlarmActor::default());
        let routes = registry.clone();
        let autoscaler =
            AutoscalerActor::start_in_arbiter(&functions.handle(), move |_| AutoscalerActor::new(epoch, routes));
        let zero = ZeroConfig::read(globals.zero().await?);
        for governed in globals.namespaces().await?.into_iter().map(Governed::event) {
            let _ = autoscaler.send(Told(governed)).await;
        }
        let shared = Arc::new(Shared {
            limits: Arc::new(config.limits.clone()),
            registry,
            autoscaler,
            alarm,
            telemetry,
            zero: RwLock::new(Arc::new(zero)),
            prometheus: config.prometheus().map_err(anyhow::Error::msg)?.map(Prometheus::new),
            globals,
            stopping: CancellationToken::new(),
            functions: functions.handle(),
            shards: Shards::of(shards),
        });
        Ok(Self { shared, functions, timers })
    }

    /// Opens the doors.
    async fn serve(self, config: SchedulerConfig, links: LinkListener) -> anyhow::Result<Server> {
        let Self { shared, functions, timers } = self;
        let blobs = Blobs::open(config.data_dir.join("blobs"), config.blob_threshold_bytes)?;
        serve_links(&functions, shared.clone(), &config, links).await?;
        let api = Arc::new(Api::new(shared.clone(), config.clone(), blobs));
        api.follow_all().await;
        let sweeper = Arbiter::new();
        api.start_sweeping(&sweeper.handle());
        if let Some(listen) = config.keda_address().map_err(anyhow::Error::msg)? {
            let served = crate::keda::serve(api.clone(), listen).await;
            let served = served.with_context(|| format!("cannot listen for KEDA on {listen}"))?;
            tracing::info!(%served, "KEDA's external scaler is served");
        }
        let (rest, address) = rest::serve(api.clone(), &config)?;
        Ok(Server { address, api, rest, arbiters: vec![functions, timers, sweeper], shared })
    }
}

async fn serve_links(
    arbiter: &Arbiter,
    shared: Arc<Shared>,
    config: &SchedulerConfig,
    links: LinkListener,
) -> anyhow::Result<()> {
    let (config, (ready, is_ready)) = (config.clone(), oneshot::channel());
    arbiter.spawn(async move {
        let service = link_server::LinkServer::new(LinkServer::new(shared, &config))
            .max_decoding_message_size(256 << 20)
            .max_encoding_message_size(256 << 20);
        let router = tonic::transport::Server::builder()
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(32 << 20)
            .add_service(service);
        let served = match links {
            LinkListener::InProcess(dialled) => {
                let _ = ready.send(Ok(()));
                let incoming = ReceiverStream::new(dialled).map(Ok::<_, std::io::Error>);
                router.serve_with_incoming(incoming).await
            }
            LinkListener::Unix(path) => match listen_unix(&path) {
                Ok(listener) => {
                    let _ = ready.send(Ok(()));
                    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
                    router.serve_with_incoming(incoming).await
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            },
        };
        if let Err(error) = served {
            tracing::error!(error = &error as &dyn std::error::Error, "the link ended");
        }
    });
    is_ready.await.context("the link's thread ended")?.context("the link's socket cannot be made")
}

/// A socket that only its owner can open; one that a dead scheduler left is replaced.
fn listen_unix(path: &std::path::Path) -> std::io::Result<tokio::net::UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Server {
    /// Accepts no new work from here on: it is not ready, and says so; what runs may end and is answered.
    pub fn refuse(&self) {
        self.api.stopping().cancel();
    }

    /// Takes no more requests, writes what waits, ends.
    pub async fn stop(self) {
        self.refuse();
        self.rest.stop(true).await;
        for env in self.shared.shards.all() {
            env.finish().await;
        }
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
        if let Some(tracer) = &self.shared.telemetry.tracer {
            tracer.shutdown();
        }
    }
}
