//! What a node is told, and what it asks of its shell.

use bytes::Bytes;
use capstan_common::{
    container::{Ending, Phase},
    id::{ContainerId, LeaseId, LinkId},
    input::{Failure, Payload},
    order::{Assignment, Order, Start},
    report::Report,
};
use std::sync::Arc;

/// What happens to a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A link broke.
    Parted {
        /// Which.
        link: LinkId,
    },
    /// A scheduler orders.
    Ordered {
        /// By its link.
        link: LinkId,
        /// What.
        order: Order,
    },
    /// A container's process exists.
    Spawned {
        /// Which.
        container: ContainerId,
        /// Its process.
        pid: u32,
    },
    /// A container takes inputs.
    Ready {
        /// Which.
        container: ContainerId,
        /// The timed parts of its start, after the spawn.
        phases: Vec<Phase>,
        /// Where its server listens; 0 if it is none.
        port: u16,
    },
    /// A container's server that is not ready was looked at.
    Looked {
        /// Which.
        container: ContainerId,
        /// Where, and what was found.
        detail: String,
    },
    /// A container's own counter of requests was read.
    Counted {
        /// Which.
        container: ContainerId,
        /// What it shows.
        value: u64,
    },
    /// A group of inputs ended.
    Worked {
        /// In which container.
        container: ContainerId,
        /// The group's first lease.
        group: LeaseId,
        /// How each input ended, by lease.
        results: Vec<(LeaseId, Result<Payload, Failure>)>,
        /// From begin to end, in microseconds.
        run_us: u64,
    },
    /// A container wrote output.
    Wrote {
        /// Which.
        container: ContainerId,
        /// To standard error, else standard output.
        stderr: bool,
        /// What.
        chunk: Bytes,
        /// Bytes left out before it.
        dropped: u64,
    },
    /// A container is gone.
    Exited {
        /// Which.
        container: ContainerId,
        /// How.
        ending: Ending,
    },
    /// The worker ends: nothing new begins, what runs may end, and containers without work stop.
    Drain,
    /// The time for that is over: everything stops now. Nobody is told: what was cut off runs again elsewhere.
    Shutdown,
    /// The time that `next_alarm` named has come.
    Alarm,
}

/// What the node asks of its shell.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Start a container.
    Launch {
        /// Which.
        start: Start,
        /// The GPUs that are its alone, by their ids.
        gpus: Vec<Arc<str>>,
    },
    /// Let a container work on a group.
    Run {
        /// Which.
        container: ContainerId,
        /// The group's first lease.
        group: LeaseId,
        /// Its inputs.
        assignments: Vec<Assignment>,
        /// Whether the program gets a list.
        batch: bool,
    },
    /// Interrupt a group; its results are not wanted.
    Interrupt {
        /// In which container.
        container: ContainerId,
        /// The group's first lease.
        group: LeaseId,
    },
    /// Stop a container: TERM, and KILL after the grace.
    Terminate {
        /// Which.
        container: ContainerId,
        /// Milliseconds between TERM and KILL.
        grace_ms: u32,
        /// Why.
        reason: String,
    },
    /// Tell the scheduler at this link.
    Tell(LinkId, Report),
}
