//! Events: what a core is told.

use crate::{
    decision::{Choice, Waiting},
    function::ZeroRule,
    record::Segment,
};
use capstan_common::{
    call::CallKind,
    container::{Ending, Phase},
    function::{FunctionSpec, OverridesPatch},
    gpu::GpuRequest,
    id::{CallId, ContainerId, LeaseId, RequestId, WorkerId},
    input::Payload,
    report::{Done, Held},
    resource::Amount,
    time::Time,
};
use std::sync::Arc;

/// What happens to a function.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new revision.
    Deploy {
        /// What it runs.
        spec: Arc<FunctionSpec>,
        /// Whether it takes over at once, and not when its first container is ready.
        at_once: bool,
    },
    /// The function is to go; pending inputs end as cancelled.
    Remove,
    /// Dynamic settings change.
    Patch(OverridesPatch),
    /// The schedule pauses, or goes on.
    Pause(bool),
    /// What the scale-to-zero configuration says of the function's model.
    Ruled(ZeroRule),
    /// A container's server that is not ready was looked at.
    Looked {
        /// Which.
        container: ContainerId,
        /// Where, and what was found.
        detail: Arc<str>,
    },
    /// A container's own counter of requests was read.
    Counted {
        /// Of which container.
        container: ContainerId,
        /// What it shows.
        value: u64,
    },
    /// A Prometheus server was asked how many requests the model had in its retention.
    Asked(Requests),
    /// The store has room for what runs alone, or for everything again.
    StoreFull(bool),
    /// An instance is about to be used.
    Touch,
    /// A client opens a call.
    Open(Box<Opening>),
    /// More inputs of an open map.
    Arrive {
        /// Which map.
        call: CallId,
        /// Its next inputs.
        payloads: Vec<Payload>,
    },
    /// An open map has all its inputs.
    Close {
        /// Which map.
        call: CallId,
    },
    /// A map's client has taken outcomes: there is room for as many inputs.
    Collect {
        /// Which map.
        call: CallId,
        /// How many.
        count: u64,
    },
    /// Ends a call: what waits is dropped, what runs is interrupted.
    Cancel {
        /// Which call.
        call: CallId,
    },
    /// A call's client went away: what waits is dropped, what runs may end.
    Abandon {
        /// Which call.
        call: CallId,
    },
    /// A segment that was asked for.
    Loaded {
        /// Of which call.
        call: CallId,
        /// Which segment.
        number: u32,
        /// Its inputs.
        payloads: Vec<Payload>,
    },
    /// A segment that was asked for cannot be read.
    Unreadable {
        /// Of which call.
        call: CallId,
        /// Which segment.
        number: u32,
        /// Why.
        why: Arc<str>,
    },
    /// Single calls that were asked for.
    Fetched(Vec<Fetched>),
    /// A request through `/web` comes.
    Enter {
        /// Which.
        request: RequestId,
    },
    /// A request through `/web` is over, or its client has gone.
    Leave {
        /// Which.
        request: RequestId,
        /// Whether it ran past its time-out: its server may still work on it.
        spoilt: bool,
    },
    /// The autoscaler gives a place for a container.
    Granted {
        /// The container's id.
        container: ContainerId,
        /// Where.
        worker: WorkerId,
        /// What it takes there.
        amount: Amount,
        /// The GPUs that it gets there, as it asked for them.
        gpu: Option<GpuRequest>,
        /// Why there.
        chosen: Choice,
    },
    /// The autoscaler cannot place what is missing.
    Unplaced(Waiting),
    /// Others wait: give up containers.
    GiveWay {
        /// On which worker; `None` wherever they are.
        worker: Option<WorkerId>,
        /// How many.
        count: u32,
        /// Whether containers with work are meant too: they finish it and take nothing new.
        busy: bool,
    },
    /// The worker did not admit a container.
    Refused {
        /// Which.
        container: ContainerId,
        /// Why.
        reason: Arc<str>,
    },
    /// A container's process exists.
    Spawned {
        /// Which.
        container: ContainerId,
        /// From the order's arrival to the process, in microseconds.
        spawn_us: u64,
    },
    /// A container takes inputs.
    Ready {
        /// Which.
        container: ContainerId,
        /// Timed parts of its start on the worker.
        phases: Vec<Phase>,
        /// Where its server listens on the worker; 0 if it is none.
        port: u16,
    },
    /// Attempts ended.
    Finished {
        /// In which container.
        container: ContainerId,
        /// How.
        done: Vec<Done>,
    },
    /// Attempts came back without having begun.
    Returned {
        /// From which container.
        container: ContainerId,
        /// Which.
        leases: Vec<LeaseId>,
        /// Whether the container takes nothing more.
        closed: bool,
    },
    /// A container is gone.
    Ended {
        /// Which.
        container: ContainerId,
        /// How.
        ending: Ending,
        /// Attempts that had begun in it.
        begun: Vec<LeaseId>,
    },
    /// A worker told what it holds of this function.
    Inventory {
        /// Which worker.
        worker: WorkerId,
        /// All that it holds of this function.
        held: Vec<Held>,
    },
    /// A worker is lost, with all it held.
    WorkerLost {
        /// Which.
        worker: WorkerId,
    },
    /// All workers known from before a restart have spoken, or had their time.
    Settled,
    /// An operator stops a container.
    StopContainer {
        /// Which.
        container: ContainerId,
    },
    /// A worker is drained: its idle containers stop, busy ones finish.
    DrainWorker {
        /// Which.
        worker: WorkerId,
    },
    /// The time that `next_alarm` named has come.
    Alarm,
}

/// What a Prometheus server knows of a model's requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Requests {
    /// So many.
    Counted(f64),
    /// It has no such series.
    Missing,
    /// It did not answer, or not in a way that can be read.
    Unknown,
}

/// A single call, read back from the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// Its id.
    pub call: CallId,
    /// When it was accepted.
    pub created: Time,
    /// W3C trace context of its request.
    pub traceparent: Arc<str>,
    /// Its input, or why it cannot be read.
    pub payload: Result<Payload, Arc<str>>,
}

/// A client opens a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    /// Its id, minted by the shell.
    pub call: CallId,
    /// The verb.
    pub kind: CallKind,
    /// What it brings.
    pub inputs: Inputs,
    /// W3C trace context, empty where there is none.
    pub traceparent: Arc<str>,
    /// The client's key and the digest of what it sent.
    pub key: Option<(String, [u8; 32])>,
    /// Maps: what the first error does to the rest.
    pub fail_fast: FailFast,
    /// Maps: outputs are not wanted, only how each input ended.
    pub discard_outputs: bool,
}

/// What a failed input of a map does to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailFast {
    /// Nothing.
    #[default]
    No,
    /// All of them end as cancelled.
    AtOnce,
    /// Those behind it end as cancelled; those before it end by themselves, so that whoever reads in order gets them.
    InOrder,
}

/// What a call brings at its opening.
#[derive(Debug, Clone, PartialEq)]
pub enum Inputs {
    /// Here they are.
    Here(Vec<Payload>),
    /// They are in the store, packed.
    Stored(Vec<Segment>),
    /// They come later, by `Arrive`.
    Later,
}
