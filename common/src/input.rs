//! One unit of work of a call, and its end.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The bytes of an input or output: JSON, here or in the blob store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// The bytes themselves.
    Inline(Bytes),
    /// Where the blob store has them.
    Blob(Blob),
}

impl Payload {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blob(blob) => blob.len,
        }
    }

    /// Bytes of it that are held in memory.
    pub fn held(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blob(_) => 0,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A payload in the blob store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its path there.
    pub name: Arc<str>,
    /// Its length in bytes.
    pub len: u64,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
}

/// How an input ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// With an output.
    Succeeded(Payload),
    /// With an error.
    Failed(Failure),
    /// By a cancel, before it ended by itself.
    Cancelled,
}

impl Outcome {
    /// Whether it has an output.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Succeeded(_))
    }
}

/// What kind of failure an attempt ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FailureKind {
    /// The function's own error.
    Function = 0,
    /// It ran past its time-out.
    Timeout = 1,
    /// No container of it would start.
    Startup = 2,
    /// Its container ended while it ran.
    Crashed = 3,
    /// Its output was not acceptable: not JSON, not a list of the batch's length, or too large.
    BadOutput = 4,
    /// It was lost with its container or worker more often than the bound allows.
    Lost = 5,
}

impl FailureKind {
    /// The kind with this number; an unknown one is the function's own.
    pub fn from_number(n: u32) -> Self {
        match n {
            1 => Self::Timeout,
            2 => Self::Startup,
            3 => Self::Crashed,
            4 => Self::BadOutput,
            5 => Self::Lost,
            _ => Self::Function,
        }
    }

    /// The stable text in answers.
    pub fn code(self) -> &'static str {
        match self {
            Self::Function => "function_failed",
            Self::Timeout => "function_timeout",
            Self::Startup => "startup_failed",
            Self::Crashed => "container_crashed",
            Self::BadOutput => "bad_output",
            Self::Lost => "attempts_lost",
        }
    }
}

/// An attempt's error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// The error's type, as the function named it.
    #[serde(rename = "type")]
    pub error_type: String,
    /// What it says.
    pub message: String,
    /// Where it came from; empty where unknown.
    #[serde(default)]
    pub traceback: String,
}

/// Bytes of a failure's message, and of its traceback, that are kept.
pub const FAILURE_BYTES: usize = 16 << 10;
/// Bytes of an error's type that are kept.
const TYPE_BYTES: usize = 256;

/// The end of a text, at most so many bytes: there errors say what matters.
pub fn end_of(text: &str, most: usize) -> &str {
    let start = text.len().saturating_sub(most);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[start..]
}

impl Failure {
    /// The same with at most so many bytes of message and of traceback, and a type that is none longer than a name. A
    /// function, or a worker, may write anything here, and it is kept, sent and shown many times.
    #[must_use]
    pub fn bounded(mut self, most: usize) -> Self {
        if self.error_type.len() > TYPE_BYTES {
            let end = (0..=TYPE_BYTES).rev().find(|at| self.error_type.is_char_boundary(*at)).unwrap_or(0);
            self.error_type.truncate(end);
        }
        for text in [&mut self.message, &mut self.traceback] {
            if text.len() > most {
                *text = end_of(text, most).to_owned();
            }
        }
        self
    }

    /// A failure named by Capstan itself.
    pub fn new(kind: FailureKind, error_type: &str, message: impl Into<String>) -> Self {
        Self { kind, error_type: error_type.into(), message: message.into(), traceback: String::new() }
    }
}
