//! One unit of work of a call, and its end.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// An input or output: bytes, and what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Payload {
    /// What its bytes are. A door renders what it knows and refuses the rest by name; a protocol feeds what its program reads.
    pub format: Format,
    /// The bytes.
    pub body: Body,
}

/// What a payload's bytes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Format {
    /// One JSON value on one line.
    #[default]
    Json = 0,
    /// Python's pickle: only a program that trusts whoever wrote it reads it.
    Pickle = 1,
    /// One CBOR item (RFC 8949).
    Cbor = 2,
}

impl Format {
    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Pickle => "pickle",
            Self::Cbor => "cbor",
        }
    }

    /// The format with this number, if there is one.
    pub fn from_number(n: u32) -> Option<Self> {
        [Self::Json, Self::Pickle, Self::Cbor].into_iter().find(|format| *format as u32 == n)
    }
}

/// Where a payload's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Here.
    Inline(Bytes),
    /// In the blob store.
    Blob(Blob),
}

/// A payload as the store has it. The first two are all that there was before payloads had formats: JSON is still written so, and
/// read by versions that know nothing else.
#[derive(Serialize, Deserialize)]
enum Written {
    Inline(Bytes),
    Blob(Blob),
    InlineAs(Format, Bytes),
    BlobAs(Format, Blob),
}

impl From<Payload> for Written {
    fn from(Payload { format, body }: Payload) -> Self {
        match (format, body) {
            (Format::Json, Body::Inline(bytes)) => Self::Inline(bytes),
            (Format::Json, Body::Blob(blob)) => Self::Blob(blob),
            (format, Body::Inline(bytes)) => Self::InlineAs(format, bytes),
            (format, Body::Blob(blob)) => Self::BlobAs(format, blob),
        }
    }
}

impl From<Written> for Payload {
    fn from(written: Written) -> Self {
        let (format, body) = match written {
            Written::Inline(bytes) => (Format::Json, Body::Inline(bytes)),
            Written::Blob(blob) => (Format::Json, Body::Blob(blob)),
            Written::InlineAs(format, bytes) => (format, Body::Inline(bytes)),
            Written::BlobAs(format, blob) => (format, Body::Blob(blob)),
        };
        Self { format, body }
    }
}

impl Payload {
    /// JSON that is here.
    pub fn json(bytes: impl Into<Bytes>) -> Self {
        Self { format: Format::Json, body: Body::Inline(bytes.into()) }
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match &self.body {
            Body::Inline(bytes) => bytes.len() as u64,
            Body::Blob(blob) => blob.len,
        }
    }

    /// Bytes of it that are held in memory.
    pub fn held(&self) -> u64 {
        match &self.body {
            Body::Inline(bytes) => bytes.len() as u64,
            Body::Blob(_) => 0,
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
