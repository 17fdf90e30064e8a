//! Process 1 of a container: it starts the program, passes signals on, reaps, and ends what is left when the program has ended.

use super::{Answer, Ask, launcher::ends_of_children, wire};
use crate::runtime::program::Program;
use nix::sys::signal::kill;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::statfs,
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait},
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
};

/// Tables of memory that is shared by name, in a namespace of its own.
const IPC: [&str; 3] = ["/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg"];
/// Bytes of the reason why a program did not start.
const REASON_MAX: usize = 4 << 10;

/// Serves until the worker is gone.
pub fn serve(worker: &UnixStream, program: &Program) -> io::Result<()> {
    let ended = ends_of_children()?;
    let clean = left_behind();
    let mut running: Option<Pid> = None;
    loop {
        let mut fds = [PollFd::new(worker, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        if let Err(error) = poll(&mut fds, None)
            && error != rustix::io::Errno::INTR
        {
            return Err(error.into());
        }
        let (asked, children) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if children {
            while ended.read_signal()?.is_some() {}
            if let Some(status) = reap(&mut running) {
                end_all();
                let (code, signal) = (status.exit_status(), status.terminating_signal());
                let used = left_behind() != clean;
                wire::send(worker, &Answer::Ended { code, signal, used }, &[], false)?;
            }
        }
        if asked {
            let Some((ask, fds)) = wire::receive::<Ask>(worker, wire::ASK_MAX)? else { return Ok(()) };
            match ask {
                Ask::Run(more) => {
                    let answer = match start(program, more, fds) {
                        Ok(pid) => {
                            running = Some(pid);
                            Answer::Started
                        }
                        Err(why) => Answer::NotStarted(capstan_common::input::end_of(&why, REASON_MAX).to_owned()),
                    };
                    wire::send(worker, &answer, &[], false)?;
                }
                Ask::Signal(number) => {
                    if let (Some(pid), Some(signal)) = (running, Signal::from_named_raw(number)) {
                        // Its own group, with what it started there; gone is fine.
                        let _ = kill_process_group(pid, signal);
                    }
                }
            }
        }
    }
}

fn start(program: &Program, more: BTreeMap<String, String>, fds: Vec<OwnedFd>) -> Result<Pid, String> {
    let [stdin, stdout, stderr] =
        <[OwnedFd; 3]>::try_from(fds).map_err(|_| "its three descriptors did not come along".to_owned())?;
    let seen = Path::to_path_buf;
    let found = program.find(seen).unwrap_or_else(|| PathBuf::from(program.name()));
    let mut command = program.command(&found);
    command.envs(more).stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    let child = command.spawn().map_err(|error| program.not_started(&error, seen))?;
    Ok(Pid::from_child(&child))
}

/// Takes note of all that has ended; answers how the program did, if it is among them.
fn reap(running: &mut Option<Pid>) -> Option<WaitStatus> {
    let mut over = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if *running == Some(pid) {
            *running = None;
            over = Some(status);
        }
    }
    over
}

/// Ends everything in the namespace but ourselves: nothing can be born while the kernel goes through it.
fn end_all() {
    // Nobody left is fine.
    let _ = kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
    while wait(WaitOptions::empty()).is_ok() {}
}

/// What a program can leave behind here: files of its scratch, of /tmp and of /dev/shm, and shared memory.
fn left_behind() -> (Option<u64>, [usize; 3]) {
    let files = statfs("/dev/shm").ok().map(|found| found.f_ffree);
    let lines = |path| fs::read_to_string(path).map_or(0, |table| table.lines().count());
    (files, IPC.map(lines))
}
