//! Every verb that a client has. Doors (REST today) see this and nothing behind it.

mod bring;
pub mod cluster;
pub mod functions;
pub mod govern;
mod inputs;
pub mod instances;
pub mod keys;
mod logs;
pub mod models;
pub mod owner;
pub mod promql;
mod reach;
mod reads;
pub mod results;
mod revisions;
pub mod secrets;
pub mod submit;
mod supply;
mod sweep;
pub mod tokens;
pub mod web;
mod writes;

use crate::{
    actor::function::{Ask, FunctionActor},
    clock,
    cluster::Peer,
    config::SchedulerConfig,
    shard::{Env, Guest, Shared},
    store::{
        layout::{self, StoredCall},
        store_full, store_refusal, stored,
    },
    tls::Authority,
};
use actix::Addr;
use bytes::Bytes;
use capstan_blob::{BlobError, Blobs};
use capstan_common::{
    call::{CallState, Counts},
    id::{CallId, FunctionKey},
    input::{Format, Payload},
    refusal::{Code, Refusal},
    time::Time,
};
use capstan_scheduler_core::{event::Event, function::Function};
use capstan_verb::{
    access::Subject,
    call::{CallView, CallsView, List},
};
use results::Tables;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::AtomicU64},
};
use tokio_util::sync::CancellationToken;

/// The pause between two looks whether the store refuses writes, and how long a cancel waits for one that does.
const FULL_LOOK: std::time::Duration = std::time::Duration::from_millis(200);
const FULL_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// A scheduler's verbs.
pub struct Api {
    env: Arc<Shared>,
    config: SchedulerConfig,
    blobs: Blobs,
    tables: Tables,
    requests: AtomicU64,
    locks: instances::Locks,
    /// Nothing is forgotten before: see [`Shared::forgets_from`].
    forgets_from: Time,
    /// Functions of this scheduler that were found to serve models, by namespace and model.
    models: Mutex<BTreeMap<(String, String), FunctionKey>>,
    /// When it was last looked for tokens of others.
    looked: tokio::sync::Mutex<Option<std::time::Instant>>,
    /// Idempotency keys that are remembered.
    keys: Arc<keys::Keys>,
}

impl Api {
    /// Over a scheduler's parts.
    pub fn new(env: Arc<Shared>, config: SchedulerConfig, blobs: Blobs) -> Self {
        Self {
            forgets_from: env.forgets_from,
            keys: Arc::new(keys::Keys::new(&config)),
            env,
            config,
            blobs,
            tables: Tables::default(),
            requests: AtomicU64::default(),
            locks: Default::default(),
            models: Mutex::default(),
            looked: Default::default(),
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// What is seen from outside.
    pub fn telemetry(&self) -> &crate::telemetry::Telemetry {
        &self.env.telemetry
    }

    fn actor(&self, key: &FunctionKey) -> Result<Addr<FunctionActor>, Refusal> {
        self.env.registry.function(key).ok_or_else(|| self.gone(key))
    }

    /// Why a function has no actor here: there is none, or it is somebody else's now.
    fn gone(&self, key: &FunctionKey) -> Refusal {
        self.home(key.place()).err().unwrap_or_else(|| no_function(key))
    }

    /// Reads from a function's core.
    async fn ask<T: Send + 'static>(
        &self,
        key: &FunctionKey,
        question: impl FnOnce(&Function) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let live = move |core: &Function| (!core.is_removed()).then(|| question(core));
        self.ask_any(key, live).await?.ok_or_else(|| self.gone(key))
    }

    /// The same, also of a function that was removed and still has work.
    async fn ask_any<T: Send + 'static>(
        &self,
        key: &FunctionKey,
        question: impl FnOnce(&Function) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let actor = self.actor(key)?;
        let answer = actor.send(Ask(Box::new(question))).await;
        answer.ok().flatten().ok_or_else(|| self.gone(key))
    }

    /// Cancelled when the scheduler stops.
    pub fn stopping(&self) -> &CancellationToken {
        &self.env.stopping
    }

    /// Whether there are, or may be, other schedulers.
    pub fn is_clustered(&self) -> bool {
        self.env.sessions.is_some()
    }

