//! A machine that hosts containers, as users see it.

use serde::{Deserialize, Serialize};

/// Whether a worker takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Takes containers.
    Ready,
    /// Takes no new ones; running inputs finish.
    Draining,
    /// Silent; its containers are neither used nor given up.
    Unreachable,
}
