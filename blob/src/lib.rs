//! The blob store: payloads too large to travel with their records. Scheduler and worker both read and write it.
//!
//! A blob is durable before its reference is handed out, and the SHA-256 of its bytes is part of its name: whoever else can
//! write into the folder cannot put other bytes in their place.

use bytes::Bytes;
use capstan_common::{
    id::CallId,
    input::{Blob, Body, Format, Payload},
};
use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem, path::Path};
use sha2::{Digest, Sha256};
use std::{
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// What can go wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The disk has no room.
    #[error("the blob store has no room")]
    Full(#[source] std::io::Error),
    /// The bytes are not those that were written.
    #[error("blob {0} is damaged: its checksum does not match")]
    Damaged(Arc<str>),
    /// The store refused.
    #[error("the blob store failed: {0}")]
    Store(#[source] object_store::Error),
    /// The disk refused.
    #[error("the blob folder failed: {0}")]
    Disk(#[source] std::io::Error),
}

/// The file that names the folder.
const NAME: &str = "store-name";

/// A folder of blobs; a clone is another handle.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<LocalFileSystem>,
    folder: Arc<PathBuf>,
    threshold: usize,
    /// The call whose folder is known to be durable: the others of a call need not make it so again.
    synced: Arc<Mutex<Option<CallId>>>,
}

impl Blobs {
    /// Opens (and makes) a folder. Payloads of more than `threshold` bytes go there.
    pub fn open(folder: PathBuf, threshold: usize) -> Result<Self, BlobError> {
        let new = !folder.is_dir();
        std::fs::create_dir_all(&folder).map_err(disk)?;
        if new && let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(disk)?;
        }
        let store = LocalFileSystem::new_with_prefix(&folder).map_err(store)?;
        Ok(Self { store: Arc::new(store), folder: Arc::new(folder), threshold, synced: Arc::default() })
    }

    /// What the folder is known by: `made`, if it has no name yet. Whoever reads the same shares it.
    pub fn name_or(&self, made: &str) -> Result<String, BlobError> {
        let known = self.name()?;
        if !known.is_empty() {
            return Ok(known);
        }
        // Whole or not at all: others read it at the same time, and of two that name it one does.
        let new = self.folder.join(format!("{NAME}.{made}"));
        let write = || {
            let mut file = std::fs::File::create(&new)?;
            file.write_all(made.as_bytes())?;
            file.sync_all()?;
            match std::fs::hard_link(&new, self.folder.join(NAME)) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        };
        let written = write();
        // Left behind it would harm nobody.
        let _ = std::fs::remove_file(&new);
        written.map_err(disk)?;
        self.name()
    }

    /// What the folder is known by; empty if it has no name.
    pub fn name(&self) -> Result<String, BlobError> {
        match std::fs::read_to_string(self.folder.join(NAME)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(disk),
        }
    }

    /// Whether these bytes belong here.
    pub fn wants(&self, bytes: &Bytes) -> bool {
        bytes.len() > self.threshold
    }

    /// A payload for these bytes: inline, or durable here under the call and a name that is unique within it.
    pub async fn keep(&self, call: CallId, name: &str, format: Format, bytes: Bytes) -> Result<Payload, BlobError> {
        if !self.wants(&bytes) {
            return Ok(Payload { format, body: Body::Inline(bytes) });
        }
        let path = format!("{call}/{name}-{}", hash(&bytes));
        let blob = Blob { name: path.as_str().into(), len: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) };
        let location = Path::from(path.as_str());
        self.store.put(&location, PutPayload::from(bytes)).await.map_err(store)?;
        self.sync(call, &path).await?;
        Ok(Payload { format, body: Body::Blob(blob) })
    }

    /// The store's own put leaves the page cache to the kernel; a reference must not outlive a power cut.
    async fn sync(&self, call: CallId, path: &str) -> Result<(), BlobError> {
        let (file, folder, synced) = (self.folder.join(path), self.folder.clone(), self.synced.clone());
        let syncing = tokio::task::spawn_blocking(move || {
            std::fs::File::open(&file)?.sync_data()?;
            std::fs::File::open(file.parent().unwrap_or(&folder))?.sync_all()?;
            let known = || synced.lock().unwrap_or_else(PoisonError::into_inner);
            if *known() != Some(call) {
                std::fs::File::open(&*folder)?.sync_all()?;
                *known() = Some(call);
            }
            Ok(())
        });
        syncing.await.map_err(|error| disk(std::io::Error::other(error)))?.map_err(disk)
    }

    /// The bytes of a payload.
    pub async fn fetch(&self, payload: &Payload) -> Result<Bytes, BlobError> {
        let blob = match &payload.body {
            Body::Inline(bytes) => return Ok(bytes.clone()),
            Body::Blob(blob) => blob,
        };
        let got = self.store.get(&Path::from(&*blob.name)).await.map_err(store)?;
        // Another file may lie there by now: no more than was written is read.
        if got.meta.size != blob.len {
            return Err(BlobError::Damaged(blob.name.clone()));
        }
        let bytes = got.bytes().await.map_err(store)?;
        let whole = bytes.len() as u64 == blob.len && crc32c::crc32c(&bytes) == blob.crc32c;
        // Names of earlier versions have no hash.
        let named = blob.name.rsplit_once('-').map(|(_, hash)| hash).filter(|hash| hash.len() == HASH_CHARS);
        if !whole || named.is_some_and(|named| named != hash(&bytes)) {
            return Err(BlobError::Damaged(blob.name.clone()));
        }
        Ok(bytes)
    }

    /// Deletes all blobs of a call; none is fine.
    pub async fn forget(&self, call: CallId) -> Result<(), BlobError> {
        let prefix = Path::from(call.to_string());
        let mut listed = self.store.list(Some(&prefix));
        let mut any = false;
        while let Some(found) = listed.try_next().await.map_err(store)? {
            any = true;
            self.store.delete(&found.location).await.map_err(store)?;
        }
        if any {
            // A folder is only a leftover of the local store; failing to remove it loses nothing.
            let _ = std::fs::remove_dir(self.folder.join(call.to_string()));
        }
        Ok(())
    }

    /// Calls that have blobs here.
    pub fn calls(&self) -> Result<Vec<CallId>, BlobError> {
        let entries = std::fs::read_dir(&*self.folder).map_err(disk)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}

/// Letters of a SHA-256.
const HASH_CHARS: usize = 64;

/// SHA-256 of bytes, in hexadecimal.
fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::with_capacity(HASH_CHARS), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn disk(error: std::io::Error) -> BlobError {
    if error.kind() == std::io::ErrorKind::StorageFull { BlobError::Full(error) } else { BlobError::Disk(error) }
}

fn store(error: object_store::Error) -> BlobError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::StorageFull
        {
            return BlobError::Full(std::io::Error::from(io.kind()));
        }
        cause = current.source();
    }
    BlobError::Store(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_payloads_come_back_and_a_flipped_bit_is_found() {
        // RELIABILITY I10, F26
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().into(), 8).unwrap();
        let call = CallId(7);
        let small = blobs.keep(call, "in-0", Format::Json, Bytes::from_static(b"12345678")).await.unwrap();
        assert_eq!(small, Payload::json(&b"12345678"[..]));
        let large = blobs.keep(call, "in-1", Format::Json, Bytes::from_static(b"123456789")).await.unwrap();
        assert_eq!(blobs.fetch(&large).await.unwrap(), Bytes::from_static(b"123456789"));
        let Body::Blob(blob) = &large.body else { panic!("it is large") };
        let file = folder.path().join(&*blob.name);
        std::fs::write(&file, b"12345678x").unwrap();
        assert!(matches!(blobs.fetch(&large).await, Err(BlobError::Damaged(_))));
        // Bytes with the same checksum are not the same bytes.
        std::fs::write(&file, b"987654321").unwrap();
        let forged = Blob { crc32c: crc32c::crc32c(b"987654321"), ..blob.clone() };
        assert!(matches!(
            blobs.fetch(&Payload { format: Format::Json, body: Body::Blob(forged) }).await,
            Err(BlobError::Damaged(_))
        ));
        assert_eq!(blobs.calls().unwrap(), [call]);
        blobs.forget(call).await.unwrap();
        assert!(blobs.calls().unwrap().is_empty());
    }
}
