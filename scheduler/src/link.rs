//! The scheduler's side of the link: workers dial in, say what they hold, then reports come up and orders go down.

use crate::{
    actor::{
        autoscaler::Told,
        function::{FunctionActor, Happen, Joined},
        registry::{LINK_BACKLOG, Link, WorkerEntry},
    },
    clock,
    config::SchedulerConfig,
    shard::Shared,
    store::layout,
    tls,
};
use actix::Addr;
use capstan_common::{
    id::{ContainerId, FunctionKey, LeaseId, Shard, WorkerId},
    order::Order,
    report::{Held, Hello, Report},
    resource::Amount,
    time::Time,
    wire::{self, PROTOCOL, link},
    worker::WorkerState,
};
use capstan_scheduler_core::{autoscaler, event::Event};
use rustls::pki_types::CertificateDer;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

/// The pause between two looks whether orders may be sent.
const HELD: Duration = Duration::from_millis(20);
/// The longest name of a worker.
const NAME_MAX: usize = 128;
/// Orders that travel in one message.
const ORDERS_AT_ONCE: usize = 512;

/// Takes workers' links; a clone is another handle.
#[derive(Clone)]
pub struct LinkServer {
    shared: Arc<Shared>,
    beat_ms: u32,
    unreachable_after: Duration,
    lost_after: Duration,
}

type Orders = Pin<Box<dyn Stream<Item = Result<link::Orders, Status>> + Send>>;

impl LinkServer {
    /// For a scheduler's shards.
    pub fn new(shared: Arc<Shared>, config: &SchedulerConfig) -> Self {
        Self {
            shared,
            beat_ms: (config.unreachable_after_ms / 6).max(50) as u32,
            unreachable_after: Duration::from_millis(config.unreachable_after_ms),
            lost_after: Duration::from_millis(config.lost_after_ms),
        }
    }
}

impl LinkServer {
    /// Where links are encrypted, a worker is who its certificate says, and only as long as that was not revoked.
    async fn must_be(&self, worker: &str, shown: Option<&CertificateDer<'_>>) -> Result<(), Status> {
        if self.shared.authority.is_none() {
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
        let host = request.remote_addr().map_or(Ipv4Addr::LOCALHOST.into(), |from| from.ip());
        let shown = certificate(&request);
        let mut inbound = request.into_inner();
        let hello = first_hello(&mut inbound).await?;
        self.must_be(&hello.worker, shown.as_ref()).await?;
        if hello.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "worker {} speaks link protocol {}, this scheduler speaks {PROTOCOL}: run the same version on both",
                hello.worker, hello.protocol
            )));
        }
        let (orders, outbound) = mpsc::channel(LINK_BACKLOG);
        let (batches, stream) = mpsc::channel(16);
        let link = Link::new(orders);
        let cut = link.cut.clone();
        tokio::spawn(send_orders(self.shared.clone(), self.beat_ms, outbound, batches, cut));
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
        let authority = self.shared.authority.as_ref();
        let authority = authority
            .ok_or_else(|| Status::failed_precondition("links are not encrypted here: leave worker.link_tls out"))?;
        if asked.worker.is_empty() || asked.worker.len() > NAME_MAX {
            return Err(Status::invalid_argument(format!("a worker's name has 1 to {NAME_MAX} bytes")));
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
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?;
    info.peer_certs()?.first().cloned()
}

async fn first_hello(inbound: &mut Streaming<link::Reports>) -> Result<Hello, Status> {
    let first = inbound.message().await?.and_then(|reports| reports.reports.into_iter().next());
    let report = first.map(wire::report_in).transpose().map_err(|e| Status::invalid_argument(e.to_string()))?;
    match report {
        Some(Report::Hello(hello)) if !hello.worker.is_empty() => Ok(hello),
        _ => Err(Status::invalid_argument("a link begins with Hello and a worker's name")),
    }
}

