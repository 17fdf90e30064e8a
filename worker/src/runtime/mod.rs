//! Runtimes: how a container becomes processes, and how they end without leaving any behind.

pub mod cgroup;
pub mod first;
pub mod gpu;
pub mod init;
pub mod isolation;
pub mod keeper;
pub mod obstacle;
pub mod output;
pub mod owner;
pub mod port;
pub mod process;
pub mod program;
pub mod served;
pub mod sim;
pub mod tree;
pub mod volume;

/// Becomes one of the helpers that a worker starts of its own program, if the command line asks for it. Every binary that
/// starts a worker calls this first.
pub fn become_helper_if_asked() {
    init::run_if_asked();
    keeper::run_if_asked();
    volume::run_if_asked();
    gpu::run_if_asked();
    first::step_aside_if_first();
}
