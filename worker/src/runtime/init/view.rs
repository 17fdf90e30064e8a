//! What a function sees of the machine: what every user may read, with its own scratch, its volumes and private folders for
//! temporary files, and without anything of Capstan's.

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmod, chownat, fstat, mkdirat, open, openat},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount},
    process::{getgid, getuid},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{CString, OsStr},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Where the file system in memory is mounted that holds everything private.
const STORE: &str = "/dev/shm";
/// Folders for temporary files, with the folder of the store that takes what is written to them.
const TEMPORARY: [(&str, &str); 2] = [("/tmp", "tmp"), ("/var/tmp", "var-tmp")];
/// Files and folders that the store may hold for each MiB of it.
const INODES_PER_MIB: u64 = 256;
/// Entries of folders for temporary files that a function may name.
const NAMED_MAX: usize = 64;
/// Where the scheduler's authority lies in the scratch folder.
pub const AUTHORITY_FILE: &str = ".capstan-authority.pem";
/// What the function's user is called.
const USER: &str = "function";

/// What an init mounts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct View {
    /// Folders and files that are not to be seen.
    pub hidden: Arc<[PathBuf]>,
    /// What the function names of folders for temporary files: seen as it is, where the rest is a copy of its own.
    pub named: Vec<PathBuf>,
    /// Volumes: where each is seen, and the folder behind it.
    pub volumes: Vec<(PathBuf, PathBuf)>,
    /// Where the function's own folder is seen.
    pub scratch: PathBuf,
    /// Whom the function believes that it speaks to its scheduler, as PEM: a file of the scratch folder.
    pub authority: Option<String>,
    /// How much it may write there, to /tmp and to /dev/shm, all together.
    pub scratch_mib: u32,
}

fn told(what: impl std::fmt::Display) -> impl Fn(rustix::io::Errno) -> String {
    move |error| format!("{what}: {}", io::Error::from(error))
}

impl View {
    /// Mounts it, for a user (none: who we are).
    ///
    /// # Errors
    /// Something that must not be seen could not be hidden, or something that must be seen is not there.
    pub fn mount(&self, user: Option<u32>) -> Result<(), String> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(told("mounts stay shared"))?;
        // Opened before anything is hidden: they may lie in what will be.
        let volumes = self.open_volumes()?;
        // A link there may be anybody's.
        let is_link =
            |held: &OwnedFd| fstat(held).is_ok_and(|f| FileType::from_raw_mode(f.st_mode) == FileType::Symlink);
        let held = |path| open_path(path).ok().filter(|held| !is_link(held));
        let named: Vec<_> = self.named.iter().filter_map(|path| Some((path, held(path)?))).collect();
        let owner = user.map_or_else(|| (getuid(), getgid()), |id| (Uid::from_raw(id), Gid::from_raw(id)));
        self.make_store(owner)?;
        for (seen, kept) in TEMPORARY {
            if Path::new(seen).is_dir() && overlay(seen, kept, user.is_none()).is_err() {
                // Then what others laid there is not seen, but for what is named.
                mount_bind(store(kept), seen).map_err(told(format!("{seen} cannot be made private")))?;
            }
        }
        for (path, itself) in &named {
            // Another user's folder cannot be made where it is not seen.
            let made = if path.is_dir() || path.exists() { Ok(()) } else { fs::create_dir(path) };
            if made.is_ok() {
                bind_fd(itself, path).map_err(told(format!("`{}` cannot be shown", path.display())))?;
            }
        }
        self.hide()?;
        // Before anything of the function's lies in the way: its volumes may be seen at /etc.
        name_user(owner, &self.scratch)?;
        for (seen, folder) in &volumes {
            let at = seen.display();
            let place = place(seen, owner).map_err(|e| {
                format!(
                    "the volume at `{at}` has no folder to be mounted on, and none can be made ({e}); make one on the worker, or \
                     choose another path"
                )
            })?;
            bind_fd(folder, &behind(&place)).map_err(told(format!("the volume at `{at}` cannot be mounted")))?;
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", "/proc", "proc", flags, None).map_err(told("/proc cannot be mounted anew"))?;
        // The store itself leaves the view: what hangs on it stays.
        let shared = open_path(&store("shm")).map_err(told("/dev/shm"))?;
        bind_fd(&shared, Path::new(STORE)).map_err(told("/dev/shm cannot be made private"))?;
        Ok(())
    }