/// Packs all orders that wait into one message. Ends, and closes the way for orders, as soon as the stream has.
async fn send_orders(
    shared: Arc<Shared>,
    beat_ms: u32,
    mut orders: mpsc::Receiver<Order>,
    batches: mpsc::Sender<Result<link::Orders, Status>>,
    cut: CancellationToken,
) {
    let welcome = link::Welcome { protocol: PROTOCOL, beat_ms };
    let welcome = link::Order { kind: Some(link::order::Kind::Welcome(welcome)) };
    let mut next = vec![welcome];
    let mut waiting = Vec::with_capacity(ORDERS_AT_ONCE);
    let beat = Duration::from_millis(u64::from(beat_ms));
    loop {
        // One whose lease is in doubt may not be the owner any more: its orders wait.
        let mut told = Instant::now();
        while !shared.may_act() && !cut.is_cancelled() {
            tokio::time::sleep(HELD).await;
            if told.elapsed() >= beat {
                told = Instant::now();
                // A worker that hears nothing takes the scheduler for dead. One that is full has enough to hear.
                let _ = batches.try_send(Ok(link::Orders::default()));
            }
        }
        let sent = tokio::select! {
            sent = batches.send(Ok(link::Orders { orders: next })) => sent.is_ok(),
            () = cut.cancelled() => false,
        };
        if !sent {
            return;
        }
        let received = tokio::select! {
            received = orders.recv_many(&mut waiting, ORDERS_AT_ONCE) => Some(received),
            () = batches.closed() => Some(0),
            () = cut.cancelled() => Some(0),
            // Nothing to say is said too (RELIABILITY F5).
            () = tokio::time::sleep(beat) => None,
        };
        if received == Some(0) {
            return;
        }
        next = waiting.drain(..).map(link::Order::from).collect();
    }
}

/// One worker's link while it stands.
struct Session {
    shared: Arc<Shared>,
    worker: WorkerId,
    generation: u64,
    link: Link,
    capacity: Amount,
    state: WorkerState,
    /// Shards of ours of which the worker has not told yet; it is given nothing before that.
    untold: BTreeSet<Shard>,
    joined: bool,
}

impl Session {
    async fn begin(server: &LinkServer, hello: Hello, host: IpAddr, link: Link) -> Result<Self, Status> {
        let worker = WorkerId(hello.worker.as_str().into());
        let shared = server.shared.clone();
        if shared.registry.is_taken(&worker, &hello.instance) {
            return Err(Status::already_exists(format!(
                "a worker named `{worker}` is linked already: give each its own worker.name; if it is the same that has just died, it is let in as soon as its old link is known to be broken"
            )));
        }
        let remembered = shared.globals.remember_worker(&worker, None).await;
        let draining = remembered.map_err(|e| Status::unavailable(e.to_string()))?;
        let entry = WorkerEntry {
            capacity: hello.capacity,
            state: if draining { WorkerState::Draining } else { WorkerState::Ready },
            host,
            version: hello.version.clone(),
            limits: hello.limits.clone(),
            joined: clock::now(),
            instance: hello.instance.clone(),
            generation: 0,
        };
        let entry = shared.registry.join(&worker, entry);
        shared.registry.publish(&worker, entry.generation, link.clone());
        let links = shared.view.links();
        if !links.is_empty() {
            // A fresh link has room.
            let _ = link.orders.try_send(Order::Peers { links });
        }
        let mut untold = BTreeSet::new();
        for env in shared.shards.all() {
            untold.insert(env.shard);
            env.claim(&link).await;
        }
        let (generation, state) = (entry.generation, entry.state);
        let mut session =
            Self { shared, worker, generation, link, capacity: hello.capacity, state, untold, joined: false };
        tracing::info!(worker = %session.worker, "a worker joined");
        session.shared.telemetry.events.tell("worker_joined", serde_json::json!({"worker": session.worker}));
        session.told(None).await;
        Ok(session)
    }

