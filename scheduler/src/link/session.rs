//! One worker's link, from its first word to its end and what follows from that.

use super::{LinkServer, check::Check};
use crate::{
    actor::{
        autoscaler::Told,
        function::{FunctionActor, Happen, Joined},
        registry::{Link, WorkerEntry},
    },
    clock,
    shard::Shared,
    telemetry::events::About,
};
use actix::Addr;
use bytes::Bytes;
use capstan_common::{
    id::{ContainerId, FunctionKey, LeaseId, Shard, WorkerId},
    isolation::Ground,
    order::Order,
    report::{Done, Held, Hello, Report},
    resource::Amount,
    time::Time,
    wire::{self, link},
    worker::WorkerState,
};
use capstan_scheduler_core::{autoscaler, event::Event};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Status, Streaming};

/// Bytes of an inventory whose last page has not come.
const INVENTORY_BYTES: usize = 128 << 20;
/// Bytes that a container or an outcome of an inventory takes besides its texts, about.
const HELD_BYTES: usize = 512;
/// How often a worker that speaks of others' containers is told of.
const WARN: Duration = Duration::from_secs(10);

/// One worker's link while it stands.
pub struct Session {
    shared: Arc<Shared>,
    worker: WorkerId,
    generation: u64,
    link: Link,
    /// What it has, and the model of its GPUs.
    offer: (Amount, Arc<str>, Ground),
    state: WorkerState,
    /// Shards of ours of which the worker has not told yet; it is given nothing before that.
    untold: BTreeSet<Shard>,
    check: Arc<Check>,
    warned: Option<Instant>,
    /// Inventories of which pages are still to come.
    pages: BTreeMap<Shard, Vec<Held>>,
    joined: bool,
}

impl Session {
    /// A worker has said who it is: it is known from here on, and asked for what it holds.
    pub async fn begin(server: &LinkServer, hello: Hello, host: IpAddr, link: Link) -> Result<Self, Status> {
        let worker = WorkerId(hello.worker.as_str().into());
        let shared = server.shared.clone();
        if shared.registry.is_taken(&worker, &hello.instance) {
            return Err(Status::already_exists(format!(
                "a worker named `{worker}` is linked already: give each its own worker.name; if it is the same that has just died, it is let in as soon as its old link is known to be broken"
            )));
        }
        if hello.store.as_ref().is_some_and(|store| *store != server.payloads) {
            return Err(Status::failed_precondition(format!(
                "the blob_dir of worker `{worker}` is not the folder that the schedulers use: large inputs and outputs would be lost. Share the schedulers' folder with it, and set worker.blob_dir to where it is there"
            )));
        }
        let remembered = shared.globals.remember_worker(&worker, None).await;
        let draining = remembered.map_err(|e| Status::unavailable(e.to_string()))?;
        let entry = shared.registry.join(&worker, entry_of(&hello, host, draining));
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
        let gpu = entry.gpus.first().map_or_else(|| "".into(), |gpu| gpu.model.as_str().into());
        let offer = (hello.capacity, gpu, hello.isolation.ground());
        let mut session = Self {
            shared,
            worker,
            generation,
            link,
            offer,
            state,
            untold,
            check: server.check.clone(),
            warned: None,
            pages: BTreeMap::new(),
            joined: false,
        };
        tracing::info!(worker = %session.worker, "a worker joined");
        session.shared.telemetry.events.tell("worker_joined", About::worker(&session.worker.0), json!({}));
        session.told(None).await;
        Ok(session)
    }

