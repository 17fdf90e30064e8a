//! Effects and promises: what must now be done, at once or once the records are durable.

use crate::record::Entry;
use capstan_common::{
    call::CallState,
    container::Phase,
    gpu::GpuRequest,
    id::{CallId, ContainerId, FunctionKey, LeaseId, RequestId, WorkerId},
    isolation::Needs,
    order::Order,
    refusal::Refusal,
    resource::Amount,
    time::Time,
};
use std::sync::Arc;

/// To be done at once.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Tell a worker.
    Order(WorkerId, Order),
    /// Tell the autoscaler what the pool lacks.
    Demand(Demand),
    /// Tell the autoscaler that a container's place is free.
    Release(ContainerId),
    /// Tell the autoscaler of a container that was there already.
    Hold {
        /// Which.
        container: ContainerId,
        /// Where.
        worker: WorkerId,
        /// What it takes there.
        amount: Amount,
    },
    /// Read a segment and answer with `Loaded`.
    Load {
        /// Of which call.
        call: CallId,
        /// Which segment.
        number: u32,
    },
    /// A map may send so many more inputs.
    Credit {
        /// Which map.
        call: CallId,
        /// How many more.
        count: u64,
    },
    /// A request through `/web` has a slot.
    Admit {
        /// Which request.
        request: RequestId,
        /// In which container.
        container: ContainerId,
        /// On which worker.
        worker: WorkerId,
        /// Where the container's server listens there.
        port: u16,
    },
    /// A request through `/web` has no container, or none any more.
    Expel {
        /// Which request.
        request: RequestId,
        /// What its client is told, if nothing was answered yet.
        why: Box<Refusal>,
    },
    /// Ask the Prometheus server how many requests the model had within so many milliseconds, and answer with `Asked`.
    AskRequests {
        /// The model's retention.
        within_ms: u64,
    },
    /// A container became ready, for metrics and traces.
    Started {
        /// Which.
        container: ContainerId,
        /// When the decision fell.
        decided: Time,
        /// The timed parts of its start.
        phases: Vec<Phase>,
    },
    /// Something an operator may want to see.
    Notice(Notice),
}

/// What a function's pool wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Whose.
    pub function: FunctionKey,
    /// Containers that it lacks.
    pub missing: u32,
    /// Grants that it has seen so far: those under way count against `missing`.
    pub grants_seen: u64,
    /// What one container asks of a worker; of GPUs the fewest that it would be content with.
    pub amount: Amount,
    /// GPUs by preference.
    pub gpus: Vec<GpuRequest>,
    /// What it needs of a worker's isolation.
    pub needs: Needs,
    /// Idle containers above the minimum, which could give way.
    pub spare: u32,
    /// Containers that take nothing new and will leave.
    pub leaving: u32,
    /// Containers that are never taken away.
    pub min: u32,
    /// What the function weighs against others of its namespace.
    pub weight: u32,
}

/// Something an operator may want to see.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// An attempt's outcome came after its lease had ended, and was dropped.
    LateOutcome {
        /// Whose.
        lease: LeaseId,
    },
    /// A container died before it was ready.
    StartFailed {
        /// Which.
        container: ContainerId,
        /// How.
        detail: String,
    },
    /// A container ended.
    ContainerEnded {
        /// Which.
        container: ContainerId,
        /// How.
        detail: String,
    },
    /// Scaling was decided.
    Scaled {
        /// Containers wanted before.
        from: u32,
        /// Containers wanted now.
        to: u32,
        /// The decision's reason.
        reason: &'static str,
    },
}

/// To be done once all records up to here are durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Promise {
    /// Tell the client that the call is accepted.
    Accepted {
        /// Which call.
        call: CallId,
    },
    /// Read single calls and answer with `Fetched`: what is durable can be read.
    Fetch {
        /// Which.
        calls: Vec<CallId>,
    },
    /// Tell whoever waits how inputs ended.
    Settled {
        /// Of which call.
        call: CallId,
        /// How they ended.
        entries: Arc<Vec<Entry>>,
    },
    /// Tell whoever waits that the call ended.
    Closed {
        /// Which call.
        call: CallId,
        /// How.
        state: CallState,
    },
    /// Tell a worker that it may forget outcomes.
    Recorded {
        /// Which worker.
        worker: WorkerId,
        /// Of which container.
        container: ContainerId,
        /// Whose outcomes.
        leases: Vec<LeaseId>,
    },
}

/// What one step asks of its shell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// To be made durable, in this order.
    pub records: Vec<crate::record::Record>,
    /// To be done at once, in this order.
    pub effects: Vec<Effect>,
    /// To be done once `records` are durable.
    pub promises: Vec<Promise>,
    /// Whether someone waits for the records; if not, they may ride with the next ones.
    pub urgent: bool,
}
