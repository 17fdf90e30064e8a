//! The cluster: workers, containers, their output, numbers.

use super::Api;
use crate::{
    actor::{
        autoscaler::{Told, UsedOf},
        function::{Happen, Tell},
        registry::WorkerEntry,
    },
    clock,
    cluster::Peer,
    store::{Change, layout, store_refusal, stored},
    telemetry::events::About,
    telemetry::metrics::{ContainerLabel, FunctionLabel, state_label},
};
use capstan_common::{
    gpu::Gpu,
    id::{ContainerId, FunctionKey, WorkerId},
    refusal::{Code, Refusal},
    resource::Amount,
    worker::WorkerState,
};
use capstan_scheduler_core::{
    autoscaler,
    event::Event,
    function::{self, Function},
    ownership::Member,
};
use capstan_verb::{
    access::Subject,
    cluster::{AmountView, SchedulerView, SchedulersView, WorkerView, WorkersView},
    container::{ContainerView, ContainersView, List, PlacementView},
};
use serde_json::json;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

fn amount(amount: Amount, gpus: Vec<Gpu>) -> AmountView {
    AmountView { cpu: amount.cpu_milli as f64 / 1000.0, memory_mib: amount.memory_mib, gpus }
}

impl Api {
    /// Schedulers by name, with the shards that each owns, and how many shards there are.
    pub fn schedulers(&self) -> SchedulersView {
        let (view, count) = (&self.env.view, self.env.shards.count());
        let seen = view.seen();
        let mine: Vec<u16> = self.env.shards.all().iter().map(|env| env.shard.0).collect();
        let owned = |name: &str| -> Vec<u16> {
            if name == &**view.me() {
                return mine.clone();
            }
            seen.owners.iter().filter(|(_, owner)| &***owner == name).map(|(shard, _)| shard.0).collect()
        };
        let shown = |(name, peer): (&Member, &Peer)| SchedulerView {
            name: name.to_string(),
            url: Some(peer.rest.clone()),
            link: Some(peer.link.clone()),
            keda: Some(peer.keda.clone()).filter(|at| !at.is_empty()),
            version: peer.version.clone(),
            shards: owned(name),
            answers: name == view.me(),
        };
        let mut schedulers: Vec<SchedulerView> = seen.members.iter().map(shown).collect();
        if schedulers.is_empty() {
            schedulers.push(SchedulerView {
                name: view.me().to_string(),
                url: None,
                link: None,
                keda: None,
                version: env!("CARGO_PKG_VERSION").into(),
                shards: mine.clone(),
                answers: true,
            });
        }
        SchedulersView { schedulers, shards: count }
    }

    /// Workers by name.
    pub async fn workers(&self) -> WorkersView {
        let mut containers: BTreeMap<Arc<str>, Vec<ContainerId>> = BTreeMap::new();
        for (key, _) in self.env.registry.functions() {
            let of = self.ask_any(&key, |core| core.containers().map(|c| (c.worker, c.id)).collect::<Vec<_>>()).await;
            for (worker, id) in of.unwrap_or_default() {
                containers.entry(worker.0).or_default().push(id);
            }
        }
        let mut workers = Vec::new();
        for (id, entry) in self.env.registry.workers() {
            let held = containers.remove(&id.0).unwrap_or_default();
            workers.push(self.worker_view(&id, &entry, held).await);
        }
        WorkersView { workers }
    }

    /// One worker.
    pub async fn worker(&self, name: &str) -> Result<WorkerView, Refusal> {
        let id = WorkerId(name.into());
        let entry = self.env.registry.worker(&id).ok_or_else(|| no_worker(name))?;
        let mut held = Vec::new();
        for (key, _) in self.env.registry.functions() {
            let there = id.clone();
            let of = move |core: &Function| {
                core.containers().filter(|c| c.worker == there).map(|c| c.id).collect::<Vec<_>>()
            };
            held.extend(self.ask_any(&key, of).await.unwrap_or_default());
        }
        Ok(self.worker_view(&id, &entry, held).await)
    }