    /// Takes a page of an inventory. Whether that was the last; else more of it follow.
    fn take_page(&mut self, shard: Shard, held: Vec<Held>, more: bool) -> Result<Option<Vec<Held>>, String> {
        let mut all = self.pages.remove(&shard).unwrap_or_default();
        for mut part in held {
            match all.last_mut().filter(|last| last.container == part.container) {
                Some(whole) => whole.finished.append(&mut part.finished),
                None => all.push(part),
            }
        }
        let size = |held: &Held| held.finished.iter().map(outcome_bytes).sum::<usize>() + HELD_BYTES;
        let held: usize = self.pages.values().flatten().chain(&all).map(size).sum();
        if held > INVENTORY_BYTES {
            return Err("its inventory is larger than what any worker holds".into());
        }
        if more {
            self.pages.insert(shard, all);
            return Ok(None);
        }
        Ok(Some(all))
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
            let told = held.remove(&key).unwrap_or_default();
            let (held, refused) = told
                .into_iter()
                .partition::<Vec<_>, _>(|h| self.shared.registry.adopt(h.container, &key, &self.worker));
            if self.link.cut.is_cancelled() {
                // A newer link may have told already what the worker holds by now.
                return;
            }
            let (worker, orders, generation) = (self.worker.clone(), self.link.orders.clone(), self.generation);
            // A function that ends meanwhile stops its containers itself.
            let _ = function.send(Joined { worker, generation, orders, held }).await;
            for stranger in refused {
                self.stop_orphan(stranger.container).await;
            }
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
        let ((capacity, gpu, ground), worker, state) = (self.offer.clone(), self.worker.clone(), self.state);
        // The autoscaler lives as long as the scheduler.
        let until = self.shared.registry.flaps_until(&self.worker);
        let joined = autoscaler::Event::Joined { worker, capacity, gpu, ground, state, flaps: until.is_some() };
        let _ = self.shared.autoscaler.send(Told(joined)).await;
        if let Some(until) = until {
            self.pass_over(until);
        }
    }

