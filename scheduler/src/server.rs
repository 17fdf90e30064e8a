//! A whole scheduler, started and stopped.

use crate::{
    access::Tokens,
    actor::{
        alarm::AlarmActor,
        autoscaler::{AutoscalerActor, Governed, Told},
        prometheus::Prometheus,
        registry::Registry,
    },
    api::Api,
    clock,
    cluster::{Cluster, Peer, Ready, Sessions, View},
    config::SchedulerConfig,
    folder,
    function_token::FunctionTokens,
    global::Globals,
    link::LinkServer,
    rest,
    secrets::Secrets,
    shard::{Env, Shards, Shared},
    store::{
        Store, blocking,
        embedded::Embedded,
        etcd::{Etcd, FORMAT, Format, Session},
    },
    strangers,
    telemetry::Telemetry,
    tls::{self, Authority},
    zero_config::ZeroConfig,
};
use actix::{Actor, Arbiter};
use anyhow::Context;
use capstan_blob::Blobs;
use capstan_common::{
    id::{Epoch, Shard},
    time::Time,
    wire::{REPORTS_MAX, link::link_server},
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, RwLock},
};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot},
};
use tokio_stream::{
    StreamExt,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

/// A start that comes so long after the last life, in milliseconds, may come from a clock that was set.
const GAP_MS: u64 = 2 * 3600 * 1000;
/// How long what seems to have expired meanwhile is kept, in milliseconds.
const KEPT_MS: u64 = 24 * 3600 * 1000;

/// Where workers dial in.
pub enum LinkListener {
    /// A worker in this process.
    InProcess(mpsc::Receiver<DuplexStream>),
    /// A unix socket, which only its owner can open.
    Unix(std::path::PathBuf),
    /// An address of this machine.
    Tcp(SocketAddr),
}

/// A scheduler that serves.
pub struct Server {
    /// Where REST is served, like `http://127.0.0.1:7070`.
    pub url: String,
    /// Where functions' pages have an origin of their own.
    pub pages: Option<String>,
    /// Where workers dial in, if by TCP.
    pub link: Option<SocketAddr>,
    /// Where KEDA is served, if it is.
    pub keda: Option<SocketAddr>,
    /// Everything a client can do, for callers in this process.
    pub api: Arc<Api>,
    rest: Vec<actix_web::dev::ServerHandle>,
    arbiters: Vec<Arbiter>,
    shared: Arc<Shared>,
    /// Ends the part in the cluster, and tells when that is done.
    keeper: Option<(CancellationToken, oneshot::Receiver<()>)>,
}

/// Starts a scheduler: opens the store, recovers what it holds, serves links and REST.
pub async fn start(config: SchedulerConfig, links: LinkListener) -> anyhow::Result<Server> {
    config.check().map_err(anyhow::Error::msg)?;
    if config.is_clustered() {
        return start_clustered(config, links).await;
    }
    private(&config.data_dir)?;
    let (store, opened) = Embedded::open(&config.data_dir.join("log"))?;
    if opened.cut > 0 {
        tracing::warn!(bytes = opened.cut, "the log's last record was torn and was cut off; it was never acknowledged");
    }
    if opened.rewritten > 0 {
        tracing::debug!(
            bytes = opened.rewritten,
            "the last life did not end in order: the log's last file was written again"
        );
    }
    let store = Arc::new(store);
    let globals = Globals::Beside(store.clone(), RwLock::default());
    let parts = Parts::start(&config, store.epoch(), globals, 1, None).await?;
    let env = open_embedded(&parts.shared, store.clone()).await?;
    parts.timers.spawn(reopen_when_lost(parts.shared.clone(), store, env));
    parts.serve(config, links).await
}

async fn open_embedded(shared: &Arc<Shared>, store: Arc<Embedded>) -> anyhow::Result<Arc<Env>> {
    let env = Env::open(shared, Shard(0), store).await?;
    if let Globals::Beside(_, committer) = &shared.globals {
        *committer.write().unwrap_or_else(PoisonError::into_inner) = Some(env.committer.clone());
    }
    Ok(env)
}

/// Reads the store again where memory ran ahead of what it could take: under a new epoch, so that nothing of the life before is
/// taken for one of this.
async fn reopen_when_lost(shared: Arc<Shared>, store: Arc<Embedded>, mut env: Arc<Env>) {
    loop {
        tokio::select! {
            () = env.committer.lost().cancelled() => {}
            () = shared.stopping.cancelled() => return,
        }
        env.close(true).await;
        let renewed = store.clone();
        let opened = match blocking(move || renewed.renew()).await {
            Ok(()) => open_embedded(&shared, store.clone()).await,
            Err(error) => Err(error.into()),
        };
        match opened {
            Ok(opened) => env = opened,
            Err(error) => {
                tracing::error!(
                    error = &*error as &dyn std::error::Error,
                    "the store cannot be read again: stopping, start again"
                );
                std::process::abort();
            }
        }
    }
}

/// The data folder, closed to others.
fn private(data_dir: &std::path::Path) -> anyhow::Result<()> {
    folder::make_private(data_dir).with_context(|| format!("the data folder {} cannot be used", data_dir.display()))
}

/// Starts a scheduler of a cluster: it enters, and takes its share of the shards.
async fn start_clustered(config: SchedulerConfig, links: LinkListener) -> anyhow::Result<Server> {
    let of = config.etcd.clone();
    let opened = blocking(move || {
        let etcd = Arc::new(Etcd::connect(&of)?);
        let format = Format::settle(&etcd, &of)?;
        let epoch = etcd.next("epoch/scheduler")?;
        let session = Session::begin(&etcd, &of)?;
        Ok((etcd, format, epoch, session))
    });
    let (etcd, format, epoch, session) = opened.await?;
    let sessions: Sessions = Arc::new(RwLock::new(Arc::new(session)));
    let globals = Globals::Etcd(etcd.clone());
    let parts = Parts::start(&config, Epoch(epoch), globals, format.shards, Some(sessions.clone())).await?;
    let shared = parts.shared.clone();
    let mut server = parts.serve(config.clone(), links).await?;
    let or = |given: &str, otherwise: String| if given.is_empty() { otherwise } else { given.to_owned() };
    let rest = or(&config.advertise, server.url.clone());
    let peer = Peer {
        keda: or(&config.keda_advertise, server.keda.and_then(|at| for_others(at, &rest)).unwrap_or_default()),
        rest,
        link: or(&config.link_advertise, server.link.map(|at| at.to_string()).unwrap_or_default()),
        version: env!("CARGO_PKG_VERSION").into(),
        format: FORMAT,
    };
    let (view, api) = (shared.view.clone(), server.api.clone());
    let cluster = Arc::new(Cluster::new(Ready { etcd, config: config.etcd, peer, view, shared, api, sessions }));
    cluster.enter().await?;
    let (keeper, stop, (ended, end)) = (Arbiter::new(), CancellationToken::new(), oneshot::channel());
    let told = stop.clone();
    keeper.spawn(async move {
        cluster.run(told).await;
        // A server that is gone does not wait.
        let _ = ended.send(());
    });
    server.arbiters.push(keeper);
    server.keeper = Some((stop, end));
    Ok(server)
}

/// Where others reach what is served at an address, by where they reach REST: nowhere, if only this machine does.
fn for_others(at: SocketAddr, rest: &str) -> Option<String> {
    let rest: hyper::Uri = rest.parse().ok()?;
    let host = rest.host()?;
    let local = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match at.ip() {
        ip if ip.is_unspecified() => Some(format!("{host}:{}", at.port())),
        ip if ip.is_loopback() && !local => None,
        _ => Some(at.to_string()),
    }
}

/// From when on results are forgotten whose retention has passed, by when a scheduler last ran.
fn forgets_from(last: Option<Time>) -> Time {
    let now = clock::now();
    let Some(last) = last.filter(|last| now.since_ms(*last) > GAP_MS) else { return now };
    tracing::info!(
        last = clock::rfc3339(last),
        "no scheduler has run for long, or a clock was set: results whose retention has passed are kept for another day"
    );
    now.plus_ms(KEPT_MS)
}

/// A scheduler's parts before it serves.
struct Parts {
    shared: Arc<Shared>,
    functions: Arbiter,
    timers: Arbiter,
}

impl Parts {
    /// Everything but shards, from what belongs to no function.
    async fn start(
        config: &SchedulerConfig,
        epoch: Epoch,
        globals: Globals,
        shards: u16,
        sessions: Option<Sessions>,
    ) -> anyhow::Result<Self> {
        let (functions, timers) = (Arbiter::new(), Arbiter::new());
        let telemetry = Arc::new(Telemetry::from_env());
        let registry = Arc::new(Registry::default());
        registry.begin(epoch);
        let alarm = AlarmActor::start_in_arbiter(&timers.handle(), |_| AlarmActor::default());
        let routes = registry.clone();
        let autoscaler =
            AutoscalerActor::start_in_arbiter(&functions.handle(), move |_| AutoscalerActor::new(epoch, routes));
        let zero = ZeroConfig::read(globals.zero().await?);
        let forgets_from = forgets_from(globals.last_time().await?);
        let mut authority = None;
        if config.link_tls || config.rest_tls || config.keda_tls || config.is_clustered() {
            authority = Some(Arc::new(Authority::settle(&globals, config.worker_certificate_s).await?));
        }
        let secrets = Secrets::new(&config.secrets_key_file)?;
        secrets.hold(globals.secrets().await?);
        let function_tokens = FunctionTokens::settle(&globals).await?;
        let tokens = Tokens::default();
        let unreadable = tokens.hold(globals.tokens().await?);
        anyhow::ensure!(
            unreadable == 0 || !config.tokens.is_empty(),
            "{unreadable} of the stored API tokens cannot be read by this version, and nobody could say who may ask what: use the version that made them, or set scheduler.tokens and make new ones"
        );
        for governed in globals.namespaces().await?.into_iter().map(Governed::event) {
            let _ = autoscaler.send(Told(governed)).await;
        }
        let shared = Arc::new(Shared {
            limits: Arc::new(config.limits.clone()),
            forgets_from,
            registry,
            autoscaler,
            alarm,
            telemetry,
            zero: RwLock::new(Arc::new(zero)),
            prometheus: config.prometheus().map_err(anyhow::Error::msg)?.map(Prometheus::new),
            tokens,
            function_tokens,
            secrets,
            authority,
            globals,
            stopping: CancellationToken::new(),
            functions: functions.handle(),
            shards: Shards::of(shards),
            view: Arc::new(View::of(&config.name)),
            sessions,
            outranked: Mutex::default(),
        });
        Ok(Self { shared, functions, timers })
    }

    /// Opens the doors.
    async fn serve(self, config: SchedulerConfig, links: LinkListener) -> anyhow::Result<Server> {
        let Self { shared, functions, timers } = self;
        if let Some(authority) = shared.authority.as_ref().filter(|_| config.rest_tls || config.keda_tls) {
            let file = config.data_dir.join("authority.pem");
            private(&config.data_dir)?;
            std::fs::write(&file, authority.pem()).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        let blobs = Blobs::open(config.blobs(), config.blob_threshold_bytes)?;
        let payloads = shared.globals.payloads(&blobs).await?;
        let link = serve_links(&functions, shared.clone(), &config, payloads, links)?;
        let api = Arc::new(Api::new(shared.clone(), config.clone(), blobs));
        api.follow_all().await;
        let sweeper = Arbiter::new();
        api.start_sweeping(&sweeper.handle());
        let mut keda = None;
        if let Some(listen) = config.keda_address().map_err(anyhow::Error::msg)? {
            let served = crate::keda::serve(api.clone(), &config, listen).await;
            let served = served.with_context(|| format!("KEDA cannot be served on {listen}"))?;
            tracing::info!(%served, "KEDA's external scaler is served");
            keda = Some(served);
        }
        let (door, address) = rest::serve(api.clone(), &config, config.listen, rest::Door::Rest)?;
        let (mut rest, mut pages) = (vec![door], None);
        if let Some(listen) = config.web_address().map_err(anyhow::Error::msg)? {
            let (door, address) = rest::serve(api.clone(), &config, listen, rest::Door::Pages)?;
            rest.push(door);
            pages = Some(format!("{}://{address}", config.scheme()));
        }
        let url = format!("{}://{address}", config.scheme());
        let reached = if config.advertise.is_empty() { url.clone() } else { config.advertise.clone() };
        let own = shared.authority.as_ref().filter(|_| config.rest_tls && config.rest_certificate().is_none());
        shared.function_tokens.serve_at(reached, own.map(|authority| authority.pem().to_owned()));
        let arbiters = vec![functions, timers, sweeper];
        Ok(Server { url, pages, link, keda, api, rest, arbiters, shared, keeper: None })
    }
}

/// A listener that is bound, and what is needed to serve it.
enum Bound {
    InProcess(mpsc::Receiver<DuplexStream>),
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener, Option<Arc<rustls::ServerConfig>>),
}

impl LinkListener {
    fn bind(self, authority: Option<&Authority>) -> anyhow::Result<Bound> {
        Ok(match self {
            Self::InProcess(dialled) => Bound::InProcess(dialled),
            Self::Unix(path) => {
                let listener = listen_unix(&path);
                Bound::Unix(listener.with_context(|| format!("the link's socket {} cannot be made", path.display()))?)
            }
            Self::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address);
                let listener = listener.with_context(|| format!("cannot listen for workers on {address}"))?;
                listener.set_nonblocking(true)?;
                Bound::Tcp(listener, authority.map(Authority::server).transpose()?)
            }
        })
    }
}