    async fn worker_view(&self, id: &WorkerId, entry: &WorkerEntry, containers: Vec<ContainerId>) -> WorkerView {
        let used = self.env.autoscaler.send(UsedOf(id.clone())).await.ok().flatten().unwrap_or_default();
        let free_gpus = entry.gpus.iter().filter(|gpu| entry.free_gpus.contains(&gpu.uuid)).cloned().collect();
        WorkerView {
            id: id.clone(),
            name: id.clone(),
            address: entry.host,
            state: entry.state,
            capacity: amount(entry.capacity, entry.gpus.clone()),
            free: amount(entry.capacity.minus(used), free_gpus),
            containers,
            version: entry.version.clone(),
            limits: entry.limits.clone(),
            isolation: entry.isolation.level,
            not_kept_apart: entry.isolation.not_kept_apart.clone(),
            joined_at: clock::rfc3339(entry.joined),
            flaps_until: self.env.registry.flaps_until(id).map(clock::rfc3339),
        }
    }

    /// Places nothing more on a worker, or places again.
    pub async fn turn_worker(&self, name: &str, state: WorkerState) -> Result<(), Refusal> {
        let id = WorkerId(name.into());
        let entry = self.env.registry.worker(&id).ok_or_else(|| no_worker(name))?;
        if entry.state == WorkerState::Unreachable || !self.env.registry.is_linked(&id) {
            return Err(Refusal::new(Code::Unavailable, format!("worker `{name}` is unreachable")));
        }
        let draining = state == WorkerState::Draining;
        self.env.globals.remember_worker(&id, Some(draining)).await.map_err(store_refusal)?;
        self.hold_worker(&id, state).await;
        Ok(())
    }

    /// Another scheduler has drained a worker, or lets it go on.
    pub async fn adopt_worker(&self, id: &WorkerId, state: WorkerState) {
        let known = self.env.registry.worker(id).map(|entry| entry.state);
        if known.is_some_and(|known| known != state && known != WorkerState::Unreachable) {
            self.hold_worker(id, state).await;
        }
    }

    async fn hold_worker(&self, id: &WorkerId, state: WorkerState) {
        let draining = state == WorkerState::Draining;
        self.env.registry.turn(id, state);
        let kind = if draining { "worker_drained" } else { "worker_resumed" };
        self.env.telemetry.events.tell(kind, About::worker(&id.0), json!({}));
        let turned = autoscaler::Event::Turned { worker: id.clone(), state };
        // The autoscaler lives as long as the scheduler.
        let _ = self.env.autoscaler.send(Told(turned)).await;
        if draining {
            for (_, function) in self.env.registry.functions() {
                let event = Event::DrainWorker { worker: id.clone() };
                // A function that ends stops its containers itself.
                let _ = function.send(Happen(vec![event])).await;
            }
        }
    }

    /// A token that lets one worker join, within ten minutes.
    pub async fn invite(&self) -> Result<String, Refusal> {
        let authority = self.env.authority.as_ref().filter(|_| self.config.link_tls).ok_or_else(|| {
            let detail = "links are not encrypted, so that workers need no certificate: set scheduler.link_tls";
            Refusal::new(Code::Unsupported, detail)
        })?;
        self.must_have_room_anywhere()?;
        authority.invite(&self.env.globals).await.map_err(store_refusal)
    }

    /// A worker's certificate is not good any more: its link ends, and it is never let in again by this name. Whether it was known.
    pub async fn revoke_worker(&self, name: &str) -> Result<bool, Refusal> {
        if !self.config.link_tls {
            let detail =
                "links are not encrypted, so that workers have no certificates to revoke: set scheduler.link_tls";
            return Err(Refusal::new(Code::Unsupported, detail));
        }
        if name.is_empty() || name.len() > 128 {
            return Err(no_worker(name));
        }
        let change = Change::Put(layout::revoked(name), stored::encode(&clock::now()));
        let known = self.env.globals.knows_worker(name).await.map_err(store_refusal)?;
        self.env.globals.write(vec![change]).await.map_err(store_refusal)?;
        self.cut_revoked(name);
        Ok(known)
    }

    /// Ends the link of a worker whose certificate was revoked.
    pub fn cut_revoked(&self, name: &str) {
        tracing::warn!(worker = name, "the worker's certificate is revoked");
        self.env.registry.cut(&WorkerId(name.into()));
        self.env.telemetry.events.tell("worker_revoked", About::worker(name), json!({}));
    }

