//! The store's mark: which format it has, and over how many shards it spreads.

use super::{Etcd, EtcdConfig};
use crate::store::StoreError;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use serde::{Deserialize, Serialize};

/// The format that this version writes.
const FORMAT: u32 = 1;

/// What the mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// The format of all that lies there.
    pub format: u32,
    /// Functions are spread over so many shards.
    pub shards: u16,
}

impl Format {
    /// Reads the mark, or makes it where nothing lies yet. A prefix that others use, and a store of a newer version, are
    /// refused and left as they are.
    pub fn settle(etcd: &Etcd, config: &EtcdConfig) -> Result<Self, StoreError> {
        if let Some(found) = Self::read(etcd, config)? {
            return Ok(found);
        }
        let others = etcd.get("", Some(GetOptions::new().with_prefix().with_limit(1).with_keys_only()))?;
        if let Some(other) = others.first() {
            // Another scheduler may have made it a moment ago.
            if let Some(found) = Self::read(etcd, config)? {
                return Ok(found);
            }
            let name = String::from_utf8_lossy(other.key()).into_owned();
            return Err(StoreError::Damaged(format!(
                "etcd has `{name}` under the prefix `{}`, and no Capstan store: give another etcd.prefix",
                config.prefix
            )));
        }
        let mark = Self { format: FORMAT, shards: config.shards };
        let (key, value) = (etcd.key("format"), serde_json::to_vec(&mark).unwrap_or_default());
        let none = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
        etcd.txn(Txn::new().when([none]).and_then([TxnOp::put(key, value, None)]))?;
        // Another scheduler may have been first.
        Self::read(etcd, config)?.ok_or_else(|| StoreError::Damaged("the store's mark is gone".into()))
    }

    fn read(etcd: &Etcd, config: &EtcdConfig) -> Result<Option<Self>, StoreError> {
        let found = etcd.get("format", None)?;
        let Some(value) = found.first().map(|kv| kv.value()) else { return Ok(None) };
        let mark: Self = serde_json::from_slice(value).map_err(|_| {
            StoreError::Damaged(format!("`{}format` in etcd is not a Capstan store's mark", config.prefix))
        })?;
        if mark.format > FORMAT {
            return Err(StoreError::Newer(format!("the store in etcd under {}", config.prefix), mark.format, FORMAT));
        }
        Ok(Some(mark))
    }
}