    /// Enters what is ours, for as long as the guest lives; or the other scheduler whose it is, if that is known.
    pub fn enter(&self, place: u16) -> Result<Guest, Option<Peer>> {
        let shard = self.env.shards.shard(place);
        let guest = self.env.shards.get(shard).and_then(|env| env.enter());
        guest.ok_or_else(|| self.env.view.owner(shard))
    }

    /// Who signs certificates, if anybody does.
    pub fn authority(&self) -> Option<&Authority> {
        self.env.authority.as_deref()
    }

    /// Where this scheduler is reached by others.
    pub fn own_peer(&self) -> Option<Peer> {
        self.env.view.own()
    }

    /// This scheduler's name among the others.
    pub fn own_name(&self) -> String {
        self.env.view.me().to_string()
    }

    /// The other schedulers, by name.
    pub fn named_peers(&self) -> Vec<(String, Peer)> {
        self.env.view.named_peers().into_iter().map(|(name, peer)| (name.to_string(), peer)).collect()
    }

    /// The other schedulers.
    pub fn peers(&self) -> Vec<Peer> {
        self.env.view.peers()
    }

    /// The shard of a place, if this scheduler owns it.
    fn home(&self, place: u16) -> Result<Arc<Env>, Refusal> {
        let shard = self.env.shards.shard(place);
        self.env.shards.get(shard).ok_or_else(|| {
            let detail = "the scheduler that owns this function is being replaced; try again in a moment";
            Refusal { retry_after_s: Some(1), ..Refusal::new(Code::Unavailable, detail) }
        })
    }

    /// Refuses new work while the store is full or silent, and when the scheduler stops.
    fn must_have_room(&self, place: u16) -> Result<(), Refusal> {
        self.must_run()?;
        has_room(&*self.home(place)?)
    }

    /// The same for what belongs to no function.
    fn must_have_room_anywhere(&self) -> Result<(), Refusal> {
        self.must_run()?;
        self.env.shards.all().iter().try_for_each(|env| has_room(env))
    }

    fn must_run(&self) -> Result<(), Refusal> {
        if self.env.stopping.is_cancelled() {
            let refusal = Refusal::new(Code::Unavailable, "the scheduler is stopping; try again when it is back");
            return Err(Refusal { retry_after_s: Some(5), ..refusal });
        }
        Ok(())
    }

    /// A payload that is durable as far as it must be before its record refers to it.
    async fn keep(&self, call: CallId, index: u64, bytes: Bytes) -> Result<Payload, Refusal> {
        if !self.blobs.wants(&bytes) {
            return Ok(Payload::json(bytes));
        }
        self.blobs.keep(call, &format!("in-{index}"), Format::Json, bytes).await.map_err(blob_refusal)
    }

