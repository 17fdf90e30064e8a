//! The keeper of one scheduler's shards: it looks at who is there and moves towards what everybody computes. A look is one read
//! of a few keys; watches that end or fall silent cannot mislead it (RELIABILITY F11, F12).

use super::view::{Peer, Seen, View};
use crate::{
    api::Api,
    shard::{Env, Shared},
    store::{
        StoreError, blocking,
        etcd::{Etcd, EtcdConfig, EtcdLog, FORMAT, Format, Session},
        layout,
    },
    telemetry::events::About,
};
use capstan_common::{
    id::{Shard, WorkerId},
    order::Order,
    worker::WorkerState,
};
use capstan_scheduler_core::ownership::{self, Member};
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};
use futures_util::future::join_all;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How far a shard's number is raised at once: numbers grow by one with each owner.
const MOST_RISE: u64 = 1_000_000;
/// The pause between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(200);
/// The pause after a look that failed.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a shard that is given up in order waits for requests whose clients wait.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long giving everything up may take in all.
const LEAVE: Duration = Duration::from_secs(15);
/// Until all other schedulers have seen who owns what instead.
const SEEN: Duration = Duration::from_secs(1);
/// How often etcd's size is asked for, and what belongs to no function is looked at.
const SLOW: Duration = Duration::from_secs(1);
/// How often old revisions are removed from etcd, by the owner of the first shard.
const COMPACT: Duration = Duration::from_secs(60);
/// etcd's own default quota.
const QUOTA: u64 = 2 << 30;

/// The session of this moment, for whoever asks whether it is sure.
pub type Sessions = Arc<RwLock<Arc<Session>>>;

/// A scheduler's part in its cluster.
pub struct Cluster {
    pub(super) etcd: Arc<Etcd>,
    config: EtcdConfig,
    pub(super) me: Member,
    peer: Peer,
    view: Arc<View>,
    pub(super) shared: Arc<Shared>,
    api: Arc<Api>,
    sessions: Sessions,
    logs: Mutex<BTreeMap<Shard, Arc<EtcdLog>>>,
    /// The highest revision of what belongs to no function that was applied.
    applied: Mutex<i64>,
}

/// What a cluster is made of.
pub struct Ready {
    /// The connection.
    pub etcd: Arc<Etcd>,
    /// How it is reached.
    pub config: EtcdConfig,
    /// Where this scheduler is reached.
    pub peer: Peer,
    /// What is seen of the others.
    pub view: Arc<View>,
    /// This scheduler's parts.
    pub shared: Arc<Shared>,
    /// What clients can do.
    pub api: Arc<Api>,
    /// The session that it began with.
    pub sessions: Sessions,
}

#[derive(Deserialize)]
struct Claim {
    scheduler: Member,
}

impl Cluster {
    /// Ready to take shards.
    pub fn new(ready: Ready) -> Self {
        let Ready { etcd, config, peer, view, shared, api, sessions } = ready;
        let me = view.me().clone();
        let (logs, applied) = (Mutex::default(), Mutex::default());
        Self { etcd, config, me, peer, view, shared, api, sessions, logs, applied }
    }

    pub(super) fn session(&self) -> Arc<Session> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn logs(&self) -> std::sync::MutexGuard<'_, BTreeMap<Shard, Arc<EtcdLog>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that this scheduler is there. A name has one bearer: the one before must be gone.
    pub async fn enter(&self) -> Result<(), StoreError> {
        let (etcd, lease) = (self.etcd.clone(), self.session().lease());
        let key = etcd.key(&format!("members/{}", self.me));
        let value = serde_json::to_string(&self.peer).unwrap_or_default();
        let (me, config) = (self.me.clone(), self.config.clone());
        let patience = Duration::from_secs(u64::from(self.config.lease_s) * 2 + 3);
        blocking(move || {
            let begun = Instant::now();
            loop {
                let free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
                let put = TxnOp::put(key.clone(), value.as_str(), Some(PutOptions::new().with_lease(lease)));
                // What counts is whose lease the key hangs on: an answer may be lost.
                let _ = etcd.txn(Txn::new().when([free]).and_then([put]));
                let found = etcd.get(&format!("members/{me}"), None);
                if found.is_ok_and(|found| found.first().is_some_and(|kv| kv.lease() == lease)) {
                    // From here on the mark does not rise without us; it may have, a moment before.
                    return Format::read(&etcd, &config).map(drop);
                }
                if begun.elapsed() > patience {
                    return Err(StoreError::InUse(format!("the name `{me}` of this scheduler (give each its own)")));
                }
                std::thread::sleep(AGAIN);
            }
        })
        .await
    }

