//! The keeper: a small process that outlives the worker by a moment and kills what it left behind, even after kill -9.

use super::{cgroup, tree};
use rustix::process::Pid;
use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The first argument that turns a Capstan binary into a keeper.
const ARGUMENT: &str = "__keeper";

/// Becomes the keeper if the command line asks for it.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let Some(instance) = arguments.next().and_then(|text| text.into_string().ok()) else {
        std::process::exit(2);
    };
    let Some(scratch) = arguments.next().map(PathBuf::from) else { std::process::exit(2) };
    let folders: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    // The pipe's other end is the worker: it closes when the worker is gone, however it went.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    clean(&instance, &folders);
    // Containers are gone; nobody needs their scratch folders.
    let _ = std::fs::remove_dir_all(scratch);
    std::process::exit(0);
}

fn clean(instance: &str, folders: &[PathBuf]) {
    let worker = instance.split('-').next().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
    // Without a worker there is nobody to spare.
    let worker = worker.unwrap_or_else(rustix::process::getpid);
    for base in folders {
        for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                cgroup::kill_all(&entry.path(), worker);
            }
        }
    }
    tree::kill_marked(tree::WORKER, instance);
    for base in folders {
        for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                cgroup::remove(&entry.path());
            }
        }
        cgroup::remove(base);
    }
}

/// Cleans up after workers of this machine that died together with their keepers; `own` is the one that starts. `parents` are the folders that hold
/// workers' cgroups.
pub fn clean_stale(own: &str, parents: &[PathBuf]) {
    // Whatever else has this process's pid is left from an earlier one: in an image each is process 1.
    let pid_of = |instance: &str| instance.split('-').next().unwrap_or_default().to_owned();
    let alive = |instance: &str| {
        let pid = pid_of(instance);
        instance == own || (pid != pid_of(own) && Path::new("/proc").join(pid).exists())
    };
    for instance in tree::values(tree::WORKER).into_iter().filter(|instance| !alive(instance)) {
        tracing::warn!(instance, "processes of a dead worker were found and are ended");
        tree::kill_marked(tree::WORKER, &instance);
    }
    for parent in parents {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let instance = name.to_str().and_then(|n| n.strip_prefix("capstan-"));
            if let Some(instance) = instance.filter(|i| i.contains('-') && !alive(i)) {
                clean(instance, &[entry.path()]);
            }
        }
    }
}

/// Starts the keeper for this process; it acts when the answered child's pipe closes.
pub fn start<'a>(instance: &str, scratch: &Path, folders: impl Iterator<Item = &'a Path>) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt;
    Command::new(std::env::current_exe()?)
        .arg(ARGUMENT)
        .arg(instance)
        .arg(scratch)
        .args(folders)
        .env_remove(tree::WORKER)
        .env_remove(tree::CONTAINER)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A signal to the worker's terminal must not reach it.
        .process_group(0)
        .spawn()
}
