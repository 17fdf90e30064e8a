//! Runtimes: how a container becomes processes, and how they end without leaving any behind.

pub mod cgroup;
pub mod keeper;
pub mod output;
pub mod port;
pub mod process;
pub mod sim;
pub mod tree;