    /// Keeps to what should be until it is told to stop; then gives everything up.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (mut slow, mut compacted, mut newest) = (None::<Instant>, Instant::now(), false);
        actix::spawn(self.clone().keep_sharing(stop.clone()));
        while !stop.is_cancelled() {
            if self.session().is_lost() {
                self.begin_again(&stop).await;
                continue;
            }
            let pause = match self.look().await {
                Ok(seen) => {
                    self.follow(seen).await;
                    self.look_at_globals().await;
                    LOOK
                }
                Err(_) => AGAIN,
            };
            if slow.is_none_or(|at| at.elapsed() >= SLOW) {
                slow = Some(Instant::now());
                self.look_at_room().await;
                newest = newest || self.raise_format().await;
            }
            if compacted.elapsed() >= COMPACT && self.logs().contains_key(&Shard(0)) {
                compacted = Instant::now();
                self.compact().await;
            }
            let lost = self.session().lost();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
                () = lost.cancelled() => {}
            }
        }
        self.leave().await;
    }

    /// Gives everything up in order: first it is no member any more, so that others take each shard as soon as it is free; then
    /// it looks on for a while, to pass on what still comes.
    async fn leave(&self) {
        let (etcd, gone) = (self.etcd.clone(), ["members", "spaces"].map(|of| format!("{of}/{}", self.me)));
        let gone = gone.map(|key| TxnOp::delete(self.etcd.key(&key), None));
        let _ = blocking(move || Ok(etcd.txn(Txn::new().and_then(gone))?)).await;
        // What was seen last may be from before the others came: then nobody would be waited for.
        self.see().await;
        let shards: Vec<Shard> = self.logs().keys().copied().collect();
        let looking = async {
            loop {
                tokio::time::sleep(AGAIN).await;
                self.see().await;
            }
        };
        let leaving = async {
            self.give(shards.clone()).await;
            if !self.view.peers().is_empty() {
                let _ = tokio::time::timeout(HAND_OVER, self.taken(&shards)).await;
                tokio::time::sleep(SEEN).await;
            }
        };
        tokio::select! {
            () = leaving => {}
            () = looking => {}
            () = tokio::time::sleep(LEAVE) => {
                // etcd does not answer: what is under way was promised to nobody.
                tracing::warn!("shards cannot be given up in order: others take them when the lease ends");
                self.session().forsake();
                join_all(self.shared.shards.all().iter().map(|env| env.close(true))).await;
            }
        }
        let (etcd, session) = (self.etcd.clone(), self.session());
        let _ = blocking(move || {
            session.end(&etcd);
            Ok(())
        })
        .await;
    }

    async fn see(&self) {
        if let Ok(seen) = self.look().await {
            self.view.see(seen);
        }
    }

    /// Waits until others own these shards.
    async fn taken(&self, shards: &[Shard]) {
        while !shards.iter().all(|shard| self.view.owner(*shard).is_some()) {
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The lease is gone: what hung on it is dropped, and a new life begins (RELIABILITY F2).
    async fn begin_again(&self, stop: &CancellationToken) {
        tracing::warn!("the lease in etcd is lost: all shards are dropped");
        self.view.see(Seen::default());
        self.logs().clear();
        let open = self.shared.shards.all();
        join_all(open.iter().map(|env| env.close(true))).await;
        self.shared.registry.cut_all();
        while !stop.is_cancelled() {
            let (etcd, config) = (self.etcd.clone(), self.config.clone());
            match blocking(move || Session::begin(&etcd, &config)).await {
                Ok(session) => {
                    *self.sessions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(session);
                    match self.enter().await {
                        Ok(()) => {
                            tracing::info!("a new session begins");
                            return;
                        }
                        Err(error) => tracing::error!(%error, "the cluster cannot be entered"),
                    }
                }
                Err(error) => tracing::warn!(%error, "no new session yet"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn look(&self) -> Result<Seen, StoreError> {
        let etcd = self.etcd.clone();
        blocking(move || {
            let all = |prefix: &str| TxnOp::get(etcd.key(prefix), Some(GetOptions::new().with_prefix()));
            let answer = etcd.txn(Txn::new().and_then([all("members/"), all("own/")]))?;
            let found = answer.op_responses();
            let pairs = |n: usize| match found.get(n) {
                Some(TxnOpResponse::Get(got)) => got.kvs().to_vec(),
                _ => Vec::new(),
            };
            let text = |kv: &KeyValue| String::from_utf8_lossy(kv.key()).into_owned();
            let mut seen = Seen::default();
            for kv in pairs(0) {
                let name = text(&kv);
                if let (Some(name), Ok(peer)) = (name.rsplit('/').next(), serde_json::from_slice(kv.value())) {
                    seen.members.insert(name.into(), peer);
                }
            }
            for kv in pairs(1) {
                let name = text(&kv);
                let shard = name.rsplit('/').next().and_then(|hex| u16::from_str_radix(hex, 16).ok());
                if let (Some(shard), Ok(claim)) = (shard, serde_json::from_slice::<Claim>(kv.value())) {
                    seen.owners.insert(Shard(shard), claim.scheduler);
                }
            }
            Ok(seen)
        })
        .await
    }

    /// One step towards what should be.
    async fn follow(&self, seen: Seen) {
        let mine: BTreeSet<Shard> = self.logs().keys().copied().collect();
        let lost: Vec<_> =
            self.shared.shards.all().into_iter().filter(|env| env.committer.lost().is_cancelled()).collect();
        for env in lost {
            tracing::warn!(shard = env.shard.0, "a shard was taken by another scheduler: it is dropped");
            self.logs().remove(&env.shard);
            env.close(true).await;
        }
        let moves = ownership::moves(&self.me, &seen.names(), &seen.owners, &mine, self.shared.shards.count());
        if self.view.see(seen) {
            let links = self.view.links();
            for (_, link) in self.shared.registry.links() {
                // One that is full hears of it with its next link.
                let _ = link.orders.try_send(Order::Peers { links: links.clone() });
            }
        }
        self.rise().await;
        self.give(moves.give).await;
        join_all(moves.take.into_iter().map(|shard| self.take(shard))).await;
    }

    /// Workers do not obey an owner whose number is lower than one that they have heard of: so it is after a store was restored
    /// from a backup. A shard of ours that is fenced all the same is given up, and taken again under a higher number.
    async fn rise(&self) {
        let outranked = std::mem::take(&mut *self.shared.outranked.lock().unwrap_or_else(PoisonError::into_inner));
        let mut again = Vec::new();
        for (shard, known) in outranked {
            let Some(log) = self.logs().get(&shard).cloned() else { continue };
            let (ours, us) = (log.ownership().epoch, shard.0);
            if known <= ours {
                continue;
            }
            if known.0 - ours.0 > MOST_RISE {
                tracing::error!(
                    shard = us,
                    known = known.0,
                    "a worker tells of an owner that cannot have been: restart the worker"
                );
                continue;
            }
            let raised = blocking(move || log.ownership().raise(us, known)).await;
            if matches!(raised, Ok(true)) {
                tracing::warn!(
                    shard = us,
                    ours = ours.0,
                    known = known.0,
                    "a worker knows an owner with a higher number, and the shard is ours: was etcd restored from a backup? It is taken again under a higher one"
                );
                again.push(shard);
            }
        }
        self.give(again).await;
    }

    async fn take(&self, shard: Shard) {
        let (etcd, session, me) = (self.etcd.clone(), self.session(), self.me.clone());
        let begun = Instant::now();
        let opened = blocking(move || EtcdLog::open(etcd, session, shard.0, &me)).await;
        let (log, opened) = match opened {
            Ok((log, opened)) => (Arc::new(log), opened),
            // Somebody was faster; or etcd does not answer, and the next look tries again.
            Err(StoreError::InUse(_) | StoreError::Lost | StoreError::Silent(_) | StoreError::Read(_)) => return,
            Err(error) => {
                tracing::error!(shard = shard.0, error = &error as &dyn std::error::Error, "a shard cannot be taken");
                return;
            }
        };
        if opened.cut > 0 {
            tracing::warn!(shard = shard.0, entries = opened.cut, "a batch that was never finished was cut off");
        }
        match Env::open(&self.shared, shard, log.clone()).await {
            Ok(env) => {
                self.logs().insert(shard, log);
                let functions = env.own_functions().into_iter().map(|(key, _)| key).collect();
                self.api.follow_these(functions).await;
                tracing::info!(
                    shard = shard.0,
                    epoch = env.epoch.0,
                    entries = opened.entries,
                    ms = begun.elapsed().as_millis() as u64,
                    "a shard is ours"
                );
                let detail = serde_json::json!({"shard": shard, "epoch": env.epoch, "scheduler": self.me});
                self.shared.telemetry.events.tell("shard_taken", About::cluster(), detail);
            }
            Err(error) => {
                tracing::error!(
                    shard = shard.0,
                    error = &*error as &dyn std::error::Error,
                    "a shard cannot be recovered"
                );
                let _ = blocking(move || {
                    log.release();
                    Ok(())
                })
                .await;
            }
        }
    }

    /// Gives shards up: what is under way is written, then the next owner need not wait.
    async fn give(&self, shards: Vec<Shard>) {
        let give = |shard: Shard| async move {
            let Some(log) = self.logs().get(&shard).cloned() else { return };
            if let Some(env) = self.shared.shards.get(shard) {
                env.empty(HAND_OVER).await;
                env.close(false).await;
            }
            self.logs().remove(&shard);
            let _ = blocking(move || {
                log.release();
                Ok(())
            })
            .await;
            tracing::info!(shard = shard.0, "a shard was given up");
            let detail = serde_json::json!({"shard": shard, "scheduler": self.me});
            self.shared.telemetry.events.tell("shard_given", About::cluster(), detail);
        };
        join_all(shards.into_iter().map(give)).await;
    }

    /// What others have set that belongs to no function takes effect here too.
    async fn look_at_globals(&self) {
        let (etcd, after) = (self.etcd.clone(), *self.applied.lock().unwrap_or_else(PoisonError::into_inner));
        let found = blocking(move || {
            let options = GetOptions::new().with_prefix().with_min_mod_revision(after + 1);
            Ok(etcd.get("global/", Some(options))?)
        });
        let Ok(found) = found.await else { return };
        let skip = self.etcd.key("global/").len();
        for kv in &found {
            let key = &kv.key()[skip..];
            if key == layout::ZERO {
                self.api.adopt_zero(kv.value()).await;
            } else if let Some(name) = key.strip_prefix(layout::NAMESPACES) {
                self.api.adopt_namespace(&String::from_utf8_lossy(name), kv.value()).await;
            } else if let Some(name) = key.strip_prefix(layout::WORKERS) {
                let state = if layout::worker_drains(kv.value()) { WorkerState::Draining } else { WorkerState::Ready };
                self.api.adopt_worker(&WorkerId(String::from_utf8_lossy(name).into()), state).await;
            }
        }
        for kv in &found {
            if let Some(name) = kv.key()[skip..].strip_prefix(b"R").filter(|_| after > 0) {
                self.api.cut_revoked(&String::from_utf8_lossy(name));
            }
        }
        let of_tokens =
            |kv: &KeyValue| [layout::TOKENS, layout::REVOKED].iter().any(|key| kv.key()[skip..].starts_with(key));
        if found.iter().any(of_tokens) {
            self.api.adopt_tokens().await;
        }
        let newest = found.iter().map(KeyValue::mod_revision).max().unwrap_or(after);
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = newest;
    }

    async fn look_at_room(&self) {
        let (etcd, quota) = (self.etcd.clone(), self.config.quota_bytes);
        let _ = blocking(move || {
            let status = etcd.run(async move |mut client| client.status().await)?;
            let told = status.db_size_quota().max(0) as u64;
            let quota = [quota, told, QUOTA].into_iter().find(|q| *q > 0).unwrap_or(QUOTA);
            etcd.set_room((status.db_size().max(0) as u64) < quota / 4 * 3);
            Ok(())
        })
        .await;
    }

    /// The store's mark rises when every scheduler knows the newest format. Whether it has.
    async fn raise_format(&self) -> bool {
        let (etcd, config) = (self.etcd.clone(), self.config.clone());
        let knows = |value: &[u8]| serde_json::from_slice::<Peer>(value).is_ok_and(|peer| peer.format >= FORMAT);
        let raised = blocking(move || Format::raise(&etcd, &config, knows)).await;
        raised.unwrap_or_else(|error| {
            tracing::warn!(%error, "the store's format is as it was");
            false
        })
    }

    /// Old revisions take room until somebody removes them; nobody here reads them.
    async fn compact(&self) {
        let etcd = self.etcd.clone();
        let compacted = blocking(move || {
            let answer = etcd.txn(Txn::new().and_then([TxnOp::get(etcd.key("format"), None)]))?;
            let revision = answer.header().map_or(0, |header| header.revision());
            etcd.run(async move |mut client| client.compact(revision - 100, None).await.map(drop))?;
            Ok(())
        });
        if let Err(error) = compacted.await {
            tracing::debug!(%error, "etcd was not compacted");
        }
    }
}
