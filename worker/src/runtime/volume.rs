//! Volumes: folders that outlive containers, seen by a function's processes at the paths that its spec names.
//!
//! Each process is started through this program once more, which makes a mount namespace, binds the volumes into it, and then
//! becomes the process: so nobody else sees them there, and the kernel takes the mounts away with the process.

use super::{owner, program::Program};
use capstan_common::id::FunctionKey;
use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountPropagationFlags, mount_bind_recursive, mount_change},
    process::{getgid, getuid},
};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs, io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

/// The first argument that makes a Capstan binary bind volumes and become a process.
const ARGUMENT: &str = "__volumes";
/// The exit code of a process that was found and could not be started, as shells have it.
const CANNOT_START: i32 = 126;

/// A container's volumes: where each is seen, and the folder behind it. A path comes before those that lie in it.
#[derive(Debug, Default)]
pub struct Volumes(Vec<(PathBuf, PathBuf)>);

impl Volumes {
    /// Those of a function, kept under `base`, by namespace and name; made if they are new, and the owner's.
    ///
    /// # Errors
    /// A folder cannot be made, or given to its owner.
    pub fn open(
        base: &Path,
        function: &FunctionKey,
        spec: &BTreeMap<String, String>,
        owner: Option<u32>,
    ) -> Result<Self, String> {
        let mut volumes = Vec::with_capacity(spec.len());
        for (seen, name) in spec {
            let kept = base.join(&*function.namespace).join(name);
            let ready = fs::create_dir_all(&kept).and_then(|()| kept.canonicalize());
            let kept = ready.map_err(|e| format!("the volume `{name}` cannot be made in {}: {e}", base.display()))?;
            if let Some(owner) = owner {
                owner::give(&kept, owner)
                    .map_err(|e| format!("the volume `{name}` cannot be given to its user: {e}"))?;
            }
            volumes.push((PathBuf::from(seen), kept));
        }
        Ok(Self(volumes))
    }

    /// Where on this machine lies what the processes see at `path`.
    pub fn behind(&self, path: &Path) -> PathBuf {
        let innermost = self.0.iter().rev().find_map(|(seen, kept)| Some(kept.join(path.strip_prefix(seen).ok()?)));
        innermost.unwrap_or_else(|| path.into())
    }

    /// Where each is seen, and the folder behind it; a path comes before those that lie in it.
    pub fn seen(&self) -> Vec<(PathBuf, PathBuf)> {
        self.0.clone()
    }

    /// A command that becomes the program that lies at `found`, in its folder, where it sees the volumes.
    pub fn command(&self, program: &Program, found: &Path) -> Command {
        if self.0.is_empty() {
            return program.command(found);
        }
        // Ourselves even after an upgrade has replaced the file.
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).arg(self.0.len().to_string());
        command.args(self.0.iter().flat_map(|(seen, kept)| [seen, kept]));
        // The folder may lie in a volume, which the worker does not see: it is entered when all is in place.
        command.arg(&program.folder).arg(found).args(&program.command).current_dir("/");
        command.env_clear().envs(program.env.iter()).process_group(0);
        command
    }
}

/// Binds volumes and becomes the process, if the command line asks for it.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let error = become_process(arguments).err().unwrap_or_default();
    // To the container's log, and into the reason why it ended.
    eprintln!("capstan: {error}");
    std::process::exit(CANNOT_START);
}

fn become_process(mut arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    let mut next = || arguments.next().ok_or("this is for Capstan's workers alone");
    let count: usize = next()?.to_str().and_then(|n| n.parse().ok()).ok_or("the number of volumes is none")?;
    let volumes = (0..count).map(|_| Ok((next()?, next()?))).collect::<Result<Vec<_>, &str>>()?;
    let (folder, program, name) = (next()?, next()?, next()?);
    alone().map_err(|error| {
        format!(
            "volumes cannot be mounted for this user: {error}. Run the worker as root, or allow user namespaces \
             (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    })?;
    bind(&volumes)?;
    let error = Command::new(&program).arg0(name).args(arguments).current_dir(&folder).exec();
    Err(format!("`{}` cannot be started: {error}", program.display()))
}

/// Enters a mount namespace of our own; where only a user namespace makes that possible, one in which we are who we were.
fn alone() -> io::Result<()> {
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    if unshare(CloneFlags::CLONE_NEWNS).is_err() {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

fn bind(volumes: &[(OsString, OsString)]) -> Result<(), String> {
    let told =
        |seen: &OsStr, what: &str, error: io::Error| format!("the volume at `{}` {what}: {error}", seen.display());
    // All are opened before the first is bound: one that is bound may hide where another is kept.
    let open = |(seen, kept): &(OsString, OsString)| {
        let folder = open(kept, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        folder.map_err(|e| told(seen, &format!("is not there any more ({})", kept.display()), e.into()))
    };
    let folders = volumes.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    for ((seen, _), folder) in volumes.iter().zip(&folders) {
        let what =
            "has no folder to be mounted on, and none can be made; make one on the worker, or choose another path";
        fs::create_dir_all(seen).map_err(|e| told(seen, what, e))?;
        let source = format!("/proc/self/fd/{}", folder.as_raw_fd());
        mount_bind_recursive(source, seen.as_os_str()).map_err(|e| told(seen, "cannot be mounted", e.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_a_path_is_told_by_the_innermost_volume() {
        let base = tempfile::tempdir().unwrap();
        let spec = [("/data", "outer"), ("/data/in", "inner")].map(|(at, name)| (at.to_owned(), name.to_owned()));
        let volumes = Volumes::open(base.path(), &FunctionKey::new("ns", "f"), &spec.into(), None).unwrap();
        let kept = base.path().canonicalize().unwrap().join("ns");
        for (seen, behind) in [
            ("/data", kept.join("outer")),
            ("/data/x", kept.join("outer/x")),
            ("/data/in/x", kept.join("inner/x")),
            ("/database", PathBuf::from("/database")),
        ] {
            assert_eq!(volumes.behind(Path::new(seen)), behind, "{seen}");
        }
    }
}
