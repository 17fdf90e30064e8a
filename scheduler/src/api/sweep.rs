//! Results go when their retention has passed, and large payloads with them.

use super::{Api, blob_refusal};
use crate::{
    clock,
    shard::Env,
    store::{
        Change,
        layout::{self, StoredCall},
        load::each_key,
        store_refusal, stored,
    },
    tls,
};
use actix::ArbiterHandle;
use capstan_common::refusal::Refusal;
use std::{sync::Arc, time::Duration};

/// The pause between two looks for expired results (RELIABILITY T1 allows an hour).
const SWEEP_PAUSE: Duration = Duration::from_secs(600);

/// The longest that an upload may take, in milliseconds.
const UPLOAD_MAX_MS: u64 = 24 * 3600 * 1000;

impl Api {
    /// Removes results whose retention has passed, now and then again.
    pub fn start_sweeping(self: &Arc<Self>, on: &ArbiterHandle) {
        let api = self.clone();
        on.spawn(async move {
            loop {
                if let Err(error) = api.sweep().await {
                    tracing::warn!(%error, "expired results could not be removed");
                }
                tokio::time::sleep(SWEEP_PAUSE).await;
            }
        });
    }

    /// Removes what has expired, and blobs whose calls are not known. Ids sort by age: it stops at the first that is too young.
    async fn sweep(&self) -> Result<(), Refusal> {
        // A full disk takes it no more, and is why there is something to sweep.
        let _ = self.env.globals.remember_time(clock::now()).await;
        if let Err(error) = tls::forget_old_invitations(&self.env.globals).await {
            tracing::warn!(%error, "join tokens that are too old could not be removed");
        }
        if clock::now() < self.forgets_from {
            return Ok(());
        }
        for env in self.env.shards.all() {
            self.sweep_shard(&env).await?;
        }
        for call in self.blobs.calls().map_err(blob_refusal)? {
            // An upload that is still coming has blobs before it has a call; what others own, they remove.
            let old = call.born_ms() + UPLOAD_MAX_MS < clock::now().0 / 1000;
            if old && self.home(call.place()).is_ok() && self.look_up(call)?.is_none() {
                self.blobs.forget(call).await.map_err(blob_refusal)?;
            }
        }
        Ok(())
    }

    async fn sweep_shard(&self, env: &Env) -> Result<(), Refusal> {
        let kept_ms = self.config.limits.retention_s * 1000;
        let mut after: Option<Box<[u8]>> = None;
        loop {
            let page = env.store.keys(layout::ENDED, after.as_deref(), 256, false);
            let Some(last) = page.last().cloned() else { break };
            let now_ms = clock::now().0 / 1000;
            let old = |key: &[u8]| layout::call_of(key).is_some_and(|c| c.born_ms() + kept_ms <= now_ms);
            let some_young = !page.iter().all(|key| old(key));
            for key in page.iter().filter(|key| old(key)) {
                self.forget_if_expired(env, key).await?;
            }
            if some_young {
                break;
            }
            after = Some(last);
        }
        Ok(())
    }

    async fn forget_if_expired(&self, env: &Env, key: &[u8]) -> Result<(), Refusal> {
        let Some(bytes) = env.store.get(key).map_err(store_refusal)? else { return Ok(()) };
        let stored: StoredCall = stored::decode(&bytes).map_err(store_refusal)?;
        if !self.has_expired(&stored) {
            return Ok(());
        }
        let call = stored.record.id;
        let mut changes = vec![Change::Delete(key.into())];
        for kind in [b'S', b'O', b'A'] {
            each_key(&*env.store, &layout::of_call(kind, call), |key| {
                changes.push(Change::Delete(key.into()));
                Ok(())
            })
            .map_err(store_refusal)?;
        }
        env.committer.write(changes).await.map_err(store_refusal)?;
        self.blobs.forget(call).await.map_err(blob_refusal)
    }
}
