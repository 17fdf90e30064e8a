//! What a worker tells its scheduler.

use crate::{
    container::{Ending, Phase},
    gpu::Gpu,
    id::{CallId, ContainerId, Epoch, FunctionKey, LeaseId, Revision, Shard},
    input::{Failure, Payload},
    isolation::Isolation,
    resource::Amount,
};
use bytes::Bytes;
use std::{net::IpAddr, ops::RangeInclusive};

/// Facts, worker to scheduler.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// First on every stream: who it is, and what it has.
    Hello(Hello),
    /// What it holds of a shard, for its new owner.
    Inventory {
        /// Which shard.
        shard: Shard,
        /// Its containers of the shard's functions: all, or a page of them.
        held: Vec<Held>,
        /// Whether further pages follow.
        more: bool,
    },
    /// Somebody with a higher number owns the shard: whoever said so last is not obeyed.
    Outranked {
        /// Which shard.
        shard: Shard,
        /// The owner's number.
        epoch: Epoch,
    },
    /// A start was not admitted.
    Refused {
        /// Which container.
        container: ContainerId,
        /// Why.
        reason: String,
    },
    /// The container's process exists.
    Spawned {
        /// Which container.
        container: ContainerId,
        /// Its process.
        pid: u32,
        /// From the order's arrival to the process, in microseconds.
        spawn_us: u64,
    },
    /// The container takes inputs.
    Ready {
        /// Which container.
        container: ContainerId,
        /// The timed parts of its start on the worker.
        phases: Vec<Phase>,
        /// Where its server listens on the worker; 0 if it is none.
        port: u16,
    },
    /// A container's server that is not ready was looked at.
    Looked {
        /// Which container.
        container: ContainerId,
        /// Where, and what was found.
        detail: String,
    },
    /// The container's own counter of requests was read.
    Counted {
        /// Which container.
        container: ContainerId,
        /// What it shows.
        value: u64,
    },
    /// Attempts ended.
    Finished {
        /// Which container.
        container: ContainerId,
        /// How.
        done: Vec<Done>,
    },
    /// Attempts given back, not begun.
    Returned {
        /// Which container.
        container: ContainerId,
        /// Which attempts.
        leases: Vec<LeaseId>,
        /// Why.
        reason: String,
        /// Whether the container takes nothing more.
        closed: bool,
    },
    /// The container is gone, with all it held.
    Ended {
        /// Which container.
        container: ContainerId,
        /// How.
        ending: Ending,
        /// Attempts that had begun in it.
        begun: Vec<LeaseId>,
    },
    /// Some of its output.
    Log {
        /// Which container.
        container: ContainerId,
        /// Standard error, else standard output.
        stderr: bool,
        /// Whole lines where possible.
        chunk: Bytes,
        /// Bytes left out before this chunk because there were too many.
        dropped: u64,
    },
    /// Still there.
    Beat {
        /// Counts up.
        sequence: u64,
        /// What containers of other schedulers' shards take.
        others: Amount,
        /// GPUs that no container has.
        free_gpus: Vec<String>,
    },
}

/// A worker's introduction.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// Versions of the link's protocol that it speaks.
    pub protocols: RangeInclusive<u32>,
    /// The worker's name.
    pub worker: String,
    /// All that it has.
    pub capacity: Amount,
    /// Its GPUs, all of one model: as many as `capacity` counts.
    pub gpus: Vec<Gpu>,
    /// The software's version.
    pub version: String,
    /// How it enforces limits, in words.
    pub limits: String,
    /// Which life of the worker this is: another one of the same name is another worker, or its next life.
    pub instance: String,
    /// What its folder of large payloads is known by, empty if it has no name; `None` where none is used.
    pub store: Option<String>,
    /// Where others reach its containers; `None`: where the link comes from.
    pub host: Option<IpAddr>,
    /// How far it keeps functions apart.
    pub isolation: Isolation,
}

/// One container of an inventory.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Its id.
    pub container: ContainerId,
    /// Of which function.
    pub function: FunctionKey,
    /// Of which revision.
    pub revision: Revision,
    /// Whether it takes inputs.
    pub ready: bool,
    /// Whether its process has ended, and only outcomes are left of it.
    pub gone: bool,
    /// Where its server listens on the worker; 0 if it is none, or not known yet.
    pub port: u16,
    /// How many of the worker's GPUs it has.
    pub gpus: u32,
    /// Attempts that it holds.
    pub running: Vec<HeldAttempt>,
    /// Outcomes that are not known to be durable.
    pub finished: Vec<Done>,
}

/// An attempt that a container holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldAttempt {
    /// The attempt's fencing number.
    pub lease: LeaseId,
    /// The input's call.
    pub call: CallId,
    /// The input's place in its call.
    pub index: u64,
    /// Which try this is, from 1.
    pub attempt: u32,
}

/// One ended attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// Which attempt.
    pub held: HeldAttempt,
    /// From its arrival at the worker to its begin, in microseconds.
    pub waited_us: u64,
    /// From begin to end, in microseconds.
    pub run_us: u64,
    /// Output or error.
    pub result: Result<Payload, Failure>,
}
