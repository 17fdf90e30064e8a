//! Actors: thin shells that stamp time, move messages and call one core method.

pub mod alarm;
pub mod autoscaler;
pub mod committer;
pub mod function;
pub mod prometheus;
pub mod registry;
pub mod watch;
