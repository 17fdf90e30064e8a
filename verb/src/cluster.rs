//! Schedulers and workers.

use crate::Done;
use capstan_common::{
    gpu::Gpu,
    id::{ContainerId, WorkerId},
    isolation::Level,
    resource::Amount,
    worker::WorkerState,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use utoipa::ToSchema;

/// All schedulers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedulers {}

/// What software answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {}

/// What software answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Version)]
pub struct VersionView {
    /// Its version.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// The commit that it was made of; empty where that was not known.
    pub revision: String,
    /// The interface that it serves.
    #[schema(example = "v1")]
    pub api: String,
    /// Versions of the link to workers that it speaks.
    pub link: LinkVersions,
}

/// A range of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkVersions {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

/// All workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workers {}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its name.
    pub name: String,
}

/// Places nothing more on a worker, or places again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnWorker {
    /// Its name.
    pub name: String,
    /// `draining` or `ready`.
    pub state: WorkerState,
}

/// A worker's certificate is not good any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeWorker {
    /// Its name.
    pub name: String,
}

/// Makes a token that lets one worker join.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {}

/// A worker whose certificate was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Revoked)]
pub struct RevokedView {
    /// Its name.
    pub id: String,
    /// True.
    pub revoked: bool,
    /// Whether it was known.
    pub known: bool,
}

/// A token that lets one worker join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Invitation)]
pub struct InvitationView {
    /// The token.
    pub join_token: String,
    /// How long it is good, in seconds.
    pub good_for_s: u32,
}

/// How many nodes hold what all functions want and have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredNodes {
    /// How large a node is; as the largest worker, if it is not said.
    #[serde(default)]
    pub node: Option<Amount>,
}

/// A number of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Nodes)]
pub struct NodesView {
    /// So many.
    pub nodes: u64,
}

/// Schedulers by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Schedulers)]
pub struct SchedulersView {
    /// Those that are there.
    pub schedulers: Vec<SchedulerView>,
    /// Functions are spread over so many shards.
    pub shards: u16,
}

/// A scheduler as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Scheduler)]
pub struct SchedulerView {
    /// Its name.
    pub name: String,
    /// Where others reach its REST interface; null if it is alone.
    pub url: Option<String>,
    /// Where workers dial in; null if it is alone.
    pub link: Option<String>,
    /// Where it serves KEDA to others, if it does.
    pub keda: Option<String>,
    /// Its software's version.
    pub version: String,
    /// Shards that it owns.
    pub shards: Vec<u16>,
    /// Whether it is the one that answers.
    pub answers: bool,
}

/// Workers by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Workers)]
pub struct WorkersView {
    /// Those that have joined.
    pub workers: Vec<WorkerView>,
}

/// A worker as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Worker)]
pub struct WorkerView {
    /// Its name.
    pub id: WorkerId,
    /// The same.
    pub name: WorkerId,
    /// Where servers of its containers are reached.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its state.
    pub state: WorkerState,
    /// All that it has.
    pub capacity: AmountView,
    /// What of that no container has.
    pub free: AmountView,
    /// Its containers, of all schedulers' functions.
    #[schema(value_type = Vec<String>)]
    pub containers: Vec<ContainerId>,
    /// Its software's version.
    pub version: String,
    /// How it enforces limits, in words.
    pub limits: String,
    /// How far it keeps functions apart.
    pub isolation: Level,
    /// What it does not keep apart.
    pub not_kept_apart: Vec<String>,
    /// When it last joined.
    #[schema(format = DateTime)]
    pub joined_at: String,
    /// Its links break again and again; until then it gets work only where no other has room.
    #[schema(format = DateTime)]
    pub flaps_until: Option<String>,
}

/// What a worker has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Amount)]
pub struct AmountView {
    /// Cores.
    pub cpu: f64,
    /// Mebibytes of memory.
    pub memory_mib: u64,
    /// GPUs.
    pub gpus: Vec<Gpu>,
}

/// Workers that several schedulers tell of: each knows the containers of its own functions there.
fn merged(all: impl IntoIterator<Item = WorkerView>) -> Vec<WorkerView> {
    let mut by_name = BTreeMap::<WorkerId, WorkerView>::new();
    for worker in all {
        match by_name.get_mut(&worker.id) {
            Some(known) => {
                let new = worker.containers.into_iter().filter(|id| !known.containers.contains(id));
                let new: Vec<ContainerId> = new.collect();
                known.containers.extend(new);
            }
            None => drop(by_name.insert(worker.id.clone(), worker)),
        }
    }
    by_name.into_values().collect()
}

impl TurnWorker {
    /// Done as soon as it is done here; the others hear of it at once, and of what they missed a moment later.
    pub(crate) fn gather(&self, answers: Vec<Done>) -> Option<Done> {
        answers.first().copied()
    }
}

impl Workers {
    /// Workers with what all schedulers have on them.
    pub(crate) fn gather(self, answers: Vec<WorkersView>) -> Option<WorkersView> {
        Some(WorkersView { workers: merged(answers.into_iter().flat_map(|answer| answer.workers)) })
    }
}

impl Worker {
    /// The worker with what all schedulers have on it.
    pub(crate) fn gather(&self, answers: Vec<WorkerView>) -> Option<WorkerView> {
        merged(answers).into_iter().next()
    }
}
