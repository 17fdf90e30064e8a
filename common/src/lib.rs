//! The vocabulary of Capstan: values that scheduler, worker and command line share.
//!
//! This crate defines, converts and validates values. It decides nothing, mints no ids and knows no clock.

pub mod activity;
pub mod call;
pub mod container;
pub mod container_spec;
pub mod function;
pub mod gpu;
pub mod id;
pub mod identity;
pub mod input;
pub mod isolation;
pub mod order;
pub mod parameter;
pub mod profile;
pub mod refusal;
pub mod report;
pub mod resource;
pub mod schedule;
#[cfg(feature = "schema")]
mod schema;
pub mod settings;
pub mod stats;
pub mod time;
pub mod trace;
#[cfg(feature = "users")]
pub mod users;
pub mod validate;
#[cfg(feature = "wire")]
pub mod wire;
pub mod worker;