    /// Every function of the shard learns what of it the worker holds, also that it holds nothing. What nobody owns is stopped.
    /// Each hears of it before it finds the way for orders: an order in between would not be in the inventory.
    async fn take_inventory(&mut self, shard: Shard, inventory: Vec<Held>) {
        let Some(env) = self.shared.shards.get(shard) else {
            self.told(Some(shard)).await;
            return;
        };
        let mut held: BTreeMap<FunctionKey, Vec<Held>> = BTreeMap::new();
        for container in inventory {
            held.entry(container.function.clone()).or_default().push(container);
        }
        for (key, function) in env.own_functions() {
            let held = held.remove(&key).unwrap_or_default();
            held.iter().for_each(|h| self.shared.registry.route(h.container, &key));
            if self.link.cut.is_cancelled() {
                // A newer link may have told already what the worker holds by now.
                return;
            }
            let (worker, orders, generation) = (self.worker.clone(), self.link.orders.clone(), self.generation);
            // A function that ends meanwhile stops its containers itself.
            let _ = function.send(Joined { worker, generation, orders, held }).await;
        }
        for orphan in held.into_values().flatten() {
            let leases = orphan.finished.iter().map(|done| done.held.lease).collect();
            self.forget(orphan.container, leases).await;
            self.stop_orphan(orphan.container).await;
        }
        self.shared.registry.tell(&self.worker, self.generation, shard);
        self.told(Some(shard)).await;
        env.heard_from(&self.worker).await;
    }

    /// What the worker holds of all our shards is accounted before any of it could be promised again.
    async fn told(&mut self, shard: Option<Shard>) {
        if let Some(shard) = shard {
            self.untold.remove(&shard);
        }
        if self.joined || !self.untold.is_empty() {
            return;
        }
        self.joined = true;
        let (worker, capacity, state) = (self.worker.clone(), self.capacity, self.state);
        // The autoscaler lives as long as the scheduler.
        let until = self.shared.registry.flaps_until(&self.worker);
        let joined = autoscaler::Event::Joined { worker, capacity, state, flaps: until.is_some() };
        let _ = self.shared.autoscaler.send(Told(joined)).await;
        if let Some(until) = until {
            self.pass_over(until);
        }
    }

