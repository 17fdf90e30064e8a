//! Limits by cgroups, version 1 or 2, where the machine allows them.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Processes and threads that one container may have.
const PIDS_MAX: u32 = 4096;
/// Microseconds of a CPU quota's period.
const PERIOD_US: u64 = 100_000;
/// Controllers that are used.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The machine's cgroups, as far as this worker may use them.
#[derive(Debug, Default)]
pub struct Cgroups {
    version: u8,
    /// Our own folders, by controller (version 1) or one for all (version 2).
    bases: Arc<Vec<(&'static str, PathBuf)>>,
    /// The same, locked while we live: who cleans up after the dead, perhaps from another process namespace, leaves them alone.
    _held: Arc<Vec<File>>,
}

/// One container's cgroup; removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    version: u8,
    /// Shared with all others: ten thousand idle containers hold no paths of their own.
    bases: Arc<Vec<(&'static str, PathBuf)>>,
    name: Box<str>,
    /// In which of the bases a folder was made, by bits.
    made: u8,
}

impl Cgroups {
    /// Finds out what may be used, and makes a folder named `name` there.
    pub fn detect(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let v1 = Self::detect_v1(name, &mounts, &own);
        if v1.bases.is_empty() { Self::detect_v2(name, &mounts, &own) } else { v1 }
    }

    fn over(version: u8, bases: Vec<(&'static str, PathBuf)>) -> Self {
        let held = bases.iter().filter_map(|(_, base)| hold(base)).collect();
        Self { version, bases: bases.into(), _held: Arc::new(held) }
    }

    fn detect_v1(name: &str, mounts: &str, own: &str) -> Self {
        let mut bases = Vec::new();
        for controller in CONTROLLERS {
            let mount = mounts.lines().find_map(|line| {
                let fields: Vec<_> = line.split(' ').collect();
                let here = fields.get(2) == Some(&"cgroup") && fields.get(3)?.split(',').any(|o| o == controller);
                here.then(|| fields[1].to_owned())
            });
            let path = own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let here = fields.next()?.split(',').any(|c| c == controller);
                fields.next().filter(|_| here)
            });
            let (Some(mount), Some(path)) = (mount, path) else { continue };
            let base = Path::new(&mount).join(path.trim_start_matches('/')).join(name);
            if fs::create_dir(&base).is_ok() {
                bases.push((controller, base));
            }
        }
        Self::over(1, bases)
    }

    /// Version 2 forbids processes beside child groups: the worker moves itself into a leaf, if it is alone in its group.
    fn detect_v2(name: &str, mounts: &str, own: &str) -> Self {
        let none = Self::default();
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (at, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| at.to_owned())
        });
        let path = own.lines().find_map(|line| line.strip_prefix("0::"));
        let (Some(mount), Some(path)) = (mount, path) else { return none };
        let here = Path::new(&mount).join(path.trim_start_matches('/'));
        let alone = fs::read_to_string(here.join("cgroup.procs"))
            .is_ok_and(|procs| procs.trim() == std::process::id().to_string());
        let set_up = || -> io::Result<PathBuf> {
            let leaf = here.join("capstan-agent");
            fs::create_dir_all(&leaf)?;
            fs::write(leaf.join("cgroup.procs"), "0")?;
            fs::write(here.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
            let base = here.join(name);
            fs::create_dir(&base)?;
            fs::write(base.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
            Ok(base)
        };
        match alone.then(set_up) {
            Some(Ok(base)) => Self::over(2, vec![("all", base)]),
            _ => none,
        }
    }

    /// What is enforced, in words.
    pub fn describe(&self) -> String {
        match self.version {
            _ if self.bases.is_empty() => {
                "not enforced: no cgroup of this machine may be written; requests are only counted".into()
            }
            1 => {
                let names: Vec<_> = self.bases.iter().map(|(c, _)| *c).collect();
                format!("enforced by cgroup v1: {}", names.join(", "))
            }
            _ => "enforced by cgroup v2: memory, cpu, pids".into(),
        }
    }

    /// Our own folders, for whoever cleans up after us.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.bases.iter().map(|(_, path)| path.as_path())
    }

    /// A container's cgroup with its memory limit and CPU weight; `None` where limits cannot be enforced.
    pub fn create(&self, container: &str, memory_mib: u32, cpu_milli: u32) -> Option<Cgroup> {
        let mut made = 0;
        for (n, (_, base)) in self.bases.iter().enumerate() {
            let folder = base.join(container);
            if let Err(error) = fs::create_dir(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "a cgroup cannot be made: its limit is not enforced");
                continue;
            }
            made |= 1 << n;
        }
        if made == 0 {
            return None;
        }
        let group = Cgroup { version: self.version, bases: self.bases.clone(), name: container.into(), made };
        let memory = (u64::from(memory_mib) << 20).to_string();
        let shares = (u64::from(cpu_milli) * 1024 / 1000).clamp(2, 262_144).to_string();
        let weight = (u64::from(cpu_milli) / 10).clamp(1, 10_000).to_string();
        group.set("memory", "memory.limit_in_bytes", "memory.max", &memory);
        group.set("cpu", "cpu.shares", "cpu.weight", if self.version == 1 { &shares } else { &weight });
        group.set("pids", "pids.max", "pids.max", &PIDS_MAX.to_string());
        Some(group)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for (_, base) in self.bases.iter() {
            // A clone, or the keeper, may have removed it; one that is in use stays for the keeper.
            let _ = fs::remove_dir(base);
        }
    }
}

