//! The scheduler: shells around the pure core of `capstan-scheduler-core`.
//!
//! `rest` speaks HTTP and knows only `api`; `api` finds a function's actor; actors stamp time and call one core method;
//! the committer makes records durable; links carry orders and reports to and from workers.

pub mod access;
pub mod actor;
pub mod api;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod folder;
pub mod function_token;
pub mod global;
pub mod keda;
pub mod link;
mod peer;
pub mod rest;
pub mod route;
pub mod secrets;
pub mod server;
pub mod shard;
pub mod store;
mod strangers;
pub mod telemetry;
pub mod tls;
pub mod zero_config;
