//! A whole scheduler, started and stopped.

use crate::{
    actor::{
        alarm::AlarmActor,
        autoscaler::{AutoscalerActor, Governed, Told},
        committer::Committer,
        function::{Env, FunctionActor},
        prometheus::Prometheus,
        registry::Registry,
    },
    api::{Api, govern::ZeroConfig},
    clock,
    config::SchedulerConfig,
    link::LinkServer,
    rest,
    store::{Store, embedded::Embedded, load, outcomes::Outcomes},
    telemetry::{Telemetry, trace::Tracer},
};
use actix::{Actor, Arbiter};
use anyhow::Context;
use capstan_blob::Blobs;
use capstan_common::wire::link::link_server;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, RwLock},
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
    committer: Committer,
    committing: Option<std::thread::JoinHandle<()>>,
    telemetry: Arc<Telemetry>,
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
    let blobs = Blobs::open(config.data_dir.join("blobs"), config.blob_threshold_bytes)?;
    let loaded = load::load(&*store, config.limits.spawn_head, clock::now())?;
    let telemetry = Arc::new(Telemetry {
        metrics: Arc::default(),
        events: Default::default(),
        logs: Default::default(),
        models: Default::default(),
        tracer: Tracer::from_env(),
    });
    let stored: BTreeMap<_, _> = loaded.functions.iter().map(|f| (f.key.clone(), f.deployed.clone())).collect();
    let recovered = loaded.functions.iter().flat_map(|f| &f.calls);
    let outcomes = Outcomes::after(recovered.clone().map(|call| (call.record.id, call.outcome_records)));
    if let Some(tracer) = &telemetry.tracer {
        recovered.for_each(|call| tracer.parent(call.record.id, &call.record.traceparent));
    }
    let (committer, committing) = Committer::start(store.clone(), (stored, outcomes), telemetry.metrics.clone())?;

    let functions = Arbiter::new();
    let timers = Arbiter::new();
    let sweeper = Arbiter::new();
    let registry = Arc::new(Registry::default());
    let epoch = store.epoch();
    let alarm = AlarmActor::start_in_arbiter(&timers.handle(), |_| AlarmActor::default());
    let for_autoscaler = registry.clone();
    let autoscaler =
        AutoscalerActor::start_in_arbiter(&functions.handle(), move |_| AutoscalerActor::new(epoch, for_autoscaler));
    let env = Arc::new(Env {
        epoch,
        limits: Arc::new(config.limits.clone()),
        committer: committer.clone(),
        store,
        registry: registry.clone(),
        autoscaler,
        alarm,
        telemetry: telemetry.clone(),
        stopping: CancellationToken::new(),
        prometheus: config.prometheus().map_err(anyhow::Error::msg)?.map(Prometheus::new),
        zero: RwLock::new(Arc::new(ZeroConfig::read(loaded.zero))),
    });
    for governed in loaded.namespaces.into_iter().map(Governed::event) {
        let _ = env.autoscaler.send(Told(governed)).await;
    }
    for recovery in loaded.functions {
        let (key, env) = (recovery.key.clone(), env.clone());
        let handle = functions.handle();
        registry.function_or(&key.clone(), || {
            FunctionActor::start_in_arbiter(&handle, move |_| FunctionActor::new(key, env, Some(recovery)))
        });
    }
    serve_links(&functions, env.clone(), &config, loaded.workers, links).await?;
    let api = Arc::new(Api::new(env, config.clone(), blobs, functions.handle()));
    api.follow_all().await;
    api.start_sweeping(&sweeper.handle());
    if let Some(listen) = config.keda_address().map_err(anyhow::Error::msg)? {
        let served = crate::keda::serve(api.clone(), listen).await;
        let served = served.with_context(|| format!("cannot listen for KEDA on {listen}"))?;
        tracing::info!(%served, "KEDA's external scaler is served");
    }
    let (rest, address) = rest::serve(api.clone(), &config)?;
    Ok(Server {
        address,
        api,
        rest,
        arbiters: vec![functions, timers, sweeper],
        committer,
        committing: Some(committing),
        telemetry,
    })
}

async fn serve_links(
    arbiter: &Arbiter,
    env: Arc<Env>,
    config: &SchedulerConfig,
    known: Vec<String>,
    links: LinkListener,
) -> anyhow::Result<()> {
    let (config, (ready, is_ready)) = (config.clone(), oneshot::channel());
    arbiter.spawn(async move {
        let service = link_server::LinkServer::new(LinkServer::new(env, &config, known))
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
    pub async fn stop(mut self) {
        self.refuse();
        self.rest.stop(true).await;
        self.committer.stop();
        if let Some(thread) = self.committing.take() {
            // Joining blocks; the runtime's own threads must go on.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
        if let Some(tracer) = &self.telemetry.tracer {
            tracer.shutdown();
        }
    }
}
