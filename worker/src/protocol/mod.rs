//! Protocols: how an input reaches a program and its output comes back.

pub mod activity;
mod attempt;
pub mod exec;
pub mod http;
pub mod slots;

use bytes::Bytes;
use capstan_blob::Blobs;
use capstan_common::{
    id::{CallId, LeaseId},
    input::{FAILURE_BYTES, Failure, FailureKind, Format, Payload},
    order::Assignment,
};

/// How each input of a group ended, by lease.
pub type Results = Vec<(LeaseId, Result<Payload, Failure>)>;

/// Bytes of text that all failures of one group have together.
const GROUP_BYTES: usize = 1 << 20;

/// The same failure for every input of a group; each has its own copy, so that in a large group less of it is kept.
pub fn all_failed(leases: &[LeaseId], failure: &Failure) -> Results {
    let most = (GROUP_BYTES / leases.len().max(1)).min(FAILURE_BYTES);
    let failure = failure.clone().bounded(most);
    leases.iter().map(|lease| (*lease, Err(failure.clone()))).collect()
}

/// JSON on one line, as lines of NDJSON need it. A line end outside of strings is only space, and in strings there is none.
pub fn one_line(json: Bytes) -> Bytes {
    if !json.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return json;
    }
    let spaced = json.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte });
    spaced.collect::<Vec<u8>>().into()
}

/// The failure of an attempt that ran too long.
pub fn timed_out(timeout_ms: u64) -> Failure {
    let seconds = timeout_ms as f64 / 1000.0;
    Failure::new(
        FailureKind::Timeout,
        "FunctionTimeout",
        format!("the attempt ran longer than timeout_s ({seconds} s)"),
    )
}

/// An output too large to be an output.
pub fn too_large(limit: usize) -> Failure {
    Failure::new(FailureKind::BadOutput, "OutputTooLarge", format!("the output has more than {limit} bytes"))
}

/// Keeps an output, in the blob store if it is large. The lease makes the blob's name unique: a late attempt overwrites nothing.
pub async fn keep(blobs: &Blobs, call: CallId, index: u64, lease: LeaseId, bytes: Bytes) -> Result<Payload, Failure> {
    let kept = blobs.keep(call, &format!("out-{index}-{:x}", lease.0), Format::Json, bytes).await;
    kept.map_err(|error| Failure::new(FailureKind::BadOutput, "OutputNotKept", error.to_string()))
}

/// An input's bytes.
pub async fn input(blobs: &Blobs, assignment: &Assignment) -> Result<Bytes, Failure> {
    if assignment.payload.format != Format::Json {
        let written = assignment.payload.format.name();
        let what = format!("the input is {written}, and this function's protocol takes JSON");
        return Err(Failure::new(FailureKind::Function, "UnsupportedFormat", what));
    }
    let fetched = blobs.fetch(&assignment.payload).await;
    fetched.map_err(|error| Failure::new(FailureKind::Lost, "InputNotReadable", error.to_string()))
}