/// Serves links on the arbiter. Answers where, if by TCP.
fn serve_links(
    arbiter: &Arbiter,
    shared: Arc<Shared>,
    config: &SchedulerConfig,
    payloads: String,
    links: LinkListener,
) -> anyhow::Result<Option<SocketAddr>> {
    let bound = links.bind(shared.authority.as_deref().filter(|_| config.link_tls))?;
    let address = match &bound {
        Bound::Tcp(listener, _) => Some(listener.local_addr()?),
        Bound::InProcess(_) | Bound::Unix(_) => None,
    };
    let service = link_server::LinkServer::new(LinkServer::new(shared, config, payloads))
        .max_decoding_message_size(REPORTS_MAX)
        .max_encoding_message_size(256 << 20);
    arbiter.spawn(async move {
        let router = strangers::bounded(tonic::transport::Server::builder()).add_service(service);
        if let Err(error) = serve_bound(router, bound).await {
            tracing::error!(error = &*error as &dyn std::error::Error, "the link ended");
        }
    });
    Ok(address)
}

async fn serve_bound(router: Router, bound: Bound) -> anyhow::Result<()> {
    match bound {
        Bound::InProcess(dialled) => {
            router.serve_with_incoming(ReceiverStream::new(dialled).map(Ok::<_, std::io::Error>)).await?;
        }
        Bound::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            router.serve_with_incoming(UnixListenerStream::new(listener)).await?;
        }
        Bound::Tcp(listener, None) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            router.serve_with_incoming(strangers::incoming(listener, None)).await?;
        }
        Bound::Tcp(listener, Some(tls)) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            router.serve_with_incoming(tls::incoming(strangers::incoming(listener, None), tls)).await?;
        }
    }
    Ok(())
}

/// A socket that only its owner can open; one that a dead scheduler left is replaced.
fn listen_unix(path: &std::path::Path) -> std::io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
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
        if let Some((stop, ended)) = self.keeper {
            // Others take the shards over while this one still passes requests on.
            stop.cancel();
            let _ = ended.await;
        }
        self.shared.stopping.cancel();
        for door in &self.rest {
            door.stop(true).await;
        }
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
