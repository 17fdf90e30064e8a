//! A machine that hosts containers, as users see it.

use serde::{Deserialize, Serialize};

/// Whether a worker takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Takes containers.
    Ready,
    /// Takes no new ones; running inputs finish.
    Draining,
    /// Silent; its containers are neither used nor given up.
    Unreachable,
}

/// The ports of containers' servers: below those that Linux uses for outgoing connections by default
/// (`ip_local_port_range`), so that the kernel gives them to nobody by itself.
pub const PORTS: std::ops::RangeInclusive<u16> = 20_000..=32_000;
/// The longest name of a worker, in bytes.
pub const NAME_MAX: usize = 128;

/// Whether a worker may have this name: it stands in keys, certificates, addresses and metrics.
pub fn is_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(fine)
}
