//! The scheduler's side of the link: workers dial in, say what they hold, then reports come up and orders go down.

pub mod check;
mod orders;
mod session;

use crate::{
    actor::registry::{LINK_BACKLOG, Link},
    config::SchedulerConfig,
    shard::Shared,
    store::layout,
    strangers::Caller,
    tls::{self, Authority},
};
use capstan_common::{
    id::WorkerId,
    report::{Hello, Report},
    wire::{self, OLDEST_PROTOCOL, PROTOCOL, link},
    worker::is_name,
};
use check::Check;
use ipnet::IpNet;
use orders::send_orders;
use rustls::pki_types::CertificateDer;
use session::Session;
use std::{net::Ipv4Addr, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TlsConnectInfo};

/// How long a worker may take from opening a stream to its Hello.
const HELLO: Duration = Duration::from_secs(5);
/// Certificates that are asked for at one time: each costs looks into the store.
const ENROLLING: usize = 8;
/// Bytes of a join token and of a signing request.
const ENROL_BYTES: usize = 16 << 10;

/// Takes workers' links; a clone is another handle.
#[derive(Clone)]
pub struct LinkServer {
    shared: Arc<Shared>,
    /// Who signs workers' certificates, where links are encrypted.
    authority: Option<Arc<Authority>>,
    beat_ms: u32,
    unreachable_after: Duration,
    lost_after: Duration,
    /// What the folder of large payloads is known by.
    payloads: String,
    /// Where workers may say that they are.
    networks: Arc<[IpNet]>,
    check: Arc<Check>,
    enrolling: Arc<Semaphore>,
}

type Orders = Pin<Box<dyn Stream<Item = Result<link::Orders, Status>> + Send>>;

impl LinkServer {
    /// For a scheduler's shards.
    pub fn new(shared: Arc<Shared>, config: &SchedulerConfig, payloads: String) -> Self {
        Self {
            authority: shared.authority.clone().filter(|_| config.link_tls),
            shared,
            beat_ms: (config.unreachable_after_ms / 6).max(50) as u32,
            unreachable_after: Duration::from_millis(config.unreachable_after_ms),
            lost_after: Duration::from_millis(config.lost_after_ms),
            payloads,
            networks: config.worker_networks.clone().into(),
            check: Arc::new(Check { output_max: config.payload_max_bytes as u64 }),
            enrolling: Arc::new(Semaphore::new(ENROLLING)),
        }
    }
}

impl LinkServer {
    /// Where links are encrypted, a worker is who its certificate says, and only as long as that was not revoked.
    async fn must_be(&self, worker: &str, shown: Option<&CertificateDer<'_>>) -> Result<(), Status> {
        if self.authority.is_none() {
            return Ok(());
        }
        if !shown.is_some_and(|shown| tls::is_of(shown, worker)) {
            return Err(Status::unauthenticated(format!(
                "the certificate is not that of a worker named `{worker}`: each worker enrols by its own name with a join token (`capstan invite`)"
            )));
        }
        let revoked = self.shared.globals.get(&layout::revoked(worker)).await;
        match revoked.map_err(|error| Status::unavailable(error.to_string()))? {
            None => Ok(()),
            Some(_) => Err(Status::unauthenticated(format!(
                "the certificate of worker `{worker}` was revoked: remove its identity, and let it join by another name"
            ))),
        }
    }
}

#[tonic::async_trait]
impl link::link_server::Link for LinkServer {
    type JoinStream = Orders;

