//! Bodies that are not a verb's own.

use capstan_common::refusal::{Code, FieldError};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Why something was refused (RFC 9457).
#[derive(ToSchema)]
#[expect(dead_code, reason = "written field by field where it is answered; here only its shape counts")]
pub struct Problem {
    /// `urn:capstan:` and the code.
    r#type: String,
    /// The code in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What was wrong, the limit, the value, and what to do next.
    detail: String,
    /// The stable code.
    code: Code,
    /// The fields that are wrong, where fields are.
    #[schema(required = false, nullable = false)]
    errors: Option<Vec<FieldError>>,
    /// The function's own error.
    #[schema(required = false)]
    error: Option<FunctionError>,
}

/// How an input failed.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
pub struct FunctionError {
    /// The stable code, like `function_failed`.
    #[schema(required = false, nullable = false)]
    code: Option<String>,
    /// The error's type, as the function named it.
    #[schema(required = false, nullable = false)]
    r#type: Option<String>,
    /// What it says.
    #[schema(required = false, nullable = false)]
    message: Option<String>,
    /// Where in the function it was raised.
    #[schema(required = false)]
    traceback: Option<String>,
    /// Why the inputs waited when the request was given up (503, 504).
    #[schema(required = false)]
    waiting: Option<capstan_common::stats::Waiting>,
}

/// How one input ended.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
pub struct ResultLine {
    /// Its place in the call; a line without one tells that the stream itself ended early.
    #[schema(required = false, nullable = false)]
    index: Option<u64>,
    /// Its output, where it succeeded.
    #[schema(required = false)]
    output: Option<Value>,
    /// How it failed, where it did.
    #[schema(required = false, nullable = false)]
    error: Option<FunctionError>,
    /// What the output is, where it is not JSON.
    #[schema(required = false, nullable = false)]
    format: Option<String>,
    /// How long that is.
    #[schema(required = false, nullable = false)]
    bytes: Option<u64>,
    /// Where the next page begins; of results only.
    #[schema(required = false, nullable = false)]
    cursor: Option<String>,
}

/// A call of many inputs that was made.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
pub struct SpawnedMap {
    /// Its id.
    #[schema(example = "ca-019c3f1d2e3a7b4c8d5e6f708192a3b4")]
    call_id: String,
    /// How many inputs it has.
    inputs: u64,
}

/// A recorded input of an ended call, a web request, or a start.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
pub struct TraceLine {
    /// When it came, in seconds since 1970.
    at: f64,
    /// How long it ran.
    #[schema(required = false, nullable = false)]
    run_ms: Option<f64>,
}

/// Whether the process is well.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
pub struct Health {
    /// `ok` or `ready`.
    status: String,
}

/// A secret's variables: taken, and never told.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
#[serde(deny_unknown_fields)]
pub struct SecretValues {
    /// Variables by name (`[A-Za-z_][A-Za-z0-9_]{0,127}`).
    values: BTreeMap<String, String>,
}

/// Which revision is wanted.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
#[serde(deny_unknown_fields)]
pub struct WantedRevision {
    /// Its number; null: the one before the live one.
    #[schema(required = false, minimum = 1)]
    revision: Option<u32>,
}

/// A namespace's part of a full cluster, and its bounds.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its part of a full cluster, against other namespaces' weights.
    #[schema(minimum = 1, maximum = 1000, default = 1, required = false)]
    weight: Option<u32>,
    /// Bounds that hold also where there is room.
    #[schema(required = false, nullable = false)]
    quota: Option<WrittenQuota>,
}

/// The most that all containers of a namespace may take; null is no bound.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
#[serde(deny_unknown_fields)]
pub struct WrittenQuota {
    /// Containers.
    containers: Option<u32>,
    /// Cores.
    #[schema(minimum = 0, maximum = 1000000)]
    cpu: Option<f64>,
    /// Mebibytes of memory.
    memory_mib: Option<u64>,
    /// GPUs.
    gpus: Option<u32>,
}

/// Entries by key: `default` for all models, any other key for one model. An entry is an object with `model_id`, `namespace`,
/// `enable_scale_to_zero` and `retention_period` (a Go duration: `30s`, `5m`, `1h30m`), or the same as YAML text. What of an entry
/// cannot be read does not hold, and is told as it was put.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its shape counts")]
pub struct ScaleToZeroConfig(BTreeMap<String, Value>);
