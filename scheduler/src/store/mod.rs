//! The store: what is durable. It appends, loads back and holds ownership; it never queries or decides.

pub mod embedded;
pub mod etcd;
mod frame;
pub mod layout;
pub mod load;
pub mod outcomes;
mod places;
mod refusal;
pub mod stored;

pub use refusal::{store_full, store_refusal};

use bytes::Bytes;
use capstan_common::id::Epoch;
use std::{sync::Arc, time::Duration};

/// One change of the store.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Sets a key.
    Put(Box<[u8]>, Bytes),
    /// Removes a key; a missing one is fine.
    Delete(Box<[u8]>),
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room on the disk: nothing was written.
    #[error("the store is full")]
    Full,
    /// The write may or may not have happened: the owner must stop and reload.
    #[error("the store failed in the middle of a write")]
    Unknown(#[source] std::io::Error),
    /// A value cannot be read.
    #[error("the store cannot be read")]
    Read(#[source] std::io::Error),
    /// It cannot be reached now. What was asked for is as it was: ask again.
    #[error("the store does not answer")]
    Silent(#[source] std::io::Error),
    /// A value is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// Another process owns the folder.
    #[error("{0} is in use by another process; stop it, or give another --data-dir")]
    InUse(String),
    /// Somebody else owns the store now: what was to be written was not, and never will be.
    #[error("another scheduler has taken over")]
    Lost,
    /// A value that no entry has room for.
    #[error("a value of {0} bytes is too large for the store; its limit is about 1 MiB")]
    TooLarge(usize),
    /// The store was written by a newer version.
    #[error("{0} has format {1}, this version reads up to {2}; use the version that wrote it")]
    Newer(String, u32, u32),
}

/// A durable map of keys to values with atomic batches.
pub trait Store: Send + Sync + 'static {
    /// The fencing number of this opening.
    fn epoch(&self) -> Epoch;
    /// Makes all changes, in order, or none; durable when it returns. One caller at a time.
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError>;
    /// Nothing is committed any more.
    fn finish(&self) {}
    /// Housekeeping between commits. Whether there is more to do.
    fn maintain(&self) -> Result<bool, StoreError>;
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    /// Up to `limit` keys with the prefix, in order, after `after` (or before it, in reverse).
    fn keys(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize, reverse: bool) -> Vec<Box<[u8]>>;
    /// Whether there is room for new work; what was accepted always has some left.
    fn has_room(&self) -> bool;
    /// Whether what room is left is for the ends of what runs, and for cancels: nothing more is given out meanwhile.
    fn is_tight(&self) -> bool {
        false
    }
    /// How much room there is and how much is needed, in words.
    fn room(&self) -> String {
        "free some space".into()
    }
    /// Bytes on disk, and bytes of live values.
    fn size(&self) -> (u64, u64);
    /// Whether it can be reached now: while not, nothing new is accepted.
    fn answers(&self) -> bool {
        true
    }
    /// Bytes that are best committed together.
    fn group_bytes(&self) -> usize {
        4 << 20
    }
}

/// Runs what blocks on a thread where it may.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let gone = |_| StoreError::Read(std::io::Error::other("the thread ended"));
    tokio::task::spawn_blocking(work).await.map_err(gone)?
}

/// The pause before a store that did not answer is asked again.
const SILENCE: Duration = Duration::from_millis(100);

/// Reads what was accepted, on a thread that may wait: while the store does not answer, again and again.
///
/// # Errors
/// All but `Silent`.
pub async fn patiently<T: Send + 'static>(
    store: Arc<dyn Store>,
    read: impl Fn(&dyn Store) -> Result<T, StoreError> + Clone + Send + 'static,
) -> Result<T, StoreError> {
    loop {
        let (store, read) = (store.clone(), read.clone());
        match blocking(move || read(&*store)).await {
            Err(StoreError::Silent(error)) => {
                tracing::warn!(%error, "inputs wait for the store, which does not answer");
                tokio::time::sleep(SILENCE).await;
            }
            answered => return answered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capstan_common::id::CallId;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Does not answer the first two questions, and then holds nothing.
    #[derive(Default)]
    struct Shy(AtomicU32);

    impl Store for Shy {
        fn epoch(&self) -> Epoch {
            Epoch(1)
        }
        fn commit(&self, _: &[Change]) -> Result<(), StoreError> {
            Ok(())
        }
        fn maintain(&self) -> Result<bool, StoreError> {
            Ok(false)
        }
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>, StoreError> {
            let asked = self.0.fetch_add(1, Ordering::SeqCst);
            if asked < 2 { Err(StoreError::Silent(std::io::Error::other("away"))) } else { Ok(None) }
        }
        fn keys(&self, _: &[u8], _: Option<&[u8]>, _: usize, _: bool) -> Vec<Box<[u8]>> {
            Vec::new()
        }
        fn has_room(&self) -> bool {
            true
        }
        fn size(&self) -> (u64, u64) {
            (0, 0)
        }
    }

    #[tokio::test]
    async fn an_input_is_not_given_up_while_the_store_is_silent() {
        // RELIABILITY F9 I1
        let store = Arc::new(Shy::default());
        assert!(matches!(load::fetch(&*store, CallId(1)), Err(StoreError::Silent(_))));
        let fetched = patiently(store.clone(), |store: &dyn Store| load::fetch(store, CallId(1))).await.unwrap();
        assert_eq!(fetched.payload.unwrap_err().as_ref(), "the call is not in the store");
        assert_eq!(store.0.load(Ordering::SeqCst), 3);
    }
}
