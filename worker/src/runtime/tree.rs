//! Whole process trees: found by what every process of a container inherits, whatever it does to its parents.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::path::PathBuf;

/// The variable that names a process's container.
pub const CONTAINER: &str = "CAPSTAN_CONTAINER";
/// The variable that names the attempt that a process was started for.
pub const ATTEMPT: &str = "CAPSTAN_LEASE";
/// The variable that names a process's worker instance.
pub const WORKER: &str = "CAPSTAN_WORKER";

/// Every value that the environment of any process of our process namespace has for the variable: workers elsewhere have numbers of
/// their own.
pub fn values(variable: &str) -> std::collections::BTreeSet<String> {
    let start = format!("{variable}=");
    let space = |process: PathBuf| std::fs::read_link(process.join("ns/pid")).ok();
    let ours = space("/proc/self".into());
    let Ok(entries) = std::fs::read_dir("/proc") else { return Default::default() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())))
        .filter(|entry| space(entry.path()) == ours)
        .filter_map(|entry| std::fs::read(entry.path().join("environ")).ok())
        .flat_map(|environ| {
            let found = environ.split(|b| *b == 0).filter_map(|v| v.strip_prefix(start.as_bytes()));
            found.map(|v| String::from_utf8_lossy(v).into_owned()).collect::<Vec<_>>()
        })
        .collect()
}

/// Processes whose environment has `variable=value`, except our own.
pub fn marked(variable: &str, value: &str) -> Vec<Pid> {
    let mark = format!("{variable}={value}");
    let own = std::process::id().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            let pid = name.parse().ok().filter(|_| name != own)?;
            let path: PathBuf = entry.path().join("environ");
            let environ = std::fs::read(path).ok()?;
            let found = environ.split(|b| *b == 0).any(|v| v == mark.as_bytes());
            found.then(|| Pid::from_raw(pid)).flatten()
        })
        .collect()
}

/// Signals a process group; one that is gone is fine.
pub fn signal_group(leader: Pid, signal: Signal) {
    // Gone already: nothing to do.
    let _ = kill_process_group(leader, signal);
}

/// Kills every marked process until none is left, or a bounded number of rounds has passed.
pub fn kill_marked(variable: &str, value: &str) {
    for _ in 0..50 {
        let found = marked(variable, value);
        if found.is_empty() {
            return;
        }
        for pid in found {
            // Gone already: nothing to do.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::yield_now();
    }
}
