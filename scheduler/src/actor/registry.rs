//! Where everything is: functions' actors, containers' functions, workers' links.

use super::function::FunctionActor;
use crate::clock;
use actix::Addr;
use capstan_common::{
    gpu::Gpu,
    id::{ContainerId, Epoch, FunctionKey, Shard, WorkerId},
    isolation::Isolation,
    order::Order,
    parameter,
    resource::Amount,
    time::Time,
    worker::WorkerState,
};
use capstan_scheduler_core::steadiness::Steadiness;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Orders that may wait for a worker's link.
pub const LINK_BACKLOG: usize = 1 << 16;

/// Workers whose steadiness is remembered, also of those that are lost.
const REMEMBERED: usize = 1 << 14;

/// The way to a worker while its link stands.
#[derive(Debug, Clone)]
pub struct Link {
    /// Takes orders; closed once the link has ended.
    pub orders: mpsc::Sender<Order>,
    /// Ends the link: the worker will join again, and tell what it holds.
    pub cut: CancellationToken,
    /// Shards that it was told of.
    claimed: Arc<Mutex<BTreeSet<(Shard, Epoch)>>>,
}

impl Link {
    /// A fresh one.
    pub fn new(orders: mpsc::Sender<Order>) -> Self {
        Self { orders, cut: CancellationToken::new(), claimed: Arc::default() }
    }

    /// Whether the worker is to be told that the shard is ours: each owner says so once.
    pub fn claims(&self, shard: Shard, epoch: Epoch) -> bool {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert((shard, epoch))
    }
}

/// A worker as its link knows it.
#[derive(Debug, Clone)]
pub struct WorkerEntry {
    /// What it has.
    pub capacity: Amount,
    /// Its GPUs, all of one model.
    pub gpus: Vec<Gpu>,
    /// Those that no container had when it last told, by their ids.
    pub free_gpus: Vec<String>,
    /// Its state.
    pub state: WorkerState,
    /// Where servers of its containers are reached.
    pub host: IpAddr,
    /// Its software's version.
    pub version: String,
    /// How it enforces limits.
    pub limits: String,
    /// How far it keeps functions apart.
    pub isolation: Isolation,
    /// When it last joined.
    pub joined: Time,
    /// Which life of it this is.
    pub instance: String,
    /// Counts its links, so that an old link's end does not concern a newer one.
    pub generation: u64,
}

#[derive(Default)]
struct Tables {
    functions: BTreeMap<FunctionKey, Addr<FunctionActor>>,
    /// Bytes of deployed functions' specs, and their number and sum by namespace.
    sizes: BTreeMap<FunctionKey, usize>,
    by_namespace: BTreeMap<Arc<str>, (usize, usize)>,
    /// Whose each container is, and where.
    containers: BTreeMap<ContainerId, (FunctionKey, WorkerId)>,
    /// The last id that this life of the scheduler gave to a container; there is none beyond it.
    minted: Option<ContainerId>,
    links: BTreeMap<WorkerId, Link>,
    /// Workers that have told what they hold of a shard: only they get its orders.
    told: BTreeSet<(WorkerId, Shard)>,
    workers: BTreeMap<WorkerId, WorkerEntry>,
    /// How often whose links broke, also of those that are lost.
    steadiness: BTreeMap<WorkerId, Steadiness>,
}

impl Tables {
    /// The size of a function's spec is this from now on; without one it has none any more.
    fn resize(&mut self, key: &FunctionKey, size: Option<usize>) {
        let before = match size {
            Some(size) => self.sizes.insert(key.clone(), size),
            None => self.sizes.remove(key),
        };
        let sum = self.by_namespace.entry(key.namespace.clone()).or_default();
        sum.0 = (sum.0 + usize::from(size.is_some())).saturating_sub(usize::from(before.is_some()));
        sum.1 = (sum.1 + size.unwrap_or(0)).saturating_sub(before.unwrap_or(0));
        if sum.0 == 0 {
            self.by_namespace.remove(&key.namespace);
        }
    }

    /// A worker's link is no more, which counts against the worker.
    fn drop_link(&mut self, worker: &WorkerId) -> Option<Link> {
        self.told.retain(|(told, _)| told != worker);
        let link = self.links.remove(worker)?;
        if self.steadiness.len() > REMEMBERED {
            let workers = &self.workers;
            self.steadiness.retain(|worker, _| workers.contains_key(worker));
        }
        self.steadiness.entry(worker.clone()).or_default().broke(clock::now());
        Some(link)
    }
}

