//! Owning a shard: a key on the owner's lease, whose create revision is the fence of every write (RELIABILITY §3.2).

use super::{Etcd, Session, Trouble};
use crate::store::StoreError;
use capstan_common::id::Epoch;
use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp};
use std::sync::Arc;

/// How often the key is looked at before it is given up.
const LOOKS: usize = 8;

/// A shard that was taken.
pub struct Ownership {
    etcd: Arc<Etcd>,
    /// The full name of the key of ownership.
    key: String,
    /// The key's create revision.
    fence: i64,
    /// How often the shard was taken, for numbers that no other owner mints.
    pub epoch: Epoch,
}

impl Ownership {
    /// Takes a shard that nobody owns; `InUse` while it has an owner. What counts is what the key says, not what the transaction
    /// answered: an answer may be lost.
    pub fn take(etcd: &Arc<Etcd>, session: &Session, shard: u16, owner: &str) -> Result<Self, StoreError> {
        let (own, epoch) = (format!("own/{shard:04x}"), format!("epoch/{shard:04x}"));
        let claim = serde_json::json!({"scheduler": owner, "session": session.lease()}).to_string();
        let key = etcd.key(&own);
        for _ in 0..LOOKS {
            if session.is_lost() {
                return Err(StoreError::Lost);
            }
            let before = etcd.get(&epoch, None)?;
            let number: u64 = before.first().and_then(|kv| kv.value_str().ok()?.parse().ok()).unwrap_or(0);
            let revision = before.first().map_or(0, KeyValue::mod_revision);
            if let Some(found) = etcd.get(&own, None)?.first() {
                if found.value() == claim.as_bytes() && found.lease() == session.lease() {
                    let fence = found.create_revision();
                    return Ok(Self { etcd: etcd.clone(), key, fence, epoch: Epoch(number) });
                }
                let whose = String::from_utf8_lossy(found.value()).into_owned();
                return Err(StoreError::InUse(format!("shard {shard} ({whose})")));
            }
            let free = [
                Compare::create_revision(key.clone(), CompareOp::Equal, 0),
                Compare::mod_revision(etcd.key(&epoch), CompareOp::Equal, revision),
            ];
            let lease = PutOptions::new().with_lease(session.lease());
            let take = [
                TxnOp::put(key.clone(), claim.as_str(), Some(lease)),
                TxnOp::put(etcd.key(&epoch), (number + 1).to_string(), None),
            ];
            // Whether it was done or not, the next look says.
            match etcd.txn(Txn::new().when(free).and_then(take)) {
                Ok(_) | Err(Trouble::Unknown(_)) => {}
                Err(trouble) => return Err(trouble.into()),
            }
        }
        Err(StoreError::Read(std::io::Error::other("etcd does not say who owns the shard")))
    }

    /// Makes the next owner's number higher than `known`, if the shard is still ours. Whether it was done.
    pub fn raise(&self, shard: u16, known: Epoch) -> Result<bool, StoreError> {
        let put = TxnOp::put(self.etcd.key(&format!("epoch/{shard:04x}")), known.0.to_string(), None);
        Ok(self.etcd.txn(Txn::new().when([self.holds()]).and_then([put]))?.succeeded())
    }

    /// The fence: no transaction without it.
    pub fn holds(&self) -> Compare {
        Compare::create_revision(self.key.clone(), CompareOp::Equal, self.fence)
    }

    /// Reads the key, for transactions that did not get past the fence.
    pub fn look(&self) -> TxnOp {
        TxnOp::get(self.key.clone(), None)
    }

    /// Whether a key that was read so is still ours.
    pub fn is_ours(&self, found: Option<&KeyValue>) -> bool {
        found.is_some_and(|own| own.create_revision() == self.fence)
    }

    /// Gives the shard up: the next owner need not wait for the lease's end.
    pub fn release(&self) {
        let delete = TxnOp::delete(self.key.clone(), None);
        // Otherwise it falls with the lease.
        let _ = self.etcd.txn(Txn::new().when([self.holds()]).and_then([delete]));
    }
}
