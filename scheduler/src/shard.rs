//! Shards: a part of all functions with one owner, one store and one committer. The embedded store has one shard; a cluster
//! has many, and a scheduler owns some of them.

use crate::{
    access::Tokens,
    actor::{
        alarm::AlarmActor,
        autoscaler::{AutoscalerActor, Told},
        committer::Committer,
        function::{Ask, FunctionActor, Happen, Retire},
        prometheus::Prometheus,
        registry::Registry,
    },
    clock,
    cluster::{Sessions, View},
    function_token::FunctionTokens,
    global::Globals,
    secrets::Secrets,
    store::{Store, blocking, load, outcomes::Outcomes},
    telemetry::Telemetry,
    tls::Authority,
    zero_config::ZeroConfig,
};
use actix::{Actor, Addr, ArbiterHandle};
use capstan_common::{
    id::{Epoch, FunctionKey, Shard, WorkerId},
    order::Order,
    parameter,
    time::Time,
};
use capstan_scheduler_core::{
    autoscaler,
    event::Event,
    function::{Function, ZeroRule},
    limits::Limits,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// The pause between two looks whether a shard is empty of requests.
const EMPTYING: Duration = Duration::from_millis(20);
/// How long a worker that was known and does not come is remembered.
const SILENT: Duration = Duration::from_secs(30);
/// How long a shard that is given up waits for what is under way.
const FLUSH: Duration = Duration::from_secs(5);

/// What all parts of one scheduler work with.
pub struct Shared {
    /// The limits in force.
    pub limits: Arc<Limits>,
    /// From when on results are forgotten whose retention has passed. A start that comes long after the last life may come from
    /// a clock that was wrong, then or now: what seems to be old is then kept for another day.
    pub forgets_from: Time,
    /// Routes.
    pub registry: Arc<Registry>,
    /// Where demand goes.
    pub autoscaler: Addr<AutoscalerActor>,
    /// Where alarms are set.
    pub alarm: Addr<AlarmActor>,
    /// What is seen from outside.
    pub telemetry: Arc<Telemetry>,
    /// The scale-to-zero configuration.
    pub zero: RwLock<Arc<ZeroConfig>>,
    /// Who is asked for requests of models that pass Capstan by.
    pub prometheus: Option<Prometheus>,
    /// API tokens.
    pub tokens: Tokens,
    /// Secrets.
    pub secrets: Secrets,
    /// The tokens that functions have.
    pub function_tokens: FunctionTokens,
    /// The cluster's own authority, where links or REST are encrypted, and in every cluster: other schedulers may encrypt REST
    /// before this one does.
    pub authority: Option<Arc<Authority>>,
    /// What belongs to no function.
    pub globals: Globals,
    /// Cancelled when the scheduler stops: nothing new is accepted, and open streams end.
    pub stopping: CancellationToken,
    /// Where functions' actors live.
    pub functions: ArbiterHandle,
    /// The shards that are owned here.
    pub shards: Shards,
    /// What is known of other schedulers.
    pub view: Arc<View>,
    /// The session of one of a cluster; without it nothing runs out.
    pub sessions: Option<Sessions>,
    /// Shards of which a worker knows an owner with a higher number than ours, and that number.
    pub outranked: Mutex<BTreeMap<Shard, Epoch>>,
}

impl Shared {
    /// Whether this scheduler may act: its lease is sure to hold. Meanwhile orders wait.
    pub fn may_act(&self) -> bool {
        let sure = |sessions: &Sessions| sessions.read().unwrap_or_else(PoisonError::into_inner).is_sure();
        self.sessions.as_ref().is_none_or(sure)
    }

    /// A worker has heard of a newer owner of a shard than the one with this epoch.
    pub fn is_outranked(&self, shard: Shard, epoch: Epoch) {
        self.outranked.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, epoch);
    }

    /// What the scale-to-zero configuration says of a function's model.
    pub fn rule(&self, key: &FunctionKey, model: &str) -> ZeroRule {
        let config = self.zero.read().unwrap_or_else(PoisonError::into_inner).clone();
        let effective = config.effective(model, &key.namespace);
        ZeroRule {
            enabled: effective.enable_scale_to_zero,
            retention_ms: effective.retention_ms,
            flag_by: effective.decided_by.enable_scale_to_zero.as_str().into(),
            retention_by: effective.decided_by.retention_period.as_str().into(),
        }
    }
}

