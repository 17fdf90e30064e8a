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

/// A program's whole environment, in one piece: ten thousand idle containers hold one each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment(Box<str>);

impl Environment {
    /// Its variables, with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split_terminator('\0').filter_map(|variable| variable.split_once('='))
    }

    /// A variable's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }
}

impl From<BTreeMap<String, String>> for Environment {
    /// No name has a `=` in it, and nothing a NUL: specs are checked for both.
    fn from(variables: BTreeMap<String, String>) -> Self {
        let variables = variables.into_iter().map(|(name, value)| format!("{name}={value}\0"));
        Self(variables.collect::<String>().into())
    }
}

/// What is run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    /// Its name or path, and its arguments.
    pub command: Vec<String>,
    /// Where it starts.
    pub folder: PathBuf,
    /// Its whole environment.
    pub env: Environment,
}

impl Program {
    /// Its name, as it was given.
    pub fn name(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// Everything that it is told: its command, its folder, its environment.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let folder = self.folder.to_str().into_iter();
        let values = self.env.iter().map(|(_, value)| value);
        self.command.iter().map(String::as_str).chain(values).chain(folder)
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
        command.env_clear().envs(self.env.iter()).process_group(0);
        command
    }

    fn path(&self) -> &str {
        self.env.get("PATH").unwrap_or(PATH)
    }
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_in_one_piece_is_the_same_environment() {
        let variables = [("A", ""), ("B", "x=y=\n"), ("LONG", "z")].map(|(name, value)| (name.into(), value.into()));
        let packed = Environment::from(BTreeMap::from(variables));
        assert_eq!(packed.iter().collect::<Vec<_>>(), [("A", ""), ("B", "x=y=\n"), ("LONG", "z")]);
        assert_eq!((packed.get("B"), packed.get("X")), (Some("x=y=\n"), None));
        assert_eq!(Environment::default().iter().count(), 0);
    }
}