    /// Containers that were asked for, of those that who asks may see.
    pub async fn containers(&self, who: &Subject, asked: &List) -> ContainersView {
        let mut containers = Vec::new();
        let is = |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        for (key, _) in self.env.registry.functions() {
            let seen = who.sees(&key.namespace) && is(&asked.namespace, &key.namespace);
            if !seen || !is(&asked.function, &key.name) {
                continue;
            }
            let of = self.ask_any(&key, |core| core.containers().collect::<Vec<_>>()).await.unwrap_or_default();
            let of = of.into_iter().filter(|container| is(&asked.worker, &container.worker.0));
            containers.extend(of.map(|container| self.container_view(&key, container)));
        }
        ContainersView { containers }
    }

    fn container_view(&self, key: &FunctionKey, container: function::ContainerView) -> ContainerView {
        let host = self.env.registry.worker(&container.worker).map(|worker| worker.host);
        ContainerView {
            id: container.id,
            namespace: key.namespace.clone(),
            function: key.name.clone(),
            revision: container.revision,
            worker: container.worker,
            state: container.state,
            inputs: container.inputs,
            started_at: clock::rfc3339(container.decided),
            address: host.filter(|_| container.port != 0).map(|host| SocketAddr::new(host, container.port)),
            placement: container
                .chosen
                .map(|chosen| PlacementView { reason: chosen.code().into(), detail: chosen.sentence().into() }),
            trusted: container.trusted,
        }
    }

    /// Whether a subject may read a container's output: of one that is there, or of one that has ended and is still known.
    /// What others own is told of in the words of what is absent.
    pub fn must_see_output(&self, who: &Subject, container: ContainerId) -> Result<(), Refusal> {
        if let Some((key, _)) = self.env.registry.owner(container) {
            // One that has not written yet can be followed.
            self.env.telemetry.logs.open(container, &key);
        }
        let namespace = self.env.telemetry.logs.namespace(container);
        if namespace.is_some_and(|namespace| who.sees(&namespace)) {
            return Ok(());
        }
        let detail = format!("container {container} does not exist, or its output is not kept any more");
        Err(Refusal::new(Code::NotFound, detail))
    }

    /// Stops a container; what it holds runs elsewhere.
    pub async fn stop_container(&self, who: &Subject, container: ContainerId) -> Result<(), Refusal> {
        let none = || Refusal::new(Code::NotFound, format!("container {container} does not exist"));
        let owner = self.env.registry.owner(container).filter(|(key, _)| who.sees(&key.namespace));
        let (_, actor) = owner.ok_or_else(none)?;
        actor.send(Tell(Event::StopContainer { container })).await.map_err(|_| none())?
    }

    /// The metrics' text, with the gauges as they are now.
    pub async fn metrics(&self) -> String {
        let metrics = &self.env.telemetry.metrics;
        for family in [&metrics.queue_depth, &metrics.running, &metrics.desired] {
            family.clear();
        }
        metrics.containers.clear();
        metrics.count_workers(self.env.registry.workers().into_iter().map(|(_, worker)| worker.state));
        for (key, _) in self.env.registry.functions() {
            let Ok(stats) = self.stats(&key).await else { continue };
            let label = FunctionLabel::of(&key);
            metrics.queue_depth.get_or_create(&label).set(stats.backlog as i64);
            metrics.running.get_or_create(&label).set(stats.running as i64);
            metrics.desired.get_or_create(&label).set(i64::from(stats.desired));
            for (state, count) in stats.containers {
                let label = ContainerLabel {
                    namespace: label.namespace.clone(),
                    function: label.function.clone(),
                    state: state_label(state),
                };
                metrics.containers.get_or_create(&label).set(i64::from(count));
            }
        }
        metrics.text(&self.model_metrics().await)
    }

    /// Whether the scheduler can accept work.
    pub fn ready(&self) -> Result<(), Refusal> {
        self.must_have_room_anywhere()
    }
}

fn no_worker(name: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("worker `{name}` does not exist"))
}
