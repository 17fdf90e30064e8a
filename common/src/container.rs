//! A running instance of a function, as users see it.

use serde::{Deserialize, Serialize};

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Ordered, not yet ready.
    Starting,
    /// Ready, without work.
    Idle,
    /// Ready, with work.
    Busy,
    /// Takes nothing new, finishes what it has, then stops.
    Draining,
}

/// One timed part of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name: `decide`, `order`, `spawn`, `ready`.
    pub name: String,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Ending {
    /// Its exit code, where it had one.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel ended it for want of memory.
    pub oom: bool,
    /// Whether Capstan ended it, not the program itself.
    pub ordered: bool,
    /// Why, in words.
    pub reason: String,
    /// The end of its output.
    pub tail: String,
}

impl Ending {
    /// One line: reason, exit code or signal, and the end of its output.
    pub fn sentence(&self) -> String {
        let mut text = self.reason.clone();
        if self.oom {
            text.push_str(", out of memory");
        } else if let Some(code) = self.exit_code {
            text.push_str(&format!(", exit code {code}"));
        } else if let Some(signal) = self.signal {
            text.push_str(&format!(", signal {signal}"));
        }
        if !self.tail.trim().is_empty() {
            text.push_str(&format!("; last output: {}", self.tail.trim_end()));
        }
        text
    }
}
