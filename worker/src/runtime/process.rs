//! Processes: one command, in its own process group, inside its container's cgroup.

use super::{
    cgroup::Cgroup,
    init::{Birth, Init, Launcher, View, temporary_in},
    program::Program,
    tree,
    volume::Volumes,
};
use capstan_common::id::ContainerId;
use rustix::process::{Pid, Signal};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

/// Functions go first when memory is short: the kernel's worst score.
pub const OOM_SCORE: &str = "1000";

/// What all processes of one container share.
#[derive(Debug)]
pub struct Setting {
    /// The container.
    pub container: ContainerId,
    /// What is run.
    pub program: Program,
    /// Its own folder, removed with it.
    pub scratch: PathBuf,
    /// What it sees besides.
    pub volumes: Volumes,
    /// Names this worker's processes.
    pub instance: Arc<str>,
    /// Its limits, where they can be enforced.
    pub cgroup: Option<Cgroup>,
    /// Whom it believes that it speaks to its scheduler, as PEM.
    pub authority: Option<String>,
    /// How it is kept apart; without it, it runs as the worker's user and sees what the worker sees.
    pub apart: Option<Apart>,
}

/// How a container is kept apart from everything else.
#[derive(Debug, Clone)]
pub struct Apart {
    /// Who makes inits.
    pub launcher: Arc<Launcher>,
    /// Whom they become; without one they stay who the worker is.
    pub user: Option<u32>,
    /// What they see, but for volumes and scratch.
    pub view: View,
}

impl Setting {
    /// The command of a program that is not kept apart.
    pub fn command(&self, more: &BTreeMap<&str, String>) -> Command {
        // By its path: a name that is looked up in an environment of its own costs a fork of the whole worker.
        let found = self.program.find(|path| self.volumes.behind(path)).unwrap_or_else(|| self.program.name().into());
        let mut command = self.volumes.command(&self.program, &found);
        command.envs(more);
        command
    }

    /// Why the command could not be started, found before it is tried: by the init where there is one, as it has the function's
    /// rights.
    pub fn obstacle(&self) -> Option<String> {
        if self.apart.is_some() {
            return None;
        }
        self.program.obstacle(|path| self.volumes.behind(path))
    }

    /// Why the kernel did not start it.
    pub fn not_started(&self, error: &io::Error) -> String {
        self.program.not_started(error, |path| self.volumes.behind(path))
    }

    /// Starts an init for its programs, if they are kept apart. Blocks.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub fn init(&self) -> Option<Result<Init, String>> {
        let apart = self.apart.as_ref()?;
        let birth = Birth {
            cgroups: self.cgroup.iter().flat_map(Cgroup::paths).collect(),
            user: apart.user,
            view: View {
                // Its own folder may lie there, and is not what it names.
                named: temporary_in(self.program.words().filter(|word| !Path::new(word).starts_with(&self.scratch))),
                authority: self.authority.clone(),
                volumes: self.volumes.seen(),
                scratch: self.scratch.clone(),
                ..apart.view.clone()
            },
            program: self.program.clone(),
        };
        Some(Init::start(&apart.launcher, &birth))
    }

    /// Starts a process; it is born inside the cgroup where the calling thread has entered it.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        let child = command.spawn()?;
        self.started(pid_of(&child));
        Ok(child)
    }

    /// The same from a thread of its own, which enters the cgroup; the child's end can be awaited.
    pub fn spawn_watched(&self, mut command: Command) -> io::Result<tokio::process::Child> {
        command.stdin(Stdio::null());
        let runtime = tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            let born = scope.spawn(|| {
                let _entered = runtime.enter();
                if let Some(cgroup) = &self.cgroup {
                    cgroup.enter_thread();
                }
                let child = tokio::process::Command::from(command).spawn()?;
                if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
                    self.started(pid);
                }
                Ok(child)
            });
            born.join().unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
        })
    }

    fn started(&self, pid: Pid) {
        // What it would inherit is ours, and we are to be ended last. Ended already: nothing to do.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero()), OOM_SCORE);
        if let Some(cgroup) = &self.cgroup {
            cgroup.add(pid);
        }
    }

    /// Kills whatever of the container is left.
    pub fn kill_rest(&self) {
        match &self.cgroup {
            Some(cgroup) => cgroup.kill(),
            None => tree::kill_marked(tree::CONTAINER, &self.container.to_string()),
        }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.kill_rest();
        // Whoever is kept apart has its folder in memory, and never had this one.
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// A child's process id.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Ends a process group at once.
pub fn kill_group(leader: Pid) {
    tree::signal_group(leader, Signal::KILL);
}
