//! Processes: one command, in its own process group, inside its container's cgroup.

use super::{cgroup::Cgroup, obstacle, tree, volume::Volumes};
use capstan_common::{function::Process, id::ContainerId};
use rustix::process::{Pid, Signal};
use std::{
    collections::BTreeMap,
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
};

/// Where programs are found unless a function says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What all processes of one container share.
#[derive(Debug)]
pub struct Setting {
    /// The container.
    pub container: ContainerId,
    /// What is run.
    pub process: Process,
    /// Its own folder, removed with it.
    pub scratch: PathBuf,
    /// What it sees besides.
    pub volumes: Volumes,
    /// Names this worker's processes.
    pub instance: Arc<str>,
    /// Its limits, where they can be enforced.
    pub cgroup: Option<Cgroup>,
    /// What its programs are told of GPUs.
    pub gpus: Vec<(&'static str, String)>,
}

impl Setting {
    /// The command with its environment: nothing of ours leaks into it.
    pub fn command(&self, more: &BTreeMap<&str, String>) -> Command {
        let process = &self.process;
        let name = process.command.first().map_or("", String::as_str);
        // By its path: a name that is looked up in an environment of its own costs a fork of the whole worker.
        let program = self.program(name).unwrap_or_else(|| name.into());
        let mut command = self.volumes.command(&program, name, self.folder());
        command
            .args(process.command.iter().skip(1))
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", &self.scratch)
            .env("LANG", "C.UTF-8")
            // What a server prints is in its logs at once, and not when four KiB have come together.
            .env("PYTHONUNBUFFERED", "1")
            .envs(&process.env)
            .envs(more)
            .envs(self.gpus.iter().map(|(name, value)| (name, value)))
            .env(tree::CONTAINER, self.container.to_string())
            .env(tree::WORKER, &*self.instance)
            .process_group(0);
        command
    }

    fn folder(&self) -> &Path {
        self.process.working_dir.as_deref().map_or(&self.scratch, Path::new)
    }

    /// Why the command could not be started, found before it is tried.
    pub fn obstacle(&self) -> Option<String> {
        if !self.volumes.behind(self.folder()).is_dir() {
            return Some(format!("working_dir `{}` is not a folder on this worker", self.folder().display()));
        }
        let name = self.process.command.first()?;
        match self.program(name) {
            Some(program) => obstacle::in_the_way(name, &self.volumes.behind(&program)),
            None if name.contains('/') => obstacle::in_the_way(name, &self.volumes.behind(&self.folder().join(name))),
            None => Some(format!("`{name}` is not a program on this worker (looked in {})", self.path())),
        }
    }

    fn path(&self) -> &str {
        self.process.env.get("PATH").map_or(PATH, String::as_str)
    }

    /// Where a program lies: a path is taken from the working folder, a name is looked up.
    fn program(&self, name: &str) -> Option<PathBuf> {
        let candidates: Vec<PathBuf> = if name.contains('/') {
            vec![self.folder().join(name)]
        } else {
            self.path().split(':').map(|folder| self.folder().join(folder).join(name)).collect()
        };
        candidates.into_iter().find(|candidate| is_program(&self.volumes.behind(candidate)))
    }

    /// Starts a process; it is born inside the cgroup where the calling thread has entered it.
    pub fn spawn(&self, mut command: Command, stdin: Stdio) -> io::Result<Child> {
        let child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        self.started(pid_of(&child));
        Ok(child)
    }

    /// The same from a thread of its own, which enters the cgroup; the child's end can be awaited.
    pub fn spawn_watched(&self, mut command: Command) -> io::Result<tokio::process::Child> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
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
        // A container that never wrote has an empty folder; either way nobody needs it.
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// A child's process id.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Ends a process group at once.
pub fn kill_group(leader: Pid) {
    tree::signal_group(leader, Signal::KILL);
}

/// An exit status as code or signal.
pub fn code_and_signal(status: ExitStatus) -> (Option<i32>, Option<i32>) {
    (status.code(), status.signal())
}