    /// Reads on a thread that may wait for the store, so that nobody else waits with it.
    async fn reading<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let api = self.clone();
        let read = tokio::task::spawn_blocking(move || read(&api)).await;
        read.map_err(|_| Refusal::new(Code::Internal, "the store could not be read: the reading thread ended"))?
    }

    fn look_up(&self, call: CallId) -> Result<Option<Bytes>, Refusal> {
        let store = &self.home(call.place())?.store;
        let live = store.get(&layout::live(call)).map_err(store_refusal)?;
        if live.is_some() { Ok(live) } else { store.get(&layout::ended(call)).map_err(store_refusal) }
    }

    /// What the store has of a call that a subject may see. Whose it is says its record, once it is settled who owns it; one of
    /// another namespace is told of in the same words as one that does not exist.
    async fn seen_call(self: &Arc<Self>, who: &Subject, call: CallId) -> Result<StoredCall, Refusal> {
        let stored = self.stored_call(call).await;
        match stored {
            Ok(stored) if who.sees(&stored.function.namespace) => Ok(stored),
            // What has expired is known to whom it belonged, and that is not known any more.
            Err(refusal) if refusal.code == Code::Expired && who.namespaces.is_none() => Err(refusal),
            Err(refusal) if !matches!(refusal.code, Code::Expired | Code::NotFound) => Err(refusal),
            _ => Err(self.no_call(call)),
        }
    }

    /// What the store has of a call. A record that only rides along is first written.
    async fn stored_call(self: &Arc<Self>, call: CallId) -> Result<StoredCall, Refusal> {
        let mut found = self.reading(move |api| api.look_up(call)).await?;
        if found.is_none() && self.is_recent(call) {
            self.flush().await;
            found = self.reading(move |api| api.look_up(call)).await?;
        }
        let Some(bytes) = found else { return Err(self.no_call(call)) };
        let stored: StoredCall = stored::decode(&bytes).map_err(store_refusal)?;
        if self.has_expired(&stored) { Err(expired(call)) } else { Ok(stored) }
    }

    /// Whether a call's results are kept no longer.
    fn has_expired(&self, stored: &StoredCall) -> bool {
        let now = clock::now();
        self.expires_ms(stored).is_some_and(|at_ms| at_ms <= now.0 / 1000) && now >= self.forgets_from
    }

    fn is_recent(&self, call: CallId) -> bool {
        call.born_ms() + 60_000 > clock::now().0 / 1000
    }

    /// Ids carry their time of birth: one that is older than the retention was, or would be, expired.
    fn no_call(&self, call: CallId) -> Refusal {
        let kept_ms = self.config.limits.retention_s * 1000;
        let now_ms = clock::now().0 / 1000;
        if call.born_ms() > 0 && call.born_ms() + kept_ms < now_ms {
            return expired(call);
        }
        Refusal::new(Code::NotFound, format!("call {call} does not exist"))
    }

    fn expires_ms(&self, stored: &StoredCall) -> Option<u64> {
        let finished = stored.record.finished?;
        Some(finished.0 / 1000 + self.config.limits.retention_s * 1000)
    }

    /// Lets records that ride along be written: every function is asked to write what it has.
    async fn flush(&self) {
        if self.env.shards.all().iter().any(|env| env.committer.is_full()) {
            // There is no saying how long that would take.
            return;
        }
        for (_, function) in self.env.registry.functions() {
            // A function that ends has written everything.
            let _ = function.send(crate::actor::function::Tell(Event::Alarm)).await;
        }
    }

    /// A call's counts and state as its owner has them; `None` once it has ended.
    async fn live(&self, stored: &StoredCall) -> Option<(Counts, CallState)> {
        let id = stored.record.id;
        let known = self.ask_any(&stored.function, move |core| core.call(id)).await.ok().flatten();
        known.map(|(_, counts, state)| (counts, state))
    }

    async fn view(self: &Arc<Self>, mut stored: StoredCall) -> CallView {
        let mut live = None;
        if stored.record.finished.is_none() {
            live = self.live(&stored).await;
        }
        if stored.record.finished.is_none() && live.is_none() {
            // It ended between the two looks: its record is durable by now, or will be at once.
            self.flush().await;
            stored = self.stored_call(stored.record.id).await.unwrap_or(stored);
        }
        let record = &stored.record;
        let (mut inputs, state) = live.unwrap_or((record.counts, record.state));
        // Of one that has ended and is not written down yet only its begin is known: the rest counts as what it was then.
        let known = inputs.pending + inputs.running + inputs.ended();
        inputs.pending += inputs.total.saturating_sub(known);
        CallView {
            id: record.id,
            namespace: stored.function.namespace.clone(),
            function: stored.function.name.clone(),
            state,
            inputs,
            created_at: clock::rfc3339(record.created),
            finished_at: record.finished.map(clock::rfc3339),
            expires_at: record.finished.map(|at| clock::rfc3339(at.plus_ms(self.config.limits.retention_s * 1000))),
        }
    }

    /// A call's state.
    pub async fn call(self: &Arc<Self>, who: &Subject, call: CallId) -> Result<CallView, Refusal> {
        let stored = self.seen_call(who, call).await?;
        Ok(self.view(stored).await)
    }

    /// Ends a call; one that has ended is left as it is.
    pub async fn cancel(self: &Arc<Self>, who: &Subject, call: CallId) -> Result<CallView, Refusal> {
        let stored = self.seen_call(who, call).await?;
        if stored.record.finished.is_none() {
            let actor = self.actor(&stored.function)?;
            let told = actor.send(crate::actor::function::Tell(Event::Cancel { call }));
            let env = self.home(call.place())?;
            let full = async {
                // A write that was refused, and is tried again: how long that takes nobody knows.
                while !env.committer.is_full() {
                    tokio::time::sleep(FULL_LOOK).await;
                }
                tokio::time::sleep(FULL_WAIT).await;
            };
            tokio::select! {
                biased;
                told = told => told.map_err(|_| self.gone(&stored.function))??,
                () = full => {
                    let detail = format!(
                        "the call is cancelled and what ran of it stops, but that cannot be written down: {}. Free some space; a restart before that would let it go on",
                        env.store.room()
                    );
                    return Err(Refusal { detail, ..store_full() });
                }
            }
        }
        self.call(who, call).await
    }

    /// Calls, newest first, of those that who asks may see.
    pub async fn calls(self: &Arc<Self>, who: &Subject, asked: &List) -> Result<CallsView, Refusal> {
        let (mut calls, mut after) = (Vec::new(), asked.after);
        self.flush().await;
        // One answer looks at so many calls at most; the cursor goes on from there.
        let mut looks = 10_000usize;
        loop {
            let page = self.reading(move |api| api.newest_records(after, 256.min(looks.max(1)))).await?;
            let Some((last, _)) = page.last() else { return Ok(CallsView { calls, next: None }) };
            let (last, count) = (*last, page.len());
            for (call, stored) in page {
                // One that expires meanwhile is passed over.
                let Some(stored) = stored else { continue };
                if self.has_expired(&stored) || !who.sees(&stored.function.namespace) {
                    continue;
                }
                let view = self.view(stored).await;
                if asked.takes(&view) {
                    calls.push(view);
                }
                if calls.len() >= asked.limit {
                    return Ok(CallsView { calls, next: Some(call) });
                }
            }
            looks = looks.saturating_sub(count);
            if looks == 0 {
                return Ok(CallsView { calls, next: Some(last) });
            }
            after = Some(last);
        }
    }

    /// Calls, live and ended, the newest first, with their records as far as these are still there.
    fn newest_records(
        &self,
        before: Option<CallId>,
        limit: usize,
    ) -> Result<Vec<(CallId, Option<StoredCall>)>, Refusal> {
        let record = |call| {
            let bytes = self.look_up(call)?;
            Ok((call, bytes.map(|bytes| stored::decode(&bytes)).transpose().map_err(store_refusal)?))
        };
        self.newest(before, limit).into_iter().map(record).collect()
    }

    /// Ids of calls, live and ended, the newest first.
    fn newest(&self, before: Option<CallId>, limit: usize) -> Vec<CallId> {
        let of = |env: &Env, prefix, key: fn(CallId) -> Box<[u8]>| {
            let keys = env.store.keys(prefix, before.map(key).as_deref(), limit, true);
            keys.into_iter().filter_map(|key| layout::call_of(&key)).collect::<Vec<_>>()
        };
        let mut ids = Vec::new();
        for env in self.env.shards.all() {
            ids.extend(of(&env, layout::LIVE, layout::live));
            ids.extend(of(&env, layout::ENDED, layout::ended));
        }
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.dedup();
        ids.truncate(limit);
        ids
    }
}