    /// What is placed on a worker whose links break again and again may soon have to run elsewhere (RELIABILITY F16).
    fn pass_over(&self, until: Time) {
        tracing::warn!(worker = %self.worker, until = clock::rfc3339(until), "a worker's links break again and again: it is passed over for a while");
        let detail = json!({"until": clock::rfc3339(until)});
        self.shared.telemetry.events.tell("worker_flaps", About::worker(&self.worker.0), detail);
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

    /// Takes reports until the link breaks, and waits for the worker to come back.
    pub async fn run(mut self, mut inbound: Streaming<link::Reports>, silence: Duration, lost_after: Duration) {
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
        self.shared.telemetry.events.tell("worker_unreachable", About::worker(&self.worker.0), json!({}));
        let worker = self.worker.clone();
        let turned = autoscaler::Event::Turned { worker, state: WorkerState::Unreachable };
        let _ = self.shared.autoscaler.send(Told(turned)).await;
        tokio::time::sleep(lost_after).await;
        if !self.shared.registry.lose(&self.worker, self.generation) {
            return;
        }
        tracing::warn!(worker = %self.worker, "a worker is lost: what it held runs elsewhere");
        self.shared.telemetry.events.tell("worker_lost", About::worker(&self.worker.0), json!({}));
        if let Err(error) = self.shared.globals.forget_worker(&self.worker.0).await {
            tracing::warn!(worker = %self.worker, %error, "a lost worker cannot be forgotten");
        }
        let lost = autoscaler::Event::Lost { worker: self.worker.clone() };
        let _ = self.shared.autoscaler.send(Told(lost)).await;
        for (_, function) in self.shared.registry.functions() {
            let event = Event::WorkerLost { worker: self.worker.clone() };
            let _ = function.send(Happen(vec![event])).await;
        }
    }

    /// Hands reports to their functions, all of one function together and in order.
    async fn take(&mut self, reports: link::Reports) -> Result<(), String> {
        let mut by_function: Vec<(FunctionKey, Addr<FunctionActor>, Vec<Event>)> = Vec::new();
        for report in reports.reports {
            let report = wire::report_in(report).map_err(|error| error.to_string())?;
            let report = match self.check.report(report)? {
                Report::Inventory { shard, held, more } => {
                    deliver(std::mem::take(&mut by_function)).await;
                    if let Some(held) = self.take_page(shard, held, more)? {
                        self.take_inventory(shard, held).await;
                    }
                    continue;
                }
                Report::Outranked { shard, epoch } => {
                    tracing::warn!(worker = %self.worker, shard = shard.0, epoch = epoch.0, "a worker knows a newer owner of a shard");
                    self.shared.is_outranked(shard, epoch);
                    self.told(Some(shard)).await;
                    continue;
                }
                Report::Beat { others, free_gpus, .. } => {
                    if !self.offer.1.is_empty() {
                        self.shared.registry.see_gpus(&self.worker, self.generation, free_gpus);
                    }
                    let event = autoscaler::Event::Others { worker: self.worker.clone(), amount: others };
                    let _ = self.shared.autoscaler.send(Told(event)).await;
                    continue;
                }
                report => report,
            };
            if self.link.cut.is_cancelled() {
                return Ok(());
            }
            if let Report::Log { container, chunk, dropped, .. } = report {
                self.log(container, chunk, dropped);
                continue;
            }
            let Some((container, event)) = event_of(report) else { continue };
            if self.shared.registry.is_elsewhere(container, &self.worker) {
                self.not_heard(container);
                continue;
            }
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

    /// Output of a container that this worker was given; of others nothing is kept.
    fn log(&self, container: ContainerId, chunk: Bytes, dropped: u64) {
        let owner = self.shared.registry.owner(container);
        match owner.filter(|_| !self.shared.registry.is_elsewhere(container, &self.worker)) {
            Some((key, _)) => self.shared.telemetry.logs.add(container, &key, chunk, dropped),
            None => tracing::debug!(worker = %self.worker, %container, "output of a container that is not known here"),
        }
    }

    /// A worker speaks of what is not its own: told of once a while, however often it does.
    fn not_heard(&mut self, container: ContainerId) {
        if self.warned.is_none_or(|at| at.elapsed() > WARN) {
            self.warned = Some(Instant::now());
            tracing::warn!(worker = %self.worker, %container, "a worker reports of another worker's container: it is not heard");
        }
    }

    /// A container that nobody owns: its outcomes are not wanted, and it is not to go on. While a shard changes hands it may be
    /// another scheduler's, or become so: then it is not ours to say, and the worker keeps what it has for the next owner.
    async fn answer_unowned(&self, container: ContainerId, event: Event) {
        if !self.shared.shards.has_all() {
            return;
        }
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

fn outcome_bytes(done: &Done) -> usize {
    HELD_BYTES
        + match &done.result {
            Ok(output) => output.held() as usize,
            Err(failure) => failure.message.len() + failure.traceback.len(),
        }
}

/// A worker as it introduces itself.
fn entry_of(hello: &Hello, host: IpAddr, draining: bool) -> WorkerEntry {
    WorkerEntry {
        capacity: hello.capacity,
        free_gpus: hello.gpus.iter().map(|gpu| gpu.uuid.clone()).collect(),
        gpus: hello.gpus.clone(),
        state: if draining { WorkerState::Draining } else { WorkerState::Ready },
        host,
        version: hello.version.clone(),
        limits: hello.limits.clone(),
        isolation: hello.isolation.clone(),
        joined: clock::now(),
        instance: hello.instance.clone(),
        generation: 0,
    }
}

/// What a report says of a container, as its function is told.
fn event_of(report: Report) -> Option<(ContainerId, Event)> {
    Some(match report {
        Report::Hello(_)
        | Report::Beat { .. }
        | Report::Inventory { .. }
        | Report::Outranked { .. }
        | Report::Log { .. } => return None,
        Report::Refused { container, reason } => (container, Event::Refused { container, reason: reason.into() }),
        Report::Spawned { container, spawn_us, .. } => (container, Event::Spawned { container, spawn_us }),
        Report::Ready { container, phases, port } => (container, Event::Ready { container, phases, port }),
        Report::Looked { container, detail } => (container, Event::Looked { container, detail: detail.into() }),
        Report::Counted { container, value } => (container, Event::Counted { container, value }),
        Report::Finished { container, done } => (container, Event::Finished { container, done }),
        Report::Returned { container, leases, closed, .. } => {
            (container, Event::Returned { container, leases, closed })
        }
        Report::Ended { container, ending, begun } => (container, Event::Ended { container, ending, begun }),
    })
}

/// Waits where a function is busy: back-pressure on the worker's reports.
async fn deliver(by_function: Vec<(FunctionKey, Addr<FunctionActor>, Vec<Event>)>) {
    for (_, function, events) in by_function {
        // One that is gone has nothing left to hear.
        let _ = function.send(Happen(events)).await;
    }
}
