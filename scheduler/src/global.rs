//! What belongs to no function: workers that have joined, namespaces' policies, the scale-to-zero configuration. In the embedded
//! store it lies beside the functions; in etcd under keys of its own, which every scheduler reads and may write.

use crate::{
    actor::committer::Committer,
    store::{Change, Store, StoreError, blocking, etcd::Etcd, layout, stored},
    zero_config::zero_of,
};
use bytes::Bytes;
use capstan_blob::Blobs;
use capstan_common::{id::WorkerId, time::Time};
use capstan_scheduler_core::autoscaler::Policy;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use serde_json::{Map, Value};
use std::sync::{Arc, PoisonError, RwLock};

/// Where it lies.
pub enum Globals {
    /// In the one store of the process; by its committer as soon as there is one.
    Beside(Arc<dyn Store>, RwLock<Option<Committer>>),
    /// In etcd.
    Etcd(Arc<Etcd>),
}

/// Held while a key is taken out of the embedded store, which nobody else writes.
static TAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A key and its value.
pub type Pair = (Box<[u8]>, Bytes);

impl Globals {
    /// Makes changes durable.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        match self {
            Self::Beside(store, committer) => {
                let committer = committer.read().unwrap_or_else(PoisonError::into_inner).clone();
                match committer {
                    Some(committer) => committer.write(changes).await,
                    // While the scheduler starts nobody else writes.
                    None => store.commit(&changes),
                }
            }
            Self::Etcd(etcd) => {
                let etcd = etcd.clone();
                blocking(move || {
                    let operations: Vec<TxnOp> = changes
                        .into_iter()
                        .map(|change| match change {
                            Change::Put(key, value) => TxnOp::put(name(&etcd, &key), value, None),
                            Change::Delete(key) => TxnOp::delete(name(&etcd, &key), None),
                        })
                        .collect();
                    etcd.txn(Txn::new().and_then(operations)).map(drop).map_err(StoreError::from)
                })
                .await
            }
        }
    }

    /// A key's value.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self {
            Self::Beside(store, _) => store.get(key),
            Self::Etcd(etcd) => {
                let (etcd, name) = (etcd.clone(), format!("global/{}", String::from_utf8_lossy(key)));
                blocking(move || Ok(etcd.get(&name, None)?.first().map(|kv| Bytes::copy_from_slice(kv.value())))).await
            }
        }
    }

    /// Sets a key that nobody has set.
    pub async fn create(&self, key: &[u8], value: Bytes) -> Result<(), StoreError> {
        match self {
            Self::Beside(store, _) if store.get(key)?.is_some() => Ok(()),
            Self::Beside(..) => self.write(vec![Change::Put(key.into(), value)]).await,
            Self::Etcd(etcd) => {
                let (etcd, name) = (etcd.clone(), name(etcd, key));
                blocking(move || {
                    let none = Compare::create_revision(name.clone(), CompareOp::Equal, 0);
                    etcd.txn(Txn::new().when([none]).and_then([TxnOp::put(name, value, None)]))?;
                    Ok(())
                })
                .await
            }
        }
    }

    /// Removes a key that has this value. Whether it had: of two who take it, one does.
    pub async fn take(&self, key: &[u8], value: Bytes) -> Result<bool, StoreError> {
        match self {
            Self::Beside(store, _) => {
                // One after the other: the second finds nothing any more.
                let _taking = TAKING.lock().await;
                let there = store.get(key)?.is_some_and(|found| found == value);
                if there {
                    self.write(vec![Change::Delete(key.into())]).await?;
                }
                Ok(there)
            }
            Self::Etcd(etcd) => {
                let (etcd, name) = (etcd.clone(), name(etcd, key));
                blocking(move || {
                    let same = Compare::value(name.clone(), CompareOp::Equal, value);
                    let taken = etcd.txn(Txn::new().when([same]).and_then([TxnOp::delete(name, None)]))?;
                    Ok(taken.succeeded())
                })
                .await
            }
        }
    }

    /// All pairs whose keys have the prefix.
    pub async fn pairs(&self, prefix: &'static [u8]) -> Result<Vec<Pair>, StoreError> {
        match self {
            Self::Beside(store, _) => {
                let keys = store.keys(prefix, None, usize::MAX, false);
                let pair = |key: Box<[u8]>| Ok(store.get(&key)?.map(|value| (key, value)));
                keys.into_iter().filter_map(|key| pair(key).transpose()).collect()
            }
            Self::Etcd(etcd) => {
                let etcd = etcd.clone();
                blocking(move || {
                    let all = "global/".to_owned() + &String::from_utf8_lossy(prefix);
                    let (found, skip) =
                        (etcd.get(&all, Some(GetOptions::new().with_prefix()))?, etcd.key("global/").len());
                    let pair =
                        |kv: &etcd_client::KeyValue| (kv.key()[skip..].into(), Bytes::copy_from_slice(kv.value()));
                    Ok(found.iter().map(pair).collect())
                })
                .await
            }
        }
    }

    /// What the folder of large payloads is known by; all schedulers of a store use the same.
    ///
    /// # Errors
    /// It is another folder than the one that the store's payloads lie in.
    pub async fn payloads(&self, blobs: &Blobs) -> anyhow::Result<String> {
        let name = blobs.name_or(&uuid::Uuid::new_v4().to_string())?;
        if let Self::Etcd(_) = self {
            self.create(layout::PAYLOADS, Bytes::from(name.clone())).await?;
            let known = self.get(layout::PAYLOADS).await?.unwrap_or_default();
            anyhow::ensure!(
                known == name,
                "blob_dir is not the folder in which this cluster's large payloads lie: share that one with all schedulers and workers (if it was lost, and its payloads with it, remove the key global/{} in etcd)",
                String::from_utf8_lossy(layout::PAYLOADS)
            );
        }
        Ok(name)
    }

    /// Names of workers that have joined and are not known to be lost.
    pub async fn workers(&self) -> Result<Vec<String>, StoreError> {
        let there = |(_, value): &Pair| !layout::worker_is_gone(value);
        let name = |(key, _): Pair| String::from_utf8_lossy(&key[layout::WORKERS.len()..]).into_owned();
        Ok(self.pairs(layout::WORKERS).await?.into_iter().filter(there).map(name).collect())
    }

    /// Whether a worker of this name has joined and is not known to be lost.
    pub async fn knows_worker(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.get(&layout::worker(name)).await?.is_some_and(|value| !layout::worker_is_gone(&value)))
    }

    /// A worker is lost: nobody waits for it any more. That it drained is kept, in case it comes back.
    pub async fn forget_worker(&self, name: &str) -> Result<(), StoreError> {
        let key = layout::worker(name);
        match self.get(&key).await? {
            Some(value) if layout::worker_is_gone(&value) => Ok(()),
            Some(value) if layout::worker_drains(&value) => {
                self.write(vec![Change::Put(key, layout::worker_value(true, true))]).await
            }
            Some(_) => self.write(vec![Change::Delete(key)]).await,
            None => Ok(()),
        }
    }

    /// Remembers a worker, and whether it drains; without `draining`, as it was. Answers whether it drains. What is known
    /// already is not written again, so that a full disk keeps no worker out.
    pub async fn remember_worker(&self, worker: &WorkerId, draining: Option<bool>) -> Result<bool, StoreError> {
        let key = layout::worker(&worker.0);
        let known = self.get(&key).await?;
        let drains = draining.unwrap_or_else(|| known.as_deref().is_some_and(layout::worker_drains));
        let value = layout::worker_value(drains, false);
        let same = |known: &Bytes| layout::worker_drains(known) == drains && !layout::worker_is_gone(known);
        if !known.as_ref().is_some_and(same) {
            self.write(vec![Change::Put(key, value)]).await?;
        }
        Ok(drains)
    }

    /// A scheduler runs now.
    pub async fn remember_time(&self, now: Time) -> Result<(), StoreError> {
        self.write(vec![Change::Put(layout::LAST.into(), stored::encode(&now))]).await
    }

    /// When a scheduler was last known to run, if that can be told.
    pub async fn last_time(&self) -> Result<Option<Time>, StoreError> {
        self.get(layout::LAST).await?.map(|value| stored::decode(&value)).transpose()
    }

    /// Namespaces with their weights and quotas.
    pub async fn namespaces(&self) -> Result<Vec<(String, Policy)>, StoreError> {
        let read = |(key, value): Pair| {
            let name = String::from_utf8_lossy(&key[layout::NAMESPACES.len()..]).into_owned();
            match stored::decode(&value) {
                Ok(policy) => Some((name, policy)),
                Err(error) => {
                    tracing::error!(namespace = name, %error, "a namespace's stored policy cannot be read: set it once more");
                    None
                }
            }
        };
        Ok(self.pairs(layout::NAMESPACES).await?.into_iter().filter_map(read).collect())
    }

    /// API tokens, as they are stored.
    pub async fn tokens(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        Ok(self.pairs(layout::TOKENS).await?.into_iter().map(|(_, value)| value.to_vec()).collect())
    }

    /// Secrets, as they are stored.
    pub async fn secrets(&self) -> Result<Vec<Pair>, StoreError> {
        self.pairs(layout::SECRETS).await
    }

    /// The scale-to-zero configuration, as it was put.
    pub async fn zero(&self) -> Result<Map<String, Value>, StoreError> {
        let pairs = self.pairs(layout::ZERO).await?;
        Ok(pairs.first().and_then(|(_, value)| zero_of(value)).unwrap_or_default())
    }
}

fn name(etcd: &Etcd, key: &[u8]) -> String {
    etcd.key(&format!("global/{}", String::from_utf8_lossy(key)))
}
