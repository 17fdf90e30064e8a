//! A function's numbers, and why things are as they are.

use crate::container::ContainerState;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap};

/// A function's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Stats {
    /// Inputs that wait.
    pub backlog: u64,
    /// Inputs held by containers.
    pub running: u64,
    /// Containers by state.
    #[cfg_attr(feature = "schema", schema(value_type = BTreeMap<String, u32>, example = json!({"starting": 0, "idle": 1, "busy": 2, "draining": 0})))]
    pub containers: BTreeMap<ContainerState, u32>,
    /// Containers wanted.
    pub desired: u32,
    /// Outcomes that came after their lease had ended.
    pub late_outcomes: u64,
}

/// The numbers behind a scale decision; the formula is
/// `min(max, max(min, ceil((running + pending) / slots) + (buffer if active)))` (SPEC §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Facts {
    /// Inputs waiting, for a container or a retry.
    pub pending: u64,
    /// Inputs held by containers.
    pub running: u64,
    /// Inputs a container is meant to take.
    pub slots: u64,
    /// Lower bound in force.
    pub min: u32,
    /// Upper bound in force.
    pub max: u32,
    /// Buffer in force, 0 while the function is inactive.
    pub buffer: u32,
    /// Containers ordered and not ready.
    pub starting: u32,
    /// Containers ready or starting.
    pub live: u32,
}

/// Why an input waits: the closed list of RELIABILITY L2, with the sentence that an operator reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Waiting {
    /// The stable code.
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "max_containers"))]
    pub code: Cow<'static, str>,
    /// What would release it.
    pub detail: String,
}

impl Waiting {
    /// A code and its sentence.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code: code.into(), detail: detail.into() }
    }
}
