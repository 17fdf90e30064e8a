//! A client's request: its kind, its counts and its state.

use serde::{Deserialize, Serialize};

/// Which verb made the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallKind {
    /// One input, the client waits.
    Invoke,
    /// One input, the client does not wait.
    Spawn,
    /// A stream of inputs, the client reads the outputs.
    Map,
    /// Many inputs, the client does not wait.
    SpawnMap,
}

impl CallKind {
    /// Whether a client waits for it: then the limits of invoke and map hold, else those of spawn.
    pub fn is_interactive(self) -> bool {
        matches!(self, Self::Invoke | Self::Map)
    }
}

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// Nothing of it has begun.
    Pending,
    /// Some of it has begun.
    Running,
    /// All its inputs succeeded.
    Succeeded,
    /// At least one input failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// How many inputs of a call are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Counts {
    /// All known so far.
    pub total: u64,
    /// Waiting, for a container or for a retry.
    pub pending: u64,
    /// Held by a container.
    pub running: u64,
    /// Ended with an output.
    pub succeeded: u64,
    /// Ended with an error.
    pub failed: u64,
    /// Ended by a cancel.
    pub cancelled: u64,
}

impl Counts {
    /// How many have ended.
    pub fn ended(&self) -> u64 {
        self.succeeded + self.failed + self.cancelled
    }
}