/// Routes of one scheduler. Holds addresses, never a core's state.
#[derive(Default)]
pub struct Registry(RwLock<Tables>);

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A function's actor.
    pub fn function(&self, key: &FunctionKey) -> Option<Addr<FunctionActor>> {
        self.read().functions.get(key).cloned()
    }

    /// A function's actor, made if there is none.
    pub fn function_or(&self, key: &FunctionKey, make: impl FnOnce() -> Addr<FunctionActor>) -> Addr<FunctionActor> {
        self.write().functions.entry(key.clone()).or_insert_with(make).clone()
    }

    /// All functions, by name.
    pub fn functions(&self) -> Vec<(FunctionKey, Addr<FunctionActor>)> {
        self.read().functions.iter().map(|(k, a)| (k.clone(), a.clone())).collect()
    }

    /// The instances of a function, by name.
    pub fn instances(&self, function: &FunctionKey) -> Vec<(FunctionKey, Addr<FunctionActor>)> {
        let prefix = format!("{}{}", function.name, parameter::SEPARATOR);
        let first = FunctionKey::new(&function.namespace, &prefix);
        let tables = self.read();
        let ours = |key: &FunctionKey| key.namespace == function.namespace && key.name.starts_with(&prefix);
        tables.functions.range(first..).take_while(|(k, _)| ours(k)).map(|(k, a)| (k.clone(), a.clone())).collect()
    }

    /// A function is gone.
    pub fn drop_function(&self, key: &FunctionKey) {
        let mut tables = self.write();
        tables.functions.remove(key);
        tables.resize(key, None);
    }

    /// A function was deployed whose spec has so many bytes.
    pub fn resize(&self, key: &FunctionKey, size: usize) {
        self.write().resize(key, Some(size));
    }

    /// Bytes of a function's spec.
    pub fn size(&self, key: &FunctionKey) -> usize {
        self.read().sizes.get(key).copied().unwrap_or(0)
    }

    /// How many functions a namespace has here besides this one, and the bytes of their specs.
    pub fn held(&self, namespace: &Arc<str>, besides: &FunctionKey) -> (usize, usize) {
        let tables = self.read();
        let (count, bytes) = tables.by_namespace.get(namespace).copied().unwrap_or_default();
        match tables.sizes.get(besides) {
            Some(size) => (count - 1, bytes - size),
            None => (count, bytes),
        }
    }

    /// A container gets a place: reports of it go to that function, if they come from this worker.
    pub fn route(&self, container: ContainerId, function: &FunctionKey, worker: &WorkerId) {
        let mut tables = self.write();
        // One that was adopted has an id of another life, which says nothing about what this one has given.
        if let Some(minted) = tables.minted.as_mut().filter(|minted| minted.epoch() == container.epoch()) {
            *minted = container.max(*minted);
        }
        tables.containers.insert(container, (function.clone(), worker.clone()));
    }

    /// A worker says that it holds a container: whether that can be. It stays where it is known to be, and none has an id that
    /// this life of the scheduler has yet to give: whoever claims it would stop the start that gets it.
    pub fn adopt(&self, container: ContainerId, function: &FunctionKey, worker: &WorkerId) -> bool {
        let mut tables = self.write();
        let to_come = |minted: ContainerId| container.epoch() == minted.epoch() && container > minted;
        if tables.minted.is_some_and(to_come) {
            return false;
        }
        let there = tables.containers.entry(container).or_insert_with(|| (function.clone(), worker.clone()));
        there.1 == *worker && there.0 == *function
    }

    /// Containers of this life's epoch have ids from here on.
    pub fn begin(&self, epoch: Epoch) {
        self.write().minted = Some(ContainerId::first(epoch));
    }

    /// A container is gone.
    pub fn unroute(&self, container: ContainerId) {
        self.write().containers.remove(&container);
    }

    /// The function of a container.
    pub fn owner(&self, container: ContainerId) -> Option<(FunctionKey, Addr<FunctionActor>)> {
        let tables = self.read();
        let (key, _) = tables.containers.get(&container)?;
        Some((key.clone(), tables.functions.get(key)?.clone()))
    }

    /// Whether a container is another worker's: this one has nothing to say of it (RELIABILITY §4.1 A4).
    pub fn is_elsewhere(&self, container: ContainerId, worker: &WorkerId) -> bool {
        self.read().containers.get(&container).is_some_and(|(_, there)| there != worker)
    }

    /// The way for a shard's orders to a worker, while its link stands and it has told what it holds.
    pub fn link(&self, worker: &WorkerId, shard: Shard) -> Option<Link> {
        let tables = self.read();
        let told = tables.told.contains(&(worker.clone(), shard));
        tables.links.get(worker).filter(|_| told).cloned()
    }

    /// Whether another life of this name is linked.
    pub fn is_taken(&self, worker: &WorkerId, instance: &str) -> bool {
        let tables = self.read();
        tables.links.contains_key(worker) && tables.workers.get(worker).is_some_and(|w| w.instance != instance)
    }

    /// Whether a worker's link stands.
    pub fn is_linked(&self, worker: &WorkerId) -> bool {
        self.read().links.contains_key(worker)
    }

    /// All links that stand.
    pub fn links(&self) -> Vec<(WorkerId, Link)> {
        self.read().links.iter().map(|(worker, link)| (worker.clone(), link.clone())).collect()
    }

    /// A worker has told what it holds of a shard, by this link.
    pub fn tell(&self, worker: &WorkerId, generation: u64, shard: Shard) {
        let mut tables = self.write();
        if tables.workers.get(worker).is_some_and(|w| w.generation == generation) {
            tables.told.insert((worker.clone(), shard));
        }
    }

    /// A shard is not ours any more, nor are these functions.
    pub fn close(&self, shard: Shard, functions: &BTreeSet<FunctionKey>) {
        let mut tables = self.write();
        tables.told.retain(|(_, of)| *of != shard);
        tables.containers.retain(|_, (function, _)| !functions.contains(function));
    }

    /// Ends a worker's link; it will join again.
    pub fn cut(&self, worker: &WorkerId) {
        if let Some(link) = self.write().drop_link(worker) {
            link.cut.cancel();
        }
    }

    /// Ends all links: orders that waited in them are of a life that is over. No worker is to blame.
    pub fn cut_all(&self) {
        let mut tables = self.write();
        tables.told.clear();
        for link in std::mem::take(&mut tables.links).into_values() {
            link.cut.cancel();
        }
    }

    /// Until when the worker is passed over because its links break again and again.
    pub fn flaps_until(&self, worker: &WorkerId) -> Option<Time> {
        self.read().steadiness.get(worker)?.passed_over_until(clock::now())
    }

    /// A worker has introduced itself; a link that it had before ends. Orders find the new one only once `publish` was
    /// called. Answers the entry with its generation; a worker that was draining still is.
    pub fn join(&self, worker: &WorkerId, mut entry: WorkerEntry) -> WorkerEntry {
        self.cut(worker);
        let mut tables = self.write();
        let before = tables.workers.get(worker);
        entry.generation = before.map_or(1, |w| w.generation + 1);
        if before.is_some_and(|w| w.state == WorkerState::Draining) {
            entry.state = WorkerState::Draining;
        }
        tables.workers.insert(worker.clone(), entry.clone());
        entry
    }

    /// Orders to a worker go by this link, unless a newer one has been made.
    pub fn publish(&self, worker: &WorkerId, generation: u64, link: Link) {
        let mut tables = self.write();
        if tables.workers.get(worker).is_some_and(|w| w.generation == generation) {
            tables.links.insert(worker.clone(), link);
        }
    }

    /// A worker's link broke, unless a newer one stands. Whether it was the newest.
    pub fn part(&self, worker: &WorkerId, generation: u64) -> bool {
        let mut tables = self.write();
        let Some(entry) = tables.workers.get_mut(worker).filter(|w| w.generation == generation) else {
            return false;
        };
        if entry.state == WorkerState::Ready {
            entry.state = WorkerState::Unreachable;
        }
        tables.drop_link(worker);
        true
    }

    /// Forgets a lost worker, unless it has joined again since. Whether it is gone.
    pub fn lose(&self, worker: &WorkerId, generation: u64) -> bool {
        let mut tables = self.write();
        let same = tables.workers.get(worker).is_some_and(|w| w.generation == generation);
        if same {
            tables.workers.remove(worker);
        }
        same
    }

    /// A worker has told which of its GPUs are free, by this link.
    pub fn see_gpus(&self, worker: &WorkerId, generation: u64, free: Vec<String>) {
        // Told twice a second, and seldom news.
        if self.read().workers.get(worker).is_none_or(|entry| entry.free_gpus == free) {
            return;
        }
        if let Some(entry) = self.write().workers.get_mut(worker).filter(|w| w.generation == generation) {
            entry.free_gpus = free;
        }
    }

    /// A worker's entry.
    pub fn worker(&self, worker: &WorkerId) -> Option<WorkerEntry> {
        self.read().workers.get(worker).cloned()
    }

    /// All workers, by name.
    pub fn workers(&self) -> Vec<(WorkerId, WorkerEntry)> {
        self.read().workers.iter().map(|(k, w)| (k.clone(), w.clone())).collect()
    }

    /// Sets a worker's state. Whether it is known.
    pub fn turn(&self, worker: &WorkerId, state: WorkerState) -> bool {
        let mut tables = self.write();
        let entry = tables.workers.get_mut(worker);
        entry.map(|entry| entry.state = state).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64, number: u64) -> ContainerId {
        ContainerId(ContainerId::first(Epoch(epoch)).0 + number)
    }

    #[test]
    fn a_worker_may_claim_what_was_given_to_it_and_nothing_that_this_life_has_yet_to_give() {
        // RELIABILITY A4 F1
        let (registry, function) = (Registry::default(), FunctionKey::new("default", "f"));
        let (one, other) = (WorkerId("one".into()), WorkerId("other".into()));
        registry.begin(Epoch(1));
        registry.route(id(1, 1), &function, &one);
        assert!(registry.adopt(id(1, 1), &function, &one), "it was given");
        assert!(!registry.adopt(id(1, 1), &function, &other), "another's");
        assert!(!registry.adopt(id(1, 2), &function, &one), "still to come");
        // Another scheduler's life may have had a higher epoch: all of its containers are adopted, in any order.
        assert!(registry.adopt(id(2, 1), &function, &one));
        registry.route(id(2, 1), &function, &one);
        assert!(registry.adopt(id(2, 4), &function, &other), "what the other life gave was refused");
        assert!(!registry.adopt(id(1, 3), &function, &one), "still to come");
    }
}
