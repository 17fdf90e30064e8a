//! What containers write: pages of it, from a place on.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use capstan_common::id::ContainerId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use utoipa::ToSchema;

/// Which part of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What came behind this place.
    #[serde(default)]
    pub after: u64,
    /// What came since then, in milliseconds since 1970.
    #[serde(default)]
    pub since_ms: u64,
    /// So many milliseconds are waited for something to come.
    #[serde(default)]
    pub wait_ms: u64,
}

/// A page of output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LogPage)]
pub struct LogsView {
    /// In the order in which it came.
    pub chunks: Vec<Chunk>,
    /// Where the next page begins.
    pub next: u64,
    /// Whether there is more already.
    pub has_more: bool,
    /// Whether nothing more will come.
    pub ended: bool,
}

/// Some bytes that a container wrote; lines may go on in the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LogChunk)]
pub struct Chunk {
    /// Which container.
    #[schema(value_type = String)]
    pub container: ContainerId,
    /// When they came, in milliseconds since 1970.
    pub at_ms: u64,
    /// In base64.
    #[schema(value_type = String)]
    #[serde(serialize_with = "write", deserialize_with = "read")]
    pub bytes: Bytes,
}

fn write<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&BASE64_STANDARD.encode(bytes))
}

fn read<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(d)?;
    BASE64_STANDARD.decode(text).map(Bytes::from).map_err(D::Error::custom)
}
