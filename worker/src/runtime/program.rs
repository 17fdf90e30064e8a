//! A program as a function names it: where it lies, and why it does not start.

use super::obstacle;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Where programs are found unless a function says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    /// Its name or path, and its arguments.
    pub command: Vec<String>,
    /// Where it starts.
    pub folder: PathBuf,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
}

impl Program {
    /// Its name, as it was given.
    pub fn name(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// Everything that it is told: its command, its folder, its environment.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let folder = self.folder.to_str().into_iter();
        self.command.iter().chain(self.env.values()).map(String::as_str).chain(folder)
    }

    /// What every program's environment begins with.
    pub fn base_env(home: &Path) -> BTreeMap<String, String> {
        [
            ("PATH", PATH.to_owned()),
            ("HOME", home.to_string_lossy().into_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            // What a server prints is in its logs at once, and not when four KiB have come together.
            ("PYTHONUNBUFFERED", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Where it lies: a path is taken from the working folder, a name is looked up. `behind` says where we find what the program
    /// sees at a path.
    pub fn find(&self, behind: impl Fn(&Path) -> PathBuf) -> Option<PathBuf> {
        let name = self.name();
        let mut candidates: Box<dyn Iterator<Item = PathBuf>> = if name.contains('/') {
            Box::new(std::iter::once(self.folder.join(name)))
        } else {
            Box::new(self.path().split(':').map(|folder| self.folder.join(folder).join(name)))
        };
        candidates.find(|candidate| is_program(&behind(candidate)))
    }

    /// Why it cannot be started, as far as that can be seen before it is tried, with the rights of whoever asks.
    pub fn obstacle(&self, behind: impl Fn(&Path) -> PathBuf) -> Option<String> {
        let folder = behind(&self.folder);
        if let Some(closed) = obstacle::closed(&folder) {
            return Some(format!("working_dir {closed}"));
        }
        if !folder.is_dir() {
            return Some(format!("working_dir `{}` is not a folder on this worker", self.folder.display()));
        }
        let name = self.command.first()?;
        match self.find(&behind) {
            Some(program) => obstacle::in_the_way(name, &behind(&program)),
            None if name.contains('/') => obstacle::in_the_way(name, &behind(&self.folder.join(name))),
            None => Some(format!("`{name}` is not a program on this worker (looked in {})", self.path())),
        }
    }

    /// Why the kernel did not start it.
    pub fn not_started(&self, error: &io::Error, behind: impl Fn(&Path) -> PathBuf) -> String {
        self.obstacle(behind).unwrap_or_else(|| obstacle::not_started(self.name(), error))
    }

    /// The command of the program that lies at `found`, in a process group of its own; nothing of ours leaks into it.
    pub fn command(&self, found: &Path) -> Command {
        let mut command = Command::new(found);
        command.arg0(self.name()).args(self.command.iter().skip(1)).current_dir(&self.folder);
        command.env_clear().envs(&self.env).process_group(0);
        command
    }

    fn path(&self) -> &str {
        self.env.get("PATH").map_or(PATH, String::as_str)
    }
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