impl Cgroup {
    fn folders(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let made = self.bases.iter().enumerate().filter(|(n, _)| self.made & (1 << n) != 0);
        made.map(|(_, (controller, base))| (*controller, base.join(&*self.name)))
    }

    fn folder(&self, controller: &str) -> Option<PathBuf> {
        let found = self.folders().find(|(c, _)| *c == controller || *c == "all");
        found.map(|(_, path)| path)
    }

    fn set(&self, controller: &str, v1: &str, v2: &str, value: &str) {
        let Some(folder) = self.folder(controller) else { return };
        let file = folder.join(if self.version == 1 { v1 } else { v2 });
        if let Err(error) = fs::write(&file, value) {
            tracing::warn!(file = %file.display(), %error, "a limit cannot be set");
        }
    }

    /// Its folders: what writes itself into each is in it.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.folders().map(|(_, folder)| folder)
    }

    /// Caps the CPU from now on.
    pub fn cap_cpu(&self, milli: u32) {
        let quota = (u64::from(milli) * PERIOD_US / 1000).max(1000);
        if self.version == 1 {
            self.set("cpu", "cpu.cfs_quota_us", "", &quota.to_string());
        } else {
            self.set("cpu", "", "cpu.max", &format!("{quota} {PERIOD_US}"));
        }
    }

    /// Moves the calling thread in: processes that it starts are born inside. Version 2 moves only whole processes.
    pub fn enter_thread(&self) {
        if self.version != 1 {
            return;
        }
        for (_, folder) in self.folders() {
            if let Err(error) = fs::write(folder.join("tasks"), "0") {
                tracing::warn!(folder = %folder.display(), %error, "a thread cannot enter its cgroup");
            }
        }
    }

    /// Moves the calling thread back to where the worker is: a cgroup with a thread inside cannot be removed.
    pub fn leave_thread(&self) {
        if self.version != 1 {
            return;
        }
        let outside = |folder: &Path| Some(folder.parent()?.parent()?.join("tasks"));
        for tasks in self.folders().filter_map(|(_, folder)| outside(&folder)) {
            if let Err(error) = fs::write(&tasks, "0") {
                tracing::warn!(tasks = %tasks.display(), %error, "a thread cannot leave its cgroup");
            }
        }
    }

    /// Moves a process in that was just started, where its parent could not enter.
    pub fn add(&self, pid: Pid) {
        if self.version == 1 {
            return;
        }
        for (_, folder) in self.folders() {
            if let Err(error) = fs::write(folder.join("cgroup.procs"), pid.as_raw_nonzero().to_string()) {
                tracing::warn!(folder = %folder.display(), %error, "a process cannot enter its cgroup");
            }
        }
    }

    /// How many of its processes the kernel ended for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(folder) = self.folder("memory") else { return 0 };
        let file = if self.version == 1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        found.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }

    /// Kills everything inside; nothing is born there any more.
    pub fn kill(&self) {
        for (_, folder) in self.folders() {
            forbid_births(&folder);
        }
        for (_, folder) in self.folders() {
            kill_all(&folder, rustix::process::getpid());
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill();
        for (_, folder) in self.folders() {
            remove(&folder);
        }
    }
}

fn hold(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().is_ok().then_some(file)
}

/// Whether a worker that lives has this folder.
pub fn is_held(folder: &Path) -> bool {
    folder.exists() && hold(folder).is_none()
}

/// No process can be made in a folder's cgroup any more: what forks faster than it is killed (version 1 kills one by one) would
/// otherwise stay. Freezing it instead would freeze the worker's own threads inside.
pub fn forbid_births(folder: &Path) {
    let file = folder.join("pids.max");
    // Another controller's folder has no such file.
    if file.exists() {
        let _ = fs::write(file, "0");
    }
}

/// Kills every process of a folder's cgroup but the worker itself, whose threads may be inside (version 1).
pub fn kill_all(folder: &Path, worker: Pid) {
    // Version 2 kills all at once.
    let _ = fs::write(folder.join("cgroup.kill"), "1");
    for _ in 0..100 {
        let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let pids = procs.lines().filter_map(|l| Pid::from_raw(l.parse().ok()?));
        let pids: Vec<_> = pids.filter(|pid| *pid != worker).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            // Gone already: nothing to do.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Removes an emptied cgroup; the kernel may need a moment to see that it is empty.
pub fn remove(folder: &Path) {
    for _ in 0..50 {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_forks_faster_than_it_is_killed_ends_all_the_same() {
        let cgroups = Cgroups::detect(&format!("capstan-test-{}", std::process::id()));
        let Some(group) = cgroups.create("racers", 256, 1_000) else {
            eprintln!("no cgroup may be made here: nothing was tried");
            return;
        };
        // Each lives for as long as a fork takes, and goes on as its child.
        let race = "import os\nfor _ in range(16):\n    if os.fork() == 0: break\nelse: os._exit(0)\nwhile True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass";
        let mut racers = std::thread::scope(|scope| {
            let born = scope.spawn(|| {
                group.enter_thread();
                Command::new("python3").args(["-c", race]).spawn().unwrap()
            });
            born.join().unwrap()
        });
        group.add(Pid::from_child(&racers));
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        let inside = || {
            let procs = group.paths().map(|folder| fs::read_to_string(folder.join("cgroup.procs")).unwrap());
            procs
                .flat_map(|procs| procs.lines().map(str::to_owned).collect::<Vec<_>>())
                .filter(|pid| *pid != own)
                .count()
        };
        racers.wait().unwrap();
        assert!(inside() > 0, "nobody races");
        group.kill();
        assert_eq!(inside(), 0);
    }
}