    fn open_volumes(&self) -> Result<Vec<(&Path, OwnedFd)>, String> {
        let one = |(seen, kept): &'_ (PathBuf, PathBuf)| {
            let what = format!("the volume at `{}` is not there any more ({})", seen.display(), kept.display());
            open_path(kept).map_err(told(what))
        };
        self.volumes.iter().map(|pair| Ok((pair.0.as_path(), one(pair)?))).collect()
    }

    /// One file system in memory for all that is private: with one bound, and gone with the last process.
    fn make_store(&self, (user, group): (Uid, Gid)) -> Result<(), String> {
        let size = u64::from(self.scratch_mib.max(1));
        let data = format!("size={size}m,nr_inodes={},mode=0711", size * INODES_PER_MIB + 64);
        let data = CString::new(data).map_err(|e| e.to_string())?;
        mount("tmpfs", STORE, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, data.as_c_str())
            .map_err(told("a private file system cannot be mounted on /dev/shm"))?;
        let make = |name: &str, mode: u32| -> Result<PathBuf, String> {
            let folder = store(name);
            fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            chmod(&folder, Mode::from_raw_mode(mode)).map_err(told(folder.display()))?;
            Ok(folder)
        };
        let scratch = make("scratch", 0o700)?;
        chownat(CWD, &scratch, Some(user), Some(group), AtFlags::empty()).map_err(told("the scratch folder"))?;
        if let Some(pem) = &self.authority {
            let file = store("scratch").join(AUTHORITY_FILE);
            fs::write(&file, pem).map_err(|e| format!("the authority cannot be written: {e}"))?;
            chmod(&file, Mode::from_raw_mode(0o444)).map_err(told("the authority"))?;
        }
        make("shm", 0o1777)?;
        make("hidden", 0o711)?;
        for (_, kept) in TEMPORARY {
            make(kept, 0o1777)?;
            make(&format!("{kept}-work"), 0o700)?;
        }
        Ok(())
    }

    /// Puts an empty folder, or file, over each that is not to be seen, and the scratch folder to where it is looked for.
    fn hide(&self) -> Result<(), String> {
        for (n, hidden) in self.hidden.iter().enumerate() {
            let what = || format!("`{}` cannot be hidden", hidden.display());
            let Ok(found) = hidden.symlink_metadata() else { continue };
            if !found.is_dir() {
                mount_bind("/dev/null", hidden).map_err(told(what()))?;
                continue;
            }
            let cover = store("hidden").join(n.to_string());
            let inside = self.scratch.strip_prefix(hidden).ok();
            fs::create_dir_all(cover.join(inside.unwrap_or(Path::new("")))).map_err(|e| format!("{}: {e}", what()))?;
            mount_bind(&cover, hidden).map_err(told(what()))?;
            mount_remount(hidden, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, "")
                .map_err(told(what()))?;
        }
        if !self.scratch.is_dir() {
            fs::create_dir_all(&self.scratch).map_err(|e| format!("the scratch folder has no place: {e}"))?;
        }
        mount_bind(store("scratch"), &self.scratch).map_err(told("the scratch folder cannot be put in its place"))
    }
}

