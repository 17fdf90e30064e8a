//! What etcd knows of schedulers and shards: members and owners, each on a lease, and epochs that only rise.

use capstan_common::{
    id::{Epoch, Shard},
    time::Time,
};
use capstan_scheduler_core::autoscaler::Summary;
use std::collections::BTreeMap;

/// How long a scheduler's keys outlive its last sign of life.
pub const LEASE_MS: u64 = 2_000;

/// A scheduler's lease: of which life of it, and until when it holds.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// Whose.
    pub life: u32,
    /// It ends then, unless it is renewed.
    pub until: Time,
}

/// etcd's keys.
pub struct Keys {
    /// How many shards there are.
    pub shards: u16,
    /// Schedulers that hold a lease.
    pub leases: BTreeMap<usize, Lease>,
    /// Schedulers that are members; one that leaves is none any more before its lease ends.
    pub members: BTreeMap<usize, u32>,
    /// Who owns what, and since which epoch.
    pub owners: BTreeMap<Shard, (usize, Epoch)>,
    /// The store takes nothing new before that (NOSPACE); leases are kept all the same.
    pub full_until: Time,
    /// What schedulers tell each other of namespaces.
    pub spaces: BTreeMap<usize, Summary>,
    last: u64,
}

impl Keys {
    /// Nobody is there.
    pub fn new(shards: u16) -> Self {
        Self {
            shards,
            leases: BTreeMap::new(),
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            full_until: Time(0),
            spaces: BTreeMap::new(),
            last: 0,
        }
    }

    /// A number above all that were given before.
    pub fn epoch(&mut self) -> Epoch {
        self.last += 1;
        Epoch(self.last)
    }

    /// Takes a shard that nobody owns.
    pub fn acquire(&mut self, scheduler: usize, life: u32, shard: Shard) -> Option<Epoch> {
        let leased = self.leases.get(&scheduler).is_some_and(|lease| lease.life == life);
        if !leased || self.owners.contains_key(&shard) {
            return None;
        }
        let epoch = self.epoch();
        self.owners.insert(shard, (scheduler, epoch));
        Some(epoch)
    }

    /// The fence: whether a write of this epoch counts.
    pub fn holds(&self, shard: Shard, epoch: Epoch) -> bool {
        self.owners.get(&shard).is_some_and(|(_, current)| *current == epoch)
    }

    /// Everything that hangs on a scheduler's lease is gone.
    pub fn revoke(&mut self, scheduler: usize) {
        self.leases.remove(&scheduler);
        self.members.remove(&scheduler);
        self.spaces.remove(&scheduler);
        self.owners.retain(|_, (owner, _)| *owner != scheduler);
    }
}
