//! Requests that reach containers past Capstan, and how they are counted.

use crate::time::Seconds;
use serde::{Deserialize, Serialize};

/// How requests are counted that pass Capstan by: by a counter in the containers' own Prometheus metrics, or in those of a
/// Prometheus server (SPEC P02, V04).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Activity {
    /// Who is asked.
    #[serde(default)]
    pub source: ActivitySource,
    /// Where a container answers with its metrics.
    #[serde(default = "metrics_path")]
    #[cfg_attr(feature = "schema", schema(default = "/metrics"))]
    pub path: String,
    /// The counter's name; all its series are added up.
    #[serde(default = "vllm_requests")]
    #[cfg_attr(feature = "schema", schema(default = "vllm:request_success_total"))]
    pub counter: String,
    /// How often it is read.
    #[serde(default = "five_seconds")]
    #[cfg_attr(feature = "schema", schema(value_type = f64, minimum = 1, maximum = 3600, default = 5))]
    pub interval_s: Seconds,
    /// What it means that a Prometheus server has no such series.
    #[serde(default)]
    pub on_missing: OnMissing,
}

/// Who tells of requests that pass Capstan by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ActivitySource {
    /// Each container itself.
    #[default]
    Container,
    /// The scheduler's `prometheus_url`, by namespace and `model_id`.
    Prometheus,
}

/// What a missing series means (SPEC D9).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnMissing {
    /// Nothing is known: the container stays.
    #[default]
    Keep,
    /// There were no requests.
    Zero,
}

fn metrics_path() -> String {
    "/metrics".into()
}
fn vllm_requests() -> String {
    "vllm:request_success_total".into()
}
fn five_seconds() -> Seconds {
    Seconds::whole(5)
}
