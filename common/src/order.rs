//! What a scheduler tells a worker.

use crate::{
    container_spec::ContainerSpec,
    id::{CallId, ContainerId, Epoch, FunctionKey, LeaseId, Revision, Shard},
    input::Payload,
    resource::Amount,
};
use std::{collections::BTreeMap, sync::Arc};

/// Imperatives, scheduler to worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// From now on the sender owns this shard: only its orders count there, and its reports go to it. Answered by an inventory.
    Own {
        /// Which.
        shard: Shard,
        /// Of how many.
        shards: u16,
        /// The owner's fencing number: a lower one than was seen before is not obeyed.
        epoch: Epoch,
    },
    /// Start a container.
    Start(Start),
    /// All schedulers: the worker keeps a link to each.
    Peers {
        /// Where they take links.
        links: Vec<String>,
    },
    /// Give a container inputs.
    Feed {
        /// Which container.
        container: ContainerId,
        /// What travels together: single inputs or batches.
        groups: Vec<Group>,
    },
    /// Interrupt these attempts; no outcome is wanted.
    Abort {
        /// Which container.
        container: ContainerId,
        /// Which of its attempts.
        leases: Vec<LeaseId>,
    },
    /// Stop a container, politely and then not.
    Stop {
        /// Which container.
        container: ContainerId,
        /// Milliseconds between TERM and KILL.
        grace_ms: u32,
        /// Why, for its log.
        reason: String,
    },
    /// These outcomes are durable (or no longer wanted): forget them.
    Recorded {
        /// Which container.
        container: ContainerId,
        /// Whose outcomes.
        leases: Vec<LeaseId>,
    },
}

/// The variable that names a file with the authority that signed the scheduler's certificate. In an order it has what that holds.
pub const AUTHORITY: &str = "CAPSTAN_CA";

/// A container to start.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// Its id.
    pub container: ContainerId,
    /// Of which function.
    pub function: FunctionKey,
    /// Of which revision.
    pub revision: Revision,
    /// What it is.
    pub spec: Arc<ContainerSpec>,
    /// How many of the worker's GPUs it gets.
    pub gpus: u32,
    /// What its programs find in their environment besides, unless the spec says otherwise.
    pub env: BTreeMap<String, String>,
}

impl Start {
    /// What the container takes from its worker.
    pub fn amount(&self) -> Amount {
        self.spec.amount(self.gpus)
    }
}

/// Inputs that reach the program together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// One, or a batch's.
    pub assignments: Vec<Assignment>,
    /// Whether the program gets a list.
    pub batch: bool,
}

/// One attempt of an input, given to a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// The attempt's fencing number.
    pub lease: LeaseId,
    /// The input's call.
    pub call: CallId,
    /// The input's place in its call.
    pub index: u64,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// The input.
    pub payload: Payload,
    /// W3C trace context, empty where there is none.
    pub traceparent: Arc<str>,
}