    async fn join(&self, request: Request<Streaming<link::Reports>>) -> Result<Response<Orders>, Status> {
        let caller = Caller::of(&request);
        let link = caller.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), |caller| caller.from.ip());
        let shown = certificate(&request);
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(HELLO, first_hello(&mut inbound)).await;
        let hello = first.map_err(|_| Status::deadline_exceeded("a link begins with Hello within 5 seconds"))??;
        // One that shares our process and machine is who it says it is.
        if caller.is_some() {
            self.must_be(&hello.worker, shown.as_ref()).await?;
        }
        let Some(protocol) = wire::agreed(&hello.protocols) else {
            let (oldest, newest) = (hello.protocols.start(), hello.protocols.end());
            return Err(Status::failed_precondition(format!(
                "worker {} speaks link protocols {oldest} to {newest}, this scheduler {OLDEST_PROTOCOL} to {PROTOCOL}: run versions that have one in common",
                hello.worker
            )));
        };
        let host = check::host(hello.host, link, &self.networks).unwrap_or_else(|told| {
            tracing::warn!(worker = hello.worker, %told, %link, "a worker says that it is elsewhere than its link comes from, and scheduler.worker_networks does not name that network: its servers are looked for where its link comes from");
            link
        });
        if let Some(caller) = caller {
            caller.introduce();
        }
        let (orders, outbound) = mpsc::channel(LINK_BACKLOG);
        let (batches, stream) = mpsc::channel(16);
        let link = Link::new(orders);
        let cut = link.cut.clone();
        tokio::spawn(send_orders(
            self.shared.clone(),
            link::Welcome { protocol, beat_ms: self.beat_ms },
            outbound,
            batches,
            cut,
        ));
        let (begun, begins) = oneshot::channel();
        let (server, silence, lost_after) = (self.clone(), self.unreachable_after, self.lost_after);
        // A task of its own: a connection that breaks meanwhile drops this handler, and a session must not stop half-made.
        tokio::spawn(async move {
            match Session::begin(&server, hello, host, link).await {
                Ok(session) => {
                    // A handler that is gone has a stream that has ended: the session sees that itself.
                    let _ = begun.send(Ok(()));
                    session.run(inbound, silence, lost_after).await;
                }
                Err(status) => drop(begun.send(Err(status))),
            }
        });
        begins.await.map_err(|_| Status::internal("the session ended before it began"))??;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn enrol(&self, request: Request<link::EnrolRequest>) -> Result<Response<link::Enrolled>, Status> {
        let shown = certificate(&request);
        let asked = request.into_inner();
        let busy = |_| Status::resource_exhausted("other workers are enrolling; try again in a moment");
        let _enrolling = self.enrolling.clone().try_acquire_owned().map_err(busy)?;
        let authority = self.authority.as_ref();
        let authority = authority
            .ok_or_else(|| Status::failed_precondition("links are not encrypted here: leave worker.link_tls out"))?;
        if !is_name(&asked.worker) {
            let what = "a worker's name has 1 to 128 letters, digits, dots, dashes and underscores";
            return Err(Status::invalid_argument(what));
        }
        if asked.token.len() + asked.request.len() > ENROL_BYTES {
            return Err(Status::invalid_argument("the request is too long"));
        }
        if asked.token.is_empty() {
            self.must_be(&asked.worker, shown.as_ref()).await?;
        } else {
            let revoked = self.shared.globals.get(&layout::revoked(&asked.worker)).await;
            if revoked.map_err(|error| Status::unavailable(error.to_string()))?.is_some() {
                return Err(Status::unauthenticated(format!(
                    "worker `{}` was revoked: let it join by another name",
                    asked.worker
                )));
            }
            let known = self.shared.globals.knows_worker(&asked.worker).await;
            if known.map_err(|error| Status::unavailable(error.to_string()))?
                || self.shared.registry.is_linked(&WorkerId(asked.worker.as_str().into()))
            {
                return Err(Status::already_exists(format!(
                    "a worker named `{0}` has joined already: give each its own worker.name. If this is the same machine that has lost its certificate, stop it, and let it join once `capstan workers` does not show it any more",
                    asked.worker
                )));
            }
            let admitted = tls::admit(&self.shared.globals, &asked.token).await;
            admitted.map_err(|error| Status::unauthenticated(format!("{error:#}")))?;
        }
        let signed = authority.sign(&asked.worker, &asked.request);
        let (certificate, ours) = signed.map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        tracing::info!(worker = asked.worker, "a worker's certificate was signed");
        Ok(Response::new(link::Enrolled { certificate, authority: ours, good_for_s: authority.worker_s() }))
    }
}

/// The certificate that a worker shows.
fn certificate<T>(request: &Request<T>) -> Option<CertificateDer<'static>> {
    let info = request.extensions().get::<TlsConnectInfo<Arc<Caller>>>()?;
    info.peer_certs()?.first().cloned()
}

async fn first_hello(inbound: &mut Streaming<link::Reports>) -> Result<Hello, Status> {
    let first = inbound.message().await?.and_then(|reports| reports.reports.into_iter().next());
    let report = first.map(wire::report_in).transpose().map_err(|e| Status::invalid_argument(e.to_string()))?;
    match report {
        Some(Report::Hello(hello)) => check::hello(hello).map_err(Status::invalid_argument),
        _ => Err(Status::invalid_argument("a link begins with Hello and a worker's name")),
    }
}