/// Which of the folders for temporary files' entries these words name: a program is often laid there, and waits for files there.
pub fn temporary_in<'a>(words: impl Iterator<Item = &'a str>) -> Vec<PathBuf> {
    let mut found = std::collections::BTreeSet::new();
    for word in words {
        for (folder, _) in TEMPORARY {
            for (at, start) in word.match_indices(folder) {
                let Some(rest) = word[at + start.len()..].strip_prefix('/') else { continue };
                let is_name = |c: char| c.is_alphanumeric() || "._-+@%=~,".contains(c);
                let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
                if !matches!(name, "" | "." | "..") && found.len() < NAMED_MAX {
                    found.insert(Path::new(folder).join(name));
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Finds a folder to mount on, or makes it. Links are followed only where the superuser alone can have laid them: the way may lead
/// through another volume of the function, which puts there what it likes. What is made in a folder of its user is that user's too.
fn place(path: &Path, (user, group): (Uid, Gid)) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = open("/", flags, Mode::empty())?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        let found = fstat(&folder)?;
        let by_others = found.st_uid != 0 || found.st_mode & 0o022 != 0;
        let careful = flags | OFlags::NOFOLLOW;
        folder = match openat(&folder, name, if by_others { careful } else { flags }, Mode::empty()) {
            Err(Errno::NOENT) => {
                mkdirat(&folder, name, Mode::from_raw_mode(0o755))?;
                if found.st_uid == user.as_raw() {
                    chownat(&folder, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                openat(&folder, name, careful, Mode::empty())?
            }
            other => other?,
        };
    }
    Ok(folder)
}

/// The path of what is held.
fn behind(held: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", held.as_raw_fd()).into()
}

/// A folder or file, held but not opened for reading.
fn open_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn store(name: &str) -> PathBuf {
    Path::new(STORE).join(name)
}

/// Lets a folder be read as it is, and keeps what is written to it in the store.
fn overlay(seen: &str, kept: &str, plain: bool) -> rustix::io::Result<()> {
    let mut data = format!("lowerdir={seen},upperdir={STORE}/{kept},workdir={STORE}/{kept}-work");
    if plain {
        data += ",userxattr";
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    mount("overlay", seen, "overlay", MountFlags::NOSUID | MountFlags::NODEV, data.as_c_str())
}

fn bind_fd(folder: &OwnedFd, seen: &Path) -> rustix::io::Result<()> {
    mount_bind_recursive(behind(folder), seen)
}

/// Standard libraries ask who they are: the function's user has a name, in a copy of the machine's list.
fn name_user((user, group): (Uid, Gid), home: &Path) -> Result<(), String> {
    let (user, group) = (user.as_raw(), group.as_raw());
    let known = |line: &str, at: usize, id: u32| line.split(':').nth(at).is_some_and(|field| field == id.to_string());
    let home = String::from_utf8_lossy(OsStr::as_bytes(home.as_os_str())).replace([':', '\n'], "_");
    let lists = [
        ("/etc/passwd", user, format!("{USER}:x:{user}:{group}::{home}:/bin/sh\n")),
        ("/etc/group", group, format!("{USER}:x:{group}:\n")),
    ];
    for (path, id, line) in lists {
        let Ok(mut list) = fs::read_to_string(path) else { continue };
        if list.lines().any(|line| known(line, 2, id)) {
            continue;
        }
        if !list.ends_with('\n') {
            list.push('\n');
        }
        let copy = store(path.trim_start_matches("/etc/"));
        let what = format!("{path} cannot be made private");
        fs::write(&copy, list + &line).map_err(|e| format!("{what}: {e}"))?;
        chmod(&copy, Mode::from_raw_mode(0o644)).map_err(told(&what))?;
        mount_bind(&copy, path).map_err(told(&what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_names_in_folders_for_temporary_files_is_found() {
        let words =
            ["sh", "-c", "until [ -e /tmp/a.b/go ]; do cat '/var/tmp/x y'; done >/tmp/c; ls /tmp /tmp/ /tmp/.."];
        let found = temporary_in(words.into_iter());
        assert_eq!(found, ["/tmp/a.b", "/tmp/c", "/tmp/x", "/var/tmp/x"].map(PathBuf::from));
        assert!(temporary_in(["/tmpfs/x", "/home/u"].into_iter()).is_empty());
    }
}
