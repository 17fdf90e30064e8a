//! Decisions as values: what was decided, when, why, and the numbers behind it.

pub use capstan_common::stats::{Facts, Waiting};

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
