//! What the autoscaler is told, and what it asks of its shell.

use super::{Policy, Summary};
use crate::{
    decision::{Choice, Waiting},
    effect::Demand,
    ownership::Member,
};
use capstan_common::{
    gpu::GpuRequest,
    id::{ContainerId, FunctionKey, WorkerId},
    isolation::Ground,
    resource::Amount,
    time::Time,
    worker::WorkerState,
};
use std::{collections::BTreeMap, sync::Arc};

/// What the autoscaler is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker is there, with all that it has.
    Joined {
        /// Which.
        worker: WorkerId,
        /// What it has.
        capacity: Amount,
        /// The model of its GPUs; empty if it has none.
        gpu: Arc<str>,
        /// What its isolation is good for.
        ground: Ground,
        /// Whether it takes containers.
        state: WorkerState,
        /// Whether its links break again and again.
        flaps: bool,
    },
    /// A worker's state changed.
    Turned {
        /// Which.
        worker: WorkerId,
        /// To what.
        state: WorkerState,
    },
    /// A worker's links break again and again, or do so no more.
    Flaps {
        /// Which.
        worker: WorkerId,
        /// Whether they do.
        flaps: bool,
    },
    /// A worker is lost. Its containers are released one by one by their functions.
    Lost {
        /// Which.
        worker: WorkerId,
    },
    /// What a pool wants now.
    Wanted(Demand),
    /// A function is gone.
    Forgotten(FunctionKey),
    /// A function has another owner now, and its containers with it.
    Left(FunctionKey),
    /// What containers of other owners take on a worker.
    Others {
        /// Which.
        worker: WorkerId,
        /// What they take.
        amount: Amount,
    },
    /// What the other schedulers of the cluster hold and lack.
    Elsewhere {
        /// Who this scheduler is.
        me: Member,
        /// When it looked.
        now: Time,
        /// What each of the others told last.
        told: BTreeMap<Member, Summary>,
    },
    /// A namespace's weight and quota.
    Governed {
        /// Which.
        namespace: Arc<str>,
        /// What holds from now on.
        policy: Policy,
    },
    /// A container was adopted.
    Held {
        /// Which.
        container: ContainerId,
        /// Of which function.
        function: FunctionKey,
        /// Where.
        worker: WorkerId,
        /// What it takes there.
        amount: Amount,
    },
    /// A container's place is free.
    Released(ContainerId),
}

/// What the autoscaler asks of its shell.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// A pool may start a container there.
    Grant {
        /// Whose.
        function: FunctionKey,
        /// The container's id.
        container: ContainerId,
        /// Where.
        worker: WorkerId,
        /// What it takes there.
        amount: Amount,
        /// The GPUs that it gets, as it asked for them.
        gpu: Option<GpuRequest>,
        /// Why there.
        chosen: Choice,
    },
    /// A pool's demand cannot be placed.
    Unplaced {
        /// Whose.
        function: FunctionKey,
        /// Why.
        why: Waiting,
    },
    /// A pool should give up containers.
    GiveWay {
        /// Whose.
        function: FunctionKey,
        /// On which worker; `None` wherever they are.
        worker: Option<WorkerId>,
        /// How many.
        count: u32,
        /// Whether containers with work are meant too: they finish it and take nothing new.
        busy: bool,
    },
}