    /// What is placed on a worker whose links break again and again may soon have to run elsewhere (RELIABILITY F16).
    fn pass_over(&self, until: Time) {
        tracing::warn!(worker = %self.worker, until = clock::rfc3339(until), "a worker's links break again and again: it is passed over for a while");
        let detail = serde_json::json!({"worker": self.worker, "until": clock::rfc3339(until)});
        self.shared.telemetry.events.tell("worker_flaps", detail);
        let steady = Told(autoscaler::Event::Flaps { worker: self.worker.clone(), flaps: false });
        let (autoscaler, cut) = (self.shared.autoscaler.clone(), self.link.cut.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_micros(until.since_us(clock::now()))) => {}
                // The next link begins with what holds then.
                () = cut.cancelled() => return,
            }
            let _ = autoscaler.send(steady).await;
        });
    }

    async fn stop_orphan(&self, container: ContainerId) {
        let reason = "nobody owns it".into();
        // If the link breaks, the next inventory shows it again.
        let _ = self.link.orders.send(Order::Stop { container, grace_ms: 1000, reason }).await;
    }

    async fn run(mut self, mut inbound: Streaming<link::Reports>, silence: Duration, lost_after: Duration) {
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(silence, inbound.message()) => message,
                () = self.link.orders.closed() => break,
            };
            match message {
                Ok(Ok(Some(reports))) => {
                    if let Err(error) = self.take(reports).await {
                        tracing::warn!(worker = %self.worker, %error, "a report cannot be understood: the link is cut");
                        break;
                    }
                }
                Ok(Ok(None) | Err(_)) | Err(_) => break,
            }
        }
        self.link.cut.cancel();
        self.end(lost_after.saturating_sub(silence)).await;
    }

    /// The link broke: the worker is unreachable, and after a while, unless it joins again, lost.
    async fn end(self, lost_after: Duration) {
        if !self.shared.registry.part(&self.worker, self.generation) {
            return;
        }
        tracing::warn!(worker = %self.worker, "a worker is unreachable");
        self.shared.telemetry.events.tell("worker_unreachable", serde_json::json!({"worker": self.worker}));
        let worker = self.worker.clone();
        let turned = autoscaler::Event::Turned { worker, state: WorkerState::Unreachable };
        let _ = self.shared.autoscaler.send(Told(turned)).await;
        tokio::time::sleep(lost_after).await;
        if !self.shared.registry.lose(&self.worker, self.generation) {
            return;
        }
        tracing::warn!(worker = %self.worker, "a worker is lost: what it held runs elsewhere");
        self.shared.telemetry.events.tell("worker_lost", serde_json::json!({"worker": self.worker}));
        let lost = autoscaler::Event::Lost { worker: self.worker.clone() };
        let _ = self.shared.autoscaler.send(Told(lost)).await;
        for (_, function) in self.shared.registry.functions() {
            let event = Event::WorkerLost { worker: self.worker.clone() };
            let _ = function.send(Happen(vec![event])).await;
        }
    }

    /// Hands reports to their functions, all of one function together and in order.
    async fn take(&mut self, reports: link::Reports) -> Result<(), wire::WireError> {
        let mut by_function: Vec<(FunctionKey, Addr<FunctionActor>, Vec<Event>)> = Vec::new();
        for report in reports.reports {
            let report = match wire::report_in(report)? {
                Report::Inventory { shard, held } => {
                    deliver(std::mem::take(&mut by_function)).await;
                    self.take_inventory(shard, held).await;
                    continue;
                }
                Report::Outranked { shard, epoch } => {
                    tracing::warn!(worker = %self.worker, shard = shard.0, epoch = epoch.0, "a worker knows a newer owner of a shard");
                    self.told(Some(shard)).await;
                    continue;
                }
                Report::Beat { others, .. } => {
                    let event = autoscaler::Event::Others { worker: self.worker.clone(), amount: others };
                    let _ = self.shared.autoscaler.send(Told(event)).await;
                    continue;
                }
                report => report,
            };
            if self.link.cut.is_cancelled() {
                return Ok(());
            }
            let Some((container, event)) = self.event_of(report) else { continue };
            let Some((key, address)) = self.shared.registry.owner(container) else {
                self.answer_unowned(container, event).await;
                continue;
            };
            match by_function.iter_mut().find(|(k, _, _)| *k == key) {
                Some((_, _, events)) => events.push(event),
                None => by_function.push((key, address, vec![event])),
            }
        }
        deliver(by_function).await;
        Ok(())
    }

    fn event_of(&self, report: Report) -> Option<(ContainerId, Event)> {
        Some(match report {
            Report::Hello(_) | Report::Beat { .. } | Report::Inventory { .. } | Report::Outranked { .. } => {
                return None;
            }
            Report::Log { container, chunk, dropped, .. } => {
                self.shared.telemetry.logs.add(container, chunk, dropped);
                return None;
            }
            Report::Refused { container, reason } => (container, Event::Refused { container, reason: reason.into() }),
            Report::Spawned { container, spawn_us, .. } => (container, Event::Spawned { container, spawn_us }),
            Report::Ready { container, phases, port } => (container, Event::Ready { container, phases, port }),
            Report::Counted { container, value } => (container, Event::Counted { container, value }),
            Report::Finished { container, done } => (container, Event::Finished { container, done }),
            Report::Returned { container, leases, closed, .. } => {
                (container, Event::Returned { container, leases, closed })
            }
            Report::Ended { container, ending, begun } => (container, Event::Ended { container, ending, begun }),
        })
    }

    /// A container that nobody owns: its outcomes are not wanted, and it is not to go on.
    async fn answer_unowned(&self, container: ContainerId, event: Event) {
        match event {
            Event::Finished { done, .. } => {
                self.forget(container, done.iter().map(|d| d.held.lease).collect()).await;
                self.stop_orphan(container).await;
            }
            Event::Spawned { .. } | Event::Ready { .. } | Event::Returned { .. } => self.stop_orphan(container).await,
            _ => {}
        }
    }

    async fn forget(&self, container: ContainerId, leases: Vec<LeaseId>) {
        let _ = self.link.orders.send(Order::Recorded { container, leases }).await;
    }
}

/// Waits where a function is busy: back-pressure on the worker's reports.
async fn deliver(by_function: Vec<(FunctionKey, Addr<FunctionActor>, Vec<Event>)>) {
    for (_, function, events) in by_function {
        // One that is gone has nothing left to hear.
        let _ = function.send(Happen(events)).await;
    }
}