/// What a shard's functions work with.
pub struct Env {
    /// Which shard.
    pub shard: Shard,
    /// The owner's fencing number.
    pub epoch: Epoch,
    /// Since when this scheduler owns it.
    pub opened: Time,
    /// The way to durability.
    pub committer: Committer,
    /// For loading segments.
    pub store: Arc<dyn Store>,
    /// What it shares with the other shards.
    pub shared: Arc<Shared>,
    /// Workers that may hold something of it and have not told yet.
    awaited: Mutex<BTreeSet<String>>,
    committing: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Requests of the moment, and whether no more are let in.
    guests: Mutex<(usize, bool)>,
    /// Cancelled when the shard is not ours any more.
    closed: CancellationToken,
}

/// A request that is being answered from a shard. While it lives the shard is not given up, for a while.
pub struct Guest(Arc<Env>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.guests.lock().unwrap_or_else(PoisonError::into_inner).0 -= 1;
    }
}

impl Deref for Env {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// The shards that a scheduler owns, of how many.
pub struct Shards {
    count: u16,
    open: RwLock<BTreeMap<Shard, Arc<Env>>>,
}

impl Shards {
    /// None yet.
    pub fn of(count: u16) -> Self {
        Self { count: count.max(1), open: RwLock::default() }
    }

    /// How many there are in all.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Whether all are owned here: then what nobody owns here nobody owns.
    pub fn has_all(&self) -> bool {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len() == usize::from(self.count)
    }

    /// The shard of a place.
    pub fn shard(&self, place: u16) -> Shard {
        Shard(place % self.count)
    }

    /// A shard, if it is owned here.
    pub fn get(&self, shard: Shard) -> Option<Arc<Env>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }

    /// All that are owned here.
    pub fn all(&self) -> Vec<Arc<Env>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn add(&self, env: Arc<Env>) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(env.shard, env);
    }

    fn remove(&self, shard: Shard) -> Option<Arc<Env>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&shard)
    }
}

impl Env {
    /// Takes up a shard: recovers what its store holds, and asks the workers for what they hold of it. Its functions give out
    /// no work before all known workers have told, or a while has passed.
    pub async fn open(shared: &Arc<Shared>, shard: Shard, store: Arc<dyn Store>) -> anyhow::Result<Arc<Self>> {
        let (read, head) = (store.clone(), shared.limits.spawn_head);
        let loaded = blocking(move || load::load(&*read, head, clock::now())).await?;
        let stored: BTreeMap<_, _> = loaded.iter().map(|f| (f.key.clone(), f.deployed.clone())).collect();
        let recovered = loaded.iter().flat_map(|f| &f.calls);
        let outcomes = Outcomes::after(recovered.clone().map(|call| (call.record.id, call.outcome_records)));
        if let Some(tracer) = &shared.telemetry.tracer {
            recovered.for_each(|call| tracer.parent(call.record.id, &call.record.traceparent));
        }
        let metrics = shared.telemetry.metrics.clone();
        let (committer, committing) = Committer::start(store.clone(), (stored, outcomes), metrics)?;
        let known = shared.globals.workers().await?;
        let linked = shared.registry.links().into_iter().map(|(worker, _)| worker.to_string());
        let env = Arc::new(Self {
            shard,
            epoch: store.epoch(),
            opened: clock::now(),
            committer,
            store,
            shared: shared.clone(),
            awaited: Mutex::new(known.into_iter().chain(linked).collect()),
            committing: Mutex::new(Some(committing)),
            guests: Mutex::default(),
            closed: CancellationToken::new(),
        });
        for recovery in loaded {
            let (key, env) = (recovery.key.clone(), env.clone());
            if !parameter::is_instance(&key) {
                let size = serde_json::to_string(&*recovery.deployed.spec).map_or(0, |text| text.len());
                shared.registry.resize(&key, size);
            }
            shared.registry.function_or(&key.clone(), || {
                FunctionActor::start_in_arbiter(&shared.functions, move |_| {
                    FunctionActor::new(key, env, Some(recovery))
                })
            });
        }
        shared.shards.add(env.clone());
        for (_, link) in shared.registry.links() {
            env.claim(&link).await;
        }
        env.settle_in_time();
        env.tell_of_room();
        Ok(env)
    }

    /// Says to a worker that the shard is ours, once.
    pub async fn claim(&self, link: &crate::actor::registry::Link) {
        if link.claims(self.shard, self.epoch) {
            let own = Order::Own { shard: self.shard, shards: self.shards.count(), epoch: self.epoch };
            // A link that ends meanwhile is made anew, and hears of it then.
            let _ = link.orders.send(own).await;
        }
    }

