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
    each_container(folders, cgroup::forbid_births);
    each_container(folders, |folder| cgroup::kill_all(folder, worker));
    tree::kill_marked(tree::WORKER, instance);
    each_container(folders, cgroup::remove);
    folders.iter().for_each(|base| cgroup::remove(base));
}

fn each_container(bases: &[PathBuf], what: impl Fn(&Path)) {
    for base in bases {
        for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                what(&entry.path());
            }
        }
    }
}

/// Cleans up after workers of this machine that died together with their keepers; `own` is the one that starts. `parents` are the
/// folders that hold workers' cgroups, where also those of other process namespaces may lie, whose numbers say nothing here.
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
            if let Some(instance) = instance.filter(|i| i.contains('-') && !alive(i) && !cgroup::is_held(&entry.path()))
            {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, create_dir};

    #[test]
    fn what_a_worker_of_another_process_namespace_holds_is_left_to_it() {
        let parent = tempfile::tempdir().unwrap();
        // No process here has these numbers, and one has ours: in an image each is process 1.
        let ours = format!("capstan-{}-1", std::process::id());
        let folders = ["capstan-4194305-1", "capstan-4194305-2", &ours].map(|name| parent.path().join(name));
        folders.iter().for_each(|folder| create_dir(folder).unwrap());
        let held = [&folders[0], &folders[2]].map(|folder| File::open(folder).unwrap());
        held.iter().for_each(|file| file.lock().unwrap());
        clean_stale("1-own", &[parent.path().to_owned()]);
        assert_eq!(folders.each_ref().map(|folder| folder.exists()), [true, false, true]);
        drop(held);
        clean_stale(&format!("{}-own", std::process::id()), &[parent.path().to_owned()]);
        assert_eq!(folders.each_ref().map(|folder| folder.exists()), [false, false, false]);
    }
}
