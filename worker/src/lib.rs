//! The worker: shells around the pure core of `capstan-worker-core`.
//!
//! The node's actor owns the core; a link carries orders and reports; runtimes start real processes; protocols bring them inputs.

pub mod actor;
pub mod config;
pub mod doctor;
pub mod protocol;
pub mod runtime;
pub mod tls;

pub use actor::{Address, Dial, Worker, start};
pub use runtime::become_helper_if_asked;
