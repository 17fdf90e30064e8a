//! The store's mark: which format it has, and over how many shards it spreads. Schedulers write what the mark allows; it rises
//! when every member is new enough (DESIGN law 15), and a scheduler of an older version does not come in any more.

use super::{Etcd, EtcdConfig};
use crate::store::StoreError;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp};
use serde::{Deserialize, Serialize};

/// The newest format that this version knows. 2: payloads say what they are, and not all are JSON.
pub const FORMAT: u32 = 2;

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

    /// Raises the mark to the newest format, once every scheduler knows it: `known` says so of those that were seen. A scheduler
    /// that came since then stops the raise. Answers whether the mark is the newest now.
    ///
    /// # Errors
    /// The store is of a newer version by now, or does not answer.
    pub fn raise(etcd: &Etcd, config: &EtcdConfig, known: impl Fn(&[u8]) -> bool) -> Result<bool, StoreError> {
        let mark = Self::read(etcd, config)?.ok_or_else(|| StoreError::Damaged("the store's mark is gone".into()))?;
        if mark.format == FORMAT {
            return Ok(true);
        }
        let members = etcd.get("members/", Some(GetOptions::new().with_prefix()))?;
        if members.is_empty() || !members.iter().all(|member| known(member.value())) {
            return Ok(false);
        }
        let latest = members.iter().map(KeyValue::mod_revision).max().unwrap_or_default();
        let raised = Self { format: FORMAT, ..mark.clone() };
        let json = |mark: &Self| serde_json::to_vec(mark).unwrap_or_default();
        let (key, members) = (etcd.key("format"), etcd.key("members/"));
        let same = Compare::value(key.clone(), CompareOp::Equal, json(&mark));
        let nobody_new = Compare::mod_revision(members, CompareOp::Less, latest + 1).with_prefix();
        let put = TxnOp::put(key, json(&raised), None);
        Ok(etcd.txn(Txn::new().when([same, nobody_new]).and_then([put]))?.succeeded())
    }

    /// The mark, if there is one.
    ///
    /// # Errors
    /// It is of a newer version, or none of ours.
    pub fn read(etcd: &Etcd, config: &EtcdConfig) -> Result<Option<Self>, StoreError> {
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
