//! What a scheduler knows of the others, as etcd last told.

use capstan_common::id::Shard;
use capstan_scheduler_core::ownership::Member;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{PoisonError, RwLock},
};

/// Where a scheduler is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its REST interface, like `http://10.0.0.1:7070`.
    pub rest: String,
    /// Where workers dial in, like `10.0.0.1:7071`.
    pub link: String,
    /// Where it serves KEDA to others, like `10.0.0.1:7072`; empty if it does not.
    #[serde(default)]
    pub keda: String,
    /// Its software's version.
    pub version: String,
    /// The newest format of the store that it knows.
    #[serde(default = "first_format")]
    pub format: u32,
}

/// Schedulers that say nothing of it know the first one.
fn first_format() -> u32 {
    1
}

/// Who is there, and who owns what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// All schedulers by name, this one included.
    pub members: BTreeMap<Member, Peer>,
    /// Owners by shard.
    pub owners: BTreeMap<Shard, Member>,
}

impl Seen {
    /// Their names.
    pub fn names(&self) -> BTreeSet<Member> {
        self.members.keys().cloned().collect()
    }
}

/// What one scheduler sees of its cluster. Without others it sees nothing.
#[derive(Debug)]
pub struct View {
    me: Member,
    seen: RwLock<Seen>,
}

impl View {
    /// Nobody yet.
    pub fn of(me: &str) -> Self {
        Self { me: me.into(), seen: RwLock::default() }
    }

    /// This scheduler's name.
    pub fn me(&self) -> &Member {
        &self.me
    }

    /// All that is seen.
    pub fn seen(&self) -> Seen {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this is news.
    pub fn see(&self, seen: Seen) -> bool {
        let mut before = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let news = *before != seen;
        *before = seen;
        news
    }

    /// The other scheduler that owns a shard.
    pub fn owner(&self, shard: Shard) -> Option<Peer> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let owner = seen.owners.get(&shard).filter(|owner| **owner != self.me)?;
        seen.members.get(owner).cloned()
    }

    /// Where this one is reached.
    pub fn own(&self) -> Option<Peer> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).members.get(&self.me).cloned()
    }

    /// All other schedulers.
    pub fn peers(&self) -> Vec<Peer> {
        self.named_peers().into_iter().map(|(_, peer)| peer).collect()
    }

    /// All other schedulers, by name.
    pub fn named_peers(&self) -> Vec<(Member, Peer)> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let others = seen.members.iter().filter(|(name, _)| **name != self.me);
        others.map(|(name, peer)| (name.clone(), peer.clone())).collect()
    }

    /// Where workers dial in, at every scheduler.
    pub fn links(&self) -> Vec<String> {
        self.seen
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .members
            .values()
            .map(|peer| peer.link.clone())
            .collect()
    }
}
