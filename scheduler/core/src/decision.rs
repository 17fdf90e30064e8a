//! Decisions as values: what was decided, when, why, and the numbers behind it.

use capstan_common::time::Time;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A scale decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub at: Time,
    /// Containers wanted before.
    pub from: u32,
    /// Containers wanted now.
    pub to: u32,
    /// Why.
    pub reason: Cow<'static, str>,
    /// The numbers behind it.
    pub facts: Facts,
}

/// The numbers behind a scale decision; the formula is
/// `min(max, max(min, ceil((running + pending) / slots) + (buffer if active)))` (SPEC §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// Why a container went to its worker and to no other: the rule of placement that decided (DESIGN §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It had the most free CPU of those without GPUs.
    MostFreeCpu,
    /// Only workers with GPUs had room.
    BesideGpus,
    /// Of those with the card that is named it had the fewest free.
    FewestGpus,
    /// None with the card that is named had room; it has a better one, which the wish allows.
    BetterGpu,
    /// None had room for what the function prefers.
    LaterPreference,
    /// Its links break again and again, and no steady worker had room.
    Unsteady,
}

impl Choice {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::MostFreeCpu => "most_free_cpu",
            Self::BesideGpus => "beside_gpus",
            Self::FewestGpus => "fewest_gpus",
            Self::BetterGpu => "better_gpu",
            Self::LaterPreference => "later_preference",
            Self::Unsteady => "unsteady",
        }
    }

    /// What an operator reads.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::MostFreeCpu => "of the workers without GPUs that have room it had the most free CPU",
            Self::BesideGpus => {
                "only workers with GPUs had room, which are left to functions that ask for GPUs where that can be"
            }
            Self::FewestGpus => {
                "of the workers with that GPU it had the fewest free: whole machines stay free for who asks for many"
            }
            Self::BetterGpu => "no worker with the GPU that is named had room, and it has a better one",
            Self::LaterPreference => "no worker had room for the GPUs that the function prefers",
            Self::Unsteady => "no worker had room whose links hold; those of this one break again and again",
        }
    }
}

/// Why an input waits: the closed list of RELIABILITY L2, with the sentence that an operator reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// The stable code.
    pub code: &'static str,
    /// What would release it.
    pub detail: String,
}

impl Waiting {
    /// A code and its sentence.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}
