//! An init for each exec slot and each server: it has namespaces of its own, becomes the function's user, and starts what the
//! worker tells it over a socket. Its end is the end of everything that it started.
//!
//! The way to one: the worker asks its *launcher* (a small process with one thread, of which a copy is made in no time); the copy
//! enters the container's cgroup and makes the namespaces; its child is process 1 in them, mounts what the function may see, gives
//! up all rights, and listens. No namespace is made for an input.
//!
//! What an init says is what its function says: it runs as the function's user. Its words are bounded where they arrive, and no
//! deadline rests on it: the worker holds a descriptor of the process itself and can always kill it.

mod birth;
mod launcher;
mod serve;
mod slot;
mod view;
mod wire;

pub use launcher::{Launcher, run_if_asked};
pub use slot::{Control, Init, Word};
pub use view::{AUTHORITY_FILE, View, temporary_in};

use super::program::Program;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// All that an init is told when it is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Birth {
    /// The cgroups that it is born in.
    pub cgroups: Vec<PathBuf>,
    /// Whom it becomes; without one it stays who the worker is, in a user namespace.
    pub user: Option<u32>,
    /// What it sees.
    pub view: View,
    /// What it starts.
    pub program: Program,
}

/// What a worker tells an init.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Start the program, with more in its environment; its three descriptors come along.
    Run(BTreeMap<String, String>),
    /// Send this signal to what runs.
    Signal(i32),
}

/// What an init tells its worker.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Its number, as the worker sees it; a descriptor of the process comes along.
    Born(i32),
    /// All is in place.
    Ready,
    /// It cannot be made.
    Failed(String),
    /// The program cannot be started.
    NotStarted(String),
    /// The program has ended, and whatever it had started.
    Ended {
        /// Its exit code.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
        /// Whether it has left files or memory behind, so that nobody else should follow it here.
        used: bool,
    },
}
