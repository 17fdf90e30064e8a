//! The limits of the REST contract; each is configurable.

use serde::{Deserialize, Serialize};

/// How much a function takes (SPEC M), and how patient it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Inputs from invoke and map that wait for a container, a function.
    pub pending_interactive: u64,
    /// Inputs from spawn and spawn_map that wait, a function.
    pub pending_background: u64,
    /// Inputs from invoke and map that wait or run, a function.
    pub total_interactive: u64,
    /// Inputs of one map that run at once.
    pub map_running: u32,
    /// Inputs of one map that are on their way in any form: credited, waiting, running, or ended and not yet read.
    pub map_window: u64,
    /// Single calls from spawn of a function that wait in memory; those behind them stay in the store.
    pub spawn_head: usize,
    /// Bytes of waiting inputs of a function that are kept in memory, about; what is behind them stays in the store.
    pub head_bytes: usize,
    /// Instances of a function, with different values of its parameters, at one time.
    pub instances: usize,
    /// How long an instance without work and references is kept.
    pub instance_idle_ms: u64,
    /// Functions of a namespace, of those that one scheduler owns.
    pub functions_per_namespace: usize,
    /// Bytes of their specs together.
    pub spec_bytes_per_namespace: usize,
    /// Idempotency keys of a token that are remembered at one time.
    pub keys_per_token: usize,
    /// Containers of a function that sets no maximum itself.
    pub system_max_containers: u32,
    /// A pool whose surplus is more than so many times what is wanted is far too large.
    pub overprovision_factor: u32,
    /// One that is far too large for so long gives up its surplus before the scaledown window has passed.
    pub overprovision_ms: u64,
    /// Start waves in a row that may fail before waiting inputs fail with them.
    pub start_tries: u32,
    /// The pause after the first failed start; it doubles.
    pub start_backoff_ms: u64,
    /// The longest pause between failed starts.
    pub start_backoff_max_ms: u64,
    /// The shortest pause before a retry (SPEC §2.3).
    pub retry_floor_ms: u64,
    /// How often an input may be lost with its container or worker, without its own fault.
    pub losses: u32,
    /// Milliseconds between TERM and KILL.
    pub stop_grace_ms: u32,
    /// How long results are kept after the call ends.
    pub retention_s: u64,
    /// How long an idempotency key is remembered.
    pub idempotency_s: u64,
    /// How long a recovered owner waits for known workers before it re-runs what they may hold.
    pub adopt_grace_ms: u64,
    /// The planted fault; 0 is none.
    #[cfg(feature = "mutants")]
    #[serde(skip)]
    pub mutant: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_interactive: 2_000,
            pending_background: 1_000_000,
            total_interactive: 25_000,
            map_running: 1_000,
            map_window: 4_000,
            spawn_head: 2_048,
            head_bytes: 16 << 20,
            instances: 1_000,
            instance_idle_ms: 60_000,
            functions_per_namespace: 100_000,
            spec_bytes_per_namespace: 64 << 20,
            keys_per_token: 100_000,
            system_max_containers: 1_000,
            overprovision_factor: 4,
            overprovision_ms: 30_000,
            start_tries: 3,
            start_backoff_ms: 1_000,
            start_backoff_max_ms: 60_000,
            retry_floor_ms: 1_000,
            losses: 20,
            stop_grace_ms: 5_000,
            retention_s: 7 * 24 * 3600,
            idempotency_s: 24 * 3600,
            adopt_grace_ms: 2_500,
            #[cfg(feature = "mutants")]
            mutant: 0,
        }
    }
}