    /// The functions of this shard.
    pub fn own_functions(&self) -> Vec<(FunctionKey, Addr<FunctionActor>)> {
        let ours = |key: &FunctionKey| key.shard(self.shards.count()) == self.shard;
        self.registry.functions().into_iter().filter(|(key, _)| ours(key)).collect()
    }

    /// After the grace, whoever has not told is not waited for.
    fn settle_in_time(self: &Arc<Self>) {
        let (env, grace) = (self.clone(), Duration::from_millis(self.limits.adopt_grace_ms));
        actix::spawn(async move {
            if !env.awaited().is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(grace) => {}
                    () = env.closed.cancelled() => return,
                }
            }
            env.settle().await;
            env.forget_silent().await;
        });
    }

    /// Functions hear when the store has room for what runs alone, and when for everything again.
    fn tell_of_room(self: &Arc<Self>) {
        let (env, mut tight) = (self.clone(), self.committer.tight());
        actix::spawn(async move {
            loop {
                tokio::select! {
                    changed = tight.changed() => if changed.is_err() { return },
                    () = env.closed.cancelled() => return,
                }
                let full = *tight.borrow_and_update();
                tracing::warn!(
                    full,
                    room = env.store.room(),
                    "what waits is given out only while the store has room for its ends"
                );
                for (_, function) in env.own_functions() {
                    // A function that is gone gives nothing out.
                    let _ = function.send(Happen(vec![Event::StoreFull(full)])).await;
                }
            }
        });
    }

    /// Whether workers have yet to tell what they hold of it.
    pub fn awaits_workers(&self) -> bool {
        !self.awaited().is_empty()
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Workers that have not come for a long time went while nobody saw it: the next owner does not wait for them.
    async fn forget_silent(&self) {
        if self.awaited().is_empty() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(SILENT) => {}
            () = self.closed.cancelled() => return,
        }
        let silent: Vec<String> = self.awaited().iter().cloned().collect();
        for name in silent {
            if !self.registry.is_linked(&WorkerId(name.as_str().into())) {
                // The next start tries again.
                let _ = self.globals.forget_worker(&name).await;
            }
        }
    }

    /// A worker has told what it holds of the shard.
    pub async fn heard_from(&self, worker: &WorkerId) {
        let last = {
            let mut awaited = self.awaited();
            awaited.remove(&*worker.0) && awaited.is_empty()
        };
        if last {
            self.settle().await;
        }
    }

    /// Recovered functions may give out work.
    async fn settle(&self) {
        for (_, function) in self.own_functions() {
            // A function that is gone holds nothing.
            let _ = function.send(Happen(vec![Event::Settled])).await;
        }
    }

    /// A request begins, unless the shard is about to be given up.
    pub fn enter(self: &Arc<Self>) -> Option<Guest> {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if guests.1 {
            return None;
        }
        guests.0 += 1;
        Some(Guest(self.clone()))
    }

    /// Lets no more requests in, and waits for those that somebody waits for, a while.
    pub async fn empty(&self, most: Duration) {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        let begun = std::time::Instant::now();
        while begun.elapsed() < most {
            let mut waited_for = self.guests.lock().unwrap_or_else(PoisonError::into_inner).0 as u64;
            for (_, function) in self.own_functions() {
                let asked = function.send(Ask(Box::new(|core: &Function| core.interactive()))).await;
                waited_for += asked.ok().flatten().unwrap_or(0);
            }
            if waited_for == 0 {
                return;
            }
            tokio::time::sleep(EMPTYING).await;
        }
    }

    /// Gives the shard up. What was acknowledged is durable; what is under way is written first, unless the shard is lost
    /// already. Containers go on: the next owner adopts them.
    pub async fn close(self: &Arc<Self>, lost: bool) {
        self.shards.remove(self.shard);
        self.closed.cancel();
        let functions = self.own_functions();
        for (key, function) in &functions {
            let retired = function.send(Retire { lost });
            // One that cannot end in time has no commit that counts any more.
            let _ = tokio::time::timeout(FLUSH, retired).await;
            self.registry.drop_function(key);
            let left = autoscaler::Event::Left(key.clone());
            let _ = self.autoscaler.send(Told(left)).await;
        }
        self.registry.close(self.shard, &functions.into_iter().map(|(key, _)| key).collect());
        self.finish().await;
    }

    /// Writes what waits, and ends the committer.
    pub async fn finish(&self) {
        let committer = self.committer.clone();
        let thread = self.committing.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Joining blocks; the runtime's own threads must go on.
        let _ = tokio::task::spawn_blocking(move || {
            committer.stop();
            thread.map(std::thread::JoinHandle::join)
        })
        .await;
    }
}
