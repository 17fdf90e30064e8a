//! What tests share: the real binary, started and stopped, and a client of its interface.

pub mod bench;
pub mod cluster;
pub mod etcd;
pub mod mutate;
pub mod probes;
pub mod raw;
pub mod real;
pub mod spec;
pub mod stays;
pub mod world;
