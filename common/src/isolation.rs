//! How far a worker keeps functions apart from each other, from itself and from the machine.

use serde::{Deserialize, Serialize};

/// How much is kept apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(as = IsolationLevel))]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing: functions are the worker's user and see what it sees.
    #[default]
    None,
    /// Something: what is not is listed.
    Partial,
    /// Users, files, processes, memory, environments.
    Strict,
}

impl Level {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partial => "partial",
            Self::Strict => "strict",
        }
    }
}

/// What a worker keeps apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// How much.
    pub level: Level,
    /// What is not, and why, in words.
    pub not_kept_apart: Vec<String>,
    /// Whether trusted functions run here as the worker's user.
    pub trusts: bool,
}

/// What a function needs of a worker's isolation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// Any worker will do.
    #[default]
    Nothing,
    /// Everything kept apart: whoever deployed it may have that namespace and nothing else.
    Strict,
    /// A worker that runs trusted functions as its own user.
    Trust,
}

impl Needs {
    /// What cannot be had, as a reason why no worker will do.
    pub fn lacking(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Strict => {
                "no worker keeps functions wholly apart, as one needs that was deployed with a token of some namespaces"
            }
            Self::Trust => "no worker runs trusted functions: worker.trust_functions=true lets one",
        }
    }
}

/// What a worker's isolation is good for, as placement sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ground {
    /// Whether everything is kept apart.
    pub strict: bool,
    /// Whether trusted functions run there.
    pub trusts: bool,
}

impl Ground {
    /// Whether a function with these needs may be there.
    pub fn takes(self, needs: Needs) -> bool {
        match needs {
            Needs::Nothing => true,
            Needs::Strict => self.strict,
            Needs::Trust => self.trusts,
        }
    }
}

impl Isolation {
    /// What it is good for.
    pub fn ground(&self) -> Ground {
        Ground { strict: self.level == Level::Strict, trusts: self.trusts }
    }

    /// In one line.
    pub fn describe(&self) -> String {
        match self.level {
            Level::Strict => {
                "strict: each namespace's functions are a user of their own and see nothing of the others".into()
            }
            level => format!("{}; not kept apart: {}", level.name(), self.not_kept_apart.join("; ")),
        }
    }
}