/// A fresh id for a function's call. Its time is that of our clock, which everything else about the call is held against.
pub fn mint_call(function: &FunctionKey) -> CallId {
    static ORDER: Mutex<uuid::ContextV7> = Mutex::new(uuid::ContextV7::new());
    let us = clock::now().0;
    let at = uuid::Timestamp::from_unix(&ORDER, us / 1_000_000, (us % 1_000_000) as u32 * 1_000);
    CallId(uuid::Uuid::new_v7(at).as_u128()).placed(function.place())
}

fn has_room(env: &Env) -> Result<(), Refusal> {
    if !env.store.answers() {
        let detail = "the store does not answer; nothing was accepted, try again";
        return Err(Refusal { retry_after_s: Some(2), ..Refusal::new(Code::Unavailable, detail) });
    }
    if env.committer.is_full() || !env.store.has_room() {
        let detail =
            format!("the store is full: {}; nothing was accepted, free some space and try again", env.store.room());
        return Err(Refusal { detail, ..store_full() });
    }
    Ok(())
}

fn no_function(key: &FunctionKey) -> Refusal {
    let detail = format!("function `{}` does not exist in namespace `{}`; deploy it first", key.name, key.namespace);
    Refusal::new(Code::NotFound, detail)
}

fn expired(call: CallId) -> Refusal {
    Refusal::new(Code::Expired, format!("the results of call {call} have expired"))
}

fn blob_refusal(error: BlobError) -> Refusal {
    match error {
        BlobError::Full(_) => store_full(),
        error => {
            tracing::error!(error = &error as &dyn std::error::Error, "the blob store failed");
            Refusal::new(Code::Internal, error.to_string())
        }
    }
}
